"""Files of a few bytes that would fill a machine have their error, and memory stays as it was."""

import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sce.bulk.corpus import Columns, join_plans, open_corpus, plan_file
from sce.bulk.reading import BLOCK_ROWS, read_shard
from sce.datasets import limits
from sce.datasets.readers import BadRow, read_records
from sce.embedding.row_checks import text_error
from sce.errors import MAX_TEXT_BYTES, DataError

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20


def gzipped(path: Path, head: bytes, mebibytes: int, piece: bytes = b"\0") -> Path:
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(head)
        for _ in range(mebibytes):
            file.write(piece * (MIB // len(piece)))
    return path


def zipped(path: Path, mebibytes: int) -> Path:
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("a.csv", "w") as file:
        file.write(b"text\n")
        for _ in range(mebibytes):
            file.write(b"y" * MIB)
    return path


def workbook(path: Path, mebibytes: int) -> Path:
    """A sheet that a few bytes become; its own rows go before."""
    book = openpyxl.Workbook()
    book.active.append(["text"])
    book.save(path)
    archive = zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED)
    with archive, archive.open("xl/media/picture.png", "w") as file:
        for _ in range(mebibytes):
            file.write(b"\0" * MIB)
    return path


def one_string(path: Path, mebibytes: int) -> Path:
    table = pa.table({"text": ["a" * (mebibytes * MIB)]})
    plain = {"use_dictionary": False, "write_statistics": False}
    pq.write_table(table, path, compression="zstd", **plain)
    return path


def claims_rows(path: Path, rows: int) -> Path:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * (rows // 10), pa.int8()), ["late"])
    table = pa.table({"text": column})
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(10):
            writer.write_table(table, row_group_size=rows)
    return path


def long_line(path: Path, mebibytes: int) -> Path:
    with open(path, "wb") as file:
        file.write(b'{"text": "')
        for _ in range(mebibytes):
            file.write(b"x" * MIB)
        file.write(b'"}\n{"text": "good"}\n')
    return path


def read_all(path: Path) -> list[dict]:
    corpus, columns = open_corpus([str(path)]), Columns()
    shards = join_plans([plan_file(file, i, columns) for i, file in enumerate(corpus.files)])
    return [row for s in shards for block in read_shard(s, columns) for row in block.to_pylist()]


@pytest.mark.parametrize(
    ("make", "name", "size", "said"),
    [
        (gzipped, "a.jsonl.gz", 12, "bytes become [89] MiB or more when they are decompressed"),
        (zipped, "a.csv.zip", 12, "bytes become [89] MiB or more"),
        (workbook, "a.xlsx", 12, "bytes become 12 MiB or more"),
        (one_string, "a.parquet", 12, "column 'text': .* bytes become 12 MiB or more"),
        (claims_rows, "a.parquet", 30_000_000, "30,000,000 rows in .* bytes"),
    ],
)
def test_a_file_that_would_fill_the_machine_is_refused(
    tmp_path, monkeypatch, make, name, size, said
):
    monkeypatch.setattr(limits, "RATIO_COUNTS_FROM", 8 * MIB)
    path = tmp_path / name
    make(path, b"", size) if make is gzipped else make(path, size)
    assert path.stat().st_size < 2 * MIB
    with pytest.raises(DataError, match=said):
        read_all(path)
    with pytest.raises(DataError, match=said):
        list(read_records(path))


def test_what_is_packed_is_closed_with_what_reads_it(tmp_path):
    corpus = open_corpus([str(gzipped(tmp_path / "a.csv.gz", b"text\n", 1))])
    with corpus.files[0].open() as file:
        source = file.raw._source
        assert not source.closed
    assert source.closed


def test_values_that_are_too_large_in_the_mean_are_refused_before_they_are_read(tmp_path):
    one_string(tmp_path / "a.parquet", 40)
    with pytest.raises(DataError, match=r"values of 41.* bytes in the mean\. 16,777,216 are"):
        read_all(tmp_path / "a.parquet")


def test_what_is_well_packed_and_no_more_is_read(tmp_path):
    line = json.dumps({"text": "x" * 53}).encode() + b"\n"
    path = gzipped(tmp_path / "a.jsonl.gz", b"", 2, line)
    assert len(read_all(path)) == 2 * (MIB // len(line))
    assert len(read_all(claims_rows(tmp_path / "a.parquet", 50_000))) == 50_000


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_line_that_is_too_long_costs_its_row(tmp_path, monkeypatch, name):
    monkeypatch.setattr(limits, "MAX_LINE", 1000)
    text = "z" * 2500
    lines = [
        f'"{one}"' if name.endswith("csv") else json.dumps({"text": one})
        for one in ("a", text, "b")
    ]
    head = ["text"] if name.endswith("csv") else []
    (tmp_path / name).write_text("\n".join([*head, *lines]))
    rows = read_all(tmp_path / name)
    assert [row["text"] for row in rows] == ["a", None, "b"]
    assert rows[1]["error"] in ("line_too_long", "line_unreadable")
    assert [row["id"].rpartition(":")[2] for row in rows] == [
        str(number + len(head)) for number in (1, 2, 3)
    ]
    bad = [row for row in read_records(tmp_path / name) if isinstance(row, BadRow)]
    assert "characters" in bad[0].message


def test_lines_of_white_space_count_as_they_are_read(tmp_path):
    """Of a JSONL file rows are counted by its bytes and read as text."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n \t\n\u3000\n\x1c\n\n{"text": "b"}\n')
    errors = [row["error"] for row in read_all(tmp_path / "a.jsonl")]
    assert errors == ["", "line_unreadable", "line_unreadable", ""]
    corpus = open_corpus([str(tmp_path)])
    assert sum(s.rows for s in plan_file(corpus.files[0], 0, Columns()).shards) == len(errors)


def test_a_text_that_is_too_large_is_an_error_of_its_row():
    assert text_error("ü" * (MAX_TEXT_BYTES // 2)) == ""
    assert text_error("ü" * (MAX_TEXT_BYTES // 2) + "x") == "text_too_large"


def test_large_rows_of_parquet_are_read_in_small_blocks(tmp_path, monkeypatch):
    from sce.bulk import reading

    table = pa.table({"text": [f"{i} " * 20_000 for i in range(300)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", row_group_size=300)
    monkeypatch.setattr(reading, "READ_BYTES", MIB)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 4 * MIB)
    corpus = open_corpus([str(tmp_path)])
    (shard,) = plan_file(corpus.files[0], 0, Columns()).shards
    blocks = list(read_shard(shard, Columns()))
    assert sum(block.num_rows for block in blocks) == 300 < BLOCK_ROWS
    assert max(block.num_rows for block in blocks) < 100
    assert pa.concat_tables(blocks)["text"].to_pylist() == table["text"].to_pylist()


@pytest.mark.system
def test_memory_stays_as_it_was(tmp_path):
    """In a process of its own, since a peak is the process's."""
    one_string(tmp_path / "a.parquet", 300)
    gzipped(tmp_path / "b.csv.gz", b"text\n", 300)
    long_line(tmp_path / "c.jsonl", 300)
    code = f"""
import resource, sys
sys.path[:0] = [{str(ROOT)!r}]
from tests.datasets.test_limits import read_all
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for name in sys.argv[1:]:
    try:
        print(name[-5:], len(read_all(name)), peak() - before)
    except Exception as error:
        print(name[-5:], type(error).__name__, peak() - before)
"""
    files = [str(tmp_path / name) for name in ("a.parquet", "b.csv.gz", "c.jsonl")]
    done = subprocess.run(
        [sys.executable, "-c", code, *files], capture_output=True, text=True, check=True
    )
    found = [line.split() for line in done.stdout.splitlines()]
    assert [line[1] for line in found] == ["DataError", "DataError", "2"]
    assert max(int(line[2]) for line in found) < 250, found
