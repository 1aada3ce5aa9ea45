"""Faults in the middle of the work, on a cluster of several machines: what happens, how long it
takes to recover, and what is lost.

    make chaos

The moments are random; their seed is printed, and CHAOS_SEED repeats them. At the end a table
is printed, which cluster/README.md has too.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import yaml

from sce.embedding.store import EmbeddingStore, embedding_matrix
from tests.cluster import test_several_nodes_system as several
from tests.cluster.machines import BIN, Machine, Network, RayCluster, network, possible
from tests.cluster.manifests import ROOT
from tests.cluster.services import POSTGRES, mlflow_server, postgres, redis, s3_server, until
from tests.cluster.test_several_nodes_system import EMBEDDER, EMBEDDING, HOME, LABELS, MODEL
from tests.serve import load
from tests.serve.load import HEADERS, TOKEN, Load

SEED = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))
FILES, FILE_ROWS = 24, 250
BIG = f"{HOME}/in/big"
ACTORS = ["--resources.embed-actors", "2", "--resources.cpus-per-embed-actor", "2.5"]
EMBED = ["--input", BIG, *EMBEDDER, *ACTORS]
EMBED += ["--id-column", "id"]
CLASSIFY = [*MODEL, "--labels", '["flood", "engine trouble", "praise"]', "--input", BIG, *ACTORS]
CLASSIFY += ["--id-column", "id"]
AT_WORK = ("rows, ", "actor(s) on CPU")

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(possible()), reason=possible() or "-"),
    pytest.mark.skipif(not POSTGRES, reason="PostgreSQL is not installed (the Makefile does it)"),
]


@dataclass
class Fault:
    """A line of the table."""

    name: str
    happened: str
    seconds: float
    lost: str
    statuses: Counter[int] = field(default_factory=Counter)

    def line(self) -> str:
        counts = [str(self.statuses.get(status, 0)) if self.statuses else ""
                  for status in (404, 500, 502, 503, 0)]  # fmt: skip
        return "| " + " | ".join(
            [self.name, self.happened, f"{self.seconds:.0f}", self.lost, *counts]
        ) + " |"  # fmt: skip


class FaultyS3:
    """In front of an S3 server: a share of the requests is answered 503, the others late."""

    def __init__(self, host: str, upstream: str, dice: random.Random) -> None:
        self.share, self.delay = 0.0, 0.0
        self.refused = self.passed = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                time.sleep(outer.delay)
                if dice.random() < outer.share:
                    outer.refused += 1
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                outer.passed += 1
                kept = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                found = requests.request(
                    self.command, upstream + self.path, headers=kept, data=body, stream=True,
                    timeout=60,
                )  # fmt: skip
                content = found.raw.read()
                self.send_response(found.status_code)
                for name, value in found.headers.items():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                size = found.headers.get("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", size or str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self.url = f"http://{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Place:
    """The cluster, what it works with, and what was seen of undisturbed jobs."""

    network: Network
    cluster: RayCluster
    s3: FaultyS3
    restart_mlflow: Callable[[], None]
    stop_mlflow: Callable[[], None]
    dice: random.Random
    faults: list[Fault]
    undisturbed: dict[str, float] = field(default_factory=dict)


@pytest.fixture(scope="module")
def place(tmp_path_factory, request) -> Iterator[Place]:
    with faulty(tmp_path_factory.mktemp("chaos"), request) as made:
        yield made


@contextmanager
def faulty(
    folder: Path, request: pytest.FixtureRequest, workers: int = 3, with_redis: bool = False
) -> Iterator[Place]:
    """The cluster and its servers; the table at the end."""
    dice, faults = random.Random(SEED), list[Fault]()
    say = request.config.pluginmanager.getplugin("terminalreporter").write_line
    say(f"CHAOS_SEED={SEED}")
    with ExitStack() as stack:
        machines = stack.enter_context(network())
        store = stack.enter_context(s3_server(folder, HOME.name, machines.host))
        s3 = FaultyS3(machines.host, store["AWS_ENDPOINT_URL"], dice)
        stack.callback(s3.close)
        database = stack.enter_context(postgres())
        tracking = ExitStack()
        stack.enter_context(tracking)
        server = [mlflow_server(folder, database, HOME / "mlflow", machines.host)]
        variables = tracking.enter_context(server[0])
        port = int(variables["MLFLOW_TRACKING_URI"].rpartition(":")[2])

        def restart() -> None:
            again = mlflow_server(folder, database, HOME / "mlflow", machines.host, port)
            tracking.enter_context(again)

        several.write_inputs(folder)
        _write_big()
        nodes = store | variables | {"AWS_ENDPOINT_URL": s3.url}
        kept = stack.enter_context(redis(machines.host)) if with_redis else None
        cluster = RayCluster(machines, nodes, workers, redis=kept)
        yield Place(machines, cluster, s3, restart, tracking.close, dice, faults)
    head = "| fault | what happened | seconds | lost | 404 | 500 | 502 | 503 | no answer |"
    say("")
    for line in (head, "|---|---|---:|---|---:|---:|---:|---:|---:|", *(f.line() for f in faults)):
        say(line)


def _write_big() -> None:
    words = list(several.WORDS.values())
    for number in range(FILES):
        first = number * FILE_ROWS
        rows = [
            {"id": f"b{i}", "text": f"{words[i % 3]} of {i}"}
            for i in range(first, first + FILE_ROWS)
        ]
        several.write_lines(HOME / "in" / "big" / f"{number:02d}.jsonl", rows)


def begun(place: Place, name: str, *entrypoint: str) -> float:
    """Submit, and wait until actors are at work. Returns when that was."""
    place.cluster.begin(name, *entrypoint)
    until(
        lambda: any(words in place.cluster.log(name) for words in AT_WORK)
        or place.cluster.job(name)["status"] == "FAILED", 180, name,
    )  # fmt: skip
    return time.monotonic()


def ended(place: Place, name: str, since: float, seconds: float = 400) -> float:
    """Wait for a job, which must succeed. Returns the seconds that it took since a moment."""
    state = place.cluster.wait(name, seconds)
    assert state == "SUCCEEDED", place.cluster.log(name)[-6000:]
    return time.monotonic() - since


def whole_store(name: str, again: str | None = None) -> str:
    """Each row once, with the vectors of another store where one is given."""
    rows = EmbeddingStore.open(HOME / "out" / name).read(["row_id", "embedding"]).sort_by("row_id")
    ids = rows["row_id"].to_pylist()
    assert len(ids) == len(set(ids)) == FILES * FILE_ROWS
    if again is not None:
        other = EmbeddingStore.open(HOME / "out" / again).read(["row_id", "embedding"])
        np.testing.assert_allclose(
            embedding_matrix(rows["embedding"]),
            embedding_matrix(other.sort_by("row_id")["embedding"]),
            atol=1e-6,
        )
    return f"0 of {len(ids):,} rows"


def whole_output(name: str) -> str:
    rows = several.answers(HOME / "out" / name)
    assert set(rows) == {f"b{i}" for i in range(FILES * FILE_ROWS)}
    assert all(row["label"] in LABELS for row in rows.values())
    return f"0 of {len(rows):,} rows"


def replace(place: Place, machine: Machine) -> None:
    """A new machine for one that is gone, as an autoscaler or an operator brings it."""
    place.cluster.workers.remove(machine)
    place.cluster.workers.append(place.cluster.add_worker())
    count = len(place.cluster.workers) + 1
    until(lambda: place.cluster.alive() == count, 120, "the new machine")


def a_worker(place: Place) -> Machine:
    return place.dice.choice(place.cluster.workers)


def test_a_machine_is_killed_while_it_trains(place):
    training = ["jobs/train_sce.py", "--config", f"{HOME}/in/tiny.yaml", "--train.epochs", "6",
                "--resources.num-workers", "2", "--resources.cpus-per-worker", "2.5"]  # fmt: skip
    place.cluster.begin("train", *training)
    until(lambda: "RayTrainWorker" in place.cluster.log("train"), 240, "workers")
    time.sleep(place.dice.uniform(0, 4))
    at = set(several.machines_of(place.cluster, "train", "RayTrainWorker"))
    killed = next(one for one in place.cluster.workers if one.address in at)
    killed.kill()
    seconds = ended(place, "train", time.monotonic())
    assert (HOME / "run" / "model" / "model.safetensors").is_file()
    said = "workers begin anew on those left, from the last checkpoint"
    place.faults.append(Fault("machine killed, train", said, seconds, "at most an epoch"))
    replace(place, killed)


def test_a_machine_is_killed_while_it_embeds(place):
    since = begun(place, "embed-0", "jobs/embed.py", *EMBED, "--store", f"{HOME}/out/calm")
    place.undisturbed["embed"] = ended(place, "embed-0", since)
    whole_store("calm")

    begun(place, "embed-1", "jobs/embed.py", *EMBED, "--store", f"{HOME}/out/killed")
    time.sleep(place.dice.uniform(0, place.undisturbed["embed"]))
    killed = a_worker(place)
    killed.kill()
    seconds = ended(place, "embed-1", time.monotonic())
    lost = whole_store("killed", "calm")
    said = f"its rows are embedded by the others (undisturbed {place.undisturbed['embed']:.0f} s)"
    place.faults.append(Fault("machine killed, embed", said, seconds, lost))
    replace(place, killed)


def test_a_machine_is_killed_while_it_classifies(place):
    since = begun(place, "classify-0", "jobs/classify.py", *CLASSIFY, "--output", f"{HOME}/out/c0")
    place.undisturbed["classify"] = ended(place, "classify-0", since)
    begun(place, "classify-1", "jobs/classify.py", *CLASSIFY, "--output", f"{HOME}/out/c1")
    time.sleep(place.dice.uniform(0, place.undisturbed["classify"]))
    killed = a_worker(place)
    killed.kill()
    seconds = ended(place, "classify-1", time.monotonic())
    lost = whole_output("c1")
    assert same_labels("c0", "c1")
    calm = place.undisturbed["classify"]
    said = f"its rows are answered by the others (undisturbed {calm:.0f} s)"
    place.faults.append(Fault("machine killed, classify", said, seconds, lost))
    replace(place, killed)


def same_labels(one: str, other: str) -> bool:
    first, second = (several.answers(HOME / "out" / name) for name in (one, other))
    return {k: v["label"] for k, v in first.items()} == {k: v["label"] for k, v in second.items()}


def test_a_network_is_cut_and_healed(place):
    begun(place, "classify-2", "jobs/classify.py", *CLASSIFY, "--output", f"{HOME}/out/c2")
    time.sleep(place.dice.uniform(0, place.undisturbed.get("classify", 10)))
    cut, began = a_worker(place), time.monotonic()
    cut.cut()
    time.sleep(20)
    cut.heal()
    seconds = ended(place, "classify-2", began)
    lost = whole_output("c2")
    place.faults.append(
        Fault(
            "network cut for 20 s, classify", "as if the machine were slow, or gone", seconds, lost
        )
    )
    deadline = time.monotonic() + 60
    while place.cluster.alive() != 4 and time.monotonic() < deadline:
        time.sleep(1)
    if place.cluster.alive() != 4:  # declared dead meanwhile: its raylet ends itself
        cut.kill()
        replace(place, cut)


def test_s3_answers_503_and_slowly(place):
    begun(place, "classify-3", "jobs/classify.py", *CLASSIFY, "--output", f"{HOME}/out/c3")
    place.s3.share, place.s3.delay, refused, began = 0.3, 0.2, place.s3.refused, time.monotonic()
    try:
        seconds = ended(place, "classify-3", began)
    finally:
        place.s3.share = place.s3.delay = 0.0
    lost = whole_output("c3")
    said = f"{place.s3.refused - refused} requests refused (30%), others 0.2 s late; asked again"
    place.faults.append(Fault("S3 503 and slow, classify", said, seconds, lost))


def test_mlflow_is_down(place):
    place.stop_mlflow()
    began = time.monotonic()
    threading.Timer(40, place.restart_mlflow).start()
    place.cluster.begin("classify-4", "jobs/classify.py", *CLASSIFY, "--output", f"{HOME}/out/c4")
    state = place.cluster.wait("classify-4", 400)
    log = place.cluster.log("classify-4")
    assert state == "SUCCEEDED", log[-6000:]
    lost = whole_output("c4")
    said = "answers are written; " + ("the run is not recorded" if "MLflow" in log else "recorded")
    place.faults.append(
        Fault("MLflow down for 40 s, classify", said, time.monotonic() - began, lost)
    )
    time.sleep(max(0.0, 45 - (time.monotonic() - began)))


def test_a_machine_is_told_to_end(place):
    """SIGTERM to Ray's node, as Kubernetes sends it."""
    begun(place, "classify-5", "jobs/classify.py", *CLASSIFY, "--output", f"{HOME}/out/c5")
    time.sleep(place.dice.uniform(0, place.undisturbed.get("classify", 10)))
    told, began = a_worker(place), time.monotonic()
    for pid in told.pids():
        with suppress(OSError):
            if b"/raylet/raylet" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGTERM)
    seconds = ended(place, "classify-5", began)
    lost = whole_output("c5")
    place.faults.append(
        Fault("SIGTERM to a node, classify", "its rows are answered by the others", seconds, lost)
    )
    told.kill()
    replace(place, told)


