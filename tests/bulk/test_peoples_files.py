"""Files as people have them: other dialects and encodings, folders with more than data in them."""

import bz2
import gzip
import json
import lzma
import os
import uuid
import zipfile
from pathlib import Path

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sce.bulk.corpus import Columns, column_names, join_plans, open_corpus, plan_file
from sce.bulk.listing import list_files
from sce.bulk.reading import read_shard
from sce.bulk.request import identify_input
from sce.datasets.text_form import TextForm
from sce.errors import DataError
from sce.storage import readable, rooted_place

TEXT = "id,text\n1,größer\n2,kleiner\n"


def read(given, columns=Columns(), form=TextForm()) -> tuple[pa.Table, list]:  # noqa: B008
    corpus = open_corpus([str(given)], form)
    shards = join_plans([plan_file(f, i, columns) for i, f in enumerate(corpus.files)])
    return pa.concat_tables(t for shard in shards for t in read_shard(shard, columns)), shards


def texts(given, **settings) -> list:
    table, _ = read(given, Columns(), TextForm(**settings))
    assert set(table["error"].to_pylist()) == {""}
    return table["text"].to_pylist()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (TEXT.encode(), ""),
        (TEXT.encode("utf-8-sig"), ""),
        (TEXT.encode("utf-16"), "UTF-16"),
        (TEXT.encode("utf-16-le"), "UTF-16"),
        (TEXT.encode("cp1252"), "Windows-1252"),
        (TEXT.replace(",", ";").encode("cp1252"), "Windows-1252, semicolons"),
        (TEXT.replace(",", "\t").encode("utf-16"), "UTF-16, tabs"),
        (TEXT.replace(",", "|").encode(), "bars"),
        (b"sep=;\r\n" + TEXT.replace(",", ";").replace("\n", "\r\n").encode(), "semicolons"),
        (b"sep=,\n" + TEXT.encode(), ""),
        (TEXT.replace("\n", "\r").encode(), "lines that end with CR"),
    ],
)
def test_a_csv_is_read_as_it_is_written(tmp_path, content, words):
    (tmp_path / "a.csv").write_bytes(content)
    table, shards = read(tmp_path, Columns(id="id"))
    assert table["text"].to_pylist() == ["größer", "kleiner"]
    assert table["id"].to_pylist() == ["1", "2"]
    assert shards[0].file.form.words == words
    said = open_corpus([str(tmp_path)]).reading(shards)
    assert said == ({"read_as": {"a.csv": words}} if words else {})


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("text\na; b\nc; d; e\n", ["a; b", "c; d; e"]),  # one column needs no delimiter
        ("id,text\n1,a; b\n2,c; d\n", ["a; b", "c; d"]),
        ('id;text;price\n1;"a, b";3,50\n2;c, d;4,50\n', ["a, b", "c, d"]),
        ('id,text\n1,"a;\nb"\n', ["a;\nb"]),
    ],
)
def test_the_delimiter_is_the_one_that_fits_header_and_rows(tmp_path, content, found):
    (tmp_path / "a.csv").write_text(content)
    assert texts(tmp_path) == found


def test_what_is_set_is_not_guessed(tmp_path):
    (tmp_path / "a.csv").write_bytes("text;n\nПривет, мир;1\n".encode("cp1251"))
    assert texts(tmp_path, encoding="cp1251", delimiter=";") == ["Привет, мир"]
    table, _ = read(tmp_path)  # hardly a western language
    assert table["error"].to_pylist() == ["line_not_utf8"]


def test_one_byte_of_utf8_late_in_a_long_file_decides(tmp_path):
    lines = "text\n" + "plain\n" * 300_000
    (tmp_path / "a.csv").write_bytes(lines.encode() + "größer\n".encode("cp1252"))
    assert texts(tmp_path)[-1] == "größer"
    (tmp_path / "a.csv").write_bytes(lines.encode() + b"gr\xf6\xdfer\n" + "ß\n".encode())
    table, _ = read(tmp_path)
    assert table["error"].to_pylist()[-2:] == ["line_not_utf8", ""]


