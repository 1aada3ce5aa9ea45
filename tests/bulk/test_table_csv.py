"""The CSV that spreadsheets open: what is written, and that it is read back as it was."""

import csv
import io
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sce.bulk import table_csv
from sce.bulk.classifier import SCORES, TOP
from sce.bulk.output import read_rows
from sce.bulk.table_csv import write_csv

PAGE = Path(__file__).resolve().parents[2] / "serve" / "page.html"
UNSEEN = {
    "control": "\x00\x01\x1f\x7f\x85",
    "format": "\u00ad\u061c\u200b\u200e\u202e\u2060\u2066\ufeff\U000e0001",
    "space": " \t\r\n\v\u00a0\u1680\u2003\u2028\u2029\u202f\u3000",
}
STARTS = "=+-@＝＋－＠"
"""What a spreadsheet begins a formula with."""
WILD = st.text(
    st.one_of(
        st.sampled_from("".join(UNSEEN.values()) + STARTS + "'.,019x"),
        st.characters(exclude_categories=["Cs"]),
    )
)


def written(table: pa.Table, labels=None) -> list[list[str]]:
    file = io.BytesIO()
    write_csv(table, file, labels)
    raw = file.getvalue()
    assert raw.startswith(b"\xef\xbb\xbf")
    return list(csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline="")))


@pytest.mark.parametrize("text", ["=1+1", "+49 30", "-x", "@name", " =1", "＝1", "\t=", "\tx"])
def test_a_formula_gets_a_mark_and_a_number_none(text):
    table = pa.table({"text": [text, "plain", "-12,5", "3"], "score": [-1.0, 2.0, 3.0, 4.0]})
    _, *rows = written(table)
    assert [row[0] for row in rows] == ["'" + text, "plain", "-12,5", "3"]
    assert rows[0][1] == "-1"


def test_several_labels_stand_by_their_names_in_one_field():
    several = [[{"label": "late", "score": 0.9}, {"label": "=x", "score": 0.6}], [], None]
    table = pa.table({"labels": pa.array(several, TOP)})
    assert written(table)[1:] == [["late; =x"], [""], []]
    kept = pa.table({"labels": pa.array([["a", "b"]])})  # of the input: as it was
    assert written(kept)[1] == ['["a", "b"]']


@pytest.mark.parametrize("kind", UNSEEN)
@pytest.mark.parametrize("start", STARTS)
def test_a_formula_behind_what_is_not_seen_gets_a_mark(kind, start):
    unseen = UNSEEN[kind]
    texts = [f"{character}{start}cmd" for character in unseen]
    texts += [f"{unseen}{start}1", f"{unseen * 50}{start}1"]
    plain = [f"{unseen}x{start}1", f"x{unseen}{start}1", f"{unseen}1{start}1"]
    plain = [text for text in plain if text[0] not in "\t\r\n"]
    found = guard(texts + plain)
    assert found == ["'" + text for text in texts] + plain


def guard(texts: list[str]) -> list[str]:
    return table_csv._guarded(pa.array(texts, pa.string())).to_pylist()


@given(st.lists(WILD, min_size=1, max_size=20))
@example(["'=1", "''=1", "'+5", "+5", "'\u200b@", "\u200b'=", "'", "", "'x", "\t", "'\n"])
def test_what_was_guarded_is_given_back_exactly(texts):
    guarded = pa.RecordBatch.from_arrays([pa.array(guard(texts), pa.string())], ["text"])
    assert table_csv.without_guards(guarded)[0].to_pylist() == texts


def test_the_page_has_the_same_rule():
    page = PAGE.read_text(encoding="utf-8")
    assert f"/{table_csv._FORMULA}/u.test(value) && !/{table_csv._NUMBER}/.test(value)" in page


def test_names_of_columns_are_no_formulas_either():
    assert written(pa.table({"=cmd()": ["x"]}))[0] == ["'=cmd()"]


def test_a_column_a_label():
    scores = pa.array([[("a", 0.25), ("b", 0.75)], None, [("a", 1.0), ("b", 0.0)]], SCORES)
    top = pa.array([[{"label": "b", "score": 0.75}], None, []], TOP)
    header, *rows = written(pa.table({"id": ["1", "2", "3"], "top": top, "scores": scores}), "ab")
    assert header == ["id", "top", "score: a", "score: b"]
    assert rows[0] == ["1", '[{"label": "b", "score": 0.75}]', "0.25", "0.75"]
    assert rows[1] == ["2", "", "", ""]
    sliced = pa.table({"scores": scores}).slice(1)
    assert written(sliced, "ab")[1:] == [["", ""], ["1", "0"]]
    assert written(pa.table({"scores": scores}))[1] == ['{"a": 0.25, "b": 0.75}']  # sets differ


def test_the_scores_of_an_earlier_output_are_kept_beside_the_new_ones():
    scores = pa.array([[("a", 0.25), ("b", 0.75)]], SCORES)
    header, row = written(pa.table({"score: a": [9.0], "scores": scores}), "ab")
    assert header == ["input_score: a", "score: a", "score: b"]
    assert row == ["9", "0.25", "0.75"]


def test_a_way_down_a_tree_is_its_nodes_with_their_probabilities():
    way = [{"label": "billing", "score": 0.82}, {"label": "billing/refund", "score": 0.314}]
    table = pa.table({"id": ["a", "b"], "path": pa.array([way, None], TOP)})
    assert written(table)[1:] == [["a", "billing 0.82; billing/refund 0.31"], ["b", ""]]
    assert written(pa.table({"path": [["a", "b"]]}))[1] == ['["a", "b"]']  # the user's own


def test_what_was_written_is_read_back(tmp_path):
    labels = ["=SUM", "two\nlines", None, "", "'quoted", '"x"']
    table = pa.table(
        {
            "place": pa.array(range(6)),
            "label": labels,
            "score": pa.array([0.5, None, 1, 0, 0.25, 0.125], pa.float32()),
            "truncated": [True, False] * 3,
            "error": pa.array([None, "text_null", None, None, None, None], pa.string()),
        }
    )
    with open(tmp_path / "part-00000_a.csv", "wb") as file:
        write_csv(table, file, None)
    columns = ["place", "label", "score", "truncated", "error"]
    batches = list(read_rows(str(tmp_path / "part-00000_a.csv"), "csv", columns))
    assert pa.Table.from_batches(batches).equals(table)
