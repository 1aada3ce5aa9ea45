"""Measures what a new label set costs, from a store and from text, beside what users would take
instead.

Every round goes through all sides and back, so that a noisy machine is noisy for all. Weights are
random unless a model is given: speed does not depend on them.

Shapes: N rows, D the embedder's dimension.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from jobs.benchmarks.inputs import label_names, make_texts, unit_vectors, write_model
from jobs.benchmarks.peers import cosine_similarity, gliclass, nli_pipeline
from jobs.benchmarks.process_memory import PeakMemory
from jobs.benchmarks.records import Benchmark, Measured, arithmetic_of
from jobs.benchmarks.rounds import Figure, Figures, figure_tables, in_turn, seconds_of
from sce.config import resolve_output
from sce.embedding.settings import EmbedderConfig
from sce.evaluation.plots import rates_figure, save
from sce.labels import LabelSet
from sce.model.encoder import SCEConfig, SCEModel
from sce.model.logistic import UNTRAINED
from sce.model.options import Mode, Scoring
from sce.predictor import Predictor
from sce.storage import put, write_text

STORE, TEXT = "SCE from the store", "SCE from text"
ASKED = "SCE trained on several labels, from the store"
"""In mode multi; its encoder takes part."""
RATES, OVER, SECONDS = "texts a second", "ratio", "seconds of a new label set"
Rate = Callable[[], float]
MOST_ROWS = 200_000
"""Vectors in memory at most."""
_new = count()
"""Numbers for label sets that no cache has seen."""


class ClassifyBenchmark(Benchmark):
    """Settings of `benchmark.py classify`."""

    model: str | None = None
    """A trained model; by default random weights of the default recipe."""
    label_counts: list[int] = [2, 10, 50, 100, 300, 1000]
    store_seconds: float = Field(default=2.0, gt=0)
    """To classify from the store for, at a time."""
    texts: int = Field(default=512, ge=1)
    """Texts that are embedded at a time."""
    text_tokens: int = Field(default=64, ge=3)
    """Length of a text, special tokens included."""
    rounds: int = Field(default=3, ge=1)
    """In each every side runs twice."""
    peers: bool = True
    peer_label_counts: list[int] = [10, 50, 100]
    peer_rows: int = Field(default=32, ge=1)
    """Texts for GLiClass at a time; the NLI pipeline gets fewer where labels are many."""
    mode: Mode = "single"
    """`multi`: any number of labels may be right, and GLiClass answers by its multi-label path."""
    dtype: str = "auto"
    """Of the encoder, and of the peers."""
    device: str = "cpu"
    """`cuda` for a GPU."""
    output: Path | None = None
    """Folder for `classify.md` and `classify.png`."""
    embedder: EmbedderConfig = EmbedderConfig()


def benchmark_classify(config: ClassifyBenchmark) -> Measured:
    """Texts a second. Label sets are new: their labels are embedded within the time measured."""
    with _predictor(config) as predictor, PeakMemory() as memory:
        texts = make_texts(predictor, config.texts, config.text_tokens)
        vectors_ND = predictor.embedder.embed(texts).vectors
        same = _agreement(predictor, texts, vectors_ND, config.label_counts)
        peers = _peers(config, predictor, texts) if config.peers else {}
        embedding = in_turn(
            {"": lambda: len(texts) / seconds_of(lambda: predictor.embedder.embed(texts))},
            config.rounds,
        )
        figures: Figures = {RATES: {}, OVER: {}, SECONDS: {}}
        scoring = Scoring(mode=config.mode)
        rates = {STORE: predictor}
        if config.mode == "multi":
            rates[ASKED] = _trained_on_several(predictor)
        for labels in config.label_counts:
            there = peers if labels in config.peer_label_counts else {}
            _measure(config, rates, texts, labels, there, figures, scoring)
        figures["embedding alone"] = {RATES: {"": embedding.figure("", "texts/s")}}
        peak = Figure.of(memory.peaks()["driver"] / 1e6, "MB", "less")
        figures["memory"] = {"peak of the process, MB": {"": peak}}
        measured = Measured(
            figures,
            arithmetic_of(embedder=predictor.embedder, encoder=predictor.model)
            | dict.fromkeys(peers, str(_dtype(predictor)).removeprefix("torch.")),
            (f"Texts of {config.text_tokens} tokens. Store and text gave {same['same_answers']} "
             f"equal answers, the largest difference of a score {same['largest_score_gap']:.1e}.",),
            {"embedder": str(predictor.embedder.fingerprint)} | same,
            predictor.model.query_adaptor.weight.device.type,
        )  # fmt: skip
        if config.output is not None:
            _write(resolve_output(config.output), measured)
        return measured


@contextmanager
def _predictor(config: ClassifyBenchmark) -> Iterator[Predictor]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = config.model or write_model(Path(scratch) / "model", config.embedder)
        embedder = config.embedder.model_copy(update={"device": config.device})
        yield Predictor.from_pretrained(folder, embedder, config.device, config.dtype)


def _trained_on_several(predictor: Predictor) -> Predictor:
    """The same weights as if trained on rows with several right labels."""
    config = SCEConfig.from_dict(predictor.model.config.to_dict() | {"several": UNTRAINED})
    model = SCEModel(config).cast_weights(_dtype(predictor)).to(predictor.model.device)
    return Predictor(model, predictor.embedder, predictor.tokenizer)


def _dtype(predictor: Predictor) -> torch.dtype:
    return predictor.model.query_adaptor.weight.dtype


def _measure(
    config: ClassifyBenchmark,
    from_store: Mapping[str, Predictor],
    texts: list[str],
    labels: int,
    peers: Mapping[str, Callable[[int], float]],
    figures: Figures,
    scoring: Scoring,
) -> None:
    """All sides at one number of labels, into the figures."""
    predictor = from_store[STORE]
    dimension, column = predictor.embedder.dimension, f"{labels:,} labels"
    probe_ND = unit_vectors(max(64, 20_000 // labels), dimension)
    sides: dict[str, Rate] = {}
    for name, one in from_store.items():
        warm = (_from_store(one, probe_ND, labels, scoring) for _ in range(2))
        rows = max(len(probe_ND), int(config.store_seconds * len(probe_ND) / min(warm)))
        queries_ND = unit_vectors(min(rows, MOST_ROWS), dimension)
        sides[name] = partial(_store_rate, one, queries_ND, labels, scoring)
    sides |= {
        TEXT: lambda: len(texts) / _from_text(predictor, texts, labels, config.mode),
        SECONDS: lambda: _from_store(predictor, probe_ND[:1], labels, scoring),
    }
    sides |= {name: partial(peer, labels) for name, peer in peers.items()}
    for name in peers:
        sides[name]()  # the first is slow
    turns = in_turn(sides, config.rounds)
    ratios = {"from the store over from text": turns.ratio(STORE, TEXT)}
    for name in peers:
        ratios[f"from the store over {name}"] = turns.ratio(STORE, name)
        if ASKED in from_store:
            ratios[f"trained on several labels over {name}"] = turns.ratio(ASKED, name)
        ratios[f"from text over {name}"] = turns.ratio(TEXT, name)
    for name in (*from_store, TEXT, *peers):
        figures[RATES].setdefault(name, {})[column] = turns.figure(name, "texts/s")
    for name, ratio in ratios.items():
        figures[OVER].setdefault(name, {})[column] = ratio
    seconds_each = turns.figure(SECONDS, "s", "less")
    figures[SECONDS].setdefault("embedding its labels", {})[column] = seconds_each


def _agreement(
    predictor: Predictor, texts: list[str], vectors_ND: np.ndarray, counts: Sequence[int]
) -> dict[str, Any]:
    """Whether text and store give the same answers."""
    same, gap = 0, 0.0
    for k in counts:
        labels = label_names(k, next(_new))
        one = predictor.predict(texts, labels)
        other = predictor.predict(embeddings=vectors_ND, labels=labels)
        same += sum(a.label == b.label for a, b in zip(one, other, strict=True))
        gap = max(gap, *(abs(a.score - b.score) for a, b in zip(one, other, strict=True)))
    return {"same_answers": f"{same} of {len(texts) * len(counts)}", "largest_score_gap": gap}


def _from_store(
    predictor: Predictor, queries_ND: np.ndarray, label_count: int, scoring: Scoring
) -> float:
    """Seconds to answer vectors with a new label set."""
    labels = LabelSet.parse(label_names(label_count, next(_new)))
    return seconds_of(lambda: predictor.answer(queries_ND, labels, scoring))


def _store_rate(
    predictor: Predictor, queries_ND: np.ndarray, label_count: int, scoring: Scoring
) -> float:
    return len(queries_ND) / _from_store(predictor, queries_ND, label_count, scoring)


def _from_text(predictor: Predictor, texts: list[str], label_count: int, mode: Mode) -> float:
    """Seconds to answer texts with a new label set."""
    labels = label_names(label_count, next(_new))
    return seconds_of(lambda: predictor.predict(texts, labels, mode=mode))


def _peers(
    config: ClassifyBenchmark, predictor: Predictor, texts: list[str]
) -> dict[str, Callable[[int], float]]:
    """What others do with a number of labels, in texts a second."""
    on = predictor.model.query_adaptor.weight.device.type, _dtype(predictor)
    several = config.mode == "multi"
    found = {
        "cosine similarity, sentence-transformers": (
            cosine_similarity(*on),
            lambda k: len(texts),
        ),
        "GLiClass": (gliclass(*on, several), lambda k: config.peer_rows),
    }
    if not several:
        few = lambda k: max(2, config.peer_rows * 10 // k // 2)  # noqa: E731
        found["NLI pipeline"] = (nli_pipeline(*on), few)

    def rate(name: str, labels: int) -> float:
        peer, rows = found[name]
        some, names = texts[: rows(labels)], label_names(labels, next(_new))
        return len(some) / seconds_of(lambda: peer(some, names))

    return {name: partial(rate, name) for name in found}


def _write(folder: Any, measured: Measured) -> None:
    """`classify.md` and `classify.png`."""
    write_text(folder / "classify.md", figure_tables(measured.figures) + "\n")
    rates = {
        name: {int(column.split()[0].replace(",", "")): figure.median
               for column, figure in columns.items()}
        for name, columns in measured.figures[RATES].items()
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        save(rates_figure(rates), Path(scratch) / "classify.png")
        put(Path(scratch) / "classify.png", folder / "classify.png")
