"""What a tree of thousands of leaves costs and gives beside the same leaves as a flat set.

The tree is the starter corpus's: its label sets under their domains, filled up with made names to
the number of leaves that is asked for. The texts are the corpus's examples: a model was trained on
most of them, so accuracies compare ways, and say nothing of new texts.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from scipy.special import logsumexp

from jobs.benchmarks.corpora import NO_LABEL, labelled_file
from jobs.benchmarks.inputs import label_names
from jobs.benchmarks.records import Benchmark, Measured, arithmetic_of
from jobs.benchmarks.rounds import Figure, Figures, in_turn
from sce.baselines.cosine import cosine_scores
from sce.datasets.labelled import read_labelled
from sce.datasets.readers import BadRow, read_records
from sce.datasets.starter import read_starter
from sce.embedding.settings import EmbedderConfig
from sce.errors import DataError
from sce.labels import LabelSet
from sce.model.label_tree import LabelTree
from sce.model.label_vectors import TextLookup
from sce.predictor import Predictor

FILLING, FILLED_AT_ONCE = "filling", 20
"""The node that made names stand under, and how many of them under each of its children."""

HUFFPOST, CLINC = "huffpost_headlines_balanced", "clinc150"
SHORT = 20
"""Leaves of a labelled set that are contextualised, where a shortlist is measured: as few of all as
100 are of some hundreds."""
SECTIONS = {
    "news": "crime, good news, impact, media, politics, religion, the worldpost, weird news, "
    "world news, worldpost",
    "culture": "arts, arts & culture, comedy, culture & arts, entertainment",
    "voices": "black voices, latino voices, queer voices, women, fifty",
    "business and technology": "business, money, science, tech",
    "environment": "environment, green",
    "education": "college, education",
    "family": "divorce, parenting, parents, weddings",
    "lifestyle": "food & drink, healthy living, home & living, style, style & beauty, taste, "
    "travel, wellness",
    "sport": "sports",
}
"""HuffPost's 41 classes as a reader would file them."""


class TreesBenchmark(Benchmark):
    """Settings of `benchmark.py trees`."""

    model: str
    """Folder, URI or hub id of a trained model."""
    leaves: int = Field(default=2000, ge=1)
    """At least as many as the corpus has labels are taken."""
    rows: int = Field(default=400, ge=1)
    rounds: int = Field(default=2, ge=1)
    data: Path | None = None
    """A folder with `huffpost_headlines_balanced.jsonl(.gz)`, whose 41 classes are measured under
    nine sections, or `clinc150.jsonl(.gz)`, whose intents are under the domains of its rows."""
    embedder: EmbedderConfig | None = None


