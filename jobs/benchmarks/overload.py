"""Measures the endpoint when far more is asked of it than it can answer: what clients get, whether
`/health` still answers, and what memory its processes keep afterwards."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import aiohttp
import numpy as np
import psutil
from pydantic import Field

from jobs.benchmarks.inputs import label_names, make_texts, write_model
from jobs.benchmarks.records import Benchmark, Measured, arithmetic_of
from jobs.benchmarks.rounds import Figure, Figures
from jobs.benchmarks.servers import serve_app
from sce.embedding.settings import EmbedderConfig
from sce.predictor import Predictor

HEALTH_EVERY_SECONDS = 0.5
MEMORY_EVERY_SECONDS = 1.0
CLIENT_SECONDS = 120.0
"""After which a client gives up."""
PAUSE_SECONDS = 1.0
"""That a client waits after a refusal, as `Retry-After` asks."""


class OverloadBenchmark(Benchmark):
    """Settings of `benchmark.py overload`."""

    model: str | None = None
    """A trained model; by default random weights of the default recipe."""
    clients: list[int] = [300, 600]
    """Clients at a time, one load after another."""
    seconds: float = Field(default=30.0, gt=0)
    """How long each lasts."""
    heavy_every: int = Field(default=10, ge=1)
    """One client of so many sends heavy bodies, the others one text each."""
    heavy_megabytes: float = Field(default=7.5, gt=0)
    """Of a heavy body; the endpoint takes 8 MB by default."""
    rest_seconds: float = Field(default=120.0, ge=0)
    """After the loads, until memory is read again."""
    embedder: EmbedderConfig = EmbedderConfig()


@dataclass
class _Seen:
    """Of one load."""

    statuses: Counter[str] = field(default_factory=Counter)
    answered: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)


def benchmark_overload(config: OverloadBenchmark) -> Measured:
    """Statuses, latencies, `/health` and memory under each number of clients."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        model = config.model or write_model(home / "model", config.embedder)
        predictor = Predictor.from_pretrained(model, dtype="auto", device="cpu")
        kinds = arithmetic_of(embedder=predictor.embedder, encoder=predictor.model)
        texts, labels = make_texts(predictor, 512, 64), label_names(10, 0)
        light = [json.dumps({"texts": [text], "labels": labels}).encode() for text in texts]
        letters = int(config.heavy_megabytes * 1e6) - 200
        each = texts[0] + " "
        long = [each * 40] * (letters // (40 * len(each) + 4))
        heavy = json.dumps({"texts": long, "labels": labels}).encode()
        settings = {"models": {"benchmark": {"path": str(Path(model).absolute()),
                                             "device": "cpu", "cache_bytes": 0}}}  # fmt: skip
        figures: Figures = {}
        with serve_app(home, settings) as url:
            asyncio.run(_ask(url, light, heavy, 4, 10**9, 3.0))
            memory = {"at the start": _memory()}
            for clients in config.clients:
                seen, peak = _load(url, light, heavy, clients, config)
                memory[f"peak, {clients} clients"] = peak
                _add(figures, f"{clients} clients", seen)
            time.sleep(config.rest_seconds)
            memory[f"{config.rest_seconds:g} s later"] = _memory()
    figures["memory, MB"] = {
        when: {name: Figure.of(size / 1e6, "MB", "less") for name, size in sizes.items()}
        for when, sizes in memory.items()
    }
    note = (
        f"One client of {config.heavy_every} sends {len(heavy) / 1e6:.1f} MB "
        f"({len(long)} texts), the others a text each; after a refusal each waits "
        f"{PAUSE_SECONDS:g} s. {config.seconds:g} s each."
    )
    return Measured(figures, kinds, (note,))


def _add(figures: Figures, name: str, seen: _Seen) -> None:
    statuses = ", ".join(f"{number} × {status}" for status, number in sorted(seen.statuses.items()))
    milliseconds = 1000 * np.array(seen.answered or [np.nan])
    table = figures.setdefault("under load", {}).setdefault(name, {})
    table["statuses"] = statuses
    for percentile in (50, 99):
        value = float(np.percentile(milliseconds, percentile))
        table[f"200: p{percentile}, ms"] = Figure.of(value, "ms", "less")
    table["/health: median, ms"] = Figure.of(1000 * float(np.median(seen.health)), "ms", "less")
    table["/health: longest, ms"] = Figure.of(1000 * max(seen.health), "ms", "less")


def _load(
    url: str, light: list[bytes], heavy: bytes, clients: int, config: OverloadBenchmark
) -> tuple[_Seen, dict[str, int]]:
    """A load, and the peaks of memory under it."""
    peaks: dict[str, int] = {}

    async def watch() -> None:
        while True:
            for name, size in (await asyncio.to_thread(_memory)).items():
                peaks[name] = max(peaks.get(name, 0), size)
            await asyncio.sleep(MEMORY_EVERY_SECONDS)

    async def both() -> _Seen:
        watching = asyncio.create_task(watch())
        try:
            return await _ask(url, light, heavy, clients, config.heavy_every, config.seconds)
        finally:
            watching.cancel()

    return asyncio.run(both()), peaks


async def _ask(
    url: str, light: list[bytes], heavy: bytes, clients: int, heavy_every: int, seconds: float
) -> _Seen:
    """So many clients, each with its next request when the last was answered, and a probe of
    `/health` beside them."""
    seen, numbers = _Seen(), count()
    until = time.perf_counter() + seconds
    headers = {"Content-Type": "application/json"}
    patience = aiohttp.ClientTimeout(total=CLIENT_SECONDS)

    async def client(session: aiohttp.ClientSession, place: int) -> None:
        while time.perf_counter() < until:
            body = (
                heavy
                if place % heavy_every == heavy_every - 1
                else light[next(numbers) % len(light)]
            )
            began = time.perf_counter()
            try:
                post = session.post(f"{url}/v1/classify", data=body, headers=headers)
                async with post as response:
                    await response.read()
                    status = str(response.status)
            except (aiohttp.ClientError, TimeoutError) as error:
                status = type(error).__name__
            seen.statuses[status] += 1
            if status == "200":
                seen.answered.append(time.perf_counter() - began)
            else:
                await asyncio.sleep(PAUSE_SECONDS)

    async def probe() -> None:
        async with aiohttp.ClientSession(timeout=patience) as session:
            while time.perf_counter() < until:
                began = time.perf_counter()
                async with session.get(f"{url}/health") as response:
                    await response.read()
                    seen.health.append(time.perf_counter() - began)
                await asyncio.sleep(HEALTH_EVERY_SECONDS)

    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector, timeout=patience) as session:
        await asyncio.gather(probe(), *(client(session, place) for place in range(clients)))
    return seen


def _memory() -> dict[str, int]:
    """Resident bytes of each of the server's processes that are Ray Serve's own."""
    found: dict[str, int] = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            title = "".join(process.cmdline()[:1])
            if title.startswith("ray::Serve") or "Proxy" in title:
                name = title.removeprefix("ray::").split(".")[0].split("#")[0]
                found[name] = found.get(name, 0) + process.memory_info().rss
    return found
