"""A cluster of several machines, each with an address and a /tmp of its own: a head without CPUs
and two workers, everything on S3, runs in MLflow's server on PostgreSQL.

The jobs that a user goes through, in order: each finds what it reads where the one before put it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient

from sce.embedding.store import EmbeddingStore
from sce.storage import RemotePath
from tests.cluster.inputs import LABELS, WORDS, answers, write_experiment, write_lines
from tests.cluster.machines import RayCluster, network, possible
from tests.cluster.services import POSTGRES, mlflow_server, postgres, s3_server, until
from tests.serve.load import HEADERS, TOKEN
from tests.tiny_models import build_jina, build_roberta

HOME = RemotePath("s3://several-nodes")
TEXTS = [f"{list(WORDS.values())[i % 3]} number {i}" for i in range(600)]
EMBEDDER = ["--embedder.kind", "jina", "--embedder.model", f"{HOME}/models/jina"]
EMBEDDER += ["--embedder.dtype", "float32"]
EMBEDDING = {"kind": "jina", "model": f"{HOME}/models/jina", "dtype": "float32"}
TRAINED = ["--model", f"{HOME}/run/model", *EMBEDDER]
MODEL = [*TRAINED, "--dtype", "float32"]
TWO = ["--resources.embed-actors", "2", "--resources.cpus-per-embed-actor", "2.5"]
"""Actors that no machine has room for two of."""

JOBS: dict[str, list[str]] = {
    "prepare_data": ["--config", f"{HOME}/in/tiny.yaml"],
    "train_sce": [
        "--config", f"{HOME}/in/tiny.yaml", "--resources.num-workers", "2",
        "--resources.cpus-per-worker", "2.5", *TWO,
    ],
    "evaluate": [
        "--config", f"{HOME}/run/config.yaml", "--evaluate.labelled", f"{HOME}/in/own.jsonl",
    ],
    "embed": [
        "--input", f"{HOME}/in/texts", "--store", f"{HOME}/out/store", *EMBEDDER, *TWO,
        "--id-column", "id",
    ],
    "adapt": [
        *TRAINED, "--input", f"{HOME}/out/store", "--labels", json.dumps(LABELS),
        "--output", f"{HOME}/out/adapted",
    ],
    "classify": [
        *MODEL, "--labels", json.dumps(LABELS), "--input", f"{HOME}/out/store",
        "--output", f"{HOME}/out/answers", *TWO,
    ],
}  # fmt: skip

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(possible()), reason=possible() or "-"),
    pytest.mark.skipif(not POSTGRES, reason="PostgreSQL is not installed (the Makefile does it)"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[RayCluster]:
    folder = tmp_path_factory.mktemp("services")
    with (
        network() as machines,
        s3_server(folder, HOME.name, machines.host) as store,
        postgres() as database,
        mlflow_server(folder, database, HOME / "mlflow", machines.host) as tracking,
    ):
        _write_inputs(folder)
        yield RayCluster(machines, store | tracking)


def _write_inputs(scratch: Path) -> None:
    write_experiment(HOME, scratch, {"jina": build_jina, "roberta": build_roberta})
    for number in range(6):
        own = [{"id": f"t{i}", "text": TEXTS[i]} for i in range(number, len(TEXTS), 6)]
        write_lines(HOME / "in" / "texts" / f"{number}.jsonl", own)


def done(cluster: RayCluster, name: str) -> dict[str, Any]:
    cluster.begin(name, f"jobs/{name}.py", *JOBS[name])
    state = cluster.wait(name)
    log = cluster.log(name)
    assert state == "SUCCEEDED", log[-6000:]
    found: dict[str, Any] = json.loads([x for x in log.splitlines() if x.startswith('{"')][-1])
    return found


def test_every_machine_has_its_own_address_and_files(cluster):
    assert cluster.alive() == 3
    nodes = cluster.get("/nodes?view=summary").json()["data"]["summary"]
    addresses = {node["ip"] for node in nodes}
    assert addresses == {one.address for one in (cluster.head, *cluster.workers)}
    for machine in cluster.workers:
        assert (machine.folder / "ray").is_dir()


def test_a_training_on_two_machines(cluster):
    done(cluster, "prepare_data")
    found = done(cluster, "train_sce")
    assert (HOME / "run" / "model" / "model.safetensors").is_file()
    run = MlflowClient().get_run(found["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert "training: 2 worker(s)" in cluster.log("train_sce")  # no machine has room for both
    done(cluster, "evaluate")
    assert (HOME / "run" / "results-own" / "own" / "results.json").is_file()


def test_a_corpus_is_embedded_adapted_and_classified(cluster):
    found = done(cluster, "embed")
    assert found["rows_out"] == len(TEXTS)
    assert EmbeddingStore.open(HOME / "out" / "store").manifest.rows == len(TEXTS)
    done(cluster, "adapt")
    done(cluster, "classify")
    by_row = answers(HOME / "out" / "answers")
    assert set(by_row) == {f"t{i}" for i in range(len(TEXTS))}


def test_the_endpoint_answers_on_every_machine(cluster, tmp_path):
    model = {
        "path": str(HOME / "run" / "model"),
        "embedder": EMBEDDING,
        "dtype": "float32",
        "scaling": {"min_replicas": 2, "max_replicas": 2, "num_cpus": 2.5},
    }
    batches = {"dashboard": cluster.api, "input_roots": [f"{HOME}/in"],
               "output_roots": [f"{HOME}/out"]}  # fmt: skip
    cluster.deploy(tmp_path, {"models": {"tiny": model}, "tokens": TOKEN, "batches": batches})
    urls = [f"http://{machine.address}:8000" for machine in cluster.workers]
    for url in urls:
        try:
            until(lambda url=url: requests.get(f"{url}/health", timeout=5).ok, 120, url)
        except AssertionError:
            pytest.fail(f"{url}: {cluster.get('/api/serve/applications/').text[-4000:]}")
    by_row = answers(HOME / "out" / "answers")
    asked = {"texts": TEXTS[:30], "labels": LABELS}
    for url in urls:
        answer = requests.post(f"{url}/v1/classify", json=asked, headers=HEADERS, timeout=60)
        assert answer.status_code == 200, answer.text
        for i, row in enumerate(answer.json()["data"]):
            assert row["label"] == by_row[f"t{i}"]["label"]
            assert row["score"] == pytest.approx(by_row[f"t{i}"]["score"], abs=1e-5)
        assert requests.post(f"{url}/v1/classify", json=asked, timeout=30).status_code == 401
    batch = {
        "input": f"{HOME}/in/texts",
        "output": f"{HOME}/out/batch",
        "labels": LABELS,
        "id_column": "id",
    }
    begun = requests.post(f"{urls[0]}/v1/batches", json=batch, headers=HEADERS, timeout=60)
    assert begun.status_code == 200, begun.text
    place = f"{urls[1]}/v1/batches/{begun.json()['id']}"
    until(
        lambda: requests.get(place, headers=HEADERS, timeout=30).json()["status"]
        != "in_progress", 240, "batch",
    )  # fmt: skip
    told = requests.get(place, headers=HEADERS, timeout=30).json()
    assert told["status"] == "completed", told
    assert len(answers(HOME / "out" / "batch")) == len(TEXTS)