def benchmark_trees(config: TreesBenchmark) -> Measured:
    """Accuracy of leaves and of the nodes at the top, whether the right leaf was contextualised,
    and rows a second.

    Raises:
        InputError: the model cannot be used.
        DataError: `data` has neither set, or a row of one cannot be read.
    """
    labelled = {} if config.data is None else _labelled_trees(config.data, config.rows)
    loaded = Predictor.from_pretrained(config.model, config.embedder)
    known = TextLookup({}, lambda some: loaded.embedder.embed(list(some)).vectors)
    parts = loaded.model, loaded.embedder, loaded.tokenizer
    predictor = Predictor(*parts, text_vectors=known)
    tree, texts, targets_N = starter_tree(config.leaves, config.rows)
    vectors_ND = predictor.embedder.embed(texts).vectors
    flat = LabelSet.parse(tree.names)
    same = LabelSet(tuple(tree.seen().labels[i] for i in np.argsort(tree.canonical_order)))
    sides: dict[str, LabelSet] = {"tree": tree, "flat, paths as names": flat}
    sides["flat, names and paths of the tree"] = same
    probabilities = {side: predictor.probabilities(vectors_ND, x) for side, x in sides.items()}
    version = predictor.model.config.label_vectors
    probabilities["cosine"] = cosine_scores(vectors_ND, tree, known, version)

    def rate(labels: LabelSet) -> float:
        started = time.perf_counter()
        predictor.answer(vectors_ND, labels)
        return len(texts) / (time.perf_counter() - started)

    turns = in_turn({side: partial(rate, x) for side, x in sides.items()}, config.rounds)
    top_K = np.array([path[0] for path in tree.paths])
    tops = np.unique(top_K)
    rows: dict[str, dict[str, Any]] = {}
    for side, p_NK in probabilities.items():
        best_N = p_NK.argmax(1)
        right_N = top_K[targets_N]
        rows[side] = {
            "leaf right, %": _percent(best_N == targets_N),
            "top of the best leaf right, %": _percent(top_K[best_N] == right_N),
        }
        if side != "cosine":
            p_NV = np.stack([p_NK[:, top_K == top].sum(1) for top in tops], axis=1)
            kept_N = p_NK[np.arange(len(texts)), targets_N] > 0
            rows[side] |= {
                "top by sums right, %": _percent(tops[p_NV.argmax(1)] == right_N),
                "right leaf contextualised, %": _percent(kept_N),
                "rows/s": turns.figure(side, "rows/s"),
                "over the tree": turns.ratio(side, "tree"),
            }
    # A product down the tree begins with the nodes at the top as labels, which know their children.
    children = {
        top: sorted({p[1] for p in tree.paths if p[0] == top and len(p) > 1}) for top in tops
    }
    nodes = LabelSet.parse([{"name": top, "synonyms": children[top]} for top in tops])
    p_NV = predictor.probabilities(vectors_ND, nodes)
    summed_NV = np.stack([probabilities["tree"][:, top_K == top].sum(1) for top in tops], axis=1)
    place_N = np.searchsorted(tops, top_K[targets_N])
    measured = {
        "sum of the leaves": _node_figures(summed_NV, place_N),
        "first factor of a product": _node_figures(p_NV, place_N),
    }
    figures: Figures = {f"{len(tree)} leaves": rows, f"{len(tops)} nodes at the top": measured}
    for name, given in labelled.items():
        figures[name] = _beside_flat(*given, predictor, known)
    return Measured(
        figures,
        arithmetic_of(embedder=predictor.embedder, encoder=predictor.model),
        notes=(
            f"{sum(top_K == FILLING):,} of the leaves are made names, which no text belongs to.",
        ),
        details={"rows": len(texts), "leaves": len(tree), "levels": len(tree.levels)},
        device=predictor.model.query_adaptor.weight.device.type,
    )


def _labelled_trees(folder: Path, rows: int) -> dict[str, tuple[LabelTree, list[str], np.ndarray]]:
    """By headline, of the labelled sets in a folder: a tree, texts, and the leaf of each.

    Raises:
        DataError: neither is there.
    """
    found: dict[str, tuple[LabelTree, list[str], np.ndarray]] = {}
    for name in (HUFFPOST, CLINC):
        file = labelled_file(folder, name)
        if file is None:
            continue
        leaves: dict[str, Any]
        if name == HUFFPOST:
            headline = "HuffPost's 41 classes under sections"
            texts, names, _ = read_labelled(file)
            names = [one.lower() for one in names]
            leaves = {section: some.split(", ") for section, some in SECTIONS.items()}
        else:
            headline = "clinc150's intents under domains"
            texts, names, domains = [], [], []
            for record in read_records(file):
                if isinstance(record, BadRow):
                    raise DataError(record.message)
                if missing := {"text", "label", "domain"} - record.fields.keys():
                    raise DataError(f"{file}:{record.line}: there is no {', '.join(missing)}.")
                if record.fields["label"] not in NO_LABEL:
                    texts.append(record.fields["text"])
                    names.append(record.fields["label"].replace("_", " "))
                    domains.append(record.fields["domain"].replace("_", " "))
            leaves = {}
            for domain, intent in sorted(set(zip(domains, names))):
                leaves.setdefault(domain, []).append(intent)
        tree = LabelTree.parse(leaves)
        place = {path[-1]: k for k, path in enumerate(tree.paths)}
        chosen = np.random.default_rng(0).permutation(len(texts))[:rows]
        targets_N = np.array([place[names[i]] for i in chosen])
        found[headline] = tree, [texts[i] for i in chosen], targets_N
    if not found:
        raise DataError(f"data: there is no {HUFFPOST} or {CLINC} in {folder} (.jsonl or .gz).")
    return found


