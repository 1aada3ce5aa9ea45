"""Every file form gives the same rows; every kind of damage names its place."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sce.datasets.columns import Columns, raise_bad, read_rows
from sce.datasets.readers import BadRow, Record, read_records
from sce.errors import DataError

ROWS = [
    {"text": 'He said "go",\nand left', "label": "a"},
    {"text": "Überraschung\u2028zwei", "label": "b"},
]


def write(path, rows):
    columns = list(rows[0])
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    if ".csv" in path.suffixes:
        plain = path.with_name("plain")
        with plain.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        data = plain.read_bytes()
    else:
        data = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.csv.gz", "a.parquet"]
)
def test_every_form_gives_the_same_rows(tmp_path, name):
    write(tmp_path / name, ROWS)
    assert [dict(r.fields) for r in read_records(tmp_path / name)] == ROWS


def test_byte_order_mark_and_blank_lines_are_no_data(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "x", "label": "a"}\n\n{"text": "y", "label": "b"}\n\n')
    assert [r.line for r in read_records(path)] == [1, 3]


def test_csv_without_header_takes_the_given_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1,question,more\n2,other,\n")
    records = list(read_records(path, ("class", "title", "content")))
    assert records[0].fields == {"class": "1", "title": "question", "content": "more"}
    path.write_text("class,title,content\n2,other,\n")
    assert [r.fields["class"] for r in read_records(path, ("class", "title"))] == ["2"]


def test_tsv_has_no_quotes(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('label\ttext\nx\t"half a quote\ny\tnext\n')
    assert [r.fields["text"] for r in read_records(path)] == ['"half a quote', "next"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "x", "label": "a"}\n{oops\n', "a.jsonl:2: not a line of JSON"),
        ("a.jsonl", b'{"text": "x", "label": "a"}\n[1]\n', "a.jsonl:2: a JSON list"),
        ("a.jsonl", b'{"text": "x", "label": "a"}\n\xff\xfe\n', "a.jsonl:2: not UTF-8"),
        ("a.csv", "text,label\nß,a\n".encode() + b"\xff,b\n", "a.csv:3: not UTF-8"),
        ("a.csv", b"text,label\nx,a\ny\n", "a.csv:3: 1 fields, but the columns are 2"),
        ("a.csv", b'text,label\n"x,a\n', "a.csv:2: not readable as CSV"),
        ("a.jsonl.gz", b"not gzip at all", "a.jsonl.gz: damaged gz"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x", "label": "a"}\n' * 99, mtime=0)[:-12],
            "damaged gz",
        ),
        ("a.parquet", b"PAR1 no", "a.parquet: not readable as Parquet"),
        ("a.xlsx", b"", "a.xlsx: not readable as a workbook"),
        ("a.md", b"", "a.md: not a table file.*Allowed: JSONL"),
        ("a.jsonl", b'{"txt": "x", "label": "a"}\n', "no column text. Its columns: txt, label"),
        ("a.jsonl", b'{"text": " ", "label": "a"}\n', "a.jsonl:1: text is empty"),
        ("a.jsonl", b'{"text": 5, "label": "a"}\n', "a.jsonl:1: 'text' is a int"),
        ("a.jsonl", b'{"text": "\\ud800", "label": "a"}\n', "a.jsonl:1: .*lone surrogate"),
        ("a.jsonl", b'{"text": "x", "label": null}\n', "a.jsonl:1: 'label' is empty"),
        ("a.jsonl", b'{"text": "x", "labels": ["a", "b"]}\n', "a.jsonl:1: .*2 labels; exactly one"),
        ("a.jsonl", b'{"text": "x", "label": "a", "split": "dec"}\n', "split 'dec'. Allowed"),
    ],
)
def test_damage_names_its_place(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(read_rows(path, Columns(), raise_bad))


def test_absent_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        list(read_records(tmp_path / "none.jsonl"))
    (tmp_path / "f.jsonl").mkdir()
    with pytest.raises(DataError, match="a folder"):
        list(read_records(tmp_path / "f.jsonl"))


@given(data=st.binary(max_size=200))
def test_wild_bytes_are_records_or_bad_rows_never_a_crash(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("wild")
    for name in ("a.jsonl", "a.csv", "a.jsonl.gz"):
        path = folder / name
        path.write_bytes(data)
        try:
            items = list(read_records(path))
        except DataError:
            continue
        assert all(isinstance(item, Record | BadRow) for item in items)


def test_the_names_of_class_labels_stand_in_the_metadata_of_hugging_face(tmp_path):
    names = ["late delivery", "billing"]
    about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["a", "b", "c"], "label": [1, 0, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, tmp_path / "a.parquet")
    found = [record.fields["label"] for record in read_records(tmp_path / "a.parquet")]
    assert found == ["billing", "late delivery", None]


def test_text_parts_are_joined_and_empty_parts_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"headline": "Head", "short_description": "More", "category": "X"},
        {"headline": "Head", "short_description": "", "category": "X"},
    ]
    write(path, rows)
    columns = Columns(text=(("headline", "short_description"), ("text",)), label=("category",))
    assert [r.text for r in read_rows(path, columns, raise_bad)] == ["Head More", "Head"]
