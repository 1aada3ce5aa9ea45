"""Configurations and label files that would take memory, time or the stack, and those that may
pass."""

import os
import time
from pathlib import Path

import pytest

from sce.config import JobConfig, load_config
from sce.datasets.custom import read_label_file
from sce.errors import ConfigError, DataError, InputError, LabelError
from sce.storage import RemotePath, documents
from sce.storage.documents import MAX_DEPTH, MAX_NODES, parse_json, parse_yaml, read_document


class Job(JobConfig):
    name: str = "x"
    counts: list[int] = []


def load(path: Path) -> Job:
    return load_config(Job, ["--config", str(path)], "job", "A job.")


def bomb(levels: int, width: int = 9) -> str:
    """A list of so many levels, `width ** levels` values in so little text."""
    text = f"&a0 [{','.join(['x'] * width)}]"
    for level in range(1, levels):
        text = f"&a{level} [{text}{f',*a{level - 1}' * (width - 1)}]"
    return text


MERGED = "a0: &a0 {k: v}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 8)
)
DEEP = 900 * "[" + 900 * "]"
REFUSED = [
    ("x.yaml", f"name: {bomb(8)}\n", "line 1: more than 1,000,000 values, aliases written out"),
    ("x.yaml", MERGED, r"line \d: more than 1,000,000 values"),
    ("x.yaml", f"name:\n  {DEEP}\n", "line 2: nested more than 40 deep. At most 40 levels"),
    ("x.yaml", "a: &a [x]\n" + "".join(f"b{i}: &b{i} [*a]\n" for i in range(2)) + DEEP, "line"),
    ("x.yaml", f"a: &a {25 * '['}{25 * ']'}\nb: {20 * '['}*a{20 * ']'}\n", "line 2: nested"),
    ("x.yaml", "name: &a [*a]\n", "'a' contains itself"),
    ("x.yaml", f"name: {9 * '1' * 500}\n", "a number of 4,500 characters. At most 400"),
    ("x.yaml", f"name: 1{':1' * 100_000}\n", "a number of 200,001 characters"),
    ("x.yaml", "name: 2024-13-45\n", "a value that cannot be read"),
    ("x.json", 100_000 * "[", "nested more than 40 deep"),
    ("x.json", '{"a": ' * 50 + "1" + "}" * 50, "nested more than 40 deep"),
    ("x.json", f"[{','.join(['[]'] * MAX_NODES)}]", "2,000,001 values"),
    ("x.jsonl", '"a"\n' + 100_000 * "[", r"x\.jsonl:2: nested more than 40 deep"),
    ("x.jsonl", f"[{','.join(['1'] * 600_000)}]\n" * 2, r"\.jsonl:2: about 1,200,002 values"),
    ("x.txt", "\n" * 2_000_000, "more than 100,000 lines"),
    ("x.csv", "name\n" + "x\n" * 100_001, "more than 100,000 rows"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_would_take_all_memory_or_the_stack_is_refused_at_once(
    tmp_path, name, content, message
):
    path = tmp_path / name
    path.write_text(content)
    started = time.monotonic()
    with pytest.raises((DataError, LabelError), match=message):
        read_label_file(path)
    if name == "x.yaml":
        with pytest.raises(ConfigError, match=message):
            load(path)
    assert time.monotonic() - started < 5


def test_anchors_and_aliases_of_reasonable_size_are_followed(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("counts: &c [1, 2]\nname: &n many\n")
    assert load(path).counts == [1, 2]
    text = "base: &b {k: [1, 2]}\nmore: {<<: *b, l: *b}\nlist: [*b, *b]\n"
    k = {"k": [1, 2]}
    assert parse_yaml(text, "x") == {"base": k, "more": {**k, "l": k}, "list": [k, k]}
    assert len(parse_yaml(bomb(5), "x")) == 9


def test_the_bounds_are_exact_in_both_forms(monkeypatch):
    inside = (MAX_DEPTH - 1) * "[" + (MAX_DEPTH - 1) * "]"
    for parse in (parse_json, parse_yaml):
        parse(inside, "x")
        with pytest.raises(DataError, match="nested"):
            parse(f"[{inside[: MAX_DEPTH - 1]}1{inside[MAX_DEPTH - 1 :]}]", "x")
    monkeypatch.setattr(documents, "MAX_NODES", 10)
    assert parse_yaml("[1,2,3,4,5,6,7,8,9]", "x") == parse_json("[1,2,3,4,5,6,7,8,9]", "x")
    for parse in (parse_json, parse_yaml):
        with pytest.raises(DataError, match="At most 10 are allowed"):
            parse("[1,2,3,4,5,6,7,8,9,0,1]", "x")


def test_brackets_and_commas_in_texts_are_no_structure():
    text = '["' + 50 * "[{" + '\\"' + 50 * "[,:" + '", "\\\\"]'
    assert parse_json(text, "x")[1] == "\\"


@pytest.mark.parametrize("text", ['"' + '\\"' * 500_000, '["a' * 200_000, "\\" * 500_000])
def test_json_that_does_not_end_is_refused_in_linear_time(text):
    started = time.monotonic()
    with pytest.raises((ValueError, DataError)):
        parse_json(text, "x")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "large"])
def test_only_regular_files_of_some_size_are_read(tmp_path, kind):
    path = tmp_path / "x.yaml"
    if kind == "device":
        path = Path("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(documents.MAX_FILE_BYTES + 1)
    message = "larger than 64 MiB" if kind == "large" else f"a {kind}; a regular file is needed"
    for read, error in ((load, ConfigError), (read_label_file, DataError)):
        with pytest.raises(error, match=message):
            read(path)


def test_a_large_file_at_a_uri_is_not_fetched(monkeypatch):
    monkeypatch.setattr(RemotePath, "files", lambda self: [("", 65 << 20, "tag")])
    with pytest.raises(DataError, match=r"s3://bucket/x\.yaml: larger than 64 MiB"):
        read_document(RemotePath("s3://bucket/x.yaml"))


def test_what_grows_while_it_is_read_is_not_read_further(tmp_path, monkeypatch):
    path = tmp_path / "x.yaml"
    path.write_text("name: y\n")
    monkeypatch.setattr(documents, "check_document", lambda place: None)
    monkeypatch.setattr(documents, "MAX_FILE_BYTES", 3)
    with pytest.raises(DataError, match="larger than"):
        read_document(path)


def test_a_pipe_of_the_shell_is_read_once_and_whole():
    for read, content, found in (
        (load, b"name: y\ncounts: [1]\n", Job(name="y", counts=[1])),
        (read_label_file, b"[a, b]\n", ["a", "b"]),
    ):
        read_end, write_end = os.pipe()
        os.write(write_end, content)
        os.close(write_end)
        try:
            got = read(Path(f"/dev/fd/{read_end}"))
        finally:
            os.close(read_end)
        assert got == found or got.model_dump() == found.model_dump()


def test_a_fan_of_included_files_ends(tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.yaml").write_text(f"include: [{i + 1}.yaml, {i + 1}.yaml]\n")
    (tmp_path / "30.yaml").write_text("name: y\n")
    with pytest.raises(ConfigError, match="more than 100 files"):
        load(tmp_path / "0.yaml")


def test_a_key_that_is_no_text_and_deep_json_on_the_command_line_are_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("1: x\n")
    with pytest.raises(ConfigError, match="must hold a mapping"):
        load(tmp_path / "x.yaml")
    with pytest.raises(InputError):
        load_config(Job, ["--counts", 100_000 * "["], "job", "A job.")