@pytest.mark.parametrize(
    ("rows", "errors"),
    [
        (['1,"a" b', "2,c", "3,d"], ["line_unreadable", "", ""]),
        (['1,"never closed', "2,c", "3,d"], ["line_unreadable", "", ""]),
        (['1,"never closed', '2,"c"', "3,d"], ["line_unreadable", "", ""]),
        (["1,a", '2,"b', 'c"', '3,"d'], ["", "", "line_unreadable"]),
        (['1,"a', '2,b"', "3,c"], ["", ""]),  # a text of two lines, as far as one can see
        (['1,5" screen', '2,"5"" screen"'], ["", ""]),
    ],
)
def test_a_row_with_a_wrong_quotation_mark_costs_that_row(tmp_path, rows, errors):
    (tmp_path / "a.csv").write_text("\n".join(["id,text", *rows, ""]))
    table, _ = read(tmp_path)
    assert table["error"].to_pylist() == errors
    assert len(set(table["id"].to_pylist())) == len(errors)


def test_the_lines_of_a_csv_end_at_lf_alone_where_it_has_any(tmp_path):
    (tmp_path / "a.csv").write_bytes('text\n"one\rtext"\nfoo\u2028bar\n'.encode())
    assert texts(tmp_path) == ["one\rtext", "foo\u2028bar"]


def test_names_with_commas_and_uris_with_escapes(tmp_path):
    folder = tmp_path / "my data"
    folder.mkdir()
    for name in ("tickets, march.csv", "tickets März.csv"):
        (folder / name).write_text(TEXT)
    assert texts(folder / "tickets, march.csv") == ["größer", "kleiner"]
    uri = (folder / "tickets März.csv").as_uri()
    assert "%20" in uri
    assert "%C3%A4" in uri
    assert texts(uri) == ["größer", "kleiner"]


def pack(name: str, content: bytes) -> bytes:
    return {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    }[Path(name).suffix.lower()](content)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv.bz2", "A.CSV.XZ", "a.csv.zst", "a.jsonl.xz"])
def test_every_compression_that_pandas_writes(tmp_path, name):
    lines = "".join(json.dumps({"text": t}) + "\n" for t in ("größer", "kleiner"))
    content = (lines if "jsonl" in name else TEXT).encode()
    (tmp_path / name).write_bytes(pack(name, content))
    assert texts(tmp_path) == ["größer", "kleiner"]
    (tmp_path / name).write_bytes(pack(name, content * 99)[:-9])
    with pytest.raises(DataError, match="damaged"):
        read(tmp_path)


def test_a_zip_of_one_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.csv.zip", "w") as archive:
        archive.writestr("inner.csv", TEXT)
    assert texts(tmp_path) == ["größer", "kleiner"]
    with zipfile.ZipFile(tmp_path / "a.csv.zip", "a") as archive:
        archive.writestr("more.csv", TEXT)
    with pytest.raises(DataError, match="holds 2 files"):
        read(tmp_path)


def test_a_workbook_of_excel(tmp_path):
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["id", "text", "day", None])
    sheet.append([1, "größer", None])
    sheet.append([])
    sheet.append([2.0, 404, "x"])
    book.save(tmp_path / "a.xlsx")
    table, _ = read(tmp_path, Columns(id="id", keep=("day",)))
    assert table["id"].to_pylist() == ["1", "2"]
    assert table["text"].to_pylist() == ["größer", "404"]
    assert table["keep.day"].to_pylist() == ["", "x"]


def write_rows(path: Path, rows: list[dict] | None = None, **types) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows or [{"text": "a"}])
    for name, kind in types.items():
        table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    pq.write_table(table, path)


