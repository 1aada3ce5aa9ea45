"""The path of the LoRA Llama: prepare the data, fit the adapters, write them, merge on request."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field
from transformers import logging as transformers_logging

from sce.baselines.llama_training import LlamaRows, LlamaTrainConfig, right_answers
from sce.baselines.lora import LoraSettings, load_base, load_chat_tokenizer, merge
from sce.baselines.prompted import PromptedClassifier
from sce.baselines.settings import PromptedConfig, PromptName
from sce.config import JobConfig, resolve_output
from sce.datasets.prepare import DataConfig, PreparedData, prepare_data
from sce.distributed.resources import ResourcesConfig, training_workers
from sce.errors import DataError
from sce.evaluation.costs import TrainingCost
from sce.evaluation.evaluate import EvaluateConfig, headline_metrics
from sce.evaluation.flops import LORA_RANK
from sce.storage import Place, absolute_model, replace_folder
from sce.training.random_keys import some_places
from sce.workflows.evaluate import measure_sets, rows_to_measure, validation_sets
from sce.workflows.methods import PromptedMethod
from sce.workflows.run_state import RunState
from sce.workflows.tracking import Tracker, TrackingConfig, tracking_uri

logger = logging.getLogger("sce")


class LlamaExperiment(JobConfig):
    """Settings of `jobs/train_llama.py`."""

    name: str = "llama-lora"
    """Names the run in MLflow."""
    seed: int = 0
    run_dir: Place = Path("runs/llama-lora")
    """Where everything goes: data, checkpoints, adapters, a merged model. A path that every node
    reaches, or a URI (s3://bucket/folder)."""
    base: str = "meta-llama/Llama-3.2-1B-Instruct"
    """Hub id, folder or URI of the language model."""
    prompt: PromptName = "template"
    """`template` of appendix G.1, or the `sentence` of appendix D."""
    data: DataConfig = DataConfig()
    lora: LoraSettings = LoraSettings(rank=LORA_RANK)
    train: LlamaTrainConfig = LlamaTrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    """How the adapters are measured on the test sets."""
    validation_rows: int = Field(default=500, ge=1)
    """Of the split `validation`, at most: each costs a forward pass of the whole model."""
    merge: bool = False
    """Also write an unquantised model with the adapters in its weights, and measure it."""
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    shared_dir: Place | None = None
    """Where prepared data goes when several experiments share it; by default `run_dir`."""
    resume: bool = False
    """Go on with the unfinished training of `run_dir`."""
    restart: bool = False
    """Throw the unfinished training of `run_dir` away and begin again."""

    @property
    def home(self) -> Place:
        return resolve_output(self.run_dir)

    @property
    def data_dir(self) -> Place:
        return resolve_output(self.shared_dir or self.run_dir) / "data"


def train_llama(experiment: LlamaExperiment) -> dict[str, Any]:
    """The whole path; returns a summary.

    Raises:
        InputError: wrong settings or data; nothing was half-written.
    """
    from sce.distributed.train_llama import LlamaFitSettings, fit_llama

    transformers_logging.disable_progress_bar()
    started = time.perf_counter()
    tracking_uri(experiment.tracking, experiment.home.parent)
    prepare_data(experiment.data, experiment.data_dir, experiment.data.seed)
    prepared = PreparedData.load(experiment.data_dir)
    train = _rows(prepared, "train", None, experiment.seed)
    validation = _rows(prepared, "validation", experiment.validation_rows, experiment.seed)
    load_chat_tokenizer(experiment.base)  # a model that is not there is said before anything
    settings = LlamaFitSettings(
        absolute_model(experiment.base),
        experiment.prompt,
        experiment.lora,
        experiment.train,
        experiment.seed,
    )
    workers = training_workers(experiment.resources)
    state = RunState.open(
        experiment.home / "checkpoints",
        {
            **experiment.model_dump(
                mode="json",
                include={"seed", "base", "prompt", "lora", "train", "validation_rows"},
            ),
            "data_fingerprint": prepared.fingerprint,
        },
        experiment.resume,
        experiment.restart,
    )
    tags = {"job": "train", "method": experiment.name, "seed": str(experiment.seed)}
    name = f"{experiment.name}-seed{experiment.seed}"
    adapter = experiment.home / "adapter"
    with Tracker.open(
        experiment.tracking, state.tracker_run_id, name, tags, experiment.home.parent
    ) as tracker:
        state.tracker_run_id = tracker.run_id
        state.save()
        tracker.log_params(experiment.model_dump(mode="json"))
        with replace_folder(adapter, "adapter_config.json") as new:
            fitted = fit_llama(
                train,
                validation,
                settings,
                workers,
                experiment.home / "checkpoints",
                state.run_name,
                tracker,
                new,
            )
            TrainingCost(
                rows=len(train),
                epochs=int(fitted.last["epoch"]),
                seconds=fitted.last.get("train/seconds", 0.0),
                flops=fitted.last.get("train/flops", 0.0),
                embedding_flops=0.0,
                trainable_parameters=int(fitted.trainable_parameters),
                workers=str(workers),
            ).save(new)
        summary: dict[str, Any] = {
            "adapter": str(adapter),
            "best_epoch": int(fitted.best["epoch"]),
            "validation_accuracy": round(fitted.best["score"], 4),
            "train_loss": round(fitted.last["train/loss"], 4)
            if "train/loss" in fitted.last
            else None,
            "epoch_seconds": fitted.last.get("epoch_seconds"),
        }
        if experiment.merge:
            summary |= _merge(experiment, adapter, validation)
            tracker.log_metrics({"merged/validation/accuracy": summary["merged_accuracy"]})
        tracker.log_artifact(adapter, "adapter")
        summary |= _measure(experiment, prepared, adapter, tracker)
    state.finished = True
    state.save()
    return summary | {
        "mlflow_run_id": tracker.run_id,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _measure(
    experiment: LlamaExperiment, prepared: PreparedData, adapter: Place, tracker: Tracker
) -> dict[str, Any]:
    """On the test sets, where there are any, as every other method is."""
    config, seed = experiment.evaluate, experiment.seed
    if config.labelled is None and not len(prepared.select("test")):
        return {}
    prompted = PromptedConfig(
        base=experiment.base,
        adapter=adapter,
        prompt=experiment.prompt,
        quantisation=experiment.lora.quantisation,
        max_text_tokens=experiment.train.max_text_tokens,
    )
    method = PromptedMethod(prompted, experiment.resources, validation_sets(prepared, config))
    sets = rows_to_measure(prepared, config)
    folder = experiment.home / "results"
    evaluated = measure_sets(sets, [method], config, experiment.name, seed, tracker, folder)
    figures = headline_metrics([e.result for e in evaluated])
    return {
        "results": str(folder),
        "test": {k: round(v, 4) for k, v in figures.items() if "mean_" in k},
    }


def _merge(experiment: LlamaExperiment, adapter: Place, validation: LlamaRows) -> dict[str, Any]:
    """Into the unquantised base: merging into 4 bits would round the adapters away."""
    base = load_base(experiment.base, experiment.lora, "cpu", quantised=False)
    merged = merge(base, adapter)
    tokenizer = load_chat_tokenizer(experiment.base)
    folder = experiment.home / "merged"
    with replace_folder(folder, "config.json") as new:
        merged.save_pretrained(new)
        tokenizer.save_pretrained(new)
    classifier = PromptedClassifier(
        merged, tokenizer, experiment.prompt, experiment.train.max_text_tokens
    )
    accuracy = float(right_answers(classifier, validation, range(len(validation))).mean())
    logger.info("merged: validation %.1f", 100 * accuracy)
    return {"merged": str(folder), "merged_accuracy": round(accuracy, 4)}


def _rows(prepared: PreparedData, split: str, limit: int | None, seed: int) -> LlamaRows:
    table: pa.Table = prepared.select(split)
    if not len(table):
        raise DataError(f"there is no row in the split {split!r} (data.sources).")
    table = table.take(some_places(table["row_id"].to_pylist(), limit, seed))
    sets = table["label_set"].to_pylist()
    return LlamaRows(
        table["row_id"].to_pylist(),
        table["text"].to_pylist(),
        table["label"].to_pylist(),
        sets,
        {name: prepared.label_sets[name] for name in dict.fromkeys(sets)},
    )
