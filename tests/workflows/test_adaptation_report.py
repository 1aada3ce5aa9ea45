"""The report of an adaptation: the same in every form, of any text, however many labels."""

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from sce.adaptation.illustration import RANDOM_QUESTIONS, illustrate
from sce.datasets.labelled import read_labelled
from sce.workflows.adaptation_report import (
    ARTIFACTS,
    Commands,
    next_steps,
    to_markdown,
    to_terminal,
    write_report,
)
from tests.tiny_adapted import WIDTH, adapted_labels, label_report, label_vectors, rows_around

COMMANDS = Commands("runs/my labels", "jobs/adapt.py --input x", "jobs/classify.py --input x")
HOSTILE = "<script>alert(1)</script>\n\n# head\n- [x](javascript:y) | `a` "
HOSTILE += "\u202eevil\u202c שלום 😀 \x1b[31m"
CHOICE = {
    "rows": 50, "chosen": "bold", "fits": [
        {"trust": "none", "accuracy": 0.7, "low": 0.6, "high": 0.8, "gain": 0.0, "gain_low": 0.0,
         "gain_high": 0.0},
        {"trust": "bold", "accuracy": 0.82, "low": 0.7, "high": 0.9, "gain": 0.12,
         "gain_low": 0.02, "gain_high": 0.22},
    ],
}  # fmt: skip


def fit(names, labels=None, a_label=8, text=None, **changed):
    """A fit and its illustration; `text` makes the row's text of its place, None leaves ids."""
    own_KD = label_vectors(len(names))
    weight_KD = np.roll(own_KD, 1, axis=0)  # everything moves
    adapted = adapted_labels(names, weight_KD, labels, **changed)
    x_ND = rows_around(own_KD, a_label)
    ids = [f"id{i}" for i in range(len(x_ND))]
    texts = None if text is None else [text(i) for i in range(len(x_ND))]
    return adapted, illustrate(adapted, ids, texts, x_ND, own_KD)


def terminal(adapted, illustration, width=80):
    console = Console(width=width, file=io.StringIO(), record=True)
    to_terminal(adapted, illustration, COMMANDS, console)
    return console.export_text()


