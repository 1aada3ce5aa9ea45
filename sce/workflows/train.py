"""The whole path of one experiment: prepare, embed, train, calibrate, write, measure.

A step whose result is there and up to date does no work. `sce.workflows.evaluate` is the last step.
"""

from __future__ import annotations

import logging
import sys
import time
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from transformers import logging as transformers_logging

from sce.baselines.cosine import cosine_scores
from sce.datasets.prepare import PreparedData, prepare_data
from sce.datasets.tokens import multi_token_labels
from sce.distributed.embed import embed_prepared
from sce.distributed.resources import training_workers
from sce.embedding.embedder import TextEmbedder, load_embedder
from sce.embedding.store import EmbeddingStore, text_hash
from sce.errors import ConfigError
from sce.evaluation.costs import TrainingCost, embedding_flops
from sce.evaluation.evaluate import headline_metrics
from sce.evaluation.paper import paper_settings
from sce.model.calibration import TemperatureFit, fit_temperature
from sce.model.encoder import SCEModel, trainable_parameters
from sce.model.label_vectors import token_means_of
from sce.storage import Place, absolute_model, replace_folder, write_text
from sce.training.data import Rows, TextLookup, TrainingData
from sce.training.fresh_model import FreshModel, build_model
from sce.training.validation import VIEWS, Validator
from sce.workflows.evaluate import measure, open_tracker
from sce.workflows.experiment import Experiment
from sce.workflows.model_card import write_model_card
from sce.workflows.run_state import RunState
from sce.workflows.tracking import Tracker, git_tags, tracking_uri

logger = logging.getLogger("sce")

CONFIG_FILE = "config.yaml"


def prepare(experiment: Experiment) -> dict[str, Any]:
    """Texts and label sets of all sources into `data_dir`. Returns the manifest."""
    return prepare_data(experiment.data, experiment.data_dir, experiment.data.seed)


def embed(experiment: Experiment) -> dict[str, Any]:
    """Vectors of all prepared texts and label texts into `embeddings_dir`."""
    return embed_prepared(
        experiment.data_dir, experiment.embeddings_dir, experiment.embedder, experiment.resources
    )


