"""Measures the endpoint under load: throughput beside the bare predictor, latencies, the nearest
peer's server, and bulk work through it.

Servers run as processes of their own, as a user would start them; the load comes from here. Both
sides of every ratio are measured in turn in one run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Literal

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from jobs.benchmarks.inputs import label_names, make_texts, write_model, write_store
from jobs.benchmarks.records import Benchmark, Measured, arithmetic_of
from jobs.benchmarks.rounds import Figure, Figures, in_turn, seconds_of
from jobs.benchmarks.servers import ROOT, gliclass_server, own_ray, serve_app
from sce.distributed.resources import use_threads
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.model.arithmetic import multiplies_bfloat16
from sce.predictor import Predictor

WARM_UP_SECONDS = 2.0

log = logging.getLogger(__name__)


class ServeBenchmark(Benchmark):
    """Settings of `benchmark.py serve`."""

    model: str | None = None
    """A trained model; by default random weights of the default recipe."""
    labels: int = Field(default=10, ge=1)
    texts: int = Field(default=512, ge=1)
    """Distinct texts of the load; the server keeps no vectors, so each is embedded every time."""
    text_tokens: int = Field(default=64, ge=3)
    request_texts: list[int] = [1, 16, 64]
    """Texts of a request where throughput is measured."""
    saturating_texts: int = Field(default=512, ge=1)
    """Texts in flight there: so many clients at a time as make this number, 128 at most."""
    clients: list[int] = [1, 8, 32, 128]
    """Clients at a time where latency is measured, each with one text a request."""
    seconds: float = Field(default=5.0, gt=0)
    """How long each measurement takes."""
    rounds: int = Field(default=3, ge=1)
    """In each every side is measured twice."""
    peers: bool = True
    """Also GLiClass's own server, under the same load."""
    peer_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """GLiClass's numbers. `auto`: bfloat16 where the processor multiplies it, as ours are then."""
    bulk_rows: int = Field(default=3000, ge=0)
    """Texts of `jobs/classify.py` through the endpoint and in its own actors, one round of each; 0:
    neither."""
    embedder: EmbedderConfig = EmbedderConfig()


@dataclass(frozen=True)
class Load:
    """What came back: seconds of each request, and requests a second."""

    latencies: list[float]
    rate: float

    def milliseconds(self, percentile: int) -> float:
        return float(np.percentile(self.latencies, percentile)) * 1000


def benchmark_serve(config: ServeBenchmark) -> Measured:
    """Throughput, latency, what a request costs, the peer, bulk work.

    Raises:
        ConfigError: GLiClass is asked for and not installed.
    """
    use_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        model = config.model or write_model(home / "model", config.embedder)
        predictor = Predictor.from_pretrained(model, dtype="auto", device="cpu")
        texts = make_texts(predictor, config.texts, config.text_tokens)
        labels = label_names(config.labels, 0)
        settings = {"models": {"benchmark": {"path": str(Path(model).absolute()),
                                             "device": "cpu", "cache_bytes": 0}}}  # fmt: skip
        figures: Figures = {}
        kinds = arithmetic_of(embedder=predictor.embedder, encoder=predictor.model)
        with serve_app(home, settings) as url:
            post = f"{url}/v1/classify"
            figures |= _throughput(config, predictor, post, texts, labels)
            figures |= _latency(config, post, texts, labels)
            figures |= _one_request(config, predictor, post, texts, labels)
            if config.peers:
                found, kinds["GLiClass"] = _peer(config, home, post, texts, labels)
                figures |= found
            if config.bulk_rows:
                figures |= _bulk(config, home, model, url, texts)
    note = f"Texts of {config.text_tokens} tokens, {config.labels} labels, no vector kept."
    return Measured(figures, kinds, (note,))


