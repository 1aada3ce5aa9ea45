"""Measures how an embedder computes: float32 beside bfloat16, padded texts beside texts without
padding; and what that moves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from pydantic import Field

from jobs.benchmarks.records import Benchmark, Measured
from jobs.benchmarks.rounds import Figure, Figures, in_turn, seconds_of
from sce.datasets.inbox import inbox_label_sets, inbox_rows
from sce.embedding.embedder import TextEmbedder, choose_device, load_embedder
from sce.embedding.settings import EmbedderConfig
from sce.errors import ConfigError
from sce.model.arithmetic import multiplies_bfloat16
from sce.model.label_vectors import label_vectors

PADDED = ", padded"


class ArithmeticBenchmark(Benchmark):
    """Settings of `benchmark.py arithmetic`."""

    rows: int = Field(default=256, ge=64, le=1699)
    """Of the inbox's messages."""
    sizes: tuple[int, ...] = (1, 8, 64)
    """Texts that are embedded together, beside all of them."""
    rounds: int = Field(default=3, ge=1)
    """In each every side runs twice."""
    embedder: EmbedderConfig = EmbedderConfig()


def benchmark_arithmetic(config: ArithmeticBenchmark) -> Measured:
    """Texts a second of one embedder in both arithmetics, and cosines between their vectors."""
    device = choose_device(config.embedder.device)
    if not multiplies_bfloat16(device):
        raise ConfigError(f"benchmark arithmetic: {device} has no instructions for bfloat16.")
    messages = list(dict.fromkeys(row.text for row in inbox_rows("inbox/topics")[0]))
    texts = messages[: config.rows]
    loaded = {
        dtype: load_embedder(config.embedder.model_copy(update={"dtype": dtype}))
        for dtype in ("float32", "bfloat16")
    }
    ways: dict[str, Callable[[list[str]], np.ndarray]] = {}
    for dtype, embedder in loaded.items():
        ways[dtype] = partial(_embed, embedder)
        if embedder.packs:
            ways[dtype + PADDED] = partial(_embed_padded, embedder)
    figures: Figures = {"texts a second": {}, "over float32" + PADDED: {}}
    for size in (*config.sizes, len(texts)):
        _measure(ways, texts, size, config.rounds, figures)
    figures["beside float32"] = _moved(ways, texts)
    return Measured(
        figures,
        {"embedder": " and ".join(loaded)},
        details={"embedder": str(loaded["float32"].fingerprint)},
        device=device,
    )


def _embed(embedder: TextEmbedder, texts: list[str]) -> np.ndarray:
    return embedder.embed(texts).vectors


def _embed_padded(embedder: TextEmbedder, texts: list[str]) -> np.ndarray:
    """As models are given them whose attention cannot be replaced."""
    return embedder.embed_tokens(embedder.tokenise(texts), padded=True)


def _measure(
    ways: dict[str, Callable[[list[str]], np.ndarray]],
    texts: list[str],
    size: int,
    rounds: int,
    figures: Figures,
) -> None:
    """All ways at one number of texts a call, into the figures; as many calls as take a moment."""
    several = texts[: size * max(1, 64 // size)]
    calls = [several[i : i + size] for i in range(0, len(several), size)]
    column = f"{size:,} texts together"

    def rate(embed: Callable[[list[str]], np.ndarray]) -> float:
        return len(several) / seconds_of(lambda: [embed(call) for call in calls])

    turns = in_turn({name: partial(rate, embed) for name, embed in ways.items()}, rounds)
    base = "float32" + PADDED if "float32" + PADDED in ways else "float32"
    for name in ways:
        figures["texts a second"].setdefault(name, {})[column] = turns.figure(name, "texts/s")
        ratio = turns.ratio(name, base)
        figures["over float32" + PADDED].setdefault(name, {})[column] = ratio


def _moved(
    ways: dict[str, Callable[[list[str]], np.ndarray]], texts: list[str]
) -> dict[str, dict[str, Figure | str]]:
    """How far each way is off, and how many texts have another nearest label."""
    labels = inbox_label_sets()["inbox/topics"]
    exact_ND = ways["float32"](texts)
    found: dict[str, dict[str, Figure | str]] = {}
    answers: dict[str, np.ndarray] = {}
    for name, embed in ways.items():
        vectors_ND = embed(texts)
        label_KD = label_vectors(labels, embed, 1)
        answers[name] = (vectors_ND @ label_KD.T).argmax(1)
        alone_AD = np.concatenate([embed([text]) for text in texts[:32]])
        neighbours = float((vectors_ND[:32] != alone_AD).any(1).mean())
        found[name] = {
            "least cosine": Figure.of(float((vectors_ND * exact_ND).sum(1).min()), "cosine"),
            "other nearest label": f"{(answers[name] != answers['float32']).sum()} of {len(texts)}",
            "vectors that neighbours change": Figure.of(neighbours, "ratio", "less"),
        }
    return found