def train(experiment: Experiment) -> dict[str, Any]:
    """The whole path; returns a summary of what was made and measured.

    Raises:
        InputError: wrong settings or data; nothing was half-written.
    """
    # Imported here: Ray Train costs a second that the other jobs need not pay.
    from sce.distributed.train import FitSettings, fit

    if experiment.method != "sce":
        raise ConfigError(
            f"method: {experiment.method!r} needs no training; jobs/evaluate.py measures it."
        )
    transformers_logging.disable_progress_bar()
    started = time.perf_counter()
    tracking_uri(experiment.tracking, experiment.home.parent)
    manifest = prepare(experiment)
    embed(experiment)
    prepared = PreparedData.load(experiment.data_dir)
    rows_store = EmbeddingStore.open(experiment.embeddings_dir / "rows")
    labels_store = EmbeddingStore.open(experiment.embeddings_dir / "labels")
    fingerprint = rows_store.manifest.embedder
    label_texts = _text_lookup(prepared, labels_store)
    data = _training_data(prepared, rows_store, label_texts)
    encoder = absolute_model(experiment.model.encoder)
    settings = FitSettings(
        experiment.model.model_copy(update={"encoder": encoder}),
        experiment.train,
        experiment.augment,
        fingerprint,
        experiment.seed,
    )
    fresh = build_model(settings.model, fingerprint, settings.train.dropout, settings.seed)
    _say_what_is_trained(fresh, data, prepared)

    # What may be refused comes before the state of an earlier run is touched.
    workers = training_workers(experiment.resources)
    state = RunState.open(
        experiment.checkpoints_dir,
        {
            **experiment.model_dump(mode="json", include={"seed", "model", "train", "augment"}),
            "data_fingerprint": prepared.fingerprint,
            "embedder": fingerprint,
        },
        experiment.resume,
        experiment.restart,
    )
    _write_config(experiment)
    tracker = open_tracker(experiment, state.tracker_run_id, "train")
    with tracker:
        state.tracker_run_id = tracker.run_id
        state.save()
        tracker.log_params(experiment.model_dump(mode="json"))
        tracker.log_params(
            {
                "data_fingerprint": prepared.fingerprint,
                "embedder_fingerprint": fingerprint["id"],
                "train_rows": len(data.train),
                "validation_rows": len(data.validation),
                "label_sets": len(data.label_sets),
                "trainable_parameters": trainable_parameters(fresh.model),
            }
        )
        tracker.log_dict(manifest["counts"], "data_counts.json")
        # Of the run that embedded the texts, which may have been an earlier one.
        tracker.log_metrics({"embed_seconds": rows_store.manifest.embed_seconds})
        fitted = fit(
            data,
            settings,
            workers,
            experiment.checkpoints_dir,
            state.run_name,
            tracker,
        )
        fits = _calibrate(fitted.model, fresh, data, label_texts)
        embedder = load_embedder(experiment.embedder)
        cost = TrainingCost(
            rows=len(data.train),
            epochs=int(fitted.last["epoch"]),
            seconds=fitted.last.get("train/seconds", 0.0),
            flops=fitted.last.get("train/flops", 0.0),
            embedding_flops=embedding_flops(embedder, prepared.select("train")["text"].to_pylist()),
            trainable_parameters=trainable_parameters(fresh.model),
            workers=str(workers),
        )
        info = _card(experiment, fresh, prepared, embedder, fitted.best, fits)
        _write_model(experiment.model_dir, fitted.model, fresh, info, cost)
        evaluated = measure(experiment, prepared, tracker, experiment.results_dir, embedder)
        results = [e.result for e in evaluated]
        write_model_card(experiment.model_dir, {**info, "results": results})
        tracker.log_artifact(experiment.model_dir, "model")
    state.finished = True
    state.save()
    _say_what_is_next(experiment, tracker)
    return {
        "model": str(experiment.model_dir),
        "results": str(experiment.results_dir),
        "best_epoch": int(fitted.best["epoch"]),
        "validation_accuracy": round(fitted.best["score"], 4),
        "temperature": fits["sce"].temperature.to_dict(),
        "test": {k: round(v, 4) for k, v in headline_metrics(results).items() if "mean_" in k},
        "mlflow_run_id": tracker.run_id,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _text_lookup(prepared: PreparedData, store: EmbeddingStore) -> TextLookup:
    """Vectors of every label text of the prepared data."""
    texts = list(
        dict.fromkeys(
            chain.from_iterable(
                (*label.info_texts, *label.examples)
                for label_set in prepared.label_sets.values()
                for label in label_set.labels
            )
        )
    )
    return TextLookup(texts, store.vectors_for([text_hash(text) for text in texts]))


def _rows(table: pa.Table, store: EmbeddingStore) -> Rows:
    ids = table["row_id"].to_pylist()
    return Rows(
        ids,
        table["dataset"].to_pylist(),
        table["label"].to_pylist(),
        table["label_set"].to_pylist(),
        store.vectors_for(ids),
    )


def _training_data(
    prepared: PreparedData, rows_store: EmbeddingStore, label_texts: TextLookup
) -> TrainingData:
    training = _rows(prepared.select("train"), rows_store)
    validation = _rows(prepared.select("validation"), rows_store)
    used = sorted({*training.sets, *validation.sets})
    return TrainingData(
        training, validation, {name: prepared.label_sets[name] for name in used}, label_texts
    )


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
        long = multi_token_labels(seen, fresh.tokenizer)
        logger.info(
            "%d of %d label names are a single token, as the paper wants%s",
            len({label.key for s in seen for label in s.labels}) - len(long),
            len({label.key for s in seen for label in s.labels}),
            f"; not so: {', '.join(list(long)[:8])}{' ...' if len(long) > 8 else ''}" * bool(long),
        )


def _calibrate(
    model: SCEModel, fresh: FreshModel, data: TrainingData, label_texts: TextLookup
) -> dict[str, TemperatureFit]:
    """Temperatures of the model and of the cosine baseline, fitted on the validation rows;
    both are stored in the model's configuration."""
    token_means = None if fresh.tokenizer is None else token_means_of(model, fresh.tokenizer)
    validator = Validator(data.validation, data.label_sets, label_texts, token_means)
    scores_VNK = validator.finish(validator.scores(model))
    cosine_VNK = np.full_like(scores_VNK, -np.inf)
    sets_N = np.array(data.validation.sets)
    for name in dict.fromkeys(data.validation.sets):
        members = np.flatnonzero(sets_N == name)
        data.validation.vectors_ND[members]
        canonical = data.label_sets[name].canonical()
        for view, reduce in enumerate(VIEWS.values()):
            found = cosine_scores(
                data.validation.vectors_ND[members], reduce(canonical), label_texts
            )
            cosine_VNK[view, members, : found.shape[1]] = found
    # Each row under one view: the same row twice would make the data look twice as certain.
    rows_N = np.arange(len(data.validation))
    fits = {
        name: fit_temperature(
            method_VNK[rows_N % len(VIEWS), rows_N], validator.targets_N, validator.label_counts_N
        )
        for name, method_VNK in (("sce", scores_VNK), ("cosine", cosine_VNK))
    }
    for name, chosen in fits.items():
        logger.info("temperature of %s: %s", name, chosen.reason)
    model.config.calibration = [fits["sce"].temperature.a, fits["sce"].temperature.b]
    model.config.cosine_calibration = [fits["cosine"].temperature.a, fits["cosine"].temperature.b]
    return fits


def _write_model(
    folder: Place, model: SCEModel, fresh: FreshModel, info: dict[str, Any], cost: TrainingCost
) -> None:
    """The whole artifact, or nothing."""
    with replace_folder(folder, "config.json") as new:
        model.save_pretrained(new)
        if fresh.tokenizer is not None:
            fresh.tokenizer.save_pretrained(new)
        write_model_card(new, info)
        cost.save(new)


def _card(
    experiment: Experiment,
    fresh: FreshModel,
    prepared: PreparedData,
    embedder: TextEmbedder,
    best: dict[str, float],
    fits: dict[str, TemperatureFit],
) -> dict[str, Any]:
    """What the model card says (see `sce.workflows.model_card`)."""
    counts = prepared.manifest["counts"]
    return {
        "name": experiment.name,
        "embedder": {
            "name": embedder.fingerprint.model,
            "fingerprint": embedder.fingerprint.id,
            "licence": embedder.licence,
        },
        "encoder": {"name": fresh.encoder_name, "licence": fresh.encoder_licence},
        "training_data": [
            {"name": name, "rows": splits["train"], "licence": prepared.manifest["licences"][name]}
            for name, splits in counts.items()
            if splits.get("train")
        ],
        "recipe": experiment.model_dump(mode="json", include={"seed", "model", "augment", "train"}),
        "paper_settings": paper_settings(experiment.model_dump(mode="json")),
        "git_commit": git_tags().get("mlflow.source.git.commit"),
        "versions": {name: version(name) for name in ("torch", "transformers", "ray")},
        "calibration": fits["sce"].to_dict(),
        "validation": {k: v for k, v in best.items() if k.startswith("validation/")},
    }


def _write_config(experiment: Experiment) -> None:
    """The resolved configuration beside the model, so that later jobs can be given it whole."""
    settings = experiment.model_dump(mode="json", exclude={"resume", "restart"})
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    write_text(experiment.home / CONFIG_FILE, text)


def _say_what_is_next(experiment: Experiment, tracker: Tracker) -> None:
    lines = [
        f"The model is in {_relative(experiment.model_dir)} (see README.md there).",
        "",
        "Classify with labels of your own:",
        "  from sce.predictor import Predictor",
        f'  predictor = Predictor.from_pretrained("{_relative(experiment.model_dir)}")',
        '  predictor.predict(["The parcel never came."], ["late delivery", "billing", "praise"])',
        "How good is it on your data (JSONL or CSV with text and label):",
        f"  {_relative(Path(sys.executable))} jobs/evaluate.py "
        f"--config {_relative(experiment.home / CONFIG_FILE)} --evaluate.labelled FILE",
    ]
    if tracker.hint:
        lines += ["Look at this run in MLflow:", f"  {tracker.hint}"]
    print("\n".join(lines), flush=True)


def _relative(path: Place) -> Place:
    """`path` as seen from the working directory, where it lies below it."""
    below = isinstance(path, Path) and path.is_relative_to(Path.cwd())
    return path.relative_to(Path.cwd()) if below else path  # type: ignore[union-attr]
