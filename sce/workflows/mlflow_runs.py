"""What an experiment records in MLflow: the runs of its training and of its measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sce.config import JobConfig
from sce.evaluation.evaluate import EvaluationSet
from sce.evaluation.summaries import (
    FIGURES,
    Result,
    comparison_metrics,
    dataset_metrics,
    others,
)
from sce.storage import Place
from sce.workflows.experiment import Experiment, RunSettings
from sce.workflows.mlflow_data import measured_on
from sce.workflows.mlflow_store import Kind
from sce.workflows.tracking import Tracker

SETS_FILE = "label_sets.csv"
"""Artifact of a measurement: the figures of each label set, a row each."""
_OF_ALL = {"seed", "run_dir", "data"}
_OF_LLAMA = {"base", "prompt", "lora"}
_OF_TRAINING = {"embedder", "model", "augment", "train", "validation_rows", "merge"}


def open_run(
    experiment: RunSettings, kind: Kind, job: str, run_id: str | None = None, watched: bool = True
) -> Tracker:
    """The MLflow run of a job, with its settings.

    Args:
        run_id: of a run to go on in.
        watched: whether the machine is watched, where the settings want it. Not by a second run
            of one process.
    """
    name = f"{experiment.name}-seed{experiment.seed}" + ("" if job == "train" else f"-{job}")
    own = experiment.evaluate.labelled
    if kind == "evaluation" and own is not None:
        name += f"-{own.stem}"
    tags = {"job": job, "method": experiment.name, "seed": str(experiment.seed)}
    tracking = experiment.tracking
    if not watched:
        tracking = tracking.model_copy(update={"system_metrics": False})
    tracker = Tracker.open(tracking, kind, run_id, name, tags)
    tracker.log_params(_deciding(experiment, kind), experiment.model_dump(mode="json"))
    return tracker


def _deciding(experiment: RunSettings, kind: Kind) -> dict[str, Any]:
    """The settings that decide what a run of this kind comes to."""
    if kind == "training":
        return experiment.model_dump(mode="json", include=_OF_ALL | _OF_LLAMA | _OF_TRAINING)
    names, config = _OF_ALL | _OF_LLAMA | {"method", "evaluate"}, experiment.evaluate
    if isinstance(experiment, Experiment):
        names.add("prompted" if experiment.method == "prompted" else "embedder")
    if config.labelled is not None and not config.sets:
        names -= {"data"}
    found = experiment.model_dump(mode="json", include=names)
    if config.labelled is None:
        found["evaluate"] = {k: v for k, v in found["evaluate"].items() if "_column" not in k}
    return found


def log_settings(tracker: Tracker, config: JobConfig) -> None:
    """Of a job on files of rows: as params those that the user chose, as config.yaml all."""
    chosen = config.model_dump(mode="json", exclude_defaults=True, exclude={"tracking"})
    tracker.log_params(chosen, config.model_dump(mode="json"))


def log_measured(
    tracker: Tracker,
    experiment: RunSettings,
    sets: Sequence[EvaluationSet],
    results: Sequence[Result],
    described: Mapping[str, Any],
    folder: Place,
    model_id: str | None = None,
) -> None:
    """Everything that was measured of a method, into a run that is open.

    Args:
        described: the method's entry in `methods.json`.
        folder: of the results, an artifact.
        model_id: of the logged model, where the method is one.
    """
    own = experiment.evaluate.labelled
    used = measured_on(sets, own, experiment.data_dir)
    tracker.log_inputs(list(used.values()), model_id)
    figures = dataset_metrics(results)
    datasets = {m: used[key] for m in figures if (key := m.partition("/")[2]) in used}
    of_model = {m: v for m, v in figures.items() if m.partition("/")[0] in FIGURES}
    tracker.log_metrics(of_model, model_id=model_id, datasets=datasets)
    beside = {m: v for m, v in figures.items() if m not in of_model}
    tracker.log_metrics(beside | comparison_metrics(results) | cost_metrics(described))
    tracker.log_text(pd.DataFrame(map(_row, results)).to_csv(index=False), SETS_FILE)
    tracker.log_artifact(folder, "results")
    tracker.set_tags({"measured": "test" if own is None else own.stem, "kind": described["kind"]})


def _row(result: Result) -> dict[str, Any]:
    """A label set in `SETS_FILE`."""
    main = result[result["method"]]
    found = {"set": result["name"], "group": result["group"]}
    found |= {name: result[name] for name in ("labels", "rows") if name in result}
    found |= {figure: main[figure] for figure in (*FIGURES, "flip_rate")}
    return found | {f"accuracy_{name}": result[name]["accuracy"] for name in others(result)}


def cost_metrics(described: Mapping[str, Any]) -> dict[str, float]:
    """The costs in an entry of `methods.json`, for the tracker; what is not known is left out."""
    cost, training = described["cost"], described.get("training") or {}
    rates = ("texts_per_second", "embedded_texts_per_second", "flops_per_text")
    found = {name: cost[name] for name in rates} | {
        "parameters": described["parameters"],
        "peak_memory_mb": cost["peak_memory_bytes"] / 1e6,
        "train_flops": training.get("flops", 0.0) + training.get("embedding_flops", 0.0),
        "epoch_seconds": training.get("epoch_seconds"),
    }
    return {name: value for name, value in found.items() if value is not None}