def _beside_flat(
    tree: LabelTree,
    texts: list[str],
    targets_N: np.ndarray,
    predictor: Predictor,
    text_vectors: TextLookup,
) -> dict[str, dict[str, Any]]:
    """A tree, its leaves as a flat set, both with a shortlist, and cosine similarity: how often the
    leaf and the node at the top are right."""
    vectors_ND = predictor.embedder.embed(texts).vectors
    flat = LabelSet.parse([path[-1] for path in tree.paths])
    parts = predictor.model, predictor.embedder, predictor.tokenizer
    short = Predictor(
        *parts, text_vectors=text_vectors, shortlist_above=SHORT, shortlist_size=SHORT
    )
    version = predictor.model.config.label_vectors
    top_K = np.array([path[0] for path in tree.paths])
    tops = np.unique(top_K)
    found: dict[str, dict[str, Any]] = {}
    for side, p_NK in {
        "tree": predictor.probabilities(vectors_ND, tree),
        "flat, names alone": predictor.probabilities(vectors_ND, flat),
        f"tree, {SHORT} leaves contextualised": short.probabilities(vectors_ND, tree),
        f"flat, {SHORT} nearest contextualised": short.probabilities(vectors_ND, flat),
        "cosine, names alone": cosine_scores(vectors_ND, flat, text_vectors, version),
    }.items():
        right_N, best_N = top_K[targets_N], p_NK.argmax(1)
        found[side] = {
            "leaf right, %": _percent(best_N == targets_N),
            "top of the best leaf right, %": _percent(top_K[best_N] == right_N),
        }
        if not side.startswith("cosine"):
            p_NV = np.stack([p_NK[:, top_K == top].sum(1) for top in tops], axis=1)
            kept_N = p_NK[np.arange(len(texts)), targets_N] > 0
            found[side] |= {
                "top by sums right, %": _percent(tops[p_NV.argmax(1)] == right_N),
                "right leaf contextualised, %": _percent(kept_N),
            }
    return found


def starter_tree(leaves: int, rows: int) -> tuple[LabelTree, list[str], np.ndarray]:
    """The tree, texts of the corpus, and the leaf of each as a place in the tree's."""
    paths: list[tuple[str, ...]] = []
    examples: list[tuple[str, tuple[str, ...]]] = []
    for one in read_starter():
        above = one.domain, one.name.replace("_", " ")
        paths += [(*above, name) for name in one.labels.names]
        examples += [(text, (*above, label)) for text, label in one.examples]
    for i, name in enumerate(label_names(max(0, leaves - len(paths)), 0)):
        paths.append((FILLING, f"{FILLING} {i // FILLED_AT_ONCE}", name))
    children: dict[str, Any] = {}
    for top, middle, name in paths:
        children.setdefault(top, {}).setdefault(middle, []).append(name)
    tree = LabelTree.parse(children)
    place = {path: k for k, path in enumerate(tree.paths)}
    chosen = np.random.default_rng(0).permutation(len(examples))[:rows]
    texts = [examples[i][0] for i in chosen]
    return tree, texts, np.array([place[examples[i][1]] for i in chosen])


def _node_figures(p_NV: np.ndarray, place_N: np.ndarray) -> dict[str, Figure]:
    log_NV = np.log(np.maximum(p_NV, 1e-12))
    log_NV -= logsumexp(log_NV, axis=1, keepdims=True)
    surprise = -float(log_NV[np.arange(len(place_N)), place_N].mean())
    sure_N, right_N = p_NV.max(1), p_NV.argmax(1) == place_N
    bins_N = np.minimum((sure_N * 15).astype(int), 14)
    error = sum(
        (bins_N == b).mean() * abs(sure_N[bins_N == b].mean() - right_N[bins_N == b].mean())
        for b in np.unique(bins_N)
    )
    return {
        "right, %": _percent(right_N),
        "log loss": Figure.of(round(surprise, 3), "nats", "less"),
        "calibration error, %": Figure.of(round(100 * float(error), 1), "%", "less"),
    }


def _percent(right_N: np.ndarray) -> Figure:
    return Figure.of(round(100 * float(np.mean(right_N)), 2), "%")
