"""The whole path from outside a running cluster, as an operator and a user go it.

`ray start --head` with token auth, every job by `ray job submit`, everything that is read and
written on an S3 server (moto's), runs in the MLflow server of cluster/ on PostgreSQL, the endpoint
by `serve deploy`. Who submits knows the cluster's address and token, and nothing of the store.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import requests
import yaml
from mlflow import MlflowClient

from sce.bulk.output import read_run
from sce.embedding.store import EmbeddingStore
from sce.errors import DataError
from sce.storage import RemotePath, filesystem_of, write_text
from tests.cluster.inputs import LABELS, WORDS, write_experiment, write_lines
from tests.cluster.services import POSTGRES, Postgres, mlflow_server, postgres, s3_server, until
from tests.serve.load import HEADERS, free_ports
from tests.serve.test_app_system import BIN, ROOT, Cluster
from tests.tiny_models import build_jina, build_llama, build_roberta

HOME = RemotePath("s3://sce-end-to-end")
NOWHERE = "s3://no-such-bucket/x"
BIG_FILES, BIG_FILE_ROWS = 3, 1500

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not POSTGRES, reason="PostgreSQL is not installed (the Makefile does it)"),
]

EMBEDDER = ["--embedder.kind", "jina", "--embedder.model", f"{HOME}/models/jina"]
TRAINED = ["--model", f"{HOME}/run/model", *EMBEDDER]
MODEL = [*TRAINED, "--dtype", "float32"]
CLASSIFY = [*MODEL, "--labels-file", f"{HOME}/in/labels.yaml"]
LLAMA_DATA = json.dumps([{"dataset": "custom", "name": "own", "path": f"{HOME}/in/own.jsonl"}])
LLAMA = ["--base", f"{HOME}/models/llama", "--run-dir", f"{HOME}/llama"]
LLAMA += ["--data.sources", LLAMA_DATA, "--prompt", "sentence", "--lora.rank", "4"]
LLAMA += ["--lora.dtype", "float32", "--train.epochs", "1", "--train.learning-rate", "0.01"]
LLAMA += ["--evaluate.flip-shuffles", "0", "--evaluate.bootstrap-samples", "100"]

JOBS: dict[str, list[str]] = {
    "prepare_data": ["--config", f"{HOME}/in/tiny.yaml"],
    "embed": ["--config", f"{HOME}/in/tiny.yaml"],
    "train_sce": ["--config", f"{HOME}/in/tiny.yaml"],
    "evaluate": [
        "--config", f"{HOME}/run/config.yaml", "--evaluate.labelled", f"{HOME}/in/own.jsonl",
    ],
    "classify": [
        *CLASSIFY, "--input", f"{HOME}/in/texts", "--output", f"{HOME}/out/answers",
        "--save-embeddings", f"{HOME}/out/store",
    ],
    "adapt": [
        *TRAINED, "--input", f"{HOME}/out/store", "--labels-file", f"{HOME}/in/labels.yaml",
        "--output", f"{HOME}/out/adapted",
    ],
    "tune": [
        "--model", f"{HOME}/run/model", "--labelled", f"{HOME}/in/own.jsonl", *EMBEDDER,
        "--output", f"{HOME}/out/tuned", "--train.epochs", "1", "--old-rows", "20",
    ],
    "train_llama": LLAMA,
    "ablate": [
        "--config", f"{HOME}/in/tiny.yaml", "--run-dir", f"{HOME}/ablation",
        "--variants", '{"as it is": {}}', "--seeds", "[0]",
    ],
    "compare": ["--output", f"{HOME}/out/compare"],
    "benchmark": ["embed", "--rows", "64", "--rounds", "1", *EMBEDDER],
    "epoch_cost": ["--size", "tiny", "--steps", "1", "--warmup", "0"],
}  # fmt: skip
"""Settings of each job, in an order in which each finds what it reads."""

WRONG: dict[str, tuple[list[str], str]] = {
    "prepare_data": (["--run-dir", NOWHERE], f"run_dir: '{NOWHERE}': there is no bucket"),
    "embed": (
        ["--input", f"{HOME}/in/texts", "--store", NOWHERE],
        f"store: '{NOWHERE}': there is no bucket",
    ),
    "train_sce": (["--run-dir", "runs/lost"], "a folder that Ray deletes"),
    "evaluate": (["--run-dir", f"{HOME}/empty"], f"there is no model in {HOME}/empty/model"),
    "classify": (
        ["--model", f"{HOME}/empty", "--input", f"{HOME}/in/texts", "--output", f"{HOME}/out/no",
         "--labels", json.dumps(LABELS)],
        f"'{HOME}/empty' has no config.json",
    ),
    "tune": (["--output", f"{HOME}/out/no"], "model: give one"),
    "ablate": (
        ["--config", f"{HOME}/in/tiny.yaml", "--variants", '{"x": {"nowhere": 1}}'], "nowhere",
    ),
    "adapt": (["--output", f"{HOME}/out/no"], "give labels"),
    "train_llama": (["--run-dir", "ftp://host/x"], "ftp://host/x"),
    "compare": (["--output", NOWHERE], "there is no bucket"),
    "benchmark": (["embed", "--rows", "none"], "rows"),
    "epoch_cost": (["--size", "none"], "--size"),
}  # fmt: skip
"""Settings of each job that are wrong, and the words that say so."""


class Outside:
    """A cluster of this machine, and what one who submits to it has: address and token."""

    def __init__(self, home: Path, store: dict[str, str], tracking: dict[str, str]) -> None:
        self.cluster = Cluster(home, home)
        (client_port,) = free_ports(1)
        self.node = self.cluster.environment | store | tracking
        # As on a cluster whose image has the dependencies: "python" is the one that has them.
        self.node["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        self.node["XDG_CACHE_HOME"] = str(home / "cache")
        ports = ["--port", str(self.cluster.gcs), "--dashboard-port", str(self.cluster.dashboard)]
        ports += ["--dashboard-agent-listen-port", str(self.cluster.agent)]
        ports += ["--ray-client-server-port", str(client_port)]
        mine, self.cluster.environment = self.cluster.environment, self.node
        self.cluster.run("ray", "start", "--head", "--num-cpus", "4", *ports)
        self.cluster.environment = mine
        self.client = {name: value for name, value in mine.items() if name not in store}
        for name in ("PYTHONPATH", "RAY_TMPDIR"):
            self.client.pop(name)
        self.api = f"http://127.0.0.1:{self.cluster.dashboard}/api/jobs/"
        self.bearer = {"Authorization": f"Bearer {mine['RAY_AUTH_TOKEN']}"}
        until(lambda: requests.get(self.api, headers=self.bearer, timeout=10).ok, 60, "jobs")

    def submit(
        self, name: str, entrypoint: Sequence[str], *flags: str, **changes: str
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(BIN / "ray"), "job", "submit", "--submission-id", name, "--working-dir", ".",
             *flags, "--", "python", *entrypoint],
            cwd=ROOT, env=self.client | changes, capture_output=True, text=True, timeout=700,
        )  # fmt: skip

    def job(self, name: str) -> dict[str, Any]:
        """What Ray's job server knows of it."""
        answer = requests.get(self.api + name, headers=self.bearer, timeout=30)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def log(self, name: str) -> str:
        answer = requests.get(f"{self.api}{name}/logs", headers=self.bearer, timeout=30)
        return str(answer.json()["logs"])

    def done(self, name: str, *entrypoint: str) -> dict[str, Any]:
        """Submit, wait, and read the summary."""
        ended = self.submit(name, entrypoint)
        told = self.job(name)
        assert ended.returncode == 0, f"{told['message']}\n{ended.stdout[-4000:]}"
        assert (told["status"], told["driver_exit_code"]) == ("SUCCEEDED", 0)
        lines = [line for line in ended.stdout.splitlines() if line.startswith('{"')]
        summary: dict[str, Any] = json.loads(lines[-1])
        return summary

    def stopped(self, name: str, entrypoint: Sequence[str], begun: Callable[[], bool]) -> None:
        """Submit, and `ray job stop` when it has begun to write and is not at its end."""
        assert self.submit(name, entrypoint, "--no-wait").returncode == 0
        until(lambda: self.job(name)["status"] in ("SUCCEEDED", "FAILED") or begun(), 240, name)
        ended = subprocess.run(
            [str(BIN / "ray"), "job", "stop", name],
            env=self.client, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert self.job(name)["status"] == "STOPPED", self.log(name)[-4000:]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[dict[str, str]]:
    """An S3 server with what the jobs read; the variables that lead to it."""
    with s3_server(tmp_path_factory.mktemp("moto"), HOME.name) as variables:
        _write_inputs(tmp_path_factory.mktemp("models"))
        yield variables


def _write_inputs(scratch: Path) -> None:
    builders = {"jina": build_jina, "roberta": build_roberta, "llama": build_llama}
    write_experiment(HOME, scratch, builders)
    for number in range(2):
        write_lines(HOME / "in" / "texts" / f"{number}.jsonl", _texts(number, 100))
    for number in range(BIG_FILES):
        write_lines(HOME / "in" / "big" / f"{number}.jsonl", _texts(number, BIG_FILE_ROWS))
    write_text(HOME / "in" / "labels.yaml", yaml.safe_dump(LABELS))


def _texts(number: int, rows: int) -> list[dict[str, str]]:
    words = list(WORDS.values())
    return [{"text": f"{words[i % 3]} number {i} of file {number}"} for i in range(rows)]


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as found:
        yield found


@pytest.fixture(scope="module")
def tracking(store, database, tmp_path_factory) -> Iterator[dict[str, str]]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow"), database, HOME / "mlflow") as variables:
        yield variables


@pytest.fixture(scope="module")
def outside(store, tracking, tmp_path_factory) -> Iterator[Outside]:
    made = Outside(tmp_path_factory.mktemp("cluster"), store, tracking)
    try:
        yield made
    finally:
        made.cluster.stop()


@pytest.fixture(scope="module")
def summaries() -> dict[str, dict[str, Any]]:
    """Of the jobs that have run."""
    return {}


def answers(place: RemotePath) -> pa.Table:
    """All rows of an output, by id."""
    filesystem, path = filesystem_of(place)
    return ds.dataset(path, filesystem=filesystem).to_table().sort_by("id")


def test_an_unauthenticated_submit_is_refused(outside):
    refused = outside.submit("stranger", ["-c", "print(1)"], RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert "401" in refused.stdout + refused.stderr or "nauth" in refused.stdout + refused.stderr
    assert requests.get(outside.api, timeout=10).status_code == 401


def test_these_are_all_jobs():
    files = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert set(JOBS) == set(WRONG) == files


def test_wrong_settings_end_with_2_and_a_reason(outside):
    """All at a time; each starts Python and reads its settings."""
    for job, (settings, _) in WRONG.items():
        begun = outside.submit(f"wrong-{job}", [f"jobs/{job}.py", *settings], "--no-wait")
        assert begun.returncode == 0, begun.stdout + begun.stderr
    for job, (_, words) in WRONG.items():
        name = f"wrong-{job}"
        until(lambda name=name: outside.job(name)["status"] in ("FAILED", "SUCCEEDED"), 200, name)
        told = outside.job(name)
        assert (told["status"], told["driver_exit_code"]) == ("FAILED", 2), outside.log(name)
        assert "exit code 2" in told["message"]
        assert words in told["message"], told["message"]
    assert not (HOME / "empty").exists()
    assert not (HOME / "out").exists()


@pytest.mark.parametrize("job", JOBS)
def test_every_job(outside, summaries, job):
    """In this order each finds what it reads, on S3."""
    summaries[job] = outside.done(job, f"jobs/{job}.py", *JOBS[job])


def test_what_the_jobs_wrote(summaries, database):
    assert summaries["prepare_data"]["rows"] == 72
    assert summaries["embed"]["rows"]["embedded"] == 72
    assert EmbeddingStore.open(HOME / "run" / "embeddings" / "rows").manifest.rows == 72
    assert (HOME / "run" / "model" / "model.safetensors").is_file()
    assert (HOME / "run" / "results" / "results.json").is_file()
    assert (HOME / "run" / "results-own" / "own" / "results.json").is_file()
    assert (HOME / "llama" / "adapter" / "adapter_model.safetensors").is_file()
    assert (HOME / "out" / "compare" / "compare.md").is_file()
    assert summaries["classify"]["rows_out"] == answers(HOME / "out" / "answers").num_rows == 200
    assert EmbeddingStore.open(HOME / "out" / "store").manifest.rows == 200

    client = MlflowClient()
    run = client.get_run(summaries["train_sce"]["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy/validation"] >= 0
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert model.status == "READY"
    logged = {a.path for a in client.list_logged_model_artifacts(model.model_id, "data/weights")}
    assert {"data/weights/config.json", "data/weights/model.safetensors"} <= logged
    kept = [name for name, _, _ in (HOME / "mlflow").files()]
    assert any(f"{model.model_id}/" in name and name.endswith("/config.json") for name in kept)
    ((status,),) = database.ask(f"select status from runs where run_uuid = '{run.info.run_id}'")
    assert status == "FINISHED"


def test_from_the_store_the_answers_are_those_from_the_texts(outside):
    settings = [*CLASSIFY, "--input", f"{HOME}/out/store", "--output", f"{HOME}/out/again"]
    found = outside.done(
        "again", "jobs/classify.py", *settings, "--compare-to", f"{HOME}/out/answers"
    )
    assert found["comparison"]["compare/rows_moved"] == 0
    first, second = answers(HOME / "out" / "answers"), answers(HOME / "out" / "again")
    assert first["label"].to_pylist() == second["label"].to_pylist()


def test_the_endpoint_gives_the_answers_of_the_bulk_job(outside):
    cluster = outside.cluster
    model = {
        "path": str(HOME / "run" / "model"),
        "embedder": {"kind": "jina", "model": str(HOME / "models" / "jina")},
        "dtype": "float32",
    }
    cluster.app["args"] = {"models": {"tiny": model}}
    cluster.deploy()
    bulk = answers(HOME / "out" / "answers")
    lines = "".join((HOME / "in" / "texts" / f"{n}.jsonl").read_text() for n in range(2))
    texts = [json.loads(line)["text"] for line in lines.splitlines()]
    body = {"texts": texts, "labels": LABELS}
    answer = requests.post(f"{cluster.url}/v1/classify", json=body, headers=HEADERS, timeout=60)
    assert answer.status_code == 200, answer.text
    by_place = bulk.sort_by("place")
    for served, label, score in zip(
        answer.json()["data"], by_place["label"].to_pylist(), by_place["score"].to_pylist(),
        strict=True,
    ):  # fmt: skip
        assert served["score"] == pytest.approx(score, abs=1e-5)
        assert served["label"] == label
    assert requests.post(f"{cluster.url}/v1/classify", json=body, timeout=60).status_code == 401
    cluster.run("serve", "shutdown", "-y")


def committed_parts(place: RemotePath) -> int:
    run = read_run(str(place))
    return 0 if run is None else len(run.parts)


def test_an_embedding_that_is_stopped(outside):
    place = HOME / "out" / "big-store"
    command = ["jobs/embed.py", "--input", f"{HOME}/in/big", "--store", str(place), *EMBEDDER]
    command += ["--commit-rows", str(BIG_FILE_ROWS)]
    outside.stopped("embed-stopped", command, lambda: committed_parts(place) >= 1)
    with pytest.raises(DataError, match=r"unfinished: it has no manifest\.json"):
        EmbeddingStore.open(place)
    settings = [*CLASSIFY, "--input", str(place), "--output", f"{HOME}/out/half"]
    refused = outside.submit("half-a-store", ["jobs/classify.py", *settings])
    assert refused.returncode != 0
    assert outside.job("half-a-store")["driver_exit_code"] == 2
    assert "what an unfinished job has written so far" in refused.stdout

    assert outside.done("embed-again", *command)["rows_out"] == BIG_FILES * BIG_FILE_ROWS
    ids = EmbeddingStore.open(place).read(["row_id"])["row_id"]
    assert len(ids) == len(ids.unique()) == BIG_FILES * BIG_FILE_ROWS


def test_a_classification_that_is_stopped(outside):
    place = HOME / "out" / "big-answers"
    command = ["jobs/classify.py", *CLASSIFY, "--input", f"{HOME}/in/big", "--output", str(place)]
    command += ["--commit-rows", str(BIG_FILE_ROWS)]
    outside.stopped("classify-stopped", command, lambda: committed_parts(place) >= 1)
    run = read_run(str(place))
    assert run is not None
    assert not run.done

    found = outside.done("classify-again", *command)
    assert found["rows_out"] == BIG_FILES * BIG_FILE_ROWS
    assert found["rows_this_run"] < found["rows_out"], "the finished part was not done again"
    ids = answers(place)["id"]
    assert len(ids) == len(ids.unique()) == BIG_FILES * BIG_FILE_ROWS


def test_a_training_that_is_stopped(outside):
    home = HOME / "long-run"
    command = ["jobs/train_sce.py", "--config", f"{HOME}/in/tiny.yaml", "--run-dir", str(home)]
    command += ["--shared-dir", f"{HOME}/run", "--train.epochs", "20", "--train.patience", "20"]
    checkpoints = home / "checkpoints"

    def epoch_is_kept() -> bool:
        return any("checkpoint_" in name for name, _, _ in checkpoints.files())

    outside.stopped("train-stopped", command, epoch_is_kept)
    assert not (home / "model").exists()
    refused = outside.submit("train-again", command)
    assert outside.job("train-again")["driver_exit_code"] == 2
    assert "--resume" in refused.stdout

    found = outside.done("train-resumed", *command, "--resume")
    assert "going on after epoch" in outside.log("train-resumed")
    assert found["model"] == str(home / "model")
    assert (home / "model" / "config.json").is_file()
    assert MlflowClient().get_run(found["mlflow_run_id"]).info.status == "FINISHED"