def test_what_a_folder_has_beside_data_is_named_and_counted(tmp_path):
    write_rows(tmp_path / "a.parquet")
    for name in ("notes.docx", ".hidden.parquet", "week1/_run.json", "week1/part-00000_x.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    for name in ("mlflow_artifacts/1/a.json", "model/model.safetensors", "model/config.json"):
        (tmp_path / name).parent.mkdir(parents=True) if not (tmp_path / name).parent.exists() else 0
        (tmp_path / name).write_text("{}")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text('{"embedder": {}}')
    write_rows(tmp_path / "store" / "part.parquet")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "manifest.json").write_text('{"made": "by someone else"}')
    listing = list_files(str(tmp_path / "**" / "*.parquet"))
    assert [file.name for file in listing.files] == ["a.parquet"]
    with pytest.raises(DataError, match="several kinds"):  # `theirs` is the user's, and is no table
        open_corpus([str(tmp_path)])
    (tmp_path / "theirs" / "manifest.json").unlink()
    corpus = open_corpus([str(tmp_path)])
    assert [file.name for file in corpus.files] == ["a.parquet"]
    assert corpus.reading([])["passed_over"] == {
        "files": 9,
        "reasons": {
            "in the output of a job": 2,
            "in a model": 2,
            "in an embedding store": 2,
            "not a table file": 1,
            'named with a "_" or "." in front': 1,
            "MLflow's": 1,
        },
        "names": sorted(corpus.passed_over),
    }
    # Named itself, an output is an input like any other.
    (tmp_path / "week1" / "_run.json").unlink()
    assert list_files(str(tmp_path / "week1")).files[0].name == "part-00000_x.parquet"


def test_linked_folders_are_read_once(tmp_path):
    write_rows(tmp_path / "elsewhere" / "b.parquet")
    write_rows(tmp_path / "in" / "a.parquet")
    (tmp_path / "in" / "week2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "in" / "pipe.parquet")
    listing = list_files(str(tmp_path / "in"))
    assert [file.name for file in listing.files] == ["a.parquet", "week2/b.parquet"]
    assert listing.passed_over == {
        "up/": "a link to a folder that is read already",
        "gone": "a broken link",
        "pipe.parquet": "not a regular file",
    }


def test_a_link_does_not_take_the_name_of_a_folder_beside_it(tmp_path):
    """Ids are made from names: a link that comes later must not change them."""
    write_rows(tmp_path / "week1" / "a.parquet")
    (tmp_path / "all").symlink_to(tmp_path / "week1")
    (tmp_path / "one" / "deep").mkdir(parents=True)
    (tmp_path / "one" / "deep" / "again").symlink_to(tmp_path / "all")
    listing = list_files(str(tmp_path))
    assert [file.name for file in listing.files] == ["week1/a.parquet"]
    assert list(listing.passed_over) == ["all/", "one/deep/again/"]


def test_links_are_followed_and_said_and_below_a_root_passed_over(tmp_path):
    write_rows(tmp_path / "secret" / "b.parquet")
    write_rows(tmp_path / "in" / "a.parquet")
    write_rows(tmp_path / "in" / ".hidden" / "c.parquet")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "secret")
    (tmp_path / "in" / "x.parquet").symlink_to(tmp_path / "secret" / "b.parquet")
    os.mkfifo(tmp_path / "in" / "pipe.csv")
    corpus = open_corpus([str(tmp_path / "in")])
    assert corpus.links == {
        "folder": str(tmp_path / "secret"),
        "x.parquet": str(tmp_path / "secret" / "b.parquet"),
    }
    assert corpus.reading([])["links_followed"] == corpus.links
    for given in ("in", "in/", "in/*.parquet", "in/**/*.parquet", "**/[ab].parquet"):
        uri = rooted_place(f"{tmp_path}/{given}", [str(tmp_path / "in"), str(tmp_path)])
        listing = list_files(uri)
        names = [readable(file.uri) for file in listing.files]
        wanted = [tmp_path / "in" / "a.parquet"]
        if given.startswith("**"):
            wanted.append(tmp_path / "secret" / "b.parquet")
        assert names == list(map(str, wanted))
        if given.startswith("in/") and not given.endswith("et"):
            assert set(listing.passed_over) == {
                *("folder", "x.parquet", "pipe.csv", ".hidden/c.parquet"),
            }


def test_a_touched_file_is_unchanged_and_a_changed_one_is_not(tmp_path):
    (tmp_path / "a.csv").write_text(TEXT)
    before = identify_input(open_corpus([str(tmp_path)]))
    os.utime(tmp_path / "a.csv", (1, 1))
    after = identify_input(open_corpus([str(tmp_path)]))
    assert before[0]["modified"] != after[0]["modified"]
    assert before[0]["content"] == after[0]["content"]
    (tmp_path / "a.csv").write_text(TEXT.replace("kleiner", "grosser"))
    assert identify_input(open_corpus([str(tmp_path)]))[0]["content"] != before[0]["content"]


