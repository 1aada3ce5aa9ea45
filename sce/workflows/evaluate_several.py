"""Measuring answers of several labels a text: on rows of the user, or on test rows that are joined
in pairs, beside cosine similarity with thresholds that are found the same way."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from sce.datasets.custom import read_label_set
from sce.datasets.labelled import read_several
from sce.datasets.prepared import PreparedData
from sce.embedding.embedder import TextEmbedder, load_embedder
from sce.errors import ConfigError, InputError
from sce.evaluation import plots
from sce.evaluation.evaluate import EvaluationSet
from sce.evaluation.metrics import ReliabilityBin, joined, reliability
from sce.evaluation.settings import EvaluateConfig
from sce.evaluation.several import as_options, choose_thresholds, figures, matrix_of
from sce.evaluation.tables import Table
from sce.labels import LabelSet
from sce.model.calibration import calibration_error
from sce.model.label_vectors import label_vectors
from sce.model.logistic import logistic_of, trained_logistic
from sce.model.options import Scoring, default_thresholds
from sce.predictor import Predictor
from sce.storage import fetch, replace_folder
from sce.workflows.evaluate import (
    RELIABILITY_FILE,
    own_folder,
    prepared_for,
    record_source,
    rows_to_measure,
)
from sce.workflows.experiment import Experiment

RESULTS_FILE = "several.json"
MIN_ROWS = 20
"""Half of them choose thresholds, the other half are measured, and the other way about."""
OF_THRESHOLDS = ("micro_f1", "macro_f1", "exact_match")
SHOWN = (*OF_THRESHOLDS, "lrap", "coverage_error")
METHODS = {"sce": "mode multi", "cosine": "cosine"}

logger = logging.getLogger("sce")


@dataclass(frozen=True)
class SeveralSet:
    """Rows whose right labels are known by name, any number of them each; and the texts' vectors
    [N, D], where somebody has them already."""

    name: str
    label_set: LabelSet
    texts: Sequence[str]
    labels: Sequence[Sequence[str]]
    vectors_ND: np.ndarray | None = None


def evaluate_several(experiment: Experiment) -> dict[str, Any]:
    """Measure the trained model; a summary.

    Raises:
        InputError: there is no model, or no rows to measure it on.
    """
    started = time.perf_counter()
    config = experiment.evaluate
    if experiment.method != "sce":
        raise ConfigError("evaluate.mode: several labels are measured of a trained model.")
    embedder = load_embedder(experiment.embedder)
    predictor = Predictor.from_pretrained(fetch(experiment.measured_model), embedder)
    folder = experiment.results_dir.parent / f"{experiment.results_dir.name}-several"
    if config.labelled is not None:
        folder = own_folder(experiment.own_results_dir, config.labelled)
    sets = sets_to_measure(experiment)
    results = measure_several(sets, predictor, embedder, config)
    if not results:
        raise InputError(f"evaluate: no set with {MIN_ROWS} rows and two labels to measure.")
    table = several_table(results)
    Console(stderr=True).print(table)
    with replace_folder(folder, RESULTS_FILE) as new:
        (new / RESULTS_FILE).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (new / "several.md").write_text(table.to_markdown() + "\n", encoding="utf-8")
        if config.pictures:
            figure = plots.reliability_figure(_curves(results), "Each label of each text")
            plots.save(figure, new / RELIABILITY_FILE)
        if config.labelled is not None:
            record_source(new, config.labelled)
    means = {
        f"{figure}/{method}": round(float(np.mean([one[method][figure] for one in results])), 4)
        for figure in (*SHOWN, "log_loss", "ece")
        for method in ("sce", "cosine")
    }
    return {
        "model": str(experiment.measured_model),
        "results": str(folder),
        "sets": len(results),
        "rows": sum(one["sce"]["rows"] for one in results),
        "probabilities": (
            trained_logistic(several)
            if (several := predictor.model.config.several)
            else logistic_of(predictor.background)
        ).rests_on,
        "thresholds": results[0]["thresholds"] if config.labelled is not None else None,
        "test": means,
        "seconds": round(time.perf_counter() - started, 1),
    }


def sets_to_measure(experiment: Experiment) -> list[SeveralSet]:
    """The user's rows; else the test rows with several right labels, or where there are none those
    of unseen sets joined in pairs."""
    config = experiment.evaluate
    if config.labelled is not None:
        labels = None
        if config.labelled_labels is not None:
            labels, _ = read_label_set(config.labelled_labels)
        read = read_several(config.labelled, config.text_column, config.label_column, labels)
        return [SeveralSet(config.labelled.stem, read[2], read[0], read[1])]
    prepared = prepared_for(experiment)
    assert prepared is not None
    if sets := several_sets(prepared, config.sets):
        return sets
    plain = config.model_copy(update={"adapted": False, "corpus": None})
    rows = rows_to_measure(prepared, plain)
    return [joined_in_pairs(one) for one in rows if one.group == "unseen" or config.sets]


def several_sets(prepared: PreparedData, names: Sequence[str] = ()) -> list[SeveralSet]:
    """The test rows in which several labels may be right, by label set; of these sets or datasets,
    where some are named."""
    table = prepared.select("test", several=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.select(["label_set", "dataset", "text", "labels"]).to_pylist():
        if not names or row["label_set"] in names or row["dataset"] in names:
            found.setdefault(row["label_set"], []).append(row)
    return [
        SeveralSet(
            name,
            prepared.label_sets[name],
            [row["text"] for row in rows],
            [row["labels"] for row in rows],
        )
        for name, rows in sorted(found.items())
    ]


def measure_several(
    sets: Sequence[SeveralSet], predictor: Predictor, embedder: TextEmbedder, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """Figures of the sets that have enough rows; `config` says how thresholds are found."""
    enough = (one for one in sets if len(one.texts) >= MIN_ROWS and len(one.label_set) > 1)
    return [_measure(one, predictor, embedder, config) for one in enough]


def joined_in_pairs(rows: EvaluationSet) -> SeveralSet:
    """Each row joined with another of its set, chosen by chance; of one label in some cases."""
    places = np.random.default_rng(0).permutation(len(rows))
    texts = [f"{rows.texts[i]} {rows.texts[j]}" for i, j in enumerate(places)]
    labels = [sorted({rows.labels[i], rows.labels[j]}) for i, j in enumerate(places)]
    return SeveralSet(rows.name, rows.label_set, texts, labels)


def _measure(
    one: SeveralSet, predictor: Predictor, embedder: TextEmbedder, config: EvaluateConfig
) -> dict[str, Any]:
    """Figures of one set, of both methods; thresholds of each half of the rows come from the other.
    Cosines become probabilities by a logistic function of the other half."""
    names = one.label_set.names
    right_NK = matrix_of(one.labels, {name: k for k, name in enumerate(names)})
    vectors_ND = embedder.embed(one.texts).vectors if one.vectors_ND is None else one.vectors_ND
    answers = predictor.answer(vectors_ND, one.label_set, Scoring(mode="multi"))
    assert answers.scores_M is not None
    p_NK = answers.scores_M.reshape(right_NK.shape)

    def text_vectors(texts: Sequence[str]) -> np.ndarray:
        return embedder.embed(texts).vectors

    version = predictor.model.config.label_vectors
    cosine_NK = vectors_ND @ label_vectors(one.label_set, text_vectors, version).T
    first_N = np.random.default_rng(1).permutation(len(right_NK)) % 2 == 0
    fitted_NK = np.empty_like(cosine_NK)
    found: dict[str, Any] = {"name": one.name, "label_count": len(names)}
    thresholds = {}
    for mine_N in (first_N, ~first_N):
        fit_M1, right_M = cosine_NK[~mine_N].reshape(-1, 1), right_NK[~mine_N].ravel()
        logistic = LogisticRegression(C=1e6).fit(fit_M1, right_M)
        fitted_NK[mine_N] = expit(cosine_NK[mine_N] * logistic.coef_[0, 0] + logistic.intercept_[0])
    by, target = config.threshold_by, config.threshold_target
    for method, values_NK in (("sce", p_NK), ("cosine", fitted_NK)):
        least_NK = np.empty_like(values_NK)
        for mine_N in (first_N, ~first_N):
            least_NK[mine_N] = choose_thresholds(right_NK[~mine_N], values_NK[~mine_N], by, target)
        found[method] = figures(right_NK, values_NK, least_NK, names)
        found[method]["ece"] = calibration_error(values_NK.ravel(), right_NK.ravel())
        found[method]["bins"] = reliability(values_NK.ravel(), right_NK.ravel())
        thresholds[method] = choose_thresholds(right_NK, values_NK, by, target)
        by_default = figures(
            right_NK, values_NK, default_thresholds(np.full(len(names), len(names))), names
        )
        found[f"{method}_default"] = {name: by_default[name] for name in OF_THRESHOLDS}
    return found | {"thresholds": as_options(names, thresholds["sce"])}


def _curves(results: Sequence[dict[str, Any]]) -> dict[str, tuple[float, list[ReliabilityBin]]]:
    """The calibration error of both methods, mean over sets, and the bins of all their rows."""
    found = {}
    for method, name in (("sce", "mode multi"), ("cosine", "cosine, fitted on the other half")):
        error = float(np.mean([one[method]["ece"] for one in results]))
        found[name] = error, joined([one[method]["bins"] for one in results])
    return found


def several_table(results: Sequence[dict[str, Any]]) -> Table:
    """Two rows a set, one of each method, and two of the means: no more columns than a terminal of
    80 characters shows."""
    rows: list[list[str]] = []
    for one in [*results, _mean(results)]:
        set_cell = f"{one['name']} ({one['label_count']})"
        for method, title in METHODS.items():
            cells = [set_cell, title]
            for figure in SHOWN:
                scale, form = (1, "{:.2f}") if figure == "coverage_error" else (100, "{:.1f}")
                cells.append(form.format(scale * one[method][figure]))
            rows.append([*cells, f"{100 * one[f'{method}_default']['micro_f1']:.1f}"])
            set_cell = ""
    columns = ["set (labels)", "by", "micro-F1", "macro-F1", "exact", "LRAP", "cover", "default"]
    return Table(
        columns,
        rows,
        "Several labels a text",
        left=columns[:2],
        caption="A threshold a label, found on the other half of the rows; cosine similarity with "
        "thresholds found the same way, as a probability that was fitted there. cover: coverage "
        "error, less is better; the others are per cent. default: micro-F1 with the default "
        "threshold, for which mode multi needs no labelled rows.",
    )


def _mean(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": "mean", "label_count": len(results)}
    for method in (*METHODS, *(f"{method}_default" for method in METHODS)):
        figures_of = [one[method] for one in results]
        names = [name for name, value in figures_of[0].items() if isinstance(value, float)]
        found[method] = {name: float(np.mean([f[name] for f in figures_of])) for name in names}
    return found
