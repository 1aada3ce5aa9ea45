"""A cluster of several machines whose servers can fail, the jobs that run on it meanwhile, and the
table of what was seen.

The moments are random; their seed is printed, and CHAOS_SEED repeats them.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import requests
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from sce.embedding.store import EmbeddingStore, embedding_matrix
from sce.storage import RemotePath
from tests.cluster.inputs import LABELS, WORDS, answers, write_experiment, write_lines
from tests.cluster.machines import Machine, RayCluster, network, possible
from tests.cluster.services import POSTGRES, mlflow_server, postgres, redis, s3_server, until
from tests.serve import load
from tests.serve.load import HEADERS, TOKEN, free_ports
from tests.tiny_models import build_jina, build_roberta

SEED = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))
HOME = RemotePath("s3://faults")
EMBEDDER = ["--embedder.kind", "jina", "--embedder.model", f"{HOME}/models/jina"]
EMBEDDER += ["--embedder.dtype", "float32"]
TRAINED = ["--model", f"{HOME}/run/model", *EMBEDDER]
FILES, FILE_ROWS = 6, 1000
BIG = f"{HOME}/in/big"
ACTORS = ["--resources.embed-actors", "2", "--resources.cpus-per-embed-actor", "2.5"]
EMBED = ["--input", BIG, *EMBEDDER, *ACTORS]
EMBED += ["--id-column", "id"]
CLASSIFY = [*TRAINED, "--dtype", "float32", "--labels", json.dumps(LABELS), "--input", BIG, *ACTORS]
CLASSIFY += ["--id-column", "id"]
AT_WORK = ("rows, ", "actor(s) on CPU")

needed = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(possible()), reason=possible() or "-"),
    pytest.mark.skipif(not POSTGRES, reason="PostgreSQL is not installed (the Makefile does it)"),
]
"""What tests of faults are marked with."""


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
        self.share, self.delay, self.refused = 0.0, 0.0, 0
        self._upstream, self._dice = upstream, dice
        (port,) = free_ports(1)
        self.url = f"http://{host}:{port}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._begin(host, port), self._loop).result(30)

    async def _begin(self, host: str, port: int) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.share:
            await asyncio.sleep(self.delay)
        if self._dice.random() < self.share:
            self.refused += 1
            return web.Response(status=503)
        of_a_hop = {"connection", "transfer-encoding", "content-length", "expect", "host"}
        url = URL(self._upstream + request.raw_path, encoded=True)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in of_a_hop}
        async with self._session.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as found:
            content = await found.read()
            kept = [(k, v) for k, v in found.headers.items() if k.lower() not in of_a_hop]
            if request.method == "HEAD" and "Content-Length" in found.headers:
                kept.append(("Content-Length", found.headers["Content-Length"]))
            return web.Response(status=found.status, headers=CIMultiDict(kept), body=content)

    async def _end(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@dataclass
class Place:
    """The cluster, what it works with, and what was seen of undisturbed jobs."""

    cluster: RayCluster
    s3: FaultyS3
    tracking: Tracking
    dice: random.Random
    faults: list[Fault]
    undisturbed: dict[str, float] = field(default_factory=dict)


class Tracking:
    """MLflow's server and its database, which can be ended and begun again."""

    def __init__(self, folder: Path, host: str) -> None:
        self._folder, self._host, self._port = folder, host, None
        self._stack = ExitStack()
        self._database = self._stack.enter_context(postgres())
        self._server = ExitStack()
        self.variables = self._begin()
        self._port = int(self.variables["MLFLOW_TRACKING_URI"].rpartition(":")[2])

    def _begin(self) -> dict[str, str]:
        server = mlflow_server(
            self._folder, self._database, HOME / "mlflow", self._host, self._port
        )
        return self._server.enter_context(server)

    def stop(self) -> None:
        self._database.stop()
        self._server.close()

    def start(self) -> None:
        self._database.start()
        self._begin()

    def close(self) -> None:
        self._server.close()
        self._stack.close()


