"""`jobs/classify.py` under `kill -9`: of actors, of the driver, of whole nodes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.benchmarks.inputs import write_store
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.training.fresh_model import build_model
from sce.training.settings import ModelConfig
from tests.jobs.kills import kill_in_a_row

ROOT = Path(__file__).resolve().parents[2]
ROWS, PART = 60_000, 4096
LABELS = json.dumps([f"label {i}" for i in range(3)])

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A model of the default recipe with random weights, and a store of random vectors."""
    home = tmp_path_factory.mktemp("classify")
    fingerprint = embedder_fingerprint(EmbedderConfig())
    fresh = build_model(ModelConfig(), fingerprint.to_dict(), 0.0, seed=0)
    fresh.model.save_pretrained(home / "model")
    write_store(home / "store", fingerprint, ROWS, PART)
    return home


class Job:
    """`jobs/classify.py` in a process group of its own."""

    def __init__(self, home: Path, output: str, *more: str, **environment: str) -> None:
        self.output = home / output
        self.log, self.answer = home / f"{output}.log", home / f"{output}.json"
        command = [sys.executable, "jobs/classify.py", "--model", str(home / "model")]
        command += ["--input", str(home / "store"), "--labels", LABELS, "--output"]
        command += [str(self.output), "--rows-per-file", "4096", "--commit-rows", "25000"]
        command += ["--dtype", "float32"]  # a kill changes who shares a batch: 1e-3 in bfloat16
        with self.log.open("a") as log, self.answer.open("w") as answer:
            self.process = subprocess.Popen(
                [*command, "--no-tracking.enabled", *more],
                cwd=ROOT,
                stdout=answer,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            )

    def rows_confirmed(self) -> int:
        """Rows in files that a checkpoint confirms, or in finished parts."""
        try:
            parts = json.loads((self.output / "_run.json").read_text())["parts"]
            done = sum(part["rows"] for part in parts.values())
            for path in self.output.glob("_checkpoint/*/*.parquet"):
                if not path.name.endswith(".pending.parquet"):
                    done += pq.read_metadata(path).num_rows
            return done
        except (OSError, ValueError, pa.ArrowException):
            return 0

    def wait_for(self, rows: int) -> None:
        deadline = time.monotonic() + 300
        while self.rows_confirmed() < rows:
            assert self.process.poll() is None, f"ended early:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"stuck:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.05)

    def kill(self, group: bool = True) -> None:
        if group:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait(timeout=60)

    def finish(self) -> dict:
        code = self.process.wait(timeout=600)
        assert code == 0, self.log.read_text()[-5000:]
        return json.loads(self.answer.read_text().splitlines()[-1])


def check(output: Path, reference: dict[str, tuple[str, float]] | None = None) -> dict:
    """Every row exactly once, with the answer of an undisturbed run."""
    table = pa.concat_tables(
        [pq.read_table(path) for path in sorted(output.glob("part-*.parquet"))]
    )
    assert table.num_rows == ROWS
    found = {row["id"]: (row["label"], row["score"]) for row in table.to_pylist()}
    assert set(found) == {f"r{i}" for i in range(ROWS)}
    assert set(table["error"].to_pylist()) == {None}
    assert not (output / "_checkpoint").exists() or not list((output / "_checkpoint").iterdir())
    if reference is not None:
        assert [found[key][0] for key in reference] == [label for label, _ in reference.values()]
        np.testing.assert_allclose(
            [found[key][1] for key in reference],
            [score for _, score in reference.values()],
            atol=1e-5,
        )
    return found


@pytest.fixture(scope="module")
def reference(home) -> dict[str, tuple[str, float]]:
    job = Job(home, "undisturbed")
    summary = job.finish()
    assert (summary["rows_in"], summary["rows_out"]) == (ROWS, ROWS)
    return check(job.output)


def actors(parent: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if "MapBatches(BlockActor)" in title and parent in {p.pid for p in process.parents()}:
            found.append(process)
    return found


def test_four_killed_actors(home, reference):
    random.seed()
    job = Job(home, "actors")
    killed = 0
    for nth in range(4):
        job.wait_for(int((nth + random.random()) / 4.5 * ROWS))
        for victim in actors(job.process.pid)[:1]:
            victim.kill()
            killed += 1
    assert job.finish()["rows_out"] == ROWS
    assert killed == 4
    check(job.output, reference)


def test_the_driver_killed_three_times(home, reference):
    random.seed()
    for nth in range(3):
        job = Job(home, "driver")
        job.wait_for(int((nth + random.random()) / 3.5 * ROWS))
        job.kill(group=False)
        time.sleep(1)
    job = Job(home, "driver")
    summary = job.finish()
    assert summary["rows_out"] == ROWS
    assert summary["rows_this_run"] < ROWS, "it began again instead of going on"
    check(job.output, reference)
    again = Job(home, "driver").finish()
    assert again["unchanged"] is True


def test_the_raylet_of_the_driver_killed(home, reference):
    random.seed()
    job = Job(home, "raylet")
    job.wait_for(int(random.uniform(0.1, 0.8) * ROWS))
    raylets = [
        p for p in psutil.Process(job.process.pid).children(recursive=True) if p.name() == "raylet"
    ]
    assert len(raylets) == 1
    raylets[0].kill()
    try:
        code = job.process.wait(timeout=120)
    except subprocess.TimeoutExpired:
        job.kill()
        code = -1
    assert code != 0, "without its node the driver cannot have finished"
    job = Job(home, "raylet")
    assert job.finish()["rows_out"] == ROWS
    check(job.output, reference)


def test_two_raylets_of_a_cluster_killed(home, reference):
    """Two of three nodes die; the job goes on with what is left."""
    from ray.cluster_utils import Cluster

    random.seed()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    try:
        job = Job(
            home,
            "nodes",
            "--resources.embed-actors",
            "3",
            "--resources.cpus-per-embed-actor",
            "0.7",
            RAY_ADDRESS=cluster.address,
        )
        for nth, node in enumerate(nodes):
            job.wait_for(int((nth + random.random()) / 3 * ROWS))
            node.kill_raylet()
        assert job.finish()["rows_out"] == ROWS
        check(job.output, reference)
    finally:
        cluster.shutdown()


@pytest.mark.timeout(7200)
def test_kills_in_a_row_lose_and_double_no_row(home, reference):
    began = time.monotonic()
    Job(home, "timed").finish()
    said = kill_in_a_row(
        lambda number: Job(home, f"row-{number}").process,
        lambda number: check(home / f"row-{number}", reference),
        lambda number: home / f"row-{number}.log",
        time.monotonic() - began,
    )
    print(f"jobs/classify.py: {said} ({ROWS:,} rows)")
