"""Rows that no label fits: which are looked at, and how they are grouped."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from sce.bulk import unlabelled
from sce.bulk.display import print_summary
from sce.bulk.unlabelled import Unlabelled, group, to_markdown, to_table


def write(path, places, labels, errors):
    columns = {"key": [f"t{place}" for place in places], "label": pa.array(labels, pa.string())}
    columns |= {"error": pa.array(errors, pa.string()), "place": pa.array(places, pa.int64())}
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_rows_without_a_label_and_without_an_error(tmp_path, monkeypatch):
    places = list(range(100))
    labels = [None if place % 2 else "billing" for place in places]
    errors = ["text_empty" if place < 10 and place % 2 else None for place in places]
    whole = write(tmp_path / "whole.parquet", places, labels, errors)
    found = Unlabelled.read([whole], "parquet", "key")
    assert found.rows == 45
    assert set(found.ids) == {f"t{place}" for place in range(11, 100, 2)}

    monkeypatch.setattr(unlabelled, "SAMPLE", 12)
    parts = [
        write(tmp_path / f"{name}.parquet", places[cut], labels[cut], errors[cut])
        for name, cut in (("a", slice(60, 100)), ("b", slice(60)))
    ]
    some = Unlabelled.read([whole], "parquet", "key")
    assert (some.rows, len(some.ids)) == (45, 12)
    assert Unlabelled.read(parts, "parquet", "key") == some  # whatever the files
    assert len({int(one[1:]) // 25 for one in some.ids}) > 2  # of the whole input


def test_like_texts_are_one_group_and_the_most_typical_stand_first():
    random = np.random.default_rng(0)
    centres = np.eye(8)[:2]
    of_S = np.array([0] * 50 + [1] * 30)
    vectors_SD = centres[of_S] + 0.05 * random.standard_normal((80, 8))
    groups = group(vectors_SD)
    assert [set(of_S[mine]) for mine in groups] == [{0}, {1}]
    distance = np.linalg.norm(vectors_SD - vectors_SD[:50].mean(0), axis=1)
    assert groups[0][0] == distance[:50].argmin()

    texts = [f"text *{s}*" for s in range(80)]
    report = to_markdown(Unlabelled(200, []), 1000, texts, groups)
    assert "200 of 1,000 rows" in report
    assert "## Group 1: 62 %" in report
    assert f"- text \\*{groups[0][0]}\\*" in report  # nothing of a text is Markdown
    table = to_table([f"t{s}" for s in range(80)], groups).to_pydict()
    assert table["group"] == [1] * 50 + [2] * 30


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"threshold": 0.5}, "2 below the threshold, "),
        ({"threshold": None, "none_of_these": True}, "2 that no label fits, "),
        (
            {"threshold": None, "none_of_these": True, "none_share": 0.2},
            "2 that no label fits, ",
        ),
        (
            {"threshold": 0.5, "none_of_these": True},
            "2 that no label fits or reaches its threshold",
        ),
        ({"threshold": None, "none_of_these": True, "mode": "multi"}, "or reaches its threshold"),
    ],
)
def test_a_summary_says_why_rows_have_no_label_though_they_are_too_few_to_group(asked, said):
    shown = io.StringIO()
    summary = {"rows_out": 5, "errors": {}, "null_labels": 2, "labels": {"billing": 3}}
    summary |= {"output": "answers"} | asked
    print_summary(summary, "parquet", "id", Console(file=shown, width=80))
    words = " ".join(shown.getvalue().split())
    assert said in words
    assert ("1.0 labels on average" in words) == (asked.get("mode") == "multi")
    is_assumed = "none_of_these" in asked and "none_share" not in asked
    assert ("assumes that no label fits 10 % of the rows" in words) == is_assumed
