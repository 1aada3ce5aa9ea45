"""Prometheus metrics of the endpoint: what is counted, and how `/metrics` gathers it.

Replicas report to Ray's agent on their node, some seconds later; `/metrics` asks the agents of all
nodes, so that any gateway tells of the whole endpoint.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence

import aiohttp
import ray
from ray.serve import metrics as ray_metrics

from sce.client.wire import Classification
from serve.batching import BatchReport
from serve.work import ModelAnswer

PREFIX = "ray_sce_"
AGENT_SECONDS = 5.0

_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
_SIZES: list[float] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048]
_TOKENS: list[float] = [16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576]


def _counter(name: str, text: str, *tags: str) -> ray_metrics.Counter:
    return ray_metrics.Counter(f"sce_{name}", text, tags)  # type: ignore[arg-type]  # Tuple[str]?


def _histogram(name: str, text: str, bounds: list[float], *tags: str) -> ray_metrics.Histogram:
    return ray_metrics.Histogram(f"sce_{name}", text, bounds, tags)  # type: ignore[arg-type]


class GatewayMetrics:
    """What the gateway counts: requests and their answers."""

    def __init__(self) -> None:
        self.requests = _counter(
            "requests", "Requests by route, status and model.", "route", "status", "model"
        )
        self.request_seconds = _histogram(
            "request_seconds", "From the first byte to the answer.", _SECONDS, "route"
        )
        self.open_requests = ray_metrics.Gauge("sce_open_requests", "Requests being worked on.")
        self.labels = _histogram("labels", "Labels of a request's largest set.", _SIZES, "model")
        self.texts = _counter(
            "texts",
            "Texts and embeddings asked; label_set is empty where the request brought its labels.",
            "model",
            "label_set",
        )
        self.null_answers = _counter(
            "null_answers", "Rows whose best label was below the threshold.", "model"
        )
        self.row_errors = _counter(
            "row_errors", "Rows without an answer, by error.", "model", "error"
        )
        self.retries = _counter(
            "retries", "Requests sent to another replica because theirs died.", "model"
        )

    def request(self, route: str, status: int, model: str, seconds: float) -> None:
        """Count a request that was answered."""
        self.requests.inc(1, {"route": route, "status": str(status), "model": model})
        self.request_seconds.observe(seconds, {"route": route})

    def classified(
        self, model: str, label_set: str, labels: int, rows: Sequence[Classification]
    ) -> None:
        """Count an answer; `label_set` is one of the model's or empty, `labels` are those of its
        largest set."""
        tags = {"model": model}
        if rows:
            self.texts.inc(len(rows), {**tags, "label_set": label_set})
            self.labels.observe(labels, tags)
        if nulls := sum(row["label"] is None and row["error"] is None for row in rows):
            self.null_answers.inc(nulls, tags)
        for row in rows:
            if row["error"] is not None:
                self.row_errors.inc(1, {**tags, "error": row["error"]})


class ModelMetrics:
    """What a model's replica counts."""

    def __init__(self, model: str) -> None:
        self._tags, lane = {"model": model}, ("model", "lane")
        self._counts = {  # by the field of `ModelAnswer`
            "tokens": _counter(
                "text_tokens", "Tokens of texts, as the embedder counts them.", "model"
            ),
            "label_tokens": _counter("label_tokens", "Tokens that the encoder read.", "model"),
            "cached": _counter("cache_hits", "Texts whose vectors were known.", "model"),
            "embedded": _counter("cache_misses", "Texts, also of labels, embedded.", "model"),
        }
        self._queue = _histogram("queue_seconds", "Waiting for the device.", _SECONDS, *lane)
        self._work = {
            "embed": _histogram("embed_seconds", "Of a batch of texts.", _SECONDS, *lane),
            "classify": _histogram("classify_seconds", "Of a batch of rows.", _SECONDS, *lane),
        }
        self._items = _histogram("batch_requests", "Requests in a batch.", _SIZES, *lane)
        self._batch_tokens = _histogram(
            "batch_tokens", "Tokens, or label tokens, of a batch.", _TOKENS, *lane
        )

    def batch(self, report: BatchReport) -> None:
        tags = {**self._tags, "lane": report.lane}
        self._work[report.lane].observe(report.seconds, tags)
        self._items.observe(report.items, tags)
        self._batch_tokens.observe(max(1, report.cost), tags)
        for wait in report.waits:
            self._queue.observe(wait, tags)

    def answer(self, found: ModelAnswer) -> None:
        for field, counter in self._counts.items():
            if value := getattr(found, field):
                counter.inc(value, self._tags)


async def gather_metrics() -> str:
    """The endpoint's metrics of all nodes, in Prometheus' text format."""
    nodes = await asyncio.to_thread(ray.nodes)
    urls = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in nodes
        if node["Alive"] and node["MetricsExportPort"]
    ]
    timeout = aiohttp.ClientTimeout(total=AGENT_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        return merge(await asyncio.gather(*(_fetch(session, url) for url in urls)))


async def _fetch(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(url) as response:
            return await response.text()
    except (aiohttp.ClientError, TimeoutError):
        return ""


def merge(pages: Iterable[str]) -> str:
    """The lines of our metrics in several exports, the samples of a metric together."""
    heads: defaultdict[str, dict[str, str]] = defaultdict(dict)
    samples: defaultdict[str, list[str]] = defaultdict(list)
    for page in pages:
        family = ""
        for line in page.splitlines():
            words = line.split(" ", 3)
            if line.startswith("#") and len(words) > 2:
                family = words[2]
                heads[family].setdefault(words[1], line)
            elif line.startswith(PREFIX):
                samples[family].append(line)
    found = [line for family in samples for line in [*heads[family].values(), *samples[family]]]
    return "".join(f"{line}\n" for line in found)
