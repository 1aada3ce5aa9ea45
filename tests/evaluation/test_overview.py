"""The page of an evaluation: what it shows, that nothing in it is from elsewhere or is run."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from sce.evaluation import svg
from sce.evaluation.evaluate import EvaluationSet, VectorMethod, evaluate_sets
from sce.evaluation.overview import MATRIX_LABELS, overview, reliability_of
from sce.evaluation.settings import EvaluateConfig
from sce.labels import LabelSet
from sce.model.calibration import Temperature

EVIL = "<script>alert('x')</script>"
CONFIG = EvaluateConfig(flip_shuffles=0)
COST = {
    "texts_per_second": 50.0, "embedded_texts_per_second": 900.0, "peak_memory_bytes": 5e8,
    "flops_per_text": 2e9, "embedded_flops_per_text": 3e7, "rows": 4, "device": "cpu",
}  # fmt: skip
DESCRIBED = {
    key: {"title": "a method", "model": "tiny", "parameters": 1e6, "seed": 0, "note": EVIL,
          "cost": COST} for key in ("sce", "cosine")
}  # fmt: skip


class ByCoordinate(VectorMethod):
    """A label's score is the row's coordinate at its place."""

    def __init__(self, name, sign=1.0):
        self.name = name
        super().__init__(lambda v_ND, labels: sign * 4 * v_ND[:, : len(labels)], Temperature())

    def describe(self, sets):
        return DESCRIBED[self.name]


def rows(name="tickets", names=("red", "green", EVIL), size=30, group="unseen", own=False):
    """Vectors that point at the right label, but for the first two rows: "green" for the first."""
    labels = LabelSet.parse(list(names))
    targets = np.arange(size) % len(labels)
    vectors = np.eye(len(labels), dtype=np.float32)[targets]
    vectors[:2] = np.eye(len(labels))[1]
    return EvaluationSet(
        name, name.split("/")[0], group, labels, [f"{name}:{i}" for i in range(size)],
        [f"{EVIL} text {i} $title" for i in range(size)], [labels.names[t] for t in targets],
        vectors, own=own,
    )  # fmt: skip


def page(*sets, name="a run"):
    return overview(
        name, evaluate_sets(sets, [ByCoordinate("sce"), ByCoordinate("cosine", -1)], CONFIG),
        DESCRIBED,
    )  # fmt: skip


class Reader(HTMLParser):
    """Tags in order, those that stand open, and the words."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words, self.attributes = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_what_users_wrote_is_shown_and_not_run():
    text = page(rows(name=f"my {EVIL}", own=True), name=EVIL)
    found = Reader(text)
    assert not found.open
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    names = {name for name, _ in found.attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"href", "src"}
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text
    words = "".join(found.words)
    assert f"{EVIL} text 0 $title" in words  # the text that was answered wrongly, to the letter
    assert f"my {EVIL}" in words
    assert f"a method: tiny, seed 0. {EVIL}." in words


def test_confusions_are_those_that_were_made_with_their_texts():
    words = "".join(Reader(page(rows())).words)
    assert "red taken for green 1 of 10 rows, 10%" in words
    assert "text 0 $title" in words
    assert not [i for i in range(1, 30) if f"text {i} $title" in words], "these were right"
    assert "9 of 10 right (90%)" in words  # of red; of the others all
    assert words.count("10 of 10 right (100%)") == 2
    assert f"SCE answers {100 * 29 / 30:.1f} % rightly (tickets, 30 rows)" in words


def test_texts_are_left_out_where_they_must_not_be_seen():
    evaluated = evaluate_sets([rows()], [ByCoordinate("sce"), ByCoordinate("cosine", -1)], CONFIG)
    text = overview("a run", evaluated, DESCRIBED, texts=False)
    assert "red</b> taken for <b>green" in text
    assert not re.search(r"text \d", text)


def test_the_page_is_about_the_rows_of_the_user():
    many = [rows(f"starter/{i}", ("a", "b", "c"), 9) for i in range(MATRIX_LABELS)]
    text = page(*many, rows(group="seen", own=True))
    words = "".join(Reader(text).words)
    assert "(tickets, 30 rows)" in words
    assert re.findall("<h3>(.*?)</h3>", text) == ["tickets (seen)"]
    assert "starter: mean of 30 sets" in words
    assert "Every label set" in words  # a dot for each
    assert words.index("tickets") < words.index("starter")


def test_without_rows_of_the_user_the_largest_unseen_sets_are_shown():
    sets = [rows(f"s/{i}", ("a", "b"), 4 + 2 * i) for i in range(5)]
    text = page(*sets, rows("seen", group="seen", size=60))
    assert "(5 unseen label sets, 40 rows)" in text
    assert re.findall("<h3>(.*?)</h3>", text) == [f"s/{i} (unseen)" for i in (4, 3, 2)]
    assert "The largest of 5 unseen sets." in text


def test_many_labels_have_their_confusions_and_no_matrix():
    names = [f"label {i}" for i in range(MATRIX_LABELS + 1)]
    text = page(rows(names=names, size=62))
    assert "too many for a matrix" in text
    assert "label 0</b> taken for <b>label 1" in text
    assert "Confusion matrix" not in text


def test_reliability_is_counted_by_bins():
    (one,) = evaluate_sets([rows()], [ByCoordinate("sce")], CONFIG)
    sure = float(np.exp(4) / (np.exp(4) + 2))  # of the answer to each row, whichever it is
    assert reliability_of(one.predictions, "sce") == [
        (pytest.approx(sure), pytest.approx(29 / 30), 30)
    ]


def test_a_method_alone_has_a_page_too():
    evaluated = evaluate_sets([rows()], [ByCoordinate("cosine")], CONFIG)
    words = "".join(Reader(overview("cosine", evaluated, DESCRIBED)).words)
    assert "cosine answers" in words
    assert "points between" not in words


def test_shares_lie_within_the_chart():
    marks = [svg.Mark(0, 1.2, -0.1, 1.3, "120"), svg.Mark(1, 0.5)]
    drawn = svg.intervals([svg.Bar("<b>", "", marks)])
    assert 'cx="100.00%"' in drawn
    assert 'x1="0.00%" x2="100.00%"' in drawn
    assert "&lt;b&gt;" in drawn
