"""The whole path of one experiment: prepare, embed, train, calibrate, write, measure.

A step whose result is there and up to date does no work. `sce.workflows.evaluate` is the last step.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from sce.baselines.cosine import cosine_scores
from sce.datasets.prepare import PreparedData, prepare
from sce.datasets.tokens import multi_token_labels
from sce.distributed.embed import embed_prepared
from sce.distributed.resources import WorkerPlan, training_workers
from sce.distributed.train import fit
from sce.distributed.workers import Run
from sce.embedding.embedder import TextEmbedder, load_embedder
from sce.embedding.store import EmbeddingStore
from sce.errors import ConfigError, hide_secrets
from sce.evaluation.costs import embedding_flops
from sce.evaluation.paper import paper_settings
from sce.evaluation.summaries import rounded_metrics
from sce.model.background import Background
from sce.model.calibration import Temperature, TemperatureFit, fit_temperature
from sce.model.encoder import SCEModel, trainable_parameters
from sce.model.label_vectors import TextLookup
from sce.model.logistic import fit_logistic
from sce.model.weights import save_weights
from sce.predictor import Predictor
from sce.storage import relative, replace_folder, write_text
from sce.training.data import TrainingData, rejection_of
from sce.training.episodes import EpisodeSampler
from sce.training.fresh_model import FreshModel, build_model
from sce.training.validation import VALIDATION_VIEWS, Validator
from sce.workflows.cli import typed
from sce.workflows.evaluate import REPORT_FILE, measure, rows_to_measure
from sce.workflows.evaluate_several import measure_several, several_sets, several_table
from sce.workflows.experiment import Experiment
from sce.workflows.mlflow_data import trained_on
from sce.workflows.mlflow_model import begin_model, complete_model
from sce.workflows.mlflow_runs import open_run
from sce.workflows.model_card import write_model_card
from sce.workflows.tracking import Tracker, git_tags, tracking_uri
from sce.workflows.training_run import TrainingRun

logger = logging.getLogger("sce")

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Plan:
    """What the settings of an experiment come to: all that its training is done with.

    Attributes:
        rows_store: embeddings of the prepared rows.
        fresh: the model before its first step.
    """

    experiment: Experiment
    prepared: PreparedData
    rows_store: EmbeddingStore
    data: TrainingData
    fresh: FreshModel
    sampler: EpisodeSampler
    validator: Validator
    workers: WorkerPlan


def train(experiment: Experiment) -> dict[str, Any]:
    """The whole path; returns a summary of what was made and measured.

    Raises:
        InputError: wrong settings or data; nothing was half-written.
    """
    started = time.perf_counter()
    if experiment.resume:
        experiment = _as_begun(experiment)
    plan = resolve(experiment)
    run = TrainingRun.open(
        experiment.checkpoints_dir, _identity(plan), experiment.resume, experiment.restart
    )
    # Beside the model, so that later jobs can be given it whole.
    text = yaml.safe_dump(saved_settings(experiment), sort_keys=False, allow_unicode=True)
    write_text(experiment.home / CONFIG_FILE, text)
    tracker = open_run(experiment, "training", "train", run.tracker_run_id)
    with run.recorded(tracker):
        _log_plan(plan, tracker)
        model, fitted = fit(
            plan.fresh,
            plan.sampler,
            plan.validator,
            experiment.train,
            Run(plan.workers, experiment.checkpoints_dir, run.run_name, tracker),
        )
        fits = _calibrate(model, plan.validator, plan.data.label_texts)
        model.config.rejection = rejection_of(plan.data, model.config.label_vectors)
        embedder = load_embedder(experiment.embedder)
        flops = embedding_flops(embedder, plan.prepared.select("train")["text"].to_pylist())
        parameters = trainable_parameters(plan.fresh.model)
        cost = fitted.cost(len(plan.data.train), parameters, flops)
        # The artifact whole, or nothing; its card follows once it is measured.
        with replace_folder(experiment.model_dir, "config.json") as new:
            save_weights(model, new)
            if plan.fresh.tokenizer is not None:
                plan.fresh.tokenizer.save_pretrained(new)
            Background.of(plan.data.train.vectors_ND).save(new)
            cost.save(new)
        model_id = begin_model(tracker, experiment.name, experiment.model_dir, _figures(plan))
        card = _card(plan, embedder, fitted.best, fits)
        results: list[dict[str, Any]] = []
        try:
            if experiment.evaluate.labelled or len(plan.prepared.select("test", several=False)):
                results += measure(experiment, plan.prepared, tracker, embedder, model_id)
            card["several"] = _measure_several(plan, model, embedder, tracker)
        finally:  # also where it cannot be measured: the card then says so
            page = f"../{experiment.results_dir.name}/{REPORT_FILE}"
            write_model_card(experiment.model_dir, card | {"results": results, "report": page})
            complete_model(tracker, model_id, experiment.model_dir, experiment.embedder)
    _say_what_is_next(experiment, tracker)
    return {
        "model": str(experiment.model_dir),
        "results": str(experiment.results_dir),
        "report": str(experiment.results_dir / REPORT_FILE),
        "best_epoch": int(fitted.best["epoch"]),
        "validation_accuracy": round(fitted.best["score"], 4),
        "temperature": asdict(fits["sce"].temperature),
        "test": rounded_metrics(results),
        "mlflow_run_id": tracker.run_id,
        "mlflow_model": None if model_id is None else f"models:/{model_id}",
        "seconds": round(time.perf_counter() - started, 1),
    }


def saved_settings(experiment: Experiment) -> dict[str, Any]:
    """What `CONFIG_FILE` says: all settings of an experiment but its passwords."""
    settings = hide_secrets(experiment.model_dump(mode="json", exclude={"resume", "restart"}))
    return dict(settings) | {"umask": experiment.umask}


def _measure_several(
    plan: Plan, model: SCEModel, embedder: TextEmbedder, tracker: Tracker
) -> str | None:
    """A table of the test rows in which several labels may be right; None where there are none."""
    sets = several_sets(plan.prepared)
    if not sets:
        return None
    background = Background.of(plan.data.train.vectors_ND)
    predictor = Predictor(model, embedder, plan.fresh.tokenizer, background=background)
    results = measure_several(sets, predictor, embedder, plan.experiment.evaluate)
    if not results:
        rows = ", ".join(f"{len(one.texts)} of {one.name}" for one in sets)
        logger.info("several labels a text: too few test rows to measure (%s)", rows)
        return None
    for one in results:
        figures = ("micro_f1", "macro_f1", "exact_match", "lrap")
        tracker.log_metrics({f"{name}/{one['name']}": one["sce"][name] for name in figures})
    table = several_table(results)
    Console(stderr=True).print(table)
    return table.to_markdown()


def resolve(experiment: Experiment) -> Plan:
    """Prepare the data and embed it where that is not done, build the model, and check all that
    may be refused: the state of an earlier run is touched only after this."""
    if experiment.method != "sce":
        raise ConfigError(
            f"method: {experiment.method!r} needs no training; jobs/evaluate.py measures it."
        )
    if experiment.evaluate.model is not None:
        raise ConfigError("evaluate.model: a training measures the model that it makes.")
    tracking_uri(experiment.tracking)
    prepared, _ = prepare(experiment.data, experiment.data_dir, experiment.data.seed)
    if experiment.evaluate.labelled is not None or experiment.evaluate.sets:
        # What it is to be measured on in the end is looked at before anything is trained.
        rows_to_measure(prepared, experiment.evaluate.model_copy(update={"corpus": None}))
    embed_prepared(
        experiment.data_dir, experiment.embeddings_dir, experiment.embedder, experiment.resources
    )
    rows_store = EmbeddingStore.open(experiment.embeddings_dir / "rows")
    labels_store = EmbeddingStore.open(experiment.embeddings_dir / "labels")
    data = TrainingData.read(prepared, rows_store, labels_store)
    several = bool(data.train.several.any())
    if several and not experiment.model.label_vectors:
        raise ConfigError("model.label_vectors: rows with several right labels need version 1.")
    if data.validation.several.any() and not several:
        raise ConfigError("data.sources: validation rows alone have several right labels.")
    fresh = build_model(
        experiment.model,
        rows_store.manifest.embedder,
        experiment.train.dropout,
        experiment.seed,
        several,
    )
    sampler = EpisodeSampler(
        data.train,
        data.label_sets,
        data.label_texts,
        fresh.token_means,
        experiment.augment,
        experiment.seed,
        experiment.model.label_vectors,
    )
    validator = Validator(
        data.validation,
        data.label_sets,
        data.label_texts,
        fresh.token_means,
        experiment.model.label_vectors,
        Background.of(data.train.vectors_ND) if several else None,
    )
    _say_what_is_trained(fresh, data, prepared)
    workers = training_workers(experiment.resources)
    return Plan(experiment, prepared, rows_store, data, fresh, sampler, validator, workers)


def _as_begun(experiment: Experiment) -> Experiment:
    """The settings of a run that goes on: one that began before label vectors had versions has
    version 0, unless the user names one."""
    begun = TrainingRun.settings_of(experiment.checkpoints_dir).get("model", {})
    named = "label_vectors" in experiment.model.model_fields_set
    if named or not begun or "label_vectors" in begun:
        return experiment
    model = experiment.model.model_copy(update={"label_vectors": 0})
    return experiment.model_copy(update={"model": model})


def _identity(plan: Plan) -> dict[str, Any]:
    """Everything that decides the model; a resumed run must have the same."""
    settings = plan.experiment.model_dump(
        mode="json", include={"seed", "model", "train", "augment"}
    )
    if not settings["model"]["label_vectors"]:
        del settings["model"]["label_vectors"]  # as runs have it that began before it was a setting
    return {
        **settings,
        "data_fingerprint": plan.prepared.fingerprint,
        "embedder": plan.rows_store.manifest.embedder,
    }


def _figures(plan: Plan) -> dict[str, Any]:
    return {
        "data_fingerprint": plan.prepared.fingerprint,
        "embedder_fingerprint": plan.rows_store.manifest.embedder["id"],
        "train_rows": len(plan.data.train),
        "validation_rows": len(plan.data.validation),
        "label_sets": len(plan.data.label_sets),
        "trainable_parameters": trainable_parameters(plan.fresh.model),
    }


def _log_plan(plan: Plan, tracker: Tracker) -> None:
    tracker.log_params(_figures(plan))
    tracker.log_inputs(trained_on(plan.prepared, plan.experiment.data_dir))
    tracker.log_dict(plan.prepared.manifest["counts"], "data_counts.json")
    # Of the run that embedded the texts, which may have been an earlier one.
    tracker.log_metrics({"embed_seconds": plan.rows_store.manifest.embed_seconds})


def _say_what_is_trained(fresh: FreshModel, data: TrainingData, prepared: PreparedData) -> None:
    seen = [prepared.label_sets[s] for s in sorted(prepared.seen_label_sets)]
    logger.info(
        "training on %d rows of %d label sets, validating on %d rows; %s trainable parameters",
        len(data.train),
        len(seen),
        len(data.validation),
        f"{trainable_parameters(fresh.model):,}",
    )
    if fresh.tokenizer is not None:
        long = list(multi_token_labels(seen, fresh.tokenizer))
        names = len({label.key for s in seen for label in s.labels})
        logger.info(
            "%d of %d label names are a single token, as the paper wants%s",
            names - len(long),
            names,
            f"; not so: {', '.join(long[:8])}{' ...' if len(long) > 8 else ''}" if long else "",
        )


def _calibrate(
    model: SCEModel, validator: Validator, label_texts: TextLookup
) -> dict[str, TemperatureFit]:
    """Temperatures of the model and of the cosine baseline, fitted on the validation rows;
    both are stored in the model's configuration."""
    scores = {
        "sce": validator.scores(model),
        "cosine": validator.collect(
            lambda vectors_nD, label_set, _: cosine_scores(
                vectors_nD, label_set, label_texts, model.config.label_vectors
            )
        ),
    }
    # Each row under one view: the same row twice would make the data look twice as certain. Of rows
    # in which several labels may be right those with one, where there are no others.
    one_N = ~validator.several_N
    rows_N = np.flatnonzero(one_N if one_N.any() else validator.right_NK.sum(1) == 1)
    views_N = rows_N % len(VALIDATION_VIEWS)
    targets_N = validator.right_NK[rows_N].argmax(1)
    sets = [validator.rows.sets[i] for i in rows_N]
    fits = {}
    for name, scores_VNK in scores.items():
        scores_N = [
            scores_K[:count]
            for scores_K, count in zip(
                scores_VNK[views_N, rows_N], validator.label_counts_N[rows_N], strict=True
            )
        ]
        if len(rows_N):
            fits[name] = fit_temperature(scores_N, targets_N, sets)
        else:
            fits[name] = TemperatureFit(Temperature(), "identity", "No row has one label.", 0)
        logger.info("temperature of %s: %s", name, fits[name].reason)
    if model.config.several:
        parts = []
        for members, view, *values in validator.several_parts(scores["sce"]):
            mine = members % len(VALIDATION_VIEWS) == view
            parts.append(tuple(one[mine] for one in values))
        model.set_several(fit_logistic(parts, model.several_weight.tolist()))
        logger.info("coefficients of mode multi: %s", model.config.several)
    model.config.calibration = fits["sce"].temperature.to_list()
    model.config.cosine_calibration = fits["cosine"].temperature.to_list()
    return fits


