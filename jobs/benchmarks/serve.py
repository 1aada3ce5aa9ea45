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
from typing import Any, Literal

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from jobs.benchmarks.inputs import label_names, make_texts, write_model, write_store
from jobs.benchmarks.rounds import beside_bare, markdown_table, seconds_of
from jobs.benchmarks.servers import ROOT, gliclass_server, own_ray, serve_app
from sce.config import JobConfig
from sce.distributed.resources import use_threads
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.model.arithmetic import multiplies_bfloat16
from sce.predictor import Predictor

WARM_UP_SECONDS = 2.0

log = logging.getLogger(__name__)


class ServeBenchmark(JobConfig):
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
    seconds: float = Field(default=8.0, gt=0)
    """How long each measurement takes."""
    rounds: int = Field(default=3, ge=1)
    peers: bool = True
    """Also GLiClass's own server, under the same load."""
    peer_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """GLiClass's numbers. `auto`: bfloat16 where the processor multiplies it, as our encoder has it
    then; our text embedder is float32."""
    bulk_rows: int = Field(default=3000, ge=0)
    """Texts of `jobs/classify.py` through the endpoint and in its own actors; 0: neither."""
    embedder: EmbedderConfig = EmbedderConfig()


@dataclass(frozen=True)
class Load:
    """What came back: seconds of each request, and requests a second."""

    latencies: list[float]
    rate: float

    def milliseconds(self) -> dict[str, float]:
        found = np.percentile(self.latencies, [50, 95, 99]) * 1000
        return {f"p{p}": round(float(ms), 1) for p, ms in zip((50, 95, 99), found)}