def served(place: Place, folder: Path) -> tuple[str, dict[str, Any]]:
    """Deploy the endpoint; its address at the first worker, and the right answers there."""
    config = yaml.safe_load((ROOT / "configs" / "serve.yaml").read_text())
    (app,) = config["applications"]
    config["http_options"]["host"] = "0.0.0.0"
    app["args"] = {
        "models": {
            "tiny": {
                "path": str(HOME / "run" / "model"),
                "embedder": EMBEDDING,
                "dtype": "float32",
                "scaling": {"min_replicas": 2, "max_replicas": 2, "num_cpus": 1},
            }
        },
        "tokens": TOKEN,
        "gateway": {"min_replicas": 2, "max_replicas": 2, "num_cpus": 1},
    }  # fmt: skip
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    subprocess.run(
        [str(BIN / "serve"), "deploy", str(folder / "serve.yaml")],
        env=place.cluster.client, cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    url = f"http://{place.cluster.workers[0].address}:8000"
    until(lambda: requests.get(f"{url}/health", timeout=5).ok, 180, url)
    body = {"texts": load.TEXTS[:50], "labels": load.LABELS}
    right: dict[str, Any] = {}
    for first in range(0, len(load.TEXTS), 40):
        body = {"texts": load.TEXTS[first : first + 40], "labels": load.LABELS}
        rows = requests.post(f"{url}/v1/classify", json=body, headers=HEADERS, timeout=60).json()
        right |= {t: (r["label"], r["score"]) for t, r in zip(body["texts"], rows["data"])}
    return url, right


def test_a_machine_is_killed_under_load(place, tmp_path):
    url, right = served(place, tmp_path)
    killed = place.cluster.workers[1]
    with Load(url, [right]) as clients:
        time.sleep(place.dice.uniform(1, 4))
        killed.kill()
        began = time.monotonic()
        time.sleep(45)
    bad = [at for at, status in clients.answered if status != 200 and at > began]
    seconds = max(bad) - began if bad else 0.0
    assert not clients.wrong
    assert {status for _, status in clients.answered[-20:]} == {200}
    said = f"the others answer; {clients.statuses[200]:,} of 8 clients' requests right"
    lost = f"{sum(n for s, n in clients.statuses.items() if s != 200)} requests"
    place.faults.append(
        Fault("machine killed, serve", said, seconds, lost, Counter(clients.statuses))
    )