def _card(
    plan: Plan, embedder: TextEmbedder, best: dict[str, float], fits: dict[str, TemperatureFit]
) -> dict[str, Any]:
    """What the model card says beside the results (see `sce.workflows.model_card`)."""
    experiment, fresh, manifest = plan.experiment, plan.fresh, plan.prepared.manifest
    return {
        "name": experiment.name,
        "embedder": {
            "name": embedder.fingerprint.model,
            "fingerprint": embedder.fingerprint.id,
            "licence": embedder.licence,
        },
        "encoder": {"name": fresh.encoder_name, "licence": fresh.encoder_licence},
        "training_data": [
            {"name": name, "rows": splits["train"], "licence": manifest["licences"][name]}
            for name, splits in manifest["counts"].items()
            if splits.get("train")
        ],
        "recipe": experiment.model_dump(mode="json", include={"seed", "model", "augment", "train"}),
        "paper_settings": paper_settings(experiment.model_dump(mode="json")),
        "git_commit": git_tags().get("mlflow.source.git.commit"),
        "versions": {name: version(name) for name in ("torch", "transformers", "ray")},
        "calibration": asdict(fits["sce"]),
        "validation": {k: v for k, v in best.items() if k.startswith("validation/")},
    }


def _say_what_is_next(experiment: Experiment, tracker: Tracker) -> None:
    lines = [
        f"The model is in {relative(experiment.model_dir)} (see README.md there).",
        f"Look at how good it is: {relative(experiment.results_dir / REPORT_FILE)}",
        "",
        "Classify with labels of your own:",
        "  from sce.predictor import Predictor",
        f'  predictor = Predictor.from_pretrained("{relative(experiment.model_dir)}")',
        '  predictor.predict(["The parcel never came."], ["late delivery", "billing", "praise"])',
        "How good is it on your data (JSONL or CSV with text and label):",
        f"  {typed('evaluate', str(relative(Path(sys.executable))))} "
        f"--config {relative(experiment.home / CONFIG_FILE)} --evaluate.labelled FILE",
    ]
    if tracker.hint:
        lines += ["Look at this run in MLflow:", f"  {tracker.hint}"]
    print("\n".join(lines), flush=True)