def benchmark_serve(config: ServeBenchmark) -> dict[str, Any]:
    """Print the tables and return every figure.

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
        with serve_app(home, settings) as url:
            post = f"{url}/v1/classify"
            found: dict[str, Any] = {
                "labels": config.labels,
                "text_tokens": config.text_tokens,
                "encoder_dtype": str(predictor.model.query_adaptor.weight.dtype),
                "throughput": _throughput(config, predictor, post, texts, labels),
                "latency": _latency(config, post, texts, labels),
                "one_request": _one_request(config, predictor, post, texts, labels),
            }
            if config.peers:
                found["peer"] = _peer(config, home, post, texts, labels)
            if config.bulk_rows:
                found["bulk"] = _bulk(config, home, model, url, texts)
    print(_markdown(found))
    return found


def _throughput(
    config: ServeBenchmark, predictor: Predictor, url: str, texts: list[str], labels: list[str]
) -> dict[str, Any]:
    """Texts a second at saturation over the bare predictor's, before and after each round."""

    def bare() -> float:
        done, seconds = 0, 0.0
        while seconds < config.seconds / 2:
            seconds += seconds_of(lambda: predictor.predict(texts, labels))
            done += len(texts)
        return done / seconds

    bare()
    found: dict[str, Any] = {}
    for size in config.request_texts:
        clients = min(128, max(1, config.saturating_texts // size))
        bodies = _bodies(texts, labels, size)
        warm_up(url, bodies, clients)
        load = partial(run_load, url, bodies, clients, config.seconds)
        rounds = beside_bare(lambda: size * load().rate, bare, config.rounds)  # noqa: B023
        found[str(size)] = {
            "clients": clients,
            "served": round(median(rounds.rates), 1),
            "bare": round(median(rounds.bare), 1),
        } | rounds.summary()
        log.info("%d texts a request: %s", size, found[str(size)])
    return found


def _latency(
    config: ServeBenchmark, url: str, texts: list[str], labels: list[str]
) -> dict[str, Any]:
    """Milliseconds of requests of one text, by the number of clients."""
    bodies = _bodies(texts, labels, 1)
    found = {}
    for clients in config.clients:
        warm_up(url, bodies, clients)
        load = run_load(url, bodies, clients, config.seconds)
        found[str(clients)] = load.milliseconds() | {"requests_per_second": round(load.rate, 1)}
        log.info("%d clients: %s", clients, found[str(clients)])
    return found


def _one_request(
    config: ServeBenchmark, predictor: Predictor, url: str, texts: list[str], labels: list[str]
) -> dict[str, float]:
    """One text by one client, and the same by a bare call, in turn; medians, milliseconds."""
    bodies = _bodies(texts, labels, 1)
    served, bare = [], []
    for i in range(config.rounds):
        served.append(median(run_load(url, bodies, 1, config.seconds / 2).latencies))
        some = texts[i * 50 : i * 50 + 50] or texts[:1]
        bare.append(median(seconds_of(partial(predictor.predict, [t], labels)) for t in some))
    return {
        "served_ms": round(median(served) * 1000, 2),
        "bare_ms": round(median(bare) * 1000, 2),
        "more_ms": round(median([(s - b) * 1000 for s, b in zip(served, bare)]), 2),
    }


def _peer(
    config: ServeBenchmark, home: Path, url: str, texts: list[str], labels: list[str]
) -> dict[str, Any]:
    """GLiClass's Ray Serve server under the same load: one text a request, as it reads no more.

    Its weights are random around a backbone of the same size.
    """
    own = "bfloat16" if multiplies_bfloat16("cpu") else "float32"
    dtype = own if config.peer_dtype == "auto" else config.peer_dtype
    asked = {"labels": labels, "multi_label": False}
    peer_bodies = [json.dumps({"text": text} | asked).encode() for text in texts]
    clients = min(128, config.saturating_texts)
    ours, theirs = [], []
    with gliclass_server(home, dtype) as peer_url:
        warm_up(peer_url, peer_bodies, clients)
        for _ in range(config.rounds):
            ours.append(run_load(url, _bodies(texts, labels, 1), clients, config.seconds))
            theirs.append(run_load(peer_url, peer_bodies, clients, config.seconds))
    ratios = [one.rate / other.rate for one, other in zip(ours, theirs)]
    return {
        "clients": clients,
        "gliclass_dtype": dtype,
        "served": round(median(load.rate for load in ours), 1),
        "gliclass": round(median(load.rate for load in theirs), 1),
        "served_ms": ours[-1].milliseconds(),
        "gliclass_ms": theirs[-1].milliseconds(),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "ratio": round(median(ratios), 2),
    }


def _bulk(
    config: ServeBenchmark, home: Path, model: str, url: str, texts: list[str]
) -> dict[str, Any]:
    """`jobs/classify.py` by its own actors and through the endpoint, from texts and from vectors;
    texts a second, start-up apart."""
    rows = [f"{texts[i % len(texts)]} {i}" for i in range(config.bulk_rows)]
    pq.write_table(pa.table({"text": rows}), home / "texts.parquet")
    fingerprint = embedder_fingerprint(config.embedder)
    write_store(home / "store", fingerprint, 5 * config.bulk_rows)
    found: dict[str, Any] = {}
    for name, source in (("text", home / "texts.parquet"), ("store", home / "store")):
        rates = {}
        for way, flags in (("actors", ["--model", model]), ("endpoint", ["--endpoint", url])):
            command = [sys.executable, "jobs/classify.py", "--input", str(source), *flags]
            command += ["--labels", json.dumps(label_names(config.labels, 0))]
            command += ["--output", str(home / f"{name}-{way}"), "--no-tracking.enabled"]
            out = subprocess.check_output(command, cwd=ROOT, env=own_ray(home, way))
            rates[way] = json.loads(out.splitlines()[-1])["texts_per_second"]
        found[name] = rates | {"ratio": round(rates["endpoint"] / rates["actors"], 3)}
    return found


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


def _markdown(found: dict[str, Any]) -> str:
    keys = ("clients", "served", "bare", "ratio")
    throughput = [[size, *map(one.get, keys)] for size, one in found["throughput"].items()]
    keys = ("p50", "p95", "p99", "requests_per_second")
    latency = [[clients, *map(one.get, keys)] for clients, one in found["latency"].items()]
    columns = ["texts a request", "clients", "served, texts/s", "bare predictor", "ratio"]
    one = found["one_request"]
    lines = [
        f"Texts of {found['text_tokens']} tokens, {found['labels']} labels.",
        "",
        markdown_table(columns, throughput),
        "",
        markdown_table(["clients", "p50, ms", "p95", "p99", "requests/s"], latency),
        "",
        f"One request: {one['served_ms']} ms, a bare call {one['bare_ms']} ms.",
    ]
    if "peer" in found:
        peer = found["peer"]
        lines.append(
            f"One text a request, {peer['clients']} clients: {peer['served']} texts/s, GLiClass's "
            f"server ({peer['gliclass_dtype']}) {peer['gliclass']}; ratio {peer['ratio']}."
        )
    for name, bulk in found.get("bulk", {}).items():
        lines.append(
            f"Bulk job from {name}: {bulk['actors']} texts/s by its own actors, "
            f"{bulk['endpoint']} through the endpoint; ratio {bulk['ratio']}."
        )
    return "\n".join(lines) + "\n"
