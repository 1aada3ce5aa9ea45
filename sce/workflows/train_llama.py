"""The path of the LoRA Llama: prepare the data, fit the adapters, write them, merge on request."""

from __future__ import annotations

import logging
import time
from typing import Any

import pyarrow as pa

from sce.baselines.llama_training import LlamaRows, right_answers
from sce.baselines.lora import load_base, load_chat_tokenizer, merge
from sce.baselines.prompted import PromptedClassifier
from sce.datasets.prepare import PreparedData, prepare
from sce.distributed.resources import training_workers
from sce.distributed.train_llama import LlamaFitSettings, fit_llama
from sce.distributed.workers import Run
from sce.errors import DataError
from sce.evaluation.summaries import dataset_metrics, rounded_metrics
from sce.model.weights import save_weights
from sce.storage import absolute_model, replace_folder
from sce.training.random_keys import some_places
from sce.workflows.evaluate import measure_sets, rows_to_measure, validation_sets
from sce.workflows.experiment import LlamaExperiment
from sce.workflows.methods import PromptedMethod
from sce.workflows.mlflow_data import trained_on
from sce.workflows.mlflow_runs import open_run
from sce.workflows.tracking import Tracker, tracking_uri
from sce.workflows.training_run import TrainingRun

logger = logging.getLogger("sce")


def train_llama(experiment: LlamaExperiment) -> dict[str, Any]:
    """The whole path; returns a summary.

    Raises:
        InputError: wrong settings or data; nothing was half-written.
    """
    started = time.perf_counter()
    tracking_uri(experiment.tracking)
    prepared, _ = prepare(experiment.data, experiment.data_dir, experiment.data.seed)
    rows = _rows(prepared, "train", None, experiment.seed)
    validation = _rows(prepared, "validation", experiment.validation_rows, experiment.seed)
    load_chat_tokenizer(experiment.base)  # a model that is not there is said before anything
    workers = training_workers(experiment.resources)
    decisive = {"seed", "base", "prompt", "lora", "train", "validation_rows"}
    identity = experiment.model_dump(mode="json", include=decisive)
    run = TrainingRun.open(
        experiment.checkpoints_dir,
        identity | {"data_fingerprint": prepared.fingerprint},
        experiment.resume,
        experiment.restart,
    )
    tracker = open_run(experiment, "training", "train", run.tracker_run_id)
    with run.recorded(tracker):
        tracker.log_inputs(trained_on(prepared, experiment.data_dir))
        place = Run(workers, experiment.checkpoints_dir, run.run_name, tracker)
        summary = _fit(experiment, rows, validation, place)
        if experiment.merge:
            summary |= _merge(experiment, validation)
            tracker.log_metrics({"accuracy_merged/validation": summary["merged_accuracy"]})
        tracker.log_artifact(experiment.adapter_dir, "adapter")
        summary |= _measure(experiment, prepared, tracker)
    return summary | {
        "mlflow_run_id": tracker.run_id,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _fit(
    experiment: LlamaExperiment, rows: LlamaRows, validation: LlamaRows, run: Run
) -> dict[str, Any]:
    """Fit the adapters and write them, whole or not at all."""
    base, prompt = absolute_model(experiment.base), experiment.prompt
    settings = LlamaFitSettings(base, prompt, experiment.lora, experiment.train, experiment.seed)
    with replace_folder(experiment.adapter_dir, "adapter_config.json") as new:
        fitted = fit_llama(rows, validation, settings, run, new)
    loss = fitted.last.get("train/loss")
    return {
        "adapter": str(experiment.adapter_dir),
        "best_epoch": int(fitted.best["epoch"]),
        "validation_accuracy": round(fitted.best["score"], 4),
        "train_loss": None if loss is None else round(loss, 4),
        "epoch_seconds": fitted.last.get("epoch_seconds"),
    }


def _measure(
    experiment: LlamaExperiment, prepared: PreparedData, tracker: Tracker
) -> dict[str, Any]:
    """Measure on the test sets, where there are any, as every other method is."""
    config = experiment.evaluate
    if config.labelled is None and not len(prepared.select("test")):
        return {}
    validation = validation_sets(prepared, config)
    method = PromptedMethod(experiment.prompted, experiment.resources, validation)
    sets, folder = rows_to_measure(prepared, config), experiment.results_dir
    with open_run(experiment, "evaluation", "evaluate", watched=False) as evaluation:
        results = measure_sets(experiment, sets, [method], evaluation, folder)
    tracker.log_metrics(dataset_metrics(results))
    tracker.set_tags({"evaluation_run": evaluation.run_id})
    return {"results": str(folder), "test": rounded_metrics(results)}


def _merge(experiment: LlamaExperiment, validation: LlamaRows) -> dict[str, Any]:
    """Merge into the unquantised base: merging into 4 bits would round the adapters away."""
    base = load_base(experiment.base, experiment.lora, "cpu", quantised=False)
    merged = merge(base, experiment.adapter_dir)
    tokenizer, max_tokens = load_chat_tokenizer(experiment.base), experiment.train.max_text_tokens
    folder = experiment.home / "merged"
    with replace_folder(folder, "config.json") as new:
        save_weights(merged, new)
        tokenizer.save_pretrained(new)
    classifier = PromptedClassifier(merged, tokenizer, experiment.prompt, max_tokens)
    accuracy = float(right_answers(classifier, validation, range(len(validation))).mean())
    logger.info("merged: validation %.1f", 100 * accuracy)
    return {"merged": str(folder), "merged_accuracy": round(accuracy, 4)}


def _rows(prepared: PreparedData, split: str, limit: int | None, seed: int) -> LlamaRows:
    table: pa.Table = prepared.select(split, several=False)
    if not len(table):
        raise DataError(
            f"there is no row with one right label in the split {split!r} (data.sources)."
        )
    table = table.take(some_places(table["row_id"].to_pylist(), limit, seed))
    sets = table["label_set"].to_pylist()
    return LlamaRows(
        table["row_id"].to_pylist(),
        table["text"].to_pylist(),
        table["label"].to_pylist(),
        sets,
        {name: prepared.label_sets[name] for name in dict.fromkeys(sets)},
    )