@contextmanager
def faulty(
    folder: Path, request: pytest.FixtureRequest, workers: int = 3, with_redis: bool = False
) -> Iterator[Place]:
    """The cluster and its servers; the table at the end."""
    dice, faults = random.Random(SEED), list[Fault]()
    _say(request, f"CHAOS_SEED={SEED}")
    with ExitStack() as stack:
        machines = stack.enter_context(network())
        store = stack.enter_context(s3_server(folder, HOME.name, machines.host))
        s3 = FaultyS3(machines.host, store["AWS_ENDPOINT_URL"], dice)
        stack.callback(s3.close)
        tracking = Tracking(folder, machines.host)
        stack.callback(tracking.close)
        write_experiment(HOME, folder, {"jina": build_jina, "roberta": build_roberta})
        _write_big()
        nodes = store | tracking.variables | {"AWS_ENDPOINT_URL": s3.url}
        kept = stack.enter_context(redis(machines.host)) if with_redis else None
        yield Place(
            RayCluster(machines, nodes, workers, cpus=3, redis=kept), s3, tracking, dice, faults
        )
    rule = "|---|---|---:|---|---:|---:|---:|---:|---:|"
    columns = "| fault | what happened | seconds | lost | 404 | 500 | 502 | 503 | no answer |"
    _say(request, "", columns, rule, *(fault.line() for fault in faults))


def _say(request: pytest.FixtureRequest, *lines: str) -> None:
    """Past pytest's capturing."""
    manager = request.config.pluginmanager
    with manager.getplugin("capturemanager").global_and_fixture_disabled():
        print(*lines, sep="\n", flush=True)


def _write_big() -> None:
    words = list(WORDS.values())
    for number in range(FILES):
        first = number * FILE_ROWS
        rows = [
            {"id": f"b{i}", "text": f"{words[i % 3]} of {i}"}
            for i in range(first, first + FILE_ROWS)
        ]
        write_lines(HOME / "in" / "big" / f"{number:02d}.jsonl", rows)


def seen(place: Place, name: str, condition: Callable[[], Any], what: str) -> float:
    """Wait until a job is so far. Returns when that was."""

    def over() -> bool:
        return place.cluster.job(name)["status"] in ("FAILED", "SUCCEEDED")

    try:
        until(lambda: condition() or over(), 400, what)
    except AssertionError as error:
        raise AssertionError(f"{error}: {place.cluster.log(name)[-6000:]}") from None
    assert condition(), f"over before {what}: {place.cluster.log(name)[-6000:]}"
    return time.monotonic()


def begun(place: Place, name: str, *entrypoint: str) -> float:
    """Submit, and wait until actors are at work. Returns when that was."""
    place.cluster.begin(name, *entrypoint)
    return seen(
        place, name, lambda: any(words in place.cluster.log(name) for words in AT_WORK), "actors"
    )


def strike(place: Place, name: str, undisturbed: float) -> float:
    """Wait for a random moment in the first 0.6 of a job that takes so many seconds undisturbed.
    Returns when that is: the job is at work."""
    time.sleep(place.dice.uniform(0, 0.6) * undisturbed)
    assert place.cluster.job(name)["status"] == "RUNNING", "it was through before the fault"
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
    rows = answers(HOME / "out" / name)
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


def same_labels(one: str, other: str) -> bool:
    first, second = (answers(HOME / "out" / name) for name in (one, other))
    return {k: v["label"] for k, v in first.items()} == {k: v["label"] for k, v in second.items()}


def served(place: Place, folder: Path) -> tuple[str, dict[str, Any]]:
    """Deploy the endpoint; its address at the first worker, and the right answers there."""
    replicas = {"min_replicas": 2, "max_replicas": 2, "num_cpus": 1}
    model = {
        "path": str(HOME / "run" / "model"),
        "embedder": {"kind": "jina", "model": str(HOME / "models" / "jina")},
        "dtype": "float32",
        "scaling": replicas,
    }
    place.cluster.deploy(folder, {"models": {"tiny": model}, "tokens": TOKEN, "gateway": replicas})
    url = f"http://{place.cluster.workers[0].address}:8000"
    until(lambda: requests.get(f"{url}/health", timeout=5).ok, 180, url)
    right: dict[str, Any] = {}
    for first in range(0, len(load.TEXTS), 40):
        body = {"texts": load.TEXTS[first : first + 40], "labels": load.LABELS}
        rows = requests.post(f"{url}/v1/classify", json=body, headers=HEADERS, timeout=60).json()
        right |= {t: (r["label"], r["score"]) for t, r in zip(body["texts"], rows["data"])}
    return url, right
