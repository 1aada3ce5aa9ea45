"""Reading the input of a bulk job: every format, every bad row, places and ids."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sce.bulk.corpus import (
    Columns,
    column_names,
    join_plans,
    open_corpus,
    plan_file,
)
from sce.bulk.output import OutputRun
from sce.bulk.reading import PLACE_BITS, read_shard, read_texts
from sce.datasets.readers import read_records
from sce.errors import DataError

ROWS = [{"id": f"t{i}", "text": f"text {i}", "n": i} for i in range(5)]


def read(inputs, columns) -> pa.Table:
    corpus = open_corpus(inputs)
    shards = join_plans([plan_file(f, i, columns) for i, f in enumerate(corpus.files)])
    tables = [table for shard in shards for table in read_shard(shard, columns)]
    assert sum(shard.rows for shard in shards) == sum(table.num_rows for table in tables)
    return pa.concat_tables(tables)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write(folder, kind):
    path = folder / f"rows{kind}"
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind.startswith(".jsonl"):
        lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        path.write_bytes(gzip.compress(lines) if kind.endswith(".gz") else lines)
    else:
        mark = "," if kind == ".csv" else "\t"
        lines = [mark.join(map(str, row.values())) for row in ROWS]
        path.write_text("\n".join([mark.join(ROWS[0]), *lines]) + "\n")
    return str(path)


@pytest.mark.parametrize("kind", [".parquet", ".jsonl", ".jsonl.gz", ".csv", ".tsv"])
def test_every_format_gives_the_same_rows(tmp_path, kind):
    table = read([write(tmp_path, kind)], Columns(id="id", keep=("n",)))
    assert table["id"].to_pylist() == ["t0", "t1", "t2", "t3", "t4"]
    assert table["text"].to_pylist() == [row["text"] for row in ROWS]
    assert table["place"].to_pylist() == [0, 1, 2, 3, 4]
    assert set(table["error"].to_pylist()) == {""}
    kept = [0, 1, 2, 3, 4] if kind == ".parquet" else ["0", "1", "2", "3", "4"]
    assert table["keep.n"].to_pylist() == kept


def test_ids_are_made_from_places_in_several_files(tmp_path):
    (tmp_path / "sub").mkdir()
    write_jsonl(tmp_path / "a.jsonl", ROWS[:2])
    write_jsonl(tmp_path / "sub" / "b.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "_hidden.jsonl", ROWS)
    (tmp_path / "README.md").write_text("not data")
    for given in (str(tmp_path), str(tmp_path / "**" / "[ab].jsonl"), f"file://{tmp_path}"):
        table = read([given], Columns())
        assert [i.rpartition("/")[2] for i in table["id"].to_pylist()] == [
            "a.jsonl:1",
            "a.jsonl:2",
            "b.jsonl:1",
        ]
        assert table["place"].to_pylist() == [0, 1, 1 << PLACE_BITS]


def test_equal_file_names_get_distinct_ids(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "a.jsonl", ROWS[:1])
    table = read([str(tmp_path / "x"), str(tmp_path / "y")], Columns())
    assert len(set(table["id"].to_pylist())) == 2


def test_a_parquet_file_is_read_by_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("sce.bulk.corpus.SHARD_ROWS", 25)
    table = pa.table({"text": [f"t{i}" for i in range(100)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    corpus = open_corpus([str(tmp_path)])
    shards = plan_file(corpus.files[0], 0, Columns()).shards
    assert [(s.first_row, s.rows) for s in shards] == [(0, 30), (30, 30), (60, 30), (90, 10)]
    rows = read([str(tmp_path)], Columns())
    assert rows["place"].to_pylist() == list(range(100))
    assert rows["id"][99].as_py() == "a.parquet:100"


def test_bad_lines_and_values_are_rows_with_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "fine", "labels": ["a"]}\n'
        b"not json\n"
        b"\n"
        b'["a list"]\n'
        b'{"text": "\xff"}\n'
        b'{"text": 5, "labels": "a"}\n'
        b'{"text": "\\ud800", "labels": ["a", 3]}\n'
        b'{"labels": null}\n'
    )
    table = read([str(path)], Columns(labels="labels"))
    assert table["error"].to_pylist() == [
        "",
        "line_unreadable",
        "line_unreadable",
        "line_not_utf8",
        "text_not_string",
        "text_not_unicode",
        "",
    ]
    assert table["id"].to_pylist()[1:3] == ["a.jsonl:2", "a.jsonl:4"]
    assert table["labels"].to_pylist()[0] == ["a"]


def test_csv_rows_that_are_broken_and_labels_as_json(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'text,labels\n"one\nline","[""a"", ""b""]"\ntoo,many,fields\n'
        b"\xff,\nx,not json\n\xc3\x9f,\n"
    )
    table = read([str(path)], Columns(labels="labels"))
    assert table["error"].to_pylist() == [
        "",
        "line_unreadable",
        "line_not_utf8",
        "labels_not_a_list",
        "",
    ]
    assert table["labels"].to_pylist() == [["a", "b"], None, None, None, None]


def test_embeddings_of_jsonl(tmp_path):
    rows = [{"v": [1, 0.5]}, {"v": "x"}, {"v": [1, None]}, {"v": [1e400]}, {"v": [10**400]}, {}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    table = read([path], Columns(text=None, embedding="v"))
    codes = ["", "embedding_not_numbers", "embedding_not_numbers", "", "embedding_not_numbers", ""]
    assert table["error"].to_pylist() == codes
    assert table["embedding"][0].as_py() == [1, 0.5]
    assert np.isinf(table["embedding"][3].as_py()[0])


def test_parquet_text_that_is_not_unicode(tmp_path):
    raw = pa.array([b"fine", b"\xff\xfe"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    table = read([str(tmp_path)], Columns())
    assert table["error"].to_pylist() == ["", "text_not_unicode"]
    assert table["text"].to_pylist() == ["fine", None]


def test_kept_json_fields_stay_json_for_json_output(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"text": "t", "x": {"a": [1]}}, {"text": "t", "x": "s"}]
    )
    assert read([path], Columns(keep=("x",)))["keep.x"].to_pylist() == ['{"a": [1]}', "s"]
    raw = read([path], Columns(keep=("x",), raw_json=True))
    assert raw["keep.x"].to_pylist() == ['{"a": [1]}', '"s"']


@pytest.mark.parametrize(
    ("files", "columns", "message"),
    [
        ({}, Columns(), "nothing to read at"),
        ({"a.jsonl": [{"body": "x"}]}, Columns(), "no column 'text'. It has: body"),
        ({"a.jsonl": [{"text": "x"}]}, Columns(id="key"), "no column 'key'"),
        ({"a.parquet": {"text": [1, 2]}}, Columns(), "type int64; text is needed"),
        ({"a.parquet": {"text": ["x"], "v": ["y"]}}, Columns(text=None, embedding="v"), "floating"),
        ({"a.parquet": {"text": ["x"], "l": [1]}}, Columns(labels="l"), "a list of texts"),
        ({"a.parquet": {"text": ["x"], "i": [True]}}, Columns(id="i"), "numbers or UUIDs"),
        ({"a.jsonl": [{"text": "x"}], "b.parquet": {"text": ["x"]}}, Columns(), "several kinds"),
        (
            {"a.parquet": {"text": ["x"], "n": [1]}, "b.parquet": {"text": ["x"], "n": ["1"]}},
            Columns(keep=("n",)),
            "which no type holds",
        ),
        ({"a.parquet": {"text": pa.array([], pa.string())}}, Columns(), "no rows"),
    ],
)
def test_an_input_that_cannot_be_used_is_refused(tmp_path, files, columns, message):
    for name, content in files.items():
        if name.endswith(".parquet"):
            pq.write_table(pa.table(content), tmp_path / name)
        else:
            write_jsonl(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        read([str(tmp_path)], columns)


@pytest.mark.parametrize("given", ["nothing/here", "nothing-*.jsonl", "nowhere://bucket/x"])
def test_an_input_that_is_not_there(given):
    with pytest.raises(DataError):
        open_corpus([given])


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"a\.parquet: not readable as Parquet"):
        read([str(tmp_path)], Columns())
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:-20])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz"):
        read([str(tmp_path)], Columns())


def test_a_file_named_twice_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(DataError, match="named twice"):
        open_corpus([path, str(tmp_path)])


def test_texts_are_looked_up_by_id(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    corpus = open_corpus([str(tmp_path)])
    columns = Columns(id="id")
    shards = plan_file(corpus.files[0], 0, columns).shards
    assert read_texts(shards, columns, ["t3", "t1", "none"]) == {"t1": "text 1", "t3": "text 3"}


@pytest.mark.parametrize("kind", [".parquet", ".csv"])
def test_the_columns_of_a_file_with_a_header(tmp_path, kind):
    assert column_names(open_corpus([write(tmp_path, kind)])) == ["id", "text", "n"]


def test_the_fields_of_json_lines_are_those_of_every_line(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}] * 200 + [{"text": "y", "late": 1}])
    assert column_names(open_corpus([str(tmp_path)])) == ["text", "late"]


def test_what_an_unfinished_job_has_written_is_no_input(tmp_path):
    run = OutputRun.open(str(tmp_path / "answers"), {"job": "classify"})
    run.save()
    (tmp_path / "answers" / "part-00000").mkdir()
    write(tmp_path / "answers" / "part-00000", ".jsonl")
    with pytest.raises(DataError, match="what an unfinished job has written so far"):
        open_corpus([str(tmp_path / "answers")])
    run.finish({"rows_out": 3})
    assert len(open_corpus([str(tmp_path / "answers")]).files) == 1


@pytest.mark.parametrize("name", ["in.csv", "in.parquet", "in.tsv"])
def test_a_column_name_that_stands_twice_is_refused(tmp_path, name):
    file = tmp_path / name
    if name == "in.parquet":
        columns = [pa.array(["a"])] * 3
        pq.write_table(pa.Table.from_arrays(columns, names=["text", "lang", "text"]), file)
    else:
        comma = "\t" if name == "in.tsv" else ","
        file.write_text(f"text{comma}lang{comma}text\na{comma}en{comma}b\n")
    with pytest.raises(DataError, match=r"in\.\w+: a column.s name stands there twice"):
        plan_file(open_corpus([str(file)]).files[0], 0, Columns())
    with pytest.raises(DataError, match="name stands there twice"):
        list(read_records(file))


def test_labels_nested_without_end_are_an_error_of_their_row(tmp_path):
    deep = "[" * 100_000
    (tmp_path / "a.csv").write_text(f'text,names\na,"[""x""]"\nb,{deep}\n')
    columns = Columns(labels="names")
    (file,) = open_corpus([str(tmp_path)]).files
    (shard,) = plan_file(file, 0, columns).shards
    (table,) = read_shard(shard, columns)
    assert table["error"].to_pylist() == ["", "labels_not_a_list"]
