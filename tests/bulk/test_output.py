"""The state of an output folder: what it was asked, who writes, what stands in it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sce.bulk.output import (
    LOCK_FILE,
    FolderLock,
    OutputRun,
    PartCounts,
    count_part,
    read_run,
    rows_done,
)
from sce.bulk.request import identify_embedder
from sce.embedding.fingerprint import EmbedderFingerprint
from sce.errors import ConfigError

FILE = {"file": "/in/a.jsonl", "size": 10, "modified": 1}
REQUEST = {"model": "m1", "labels": {"flood": "aa", "storm": "bb"}, "input": [FILE]}


def test_a_job_goes_on_with_what_it_had(tmp_path):
    uri = str(tmp_path / "out")
    run = OutputRun.open(uri, REQUEST)
    assert not run.done
    run.commit_part(0, PartCounts(3, {"text_null": 1}, 0, 1, {"flood": 2}))
    again = OutputRun.open(uri, REQUEST)
    assert again.parts == {0: PartCounts(3, {"text_null": 1}, 0, 1, {"flood": 2})}
    again.finish({"rows_out": 3})
    assert OutputRun.open(uri, REQUEST).done


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "m2"}, 'model: "m1" then, "m2" now'),
        ({"labels": {"flood": "aa"}}, "labels gone: 'storm'"),
        ({"labels": {"flood": "xx", "storm": "bb"}}, "labels described otherwise: 'flood'"),
        ({"input": [FILE, FILE | {"file": "/in/b.jsonl"}]}, "input: new: /in/b.jsonl"),
        ({"input": [FILE | {"size": 11}]}, "input: changed: /in/a.jsonl"),
        ({"input": []}, "input: gone: /in/a.jsonl"),
    ],
)
def test_another_request_is_refused_and_the_difference_named(tmp_path, change, message):
    uri = str(tmp_path / "out")
    OutputRun.open(uri, REQUEST).commit_part(0, PartCounts(1))
    with pytest.raises(ConfigError) as refused:
        OutputRun.open(uri, REQUEST | change)
    assert message in str(refused.value)
    assert "new folder" in str(refused.value)


def test_an_output_that_bears_an_earlier_id_of_its_embedder_is_known(tmp_path):
    """In which what it computed in was hashed too."""
    uri = str(tmp_path / "out")
    values = {"pooling": "mean", "normalised": True, "dimension": 4, "max_tokens": 64}
    hashes = {"weights_sha256": "aa", "tokenizer_sha256": "bb"}
    names = dict.fromkeys(("kind", "model", "revision", "adapter"))
    embedder = EmbedderFingerprint(**names, **values, **hashes, dtype="bfloat16")
    assert identify_embedder(embedder, uri) == embedder.id
    earlier = embedder._hash("bfloat16")
    for known, expected in ((earlier, earlier), ("0" * 16, embedder.id)):
        OutputRun(uri, REQUEST | {"embedder": known}).save()
        assert identify_embedder(embedder, uri) == expected


def test_a_request_that_answered_no_row_may_be_corrected(tmp_path):
    uri = str(tmp_path / "out")
    OutputRun.open(uri, REQUEST).save()
    OutputRun.open(uri, REQUEST | {"model": "m2"}).save()
    assert read_run(uri).request["model"] == "m2"
    checkpoint = tmp_path / "out" / "_checkpoint" / "part-00000"
    checkpoint.mkdir(parents=True)
    pq.write_table(pa.table({"place": [1]}), checkpoint / "x.parquet")
    with pytest.raises(ConfigError):
        OutputRun.open(uri, REQUEST)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        OutputRun.open(str(tmp_path), REQUEST)


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "_run.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        OutputRun.open(str(tmp_path), REQUEST)
    assert read_run(str(tmp_path / "nowhere")) is None


def test_a_second_job_is_kept_out_until_the_first_is_gone(tmp_path):
    uri = str(tmp_path)
    code = (
        "import sys, time\nfrom sce.bulk.output import FolderLock\n"
        f"with FolderLock({uri!r}):\n    print('in', flush=True)\n    time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    with pytest.raises(ConfigError, match=f"process {other.pid}"), FolderLock(uri):
        pass
    other.kill()
    other.wait()
    with FolderLock(uri):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK_FILE).exists()


def test_the_lock_of_another_machine_counts_while_it_is_fresh(tmp_path):
    holder = {"host": "elsewhere", "pid": 1, "started": 0.0, "nonce": "x", "time": time.time()}
    (tmp_path / LOCK_FILE).write_text(json.dumps(holder))
    with pytest.raises(ConfigError, match="elsewhere"), FolderLock(str(tmp_path)):
        pass
    (tmp_path / LOCK_FILE).write_text(json.dumps(holder | {"time": time.time() - 3600}))
    with FolderLock(str(tmp_path)):
        pass


def test_a_lock_says_that_its_holder_is_alive_whatever_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr("sce.bulk.output.HEARTBEAT_SECONDS", 0.02)
    with FolderLock(str(tmp_path)):
        first = json.loads((tmp_path / LOCK_FILE).read_text())["time"]
        deadline = time.monotonic() + 10
        while json.loads((tmp_path / LOCK_FILE).read_text())["time"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not (tmp_path / LOCK_FILE).exists()


ROWS = [
    {"place": 0, "id": "a", "label": "flood", "score": 0.5, "truncated": False, "error": ""},
    {"place": 1, "id": "b", "label": None, "score": 0.1, "truncated": True, "error": ""},
    {"place": 2, "id": "c", "label": None, "score": None, "truncated": False, "error": "text_null"},
]


def write(folder, output_format, rows):
    folder.mkdir(exist_ok=True)
    if output_format == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "x.parquet")
    else:
        (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
@pytest.mark.parametrize("flat", [True, False])
def test_a_part_is_counted_by_what_lies_in_it(tmp_path, output_format, flat):
    run = OutputRun(str(tmp_path), {}, flat=flat)  # not flat: as earlier versions wrote it
    assert run.part_files(0) == []
    write(tmp_path / "part-00000", output_format, ROWS)
    if flat:
        (file,) = (tmp_path / "part-00000").iterdir()
        file.rename(tmp_path / f"part-00000_{file.name}")
    counts = count_part(run.part_files(0), output_format)
    assert counts == PartCounts(3, {"text_null": 1}, 1, 1, {"flood": 1})
    with pytest.raises(RuntimeError, match="twice"):
        count_part(run.part_files(0) * 2, output_format)


def test_rows_done_counts_no_part_twice(tmp_path):
    """A kill between the mark of a finished part and the end of its checkpoint leaves both."""
    run = OutputRun(str(tmp_path), {}, parts={0: PartCounts(rows=7)})
    for number, name in ((0, "a"), (1, "b"), (1, "c.pending")):
        folder = Path(run.checkpoint_uri(number))
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"place": [1, 2, 3]}), folder / f"{name}.parquet")
    assert rows_done(run) == 10
