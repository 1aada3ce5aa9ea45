"""A small input is answered by one process as by Ray's actors, byte for byte."""

import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sce.bulk.blocks import Stage
from sce.bulk.corpus import Columns, open_corpus
from sce.bulk.counts import ErrorLimit
from sce.bulk.output import OutputRun
from sce.distributed.one_process import OneProcess, is_small, may_run_here
from sce.distributed.resources import ActorPlan
from sce.distributed.settings import ResourcesConfig
from sce.distributed.stage import plan_corpus, run_stage
from sce.errors import ConfigError, TooManyErrors
from tests.tiny_blocks import Lengths, ProcessNumbers

ACTORS = ActorPlan(1, 0.5, 0.0, 1, "cpu")
ROOT = Path(__file__).parents[2]


def refuse(columns: Columns) -> Lengths:
    raise ConfigError("embedder: not here.")


def stage(kind="parquet", make=Lengths, **more) -> Stage:
    columns = Columns(text="text")
    make = partial(make, columns)
    settings = {"rows_per_file": 8192, "block_bytes": 2**20} | more
    return Stage(make=make, columns=columns, output_format=kind, **settings)


def write(folder: Path, rows: list[str], name="a.csv") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(["text", *(f'"{row}"' for row in rows)]) + "\n")
    return folder


def run(workers, folder: Path, output: Path, what: Stage, limit="50%"):
    corpus = open_corpus([str(folder)])
    shards = plan_corpus(corpus, what.columns)
    state = OutputRun.open(str(output), {"input": 1})
    found = run_stage(state, shards, what, workers, ErrorLimit.parse(limit), "answering")
    return found, state


@pytest.fixture(scope="module")
def process():
    with OneProcess(threads=1) as process:
        yield process


@pytest.mark.system
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_the_files_are_those_of_actors(tmp_path, ray_session, process, kind):
    folder = write(tmp_path / "in", ["one", "", "three", "fünf"] * 300)
    options = {"use_dictionary": ["error"], "row_group_size": 500} if kind == "parquet" else None
    what = stage(kind, batch_rows=500, write_options=options)
    by_actors, _ = run(ACTORS, folder, tmp_path / "actors", what)
    by_process, state = run(process, folder, tmp_path / "process", what)
    assert by_process.counts == by_actors.counts
    assert by_process.counts.rows == by_process.new_rows == 1200
    assert by_process.counts.errors == {"text_empty": 300}
    (one,) = (tmp_path / "process").glob("part-*")
    (other,) = (tmp_path / "actors").glob("part-*")
    assert one.read_bytes() == other.read_bytes()
    assert state.parts[0].rows == 1200


@pytest.mark.system
def test_several_actors_share_a_small_file(tmp_path, ray_session):
    folder = write(
        tmp_path / "in", [f"text {i}, about as long as people write" for i in range(2000)]
    )
    run(replace(ACTORS, actors=3), folder, tmp_path / "out", stage(make=ProcessNumbers))
    rows = pq.read_table(tmp_path / "out", columns=["label"])
    assert rows.num_rows == 2000
    assert pc.count_distinct(rows["label"]).as_py() > 1  # an actor may begin too late for any


def test_a_stage_is_spread_over_its_workers():
    whole = stage(batch_rows=8192)
    assert whole.spread(2000, 1) == whole.spread(200_000, 4) == whole
    few = whole.spread(8000, 4)
    assert (few.batch_rows, few.block_bytes) == (1000, 2**20 * 1000 // 8192 // 2)
    assert whole.spread(100, 4).batch_rows == 256
    assert stage(batch_rows=300).spread(8000, 4).batch_rows == 300


def test_shards_are_batched_together(tmp_path, process):
    for i in range(3):
        write(tmp_path / "in", [f"text {i}"] * 400, f"{i}.csv")
    found, _ = run(process, tmp_path / "in", tmp_path / "out", stage(batch_rows=500))
    assert found.counts.rows == 1200
    assert found.work.rows == 1200


def test_what_a_killed_job_left_is_not_counted(tmp_path, process):
    folder = write(tmp_path / "in", ["one", "two"])
    run(process, folder, tmp_path / "out", stage())
    state = OutputRun.open(str(tmp_path / "out"), {"input": 1})
    state.parts.clear()
    state.save()  # killed behind the file, before its commit
    found, _ = run(process, folder, tmp_path / "out", stage())
    assert found.counts.rows == found.new_rows == 2
    assert len(list((tmp_path / "out").glob("part-*"))) == 1


def test_too_many_errors(tmp_path, process):
    folder = write(tmp_path / "in", ["", "", "two"])
    with pytest.raises(TooManyErrors, match="2 of 3 rows have errors"):
        run(process, folder, tmp_path / "out", stage(), limit="1")


def test_a_mistake_in_making_is_said_before_anything_is_written(tmp_path):
    folder = write(tmp_path / "in", ["one"])
    with OneProcess(1) as process, pytest.raises(ConfigError, match="embedder: not here"):
        run(process, folder, tmp_path / "out", stage(make=refuse))
    assert not list((tmp_path / "out").glob("*"))


def test_a_process_that_is_killed(tmp_path):
    folder = write(tmp_path / "in", ["one", "die"])
    with OneProcess(1) as process, pytest.raises(RuntimeError, match="signal 9"):
        run(process, folder, tmp_path / "out", stage())
    assert not list((tmp_path / "out").glob("part-*"))


def test_it_ends_with_the_job(tmp_path):
    code = """
import os, time
from sce.distributed.one_process import OneProcess
process = OneProcess(1, ["sce.bulk.rows"])
print(process._process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as job:
        child = psutil.Process(int(job.stdout.readline()))
        job.kill()
    for _ in range(200):
        if not child.is_running() or child.status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    child.kill()
    pytest.fail("it lives on")


def test_what_is_small(tmp_path):
    folder = write(tmp_path / "in", ["one", "two", "three"])
    corpus, columns = open_corpus([str(folder)]), Columns(text="text")
    shards = partial(plan_corpus, corpus, columns)
    assert is_small(corpus, columns, shards)
    assert not is_small(corpus, columns, shards, rows_per_file=2)
    for i in range(9):
        write(folder, ["one"], f"{i}.csv")
    assert not is_small(open_corpus([str(folder)]), columns, shards)


@pytest.mark.parametrize(
    ("settings", "address", "expected"),
    [
        ({"use_gpu": False}, None, True),
        ({"use_gpu": False}, "local", True),
        ({"use_gpu": False}, "auto", False),
        ({"use_gpu": False}, "10.0.0.1:6379", False),
        ({"use_gpu": True}, None, False),
        ({"use_gpu": False, "embed_actors": 2}, None, False),
        ({"use_gpu": False, "accelerator_type": "A100"}, None, False),
    ],
)
def test_where_one_process_is_all_that_there_is(monkeypatch, settings, address, expected):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert may_run_here(ResourcesConfig(**settings)) is expected


def test_no_second_engine_where_ray_runs(ray_session):
    assert not may_run_here(ResourcesConfig(use_gpu=False))