class Page(HTMLParser):
    """Tags of a page and its text."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        assert all((value or "").startswith("data:") for name, value in attrs if name == "src")

    def handle_data(self, data):
        self.text += data


def test_every_form_says_the_same(tmp_path):
    labels = [
        label_report("cats", mass_before=0.1, mass_after=0.4, took_from="news", took=0.25, rows=7),
        label_report("news", mass_before=0.5, mass_after=0.2, towards="cats", agreement=None),
        label_report("rain", seems_absent=True, adapted=False),
    ]
    adapted, illustration = fit(
        ["news", "cats", "rain"], labels, text=lambda i: f"text {i}", choice=CHOICE
    )
    write_report(tmp_path, adapted, illustration, COMMANDS)
    assert all((tmp_path / name).exists() for name in ARTIFACTS)
    assert {p.name for p in (tmp_path / "charts").iterdir()} == {"corpus.png", "shares.png"}
    markdown = (tmp_path / "report.md").read_text()
    assert markdown == to_markdown(adapted, illustration, COMMANDS)
    page = Page((tmp_path / "report.html").read_text())
    assert page.tags.count("img") == 2
    shown = terminal(adapted, illustration)
    for form in (markdown, page.text, shown):
        words = " ".join(form.split())
        for said in (
            "3 labels adapted to 400 texts",
            "Trust: default. It was assumed that most texts carry a label.",
            "+12.0 points (+2.0 to +22.0)",
            'Labels that seem to have no text: "rain"',
            "10.0 → 40.0",
            "+12.0 [+2.0, +22.0]" if form is not markdown else "+12.0 \\[+2.0, +22.0\\]",
            illustration.typical["cats"][0].text,
            illustration.moved["cats"][0].text,
            "jobs/classify.py --input x",
        ):
            assert said.replace("_", "\\_") in words or said in words
        command = "jobs/adapt.py --input x --labelled 'runs/my labels/to_label.jsonl'"
        assert command in form  # on one line, to be copied
    table = [line for line in markdown.splitlines() if "→" in line and line.startswith("|")]
    assert [line.split(" | ")[0] for line in table] == ["| cats", "| news", "| rain"]
    assert "| cats | 10.0 → 40.0 | 0.25 |  | news | 25.0 | 90.0 | 1.10 | 7 |  |" in markdown
    assert "| seems to have no text |" in markdown
    for example in [*illustration.typical["news"], *illustration.moved["news"]]:
        assert f"| {example.text} |" in markdown


def test_without_labelled_rows_there_is_no_accuracy():
    adapted, illustration = fit(["news", "cats", "rain"], text=str)
    markdown = to_markdown(adapted, illustration, COMMANDS)
    assert "Its accuracy is not known: no labelled rows were given." in markdown
    assert "## Accuracy" not in markdown


def test_the_report_is_the_same_twice(tmp_path):
    adapted, illustration = fit(["news", "cats", "rain"], text=str)
    for name in ("one", "two"):
        write_report(tmp_path / name, adapted, illustration, COMMANDS)
    files = [p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()]
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_hostile_texts_and_names(tmp_path):
    name = "<img src=x onerror=alert(1)> *b* | \u202e[q](z)"
    adapted, illustration = fit(
        [name, "$c$", "d" * 200], text=lambda i: f"{i} {HOSTILE}" + "é" * 400
    )
    write_report(tmp_path, adapted, illustration, COMMANDS)
    page = Page((tmp_path / "report.html").read_text())
    assert "script" not in page.tags
    assert page.tags.count("img") == 2
    assert "<script>alert(1)</script>" in page.text
    assert "[…]" in page.text
    markdown = (tmp_path / "report.md").read_text()
    rows = [line for line in markdown.splitlines() if "alert(1)" in line and "script" in line]
    assert rows
    for row in rows:  # one line, three cells, nothing that Markdown or HTML would read
        assert len(re.findall(r"(?<!\\)\|", row)) == 4
        assert "<" not in re.sub(r"\\<", "", row)
        assert "\\[x\\](" in row
    shown = terminal(adapted, illustration)
    for form in (page.text, markdown, shown):
        assert not {"\u202e", "\x1b"} & set(form)
    for line in (tmp_path / "to_label.jsonl").read_text().split("\n")[:-1]:
        assert HOSTILE in json.loads(line)["text"]  # whole: it is to be embedded again


def test_200_labels(tmp_path):
    names = [f"a label with quite a long name {k:03d}" for k in range(200)]
    labels = [
        label_report(name, mass_before=0.005, mass_after=0.005 + k / 1e5, took_from=names[0])
        for k, name in enumerate(names)
    ]
    adapted, illustration = fit(names, labels, 2, lambda i: f"text {i} " * 30)
    shown = terminal(adapted, illustration)
    assert shown.count("0.5 → 0.7") == 20
    assert "180 more labels, which changed less" in shown
    table = shown[: shown.index("to_label.jsonl holds")].splitlines()
    assert max(map(len, table)) <= 80
    write_report(tmp_path, adapted, illustration, COMMANDS)
    for file in ("report.md", "report.html"):
        content = (tmp_path / file).read_text()
        assert all(name in content for name in names)
    assert "<details>" in content  # and closed


def test_a_corpus_without_texts_shows_ids(tmp_path):
    adapted, illustration = fit(["news", "cats"])
    write_report(tmp_path, adapted, illustration, COMMANDS)
    best = illustration.typical["news"][0]
    assert best.text is None
    assert f"| {best.id} |" in (tmp_path / "report.md").read_text()
    first = json.loads((tmp_path / "to_label.jsonl").read_text().splitlines()[0])
    assert first["text"] is None
    assert (
        'Write the text of each id into "text"'
        in next_steps(adapted, illustration, COMMANDS)[0].said
    )


def test_an_empty_sample(tmp_path):
    adapted = adapted_labels(["news", "cats"], label_vectors(2))
    illustration = illustrate(adapted, [], None, np.empty((0, WIDTH)), label_vectors(2))
    write_report(tmp_path, adapted, illustration, COMMANDS)
    assert (tmp_path / "to_label.jsonl").read_text() == ""
    assert {p.name for p in (tmp_path / "charts").iterdir()} == {"shares.png"}
    shown = terminal(adapted, illustration)
    assert "to_label.jsonl" not in shown
    assert "jobs/classify.py --input x" in shown
    assert "Typical texts" not in (tmp_path / "report.md").read_text()


def test_the_file_to_fill_in_is_read_back_and_grows(tmp_path):
    adapted, illustration = fit(["news", "cats", "rain"], text=lambda i: f"text {i}")
    given = [("an old text", "cats")]
    write_report(tmp_path, adapted, illustration, COMMANDS, given)
    path = tmp_path / "to_label.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert list(rows[0]) == ["id", "text", "label", "answer", "second"]
    assert (rows[0]["text"], rows[0]["label"]) == given[0]
    asked = [(r["id"], r["text"], r["answer"], r["second"]) for r in rows[1:]]
    assert asked == [tuple(q) for q in (*illustration.to_label, *illustration.at_random)]
    assert not set(illustration.to_label) & set(illustration.at_random)
    assert 0 < len(illustration.at_random) <= RANDOM_QUESTIONS
    assert all(row["label"] == "" for row in rows[1:])
    rows[3]["label"] = "rain"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts, names, _ = read_labelled(path, labels=adapted.label_set)
    assert (texts, names) == (["an old text", rows[3]["text"]], ["cats", "rain"])


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_is_not_wider_than_it_is(width):
    names = ["x" * 200, "日本語" * 20, "rain"]
    adapted, illustration = fit(names, text=lambda i: f"{i} " + "日本 😀" * 40, choice=CHOICE)
    lines = terminal(adapted, illustration, width).splitlines()
    assert max(len(line) for line in lines if "jobs/" not in line) <= width
