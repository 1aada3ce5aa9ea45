"""Measuring how well `none_of_these` tells texts that no label fits: rows whose labels were all
taken away, or rows of the user that say so. Beside it, in mode single, the maximal softmax and the
margin of cosines; in mode multi the largest probability and the largest cosine."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from sce.datasets.custom import read_label_set
from sce.datasets.labelled import read_labelled
from sce.embedding.embedder import TextEmbedder, load_embedder
from sce.errors import ConfigError, InputError
from sce.evaluation.rejecting import PATHS, by_paths, figures, take_away
from sce.evaluation.tables import Table
from sce.labels import Label, LabelSet, normalise_name
from sce.model.label_vectors import label_vectors
from sce.model.options import POOLINGS, Mode, Pooling, Scoring
from sce.model.pooling import ChunkVectors
from sce.predictor import Predictor
from sce.storage import fetch, replace_folder
from sce.training.random_keys import some_places
from sce.workflows.evaluate import own_folder, prepared_for, record_source, rows_to_measure
from sce.workflows.evaluate_long_texts import readings
from sce.workflows.evaluate_several import sets_to_measure
from sce.workflows.experiment import Experiment

RESULTS_FILE = "none.json"
MIN_SIDE = 10
"""Rows of each kind that a set needs to be measured."""
MOST_SHOWN = 8
"""Sets on a terminal, or else their mean; all of them are in none.md."""
SHOWN: dict[Mode, dict[str, str]] = {
    "single": {
        "none_score": "none_score",
        "max_softmax": "max softmax",
        "margin": "cosine margin",
    },
    "multi": {
        "none_score": "none_score",
        "max_probability": "max probability",
        "cosine": "max cosine",
    },
}
"""What is measured in each mode, and its column."""


@dataclass(frozen=True)
class NoneSet:
    """Texts, the labels that are offered, and which of the texts none of them fits, bool [N]."""

    name: str
    label_set: LabelSet
    texts: Sequence[str]
    none_N: np.ndarray


def evaluate_none(experiment: Experiment) -> dict[str, Any]:
    """Measure the trained model in the mode that is asked for; a summary.

    Raises:
        InputError: there is no model, or no rows of both kinds.
    """
    started = time.perf_counter()
    config = experiment.evaluate
    if experiment.method != "sce":
        raise ConfigError("evaluate.none_of_these: it is measured of a trained model.")
    if config.long_texts and config.labelled is None:
        raise ConfigError("evaluate.long_texts: it goes with evaluate.labelled.")
    embedder = load_embedder(experiment.embedder)
    predictor = Predictor.from_pretrained(fetch(experiment.measured_model), embedder)
    folder = experiment.results_dir.parent / f"{experiment.results_dir.name}-none"
    if config.labelled is not None:
        folder = own_folder(experiment.own_results_dir, config.labelled)
    sets = _sets_of_several(experiment) if config.mode == "multi" else _sets(experiment)
    sets = [one for one in sets if MIN_SIDE <= one.none_N.sum() <= len(one.none_N) - MIN_SIDE]
    if not sets:
        raise InputError(
            f"evaluate: no set with {MIN_SIDE} rows that have one of its labels and as many that "
            "have none."
        )
    shown = SHOWN[config.mode]
    if config.long_texts:
        results = _measure_readings(experiment, sets[0], predictor, embedder)
    else:
        results = [_measure(one, predictor, embedder, config.mode) for one in sets]
    table, few = _table(results, shown), len(results) <= MOST_SHOWN
    believed = _calibration_table(results)
    Console(stderr=True).print(table if few else _table([_mean(results, shown)], shown))
    Console(stderr=True).print(believed if few else _calibration_table([_mean_paths(results)]))
    with replace_folder(folder, RESULTS_FILE) as new:
        (new / RESULTS_FILE).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        tables = f"{table.to_markdown()}\n\n{believed.to_markdown()}\n"
        (new / "none.md").write_text(tables, encoding="utf-8")
        if config.labelled is not None:
            record_source(new, config.labelled)
    return {
        "model": str(experiment.measured_model),
        "results": str(folder),
        "sets": len(sets),
        "rows": results[0]["rows"] if config.long_texts else sum(one["rows"] for one in results),
        **({"readings": _readings_said(results)} if config.long_texts else {}),
        "test": {
            f"{figure}/{name}": round(value, 4)
            for name, found in _mean(results, shown).items()
            if name in shown
            for figure, value in found.items()
        }
        | {
            f"{figure}/{path}": round(value, 4)
            for path, found in _mean_paths(results)["paths"].items()
            for figure, value in found.items()
        },
        "seconds": round(time.perf_counter() - started, 1),
    }


def _sets(experiment: Experiment) -> list[NoneSet]:
    """Of rows with one right label."""
    config = experiment.evaluate
    if config.labelled is not None:
        return [_own_rows(experiment)]
    plain = config.model_copy(update={"adapted": False, "corpus": None})
    rows = rows_to_measure(prepared_for(experiment), plain)
    chosen = [one for one in rows if one.group == "unseen" or config.sets]
    return [
        _taken_away(one.name, one.label_set, one.texts, one.labels, experiment.seed)
        for one in chosen
        if len(one.label_set) > 2
    ]


def _sets_of_several(experiment: Experiment) -> list[NoneSet]:
    """Of rows with any number of right labels: none fits those that lost all of theirs, or had
    none. With `none_label` those that have no other, and nothing is taken away."""
    none_label = experiment.evaluate.none_label
    found = []
    for one in sets_to_measure(experiment):
        if none_label is not None:
            kept = _without(one.label_set, none_label, experiment)
        elif len(one.label_set) > 2:
            kept = take_away(one.label_set, experiment.seed)
        else:
            continue
        keys = {label.key for label in kept.labels}
        fits = [any(normalise_name(name) in keys for name in names) for names in one.labels]
        found.append(NoneSet(one.name, kept, one.texts, ~np.array(fits)))
    return found


def _without(label_set: LabelSet, none_label: str, experiment: Experiment) -> LabelSet:
    key = normalise_name(none_label)
    kept = tuple(label for label in label_set.labels if label.key != key)
    if len(kept) == len(label_set):
        raise InputError(
            f"evaluate.none_label: no row of {experiment.evaluate.labelled} has {key!r}."
        )
    return LabelSet(kept)


def _own_rows(experiment: Experiment) -> NoneSet:
    """The user's, of which those with the label `none_label` have none; without it half of the
    labels are taken away."""
    config = experiment.evaluate
    assert config.labelled is not None
    labels = None
    if config.labelled_labels is not None:
        labels, _ = read_label_set(config.labelled_labels)
    if labels is not None and config.none_label is not None:
        keys = {label.key for label in labels.labels}
        more = (Label(config.none_label),) if normalise_name(config.none_label) not in keys else ()
        labels = LabelSet((*labels.labels, *more))
    read = read_labelled(config.labelled, config.text_column, config.label_column, labels)
    texts, names, label_set = read
    if config.none_label is None:
        return _taken_away(config.labelled.stem, label_set, texts, names, experiment.seed)
    kept = _without(label_set, config.none_label, experiment)
    key = normalise_name(config.none_label)
    none_N = np.array([normalise_name(name) == key for name in names])
    return NoneSet(config.labelled.stem, kept, texts, none_N)


def _taken_away(
    name: str, label_set: LabelSet, texts: Sequence[str], names: Sequence[str], seed: int
) -> NoneSet:
    kept = take_away(label_set, seed)
    keys = {label.key for label in kept.labels}
    none_N = np.array([normalise_name(label) not in keys for label in names])
    return NoneSet(name, kept, texts, none_N)


def _measure_readings(
    experiment: Experiment, one: NoneSet, predictor: Predictor, embedder: TextEmbedder
) -> list[dict[str, Any]]:
    """Of long texts of the user: their beginnings, and their chunks by each pooling."""
    mode, rows_per_set = experiment.evaluate.mode, experiment.evaluate.rows_per_set
    places = some_places([str(i) for i in range(len(one.texts))], rows_per_set)
    texts, none_N = [one.texts[i] for i in places], one.none_N[places]
    found = []
    for what, vectors in readings(experiment, embedder, texts).items():
        chunked = isinstance(vectors, ChunkVectors)
        pooled: Sequence[Pooling | None] = POOLINGS if chunked else (None,)  # type: ignore[assignment]
        for pooling in pooled:
            name = what if pooling is None else f"{what}, {pooling}"
            asked = NoneSet(name, one.label_set, texts, none_N)
            found.append(_measure(asked, predictor, embedder, mode, vectors, pooling))
    return found


def _measure(
    one: NoneSet,
    predictor: Predictor,
    embedder: TextEmbedder,
    mode: Mode,
    vectors: np.ndarray | ChunkVectors | None = None,
    pooling: Pooling | None = None,
) -> dict[str, Any]:
    if vectors is None:
        vectors = embedder.embed(one.texts).vectors
    scoring = Scoring(mode=mode, none_of_these=True, pooling=pooling)
    answers = predictor.answer(vectors, one.label_set, scoring)
    assert answers.none_N is not None
    vectors_ND = vectors.mean_vectors() if isinstance(vectors, ChunkVectors) else vectors

    def text_vectors(texts: Sequence[str]) -> np.ndarray:
        return embedder.embed(texts).vectors

    version = predictor.model.config.label_vectors
    cosine_NK = vectors_ND @ label_vectors(one.label_set, text_vectors, version).T
    best_N2 = np.sort(cosine_NK, axis=1)[:, -2:]
    scores = {"none_score": answers.none_N}
    if mode == "multi":
        scores |= {"max_probability": -answers.top_scores_NT[:, 0], "cosine": -best_N2[:, 1]}
    else:
        scores |= {"max_softmax": -answers.top_scores_NT[:, 0]}
        scores |= {"margin": best_N2[:, 0] - best_N2[:, 1]}
    found: dict[str, Any] = {
        "name": one.name,
        "label_count": len(one.label_set),
        "rows": len(one.texts),
        "none": int(one.none_N.sum()),
        "paths": by_paths(answers.none_N, one.none_N, mode),
    }
    return found | {name: figures(score_N, one.none_N) for name, score_N in scores.items()}


def _mean_paths(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    paths = {
        path: {
            figure: float(np.mean([one["paths"][path][figure] for one in results]))
            for figure in ("mean_score", "ece")
        }
        for path in PATHS
    }
    shares = [one["none"] / one["rows"] for one in results]
    return {"name": "mean", "paths": paths, "rows": 1, "none": float(np.mean(shares))}


def _calibration_table(results: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for one in [*results, _mean_paths(results)] if len(results) > 1 else results:
        found = [one["paths"][path] for path in PATHS]
        cells = [f"{part['mean_score']:.3f} ({part['ece']:.3f})" for part in found]
        rows.append([one["name"], f"{one['none'] / one['rows']:.3f}", *cells])
    return Table(
        ["set", "fit none", *PATHS.values()],
        rows,
        "How far none_score may be believed",
        caption="Share of rows that no label fits, and the mean none_score, in parentheses its "
        "calibration error, by what it rests on: a share that is assumed; the right share; that "
        "and the texts as a corpus (--none-share); the labels of the other half of the rows "
        "(--none-label).",
    )


def _readings_said(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        one["name"]: {
            "auroc": round(one["none_score"]["auroc"], 4),
            "ece": round(one["paths"]["corpus"]["ece"], 4),
        }
        for one in results
    }


def _mean(results: Sequence[dict[str, Any]], shown: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": "mean", "label_count": len(results)}
    for name in shown:
        found[name] = {
            figure: float(np.mean([one[name][figure] for one in results]))
            for figure in ("auroc", "false_acceptance")
        }
    return found


def _table(results: Sequence[dict[str, Any]], shown: Mapping[str, str]) -> Table:
    rows = []
    for one in [*results, _mean(results, shown)] if len(results) > 1 else results:
        cells = [f"{one['name']} ({one['label_count']})"]
        for name in shown:
            cells += [f"{one[name]['auroc']:.3f}", f"{100 * one[name]['false_acceptance']:.0f}"]
        rows.append(cells)
    columns = ["set (labels)"]
    for title in shown.values():
        columns += [title, "accepted"]
    return Table(
        columns,
        rows,
        "None of these",
        caption="Area under the ROC curve of telling rows that no label fits from the others, and "
        "the per cent of the former that are answered where 95 % of the latter are (less is "
        "better). Half of each set's labels are taken away, or the rows say so themselves.",
    )