def test_the_columns_that_folders_name(tmp_path):
    write_rows(tmp_path / "year=2024" / "team=A%20B" / "a.parquet")
    write_rows(tmp_path / "year=2025" / "team=__HIVE_DEFAULT_PARTITION__" / "a.parquet")
    columns = Columns(keep=("year", "team"))
    table, _ = read(tmp_path, columns)
    assert table["keep.year"].to_pylist() == ["2024", "2025"]
    assert table["keep.team"].to_pylist() == ["A B", None]
    assert column_names(open_corpus([str(tmp_path)])) == ["text", "year", "team"]
    for file in tmp_path.rglob("*.parquet"):
        file.with_suffix(".csv").write_text(TEXT)
        file.unlink()
    assert read(tmp_path, columns)[0]["keep.year"].to_pylist() == ["2024"] * 2 + ["2025"] * 2


@pytest.mark.parametrize(
    ("one", "other", "joined"),
    [
        (pa.string(), pa.null(), pa.string()),
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int64(), pa.float64(), pa.float64()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string(), pa.string()),
        (pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("us")),
    ],
)
def test_types_that_differ_from_file_to_file_are_joined(tmp_path, one, other, joined):
    for name, kind in (("a", one), ("b", other)):
        value = "x" if pa.types.is_string(kind) or pa.types.is_dictionary(kind) else 1
        value = None if pa.types.is_null(kind) else value
        k = pa.array([value], kind.value_type if pa.types.is_dictionary(kind) else kind).cast(kind)
        pq.write_table(pa.table({"text": ["t"], "k": k}), tmp_path / f"{name}.parquet")
    empty = pa.table({"text": pa.array([], pa.string()), "k": pa.array([], pa.bool_())})
    pq.write_table(empty, tmp_path / "c.parquet")  # what has no rows has no say
    table, _ = read(tmp_path, Columns(keep=("k",)))
    assert table.schema.field("keep.k").type == joined
    assert table["keep.k"][0].as_py() is not None


def test_all_columns_of_files_that_differ(tmp_path):
    write_rows(tmp_path / "a.parquet", [{"text": "a", "x": 1}])
    write_rows(tmp_path / "b.parquet", [{"text": "b", "y": "z"}])
    names = column_names(open_corpus([str(tmp_path)]))
    table, _ = read(tmp_path, Columns(keep=tuple(names), some_lack=True))
    assert table["keep.x"].to_pylist() == [1, None]
    assert table["keep.y"].to_pylist() == [None, "z"]


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (np.array([1.0, 2.5, np.nan]), ["1", "2.5", None]),
        (pa.array([uuid.UUID(int=7).bytes, None], pa.binary(16)).cast(pa.uuid()), None),
        (pa.array([1, 2], pa.uint8()), ["1", "2"]),
        (pa.array([1.5, 2e300]), ["1.5", "2e+300"]),
    ],
)
def test_ids_of_numbers_and_uuids(tmp_path, ids, found):
    pq.write_table(pa.table({"text": ["t"] * len(ids), "i": ids}), tmp_path / "a.parquet")
    table, _ = read(tmp_path, Columns(id="i"))
    assert table["id"].to_pylist() == (found or [str(uuid.UUID(int=7)), None])


def test_what_a_glob_matches_and_is_no_file_is_said(tmp_path):
    write_rows(tmp_path / "a.parquet")
    os.mkfifo(tmp_path / "pipe.parquet")
    (tmp_path / "zero.parquet").symlink_to("/dev/zero")
    for given in (str(tmp_path), f"{tmp_path}/*.parquet"):
        assert len(list_files(rooted_place(given, [str(tmp_path)])).passed_over) == 2
        listing = list_files(given)
        assert [file.name for file in listing.files] == ["a.parquet"]
        assert set(listing.passed_over) == {"pipe.parquet", "zero.parquet"}