def _throughput(
    config: ServeBenchmark, predictor: Predictor, url: str, texts: list[str], labels: list[str]
) -> Figures:
    """Texts a second at saturation, and over the bare predictor's."""

    def bare() -> float:
        done, seconds = 0, 0.0
        while seconds < config.seconds / 2:
            seconds += seconds_of(lambda: predictor.predict(texts, labels))
            done += len(texts)
        return done / seconds

    bare()
    table: dict[str, dict[str, Figure | str]] = {}
    for size in config.request_texts:
        clients = min(128, max(1, config.saturating_texts // size))
        bodies = _bodies(texts, labels, size)
        warm_up(url, bodies, clients)
        load = partial(run_load, url, bodies, clients, config.seconds)
        turns = in_turn(
            {"served": lambda: size * load().rate, "bare": bare},  # noqa: B023
            config.rounds,
        )
        table[f"{size} a request, {clients} clients"] = {
            "served": turns.figure("served", "texts/s"),
            "bare predictor": turns.figure("bare", "texts/s"),
            "ratio": turns.ratio("served", "bare"),
        }
        log.info("%d texts a request: %s", size, turns.values)
    return {"texts a second": dict(table)}


def _latency(config: ServeBenchmark, url: str, texts: list[str], labels: list[str]) -> Figures:
    """Milliseconds of requests of one text, by the number of clients."""
    bodies = _bodies(texts, labels, 1)
    loads: dict[str, list[Load]] = {str(clients): [] for clients in config.clients}

    def rate(clients: str) -> float:
        loads[clients].append(run_load(url, bodies, int(clients), config.seconds))
        return loads[clients][-1].rate

    for clients in config.clients:
        warm_up(url, bodies, clients)
    turns = in_turn({clients: partial(rate, clients) for clients in loads}, config.rounds)
    table: dict[str, dict[str, Figure | str]] = {}
    for clients, found in loads.items():
        table[clients] = {
            f"p{p}, ms": Figure.of([one.milliseconds(p) for one in found], "ms", "less")
            for p in (50, 95, 99)
        }
        table[clients]["requests/s"] = turns.figure(clients, "requests/s")
    return {"clients, one text a request": table}


def _one_request(
    config: ServeBenchmark, predictor: Predictor, url: str, texts: list[str], labels: list[str]
) -> Figures:
    """One text by one client, and the same by a bare call; medians."""
    bodies = _bodies(texts, labels, 1)
    following = cycle(texts)

    def served() -> float:
        return 1000 * median(run_load(url, bodies, 1, config.seconds / 2).latencies)

    def bare() -> float:
        some = [next(following) for _ in range(50)]
        return 1000 * median(seconds_of(partial(predictor.predict, [t], labels)) for t in some)

    turns = in_turn({"served": served, "bare": bare}, config.rounds)
    more = [one - other for one, other in zip(turns.values["served"], turns.values["bare"])]
    cells: dict[str, Figure | str] = {
        "served, ms": turns.figure("served", "ms", "less"),
        "a bare call, ms": turns.figure("bare", "ms", "less"),
        "its own cost, ms": Figure.of(more, "ms", "less"),
    }
    return {"one client": {"one text": cells}}


def _peer(
    config: ServeBenchmark, home: Path, url: str, texts: list[str], labels: list[str]
) -> tuple[Figures, str]:
    """GLiClass's Ray Serve server under the same load: one text a request, as it reads no more.

    Its weights are random around a backbone of the same size. Also gives its number format.
    """
    own = "bfloat16" if multiplies_bfloat16("cpu") else "float32"
    dtype = own if config.peer_dtype == "auto" else config.peer_dtype
    asked = {"labels": labels, "multi_label": False}
    peer_bodies = [json.dumps({"text": text} | asked).encode() for text in texts]
    clients = min(128, config.saturating_texts)
    with gliclass_server(home, dtype) as peer_url:
        warm_up(peer_url, peer_bodies, clients)
        ways = {"ours": (url, _bodies(texts, labels, 1)), "GLiClass": (peer_url, peer_bodies)}
        loads: dict[str, list[Load]] = {name: [] for name in ways}

        def rate(name: str) -> float:
            loads[name].append(run_load(*ways[name], clients, config.seconds))
            return loads[name][-1].rate

        turns = in_turn({name: partial(rate, name) for name in ways}, config.rounds)
    table: dict[str, dict[str, Figure | str]] = {}
    for name in ways:
        times = [one.milliseconds(99) for one in loads[name]]
        table[name] = {"texts/s": turns.figure(name, "texts/s")}
        table[name]["p99, ms"] = Figure.of(times, "ms", "less")
    table["ours"]["ratio"] = turns.ratio("ours", "GLiClass")
    return {f"one text a request, {clients} clients": table}, dtype


def _bulk(config: ServeBenchmark, home: Path, model: str, url: str, texts: list[str]) -> Figures:
    """`jobs/classify.py` by its own actors and through the endpoint, from texts and from vectors;
    texts a second, start-up apart."""
    rows = [f"{texts[i % len(texts)]} {i}" for i in range(config.bulk_rows)]
    pq.write_table(pa.table({"text": rows}), home / "texts.parquet")
    fingerprint = embedder_fingerprint(config.embedder)
    write_store(home / "store", fingerprint, 5 * config.bulk_rows)

    def rate(source: Path, way: str, flags: list[str]) -> float:
        shutil.rmtree(home / "out", ignore_errors=True)
        command = [sys.executable, "jobs/classify.py", "--input", str(source), *flags]
        command += ["--labels", json.dumps(label_names(config.labels, 0))]
        command += ["--output", str(home / "out"), "--no-tracking.enabled"]
        out = subprocess.check_output(command, cwd=ROOT, env=own_ray(home, way))
        return float(json.loads(out.splitlines()[-1])["texts_per_second"])

    table: dict[str, dict[str, Figure | str]] = {}
    for name, source in (("text", home / "texts.parquet"), ("store", home / "store")):
        ways = {"actors": ["--model", model], "endpoint": ["--endpoint", url]}
        sides = {way: partial(rate, source, way, flags) for way, flags in ways.items()}
        turns = in_turn(sides, 1)
        table[f"from {name}"] = {
            "by its own actors": turns.figure("actors", "texts/s"),
            "through the endpoint": turns.figure("endpoint", "texts/s"),
            "ratio": turns.ratio("endpoint", "actors"),
        }
    return {"bulk job, texts a second": table}


def warm_up(url: str, bodies: Sequence[bytes], clients: int) -> None:
    """Some seconds of load, whatever is answered."""
    asyncio.run(_load(url, bodies, clients, WARM_UP_SECONDS))


def run_load(url: str, bodies: Sequence[bytes], clients: int, seconds: float) -> Load:
    """So many clients, each sending its next request when it has the answer to the last.

    Raises:
        RuntimeError: a request was not answered with 200.
    """
    started = time.perf_counter()
    latencies, statuses = asyncio.run(_load(url, bodies, clients, seconds))
    elapsed = time.perf_counter() - started
    if set(statuses) != {200}:
        raise RuntimeError(f"the server did not answer every request: {dict(statuses)}")
    return Load(latencies, statuses[200] / elapsed)


async def _load(
    url: str, bodies: Sequence[bytes], clients: int, seconds: float
) -> tuple[list[float], Counter[int]]:
    """Seconds of each request, and how often each HTTP status came."""
    following = cycle(bodies)
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    headers = {"Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=clients)
    started = time.perf_counter()

    async def client(session: aiohttp.ClientSession) -> None:
        while time.perf_counter() - started < seconds:
            began = time.perf_counter()
            async with session.post(url, data=next(following), headers=headers) as response:
                await response.read()
                statuses[response.status] += 1
                latencies.append(time.perf_counter() - began)

    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return latencies, statuses


def _bodies(texts: Sequence[str], labels: Sequence[str], size: int) -> list[bytes]:
    whole = [texts[i : i + size] for i in range(0, len(texts) - size + 1, size)]
    return [json.dumps({"texts": some, "labels": labels}).encode() for some in whole]
