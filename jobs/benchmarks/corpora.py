"""Labelled corpora for the benchmarks of adapted labels, and their vectors.

Labelled sets are bent into the corpora that users have: few rows, skewed, labels without texts,
texts without labels. The inbox ships; other sets are files `<name>.jsonl(.gz)` with `text` and
`label` in a folder.

Shapes: N rows, K labels, D the embedder's dimension.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sce.adaptation.adapt import adapt
from sce.adaptation.artefact import AdaptedLabels
from sce.adaptation.settings import AdaptSettings
from sce.datasets.inbox import inbox_label_sets, inbox_rows
from sce.embedding.embedder import TextEmbedder, load_embedder
from sce.embedding.settings import EmbedderConfig
from sce.errors import DataError
from sce.labels import LabelSet
from sce.model.label_vectors import TextLookup, label_vectors

SETS = {
    "ag_news": 3000,
    "arise_news": 3000,
    "bbc_news": 2225,
    "clinc150": 4000,
    "huffpost_headlines_balanced": 4000,
    "banking77": 4000,
    "hwu64": 4000,
    "sib200_eng": 1004,
    "snips": 3000,
}
"""The development sets, and how many rows of each are read."""
NO_LABEL = {"oos"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Rows of one label set: vectors [N, D], right labels as places, -1 for none of them."""

    name: str
    vectors_ND: np.ndarray
    targets_N: np.ndarray
    labels: LabelSet

    def take(self, rows: np.ndarray, keep_K: np.ndarray | None = None) -> Corpus:
        """Some rows, with some labels."""
        labels, targets_N = self.labels, self.targets_N[rows]
        if keep_K is not None:
            place_K = np.full(len(labels) + 1, -1)
            place_K[keep_K] = np.arange(len(keep_K))
            labels = LabelSet(tuple(labels.labels[k] for k in keep_K))
            targets_N = place_K[targets_N]
        return Corpus(self.name, self.vectors_ND[rows], targets_N, labels)


class Bench:
    """The embedder, its vectors, which are kept in the folder `cache`, and the methods that are
    compared."""

    def __init__(self, cache: Path, embedder: EmbedderConfig | None = None) -> None:
        self._cache = cache
        self.embedder: TextEmbedder = load_embedder(embedder or EmbedderConfig())
        self.text_vectors = TextLookup({}, lambda texts: self.embedder.embed(texts).vectors)

    def vectors(self, name: str, texts: list[str]) -> np.ndarray:
        """Of the texts of a set, float32 [N, D]."""
        made_by = self.embedder.fingerprint
        file = self._cache / f"{name}-{made_by.id}-{made_by.dtype}-{len(texts)}.npy"
        if not file.exists():
            log.info("embedding %d texts of %s", len(texts), name)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, self.embedder.embed(texts).vectors)
        found: np.ndarray = np.load(file)
        return found

    def cosine(self, corpus: Corpus) -> float:
        """Accuracy in per cent of cosine similarity with names alone as they are, and what is said
        of a label that says more."""
        g_KD = label_vectors(corpus.labels, self.text_vectors, 0)
        return accuracy(corpus.vectors_ND @ g_KD.T, corpus.targets_N)

    def adapt(
        self, corpus: Corpus, trust: str = "auto", labelled: np.ndarray | None = None
    ) -> AdaptedLabels:
        """Labels fitted to a corpus; `labelled` are places of rows whose labels are known."""
        known = None
        if labelled is not None:
            known = corpus.vectors_ND[labelled], corpus.targets_N[labelled].tolist()
        return adapt(
            corpus.vectors_ND,
            corpus.labels,
            self.text_vectors,
            self.embedder.fingerprint.to_dict(),
            labelled=known,
            settings=AdaptSettings(trust=trust),  # type: ignore[arg-type]
        )


def accuracy(scores_NK: np.ndarray, targets_N: np.ndarray) -> float:
    """In per cent, of the rows that have a label."""
    known_N = targets_N >= 0
    return 100 * float((scores_NK.argmax(1) == targets_N)[known_N].mean())


def bent(corpus: Corpus, seed: int) -> Iterator[tuple[str, Corpus]]:
    """The corpora that users have, made of one whose labels are known."""
    targets_N, count, rows = corpus.targets_N, len(corpus.labels), len(corpus.targets_N)
    random = np.random.default_rng([seed, len(corpus.name)])
    sizes_K = np.bincount(targets_N, minlength=count)
    yield "whole", corpus
    yield "1,000 rows", corpus.take(random.permutation(rows)[:1000])
    share_K = random.permutation(1 / np.arange(1, count + 1))
    wanted_K = share_K * (sizes_K / share_K).min() * max(1.0, count**0.5 / 2)
    wanted_K = np.clip(np.rint(wanted_K), 1, sizes_K).astype(int)
    yield "skewed", corpus.take(some_of_each(targets_N, wanted_K, random))
    for name, empty in (("half empty", count - count // 2), ("a fifth empty", -(-count // 5))):
        kept_K = random.permutation(count)[: max(1, count - empty)]
        yield name, corpus.take(np.flatnonzero(np.isin(targets_N, kept_K)))
    kept_K = np.sort(random.permutation(count)[: max(2, count // 2)])
    yield "half alien", corpus.take(np.arange(rows), kept_K)
    yield "5 rows a label", corpus.take(some_of_each(targets_N, np.full(count, 5), random))


def some_of_each(
    targets_N: np.ndarray, counts_K: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Places of so many rows of each label."""
    chosen = [
        random.permutation(np.flatnonzero(targets_N == k))[:count]
        for k, count in enumerate(counts_K)
    ]
    return np.concatenate(chosen)


def labelled_file(folder: Path, name: str) -> Path | None:
    """`NAME.jsonl` or `NAME.jsonl.gz`, where one is there."""
    files = [folder / f"{name}.jsonl{end}" for end in ("", ".gz")]
    return next((one for one in files if one.is_file()), None)


def read_set(bench: Bench, data: Path, name: str, most: int) -> Corpus:
    """At most so many rows of a set in `data`, chosen at random.

    Raises:
        DataError: it is not there.
    """
    file = labelled_file(data, name)
    if file is None:
        raise DataError(f"data: there is no {data / name}.jsonl, nor one that ends with .gz.")
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["label"] not in NO_LABEL]
    chosen = np.random.default_rng(0).permutation(len(rows))[:most]
    rows = [rows[i] for i in np.sort(chosen)]
    names = sorted({row["label"] for row in rows})
    labels = LabelSet.parse([_readable(one) for one in names], name)
    targets_N = np.array([names.index(row["label"]) for row in rows])
    return Corpus(name, bench.vectors(name, [row["text"] for row in rows]), targets_N, labels)


def inbox(bench: Bench) -> list[Corpus]:
    """The inbox with each of its label sets; all messages are its corpus."""
    answers: dict[str, dict[str, str]] = {}
    for row in inbox_rows("inbox")[0]:
        answers.setdefault(row.label_set, {})[row.text] = row.label
    texts = sorted(answers["inbox/tones"])
    vectors_ND = bench.vectors("inbox", texts)
    found = []
    for name, labels in inbox_label_sets().items():
        right = [answers[name].get(text) for text in texts]
        targets = [-1 if one is None else labels.index(one) for one in right]
        found.append(Corpus(name, vectors_ND, np.array(targets), labels))
    return found


def _readable(name: str) -> str:
    """`card_arrival`, `PlayMusic` and `ARTS` as a user would write them."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()
