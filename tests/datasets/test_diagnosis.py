"""What a file most likely is that cannot be read as what its name says."""

import io

import pytest

from sce.datasets.diagnosis import HEAD_BYTES, likely_cause
from sce.datasets.text_form import TextForm


@pytest.mark.parametrize(
    ("kind", "content", "cause"),
    [
        (".csv", "id,text\n0,Привет мир\n".encode("cp1251"), "name its encoding with --encoding"),
        (".csv", b'id,text\n0,"a",\n1,"b",\n', "header of x has 2 fields, its first rows have 3"),
        (".csv", b'\xef\xbb\xbfid,text\n0,"a; b"\n', ""),
        (".csv", "id,text\n0,größer\n".encode(), ""),
        (".csv", "id;text\n0;größer\n".encode("cp1252"), ""),
        (".csv", b"text\na\n", ""),
        (".csv", b"", ""),
        (".jsonl", b'[\n {"text": "a"}\n]', "one JSON array"),
        (".jsonl", b'{\n "text": "a"\n}\n', "over several lines"),
        (".jsonl", b'{"text": "a"}\n', ""),
        (".jsonl", '{"text": "größer"}\n'.encode("cp1252"), "Windows-1252: --encoding cp1252"),
        (".parquet", b"PAR1", ""),
    ],
)
def test_what_a_file_most_likely_is(kind, content, cause):
    found = likely_cause("x", kind, lambda: io.BytesIO(content))
    assert cause in found
    assert bool(found) == bool(cause)


def test_another_delimiter_than_the_one_that_was_set():
    content = b"id;text\n0;a, b\n"
    found = likely_cause("x", ".csv", lambda: io.BytesIO(content), TextForm(delimiter=","))
    assert "most likely set apart by semicolons" in found


def test_a_letter_cut_by_the_end_of_what_is_read_is_no_other_encoding():
    line = "text\n" + "ß" * 99 + "\n"
    content = (line * HEAD_BYTES).encode()[: 2 * HEAD_BYTES]
    assert likely_cause("x", ".csv", lambda: io.BytesIO(content)) == ""
