"""Measuring several text embedders on the same rows, so that a user can choose one."""

from __future__ import annotations

import gc
import json
import re
import time
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.embedder import load_embedder
from sce.embedding.fingerprint import EmbedderFingerprint
from sce.embedding.settings import EmbedderConfig, Kind
from sce.errors import ConfigError
from sce.evaluation.embedder_choice import (
    MeasuredEmbedder,
    accuracy_table,
    cost_table,
    recommend,
    to_dict,
)
from sce.model.encoder import SCEConfig
from sce.storage import Place, fetch, replace_folder, to_place
from sce.workflows.evaluate import (
    METHODS_FILE,
    PREDICTIONS_FILE,
    evaluate,
    measure_sets,
    own_folder,
    prepared_for,
    record_source,
    sets_and_methods,
)
from sce.workflows.evaluate_none import evaluate_none
from sce.workflows.evaluate_several import evaluate_several
from sce.workflows.experiment import Evaluation, Experiment
from sce.workflows.mlflow_runs import open_run

EMBEDDERS_FILE = "embedders.json"
TRAINED = {"minilm": "quickstart", "mpnet": "base"}
"""Run folders, beside the experiment's, where `make quickstart` leaves a model of that embedder."""


def evaluate_asked(experiment: Evaluation) -> dict[str, Any]:
    """What `jobs/evaluate.py` does."""
    asked = experiment.evaluate
    if asked.none_label is not None and not (asked.none_of_these and asked.labelled):
        raise ConfigError("evaluate.none_label: it goes with none_of_these and labelled.")
    if asked.none_of_these:
        if experiment.embedders:
            raise ConfigError("evaluate.none_of_these: it is measured of one embedder.")
        return evaluate_none(experiment)
    if asked.mode == "multi":
        if experiment.embedders:
            raise ConfigError("embedders: they are compared in mode single.")
        return evaluate_several(experiment)
    return evaluate_embedders(experiment) if experiment.embedders else evaluate(experiment)


def evaluate_embedders(experiment: Evaluation) -> dict[str, Any]:
    """Measure every embedder on the same rows, one after the other; print what each answers and
    costs, and which one to take.

    Raises:
        InputError: an embedder is not there, or a model is another embedder's.
    """
    started = time.perf_counter()
    asked = [_ask(experiment, entry) for entry in experiment.embedders]
    names = [name for name, _ in asked]
    if len(set(names)) < len(names):
        raise ConfigError(f"embedders: {', '.join(names)}: one is named twice.")
    home: Place = experiment.home / "results-embedders"
    if experiment.evaluate.labelled is not None:
        home = own_folder(home, experiment.evaluate.labelled)
    measured = []
    for name, one in asked:
        measured.append(_measure(name, one, home / _slug(name)))
        gc.collect()  # its weights are no part of what the next one takes
    chosen = recommend(measured, experiment.seed)
    console = Console(stderr=True)
    accuracy, cost = accuracy_table(measured), cost_table(measured)
    console.print(accuracy)
    console.print(cost)
    console.print(f"Recommended: {chosen.name}. {chosen.reason}", highlight=False)
    found = [to_dict(one) for one in measured]
    _write(home, found, [accuracy, cost], f"Recommended: **{chosen.name}**. {chosen.reason}")
    if experiment.evaluate.labelled is not None:
        record_source(home, experiment.evaluate.labelled)
    return {
        "embedders": found,
        "recommended": chosen.name,
        "reason": chosen.reason,
        "results": str(home),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _ask(experiment: Evaluation, entry: str) -> tuple[str, Experiment]:
    """An embedder's name, and the experiment with it: its own folders, and its model if it has one.
    Loads no weights."""
    name, _, folder = entry.partition("=")
    own = embedder = experiment.embedder
    if name not in (own.kind, own.model):
        known = name in get_args(Kind) and name != "sentence_transformers"
        chosen = {"kind": name} if known else {"kind": "sentence_transformers", "model": name}
        embedder = EmbedderConfig(**chosen, dtype=own.dtype, device=own.device)  # type: ignore[arg-type]
    fingerprint = embedder_fingerprint(embedder)
    model = to_place(folder) if folder else _trained(experiment, name, fingerprint)
    if model is not None and _embedder_of(model) != fingerprint.id:
        raise ConfigError(f"embedders: {model} is no model that was trained with {name!r}.")
    update: dict[str, Any] = {
        "embedder": embedder,
        "method": "similarity" if model is None else "sce",
        "evaluate": experiment.evaluate.model_copy(update={"model": model, "pictures": False}),
    }
    if embedder != own:
        update["shared_dir"] = experiment.home / "embedders" / _slug(name)
    settings_only = {field: getattr(experiment, field) for field in Experiment.model_fields}
    return name, Experiment.model_construct(**settings_only | update)


def _trained(experiment: Experiment, name: str, fingerprint: EmbedderFingerprint) -> Place | None:
    """The experiment's model if it is this embedder's, else that of `make quickstart`."""
    candidates = [experiment.measured_model]
    if name in TRAINED:
        candidates.append(experiment.home.parent / TRAINED[name] / "model")
    for folder in candidates:
        if (folder / "config.json").exists() and _embedder_of(folder) == fingerprint.id:
            return folder
    return None


def _embedder_of(model: Place) -> str | None:
    """The id of the embedder that a model was trained with."""
    if not (model / "config.json").exists():
        raise ConfigError(f"embedders: there is no model in {model}.")
    found = SCEConfig.from_pretrained(fetch(model)).embedder
    return EmbedderFingerprint.from_dict(found).id if found else None


def _measure(name: str, experiment: Experiment, folder: Place) -> MeasuredEmbedder:
    embedder = load_embedder(experiment.embedder)
    prepared = prepared_for(experiment)
    sets, methods, adapted = sets_and_methods(experiment, prepared, embedder)
    with open_run(experiment, "evaluation", f"evaluate-{_slug(name)}") as tracker:
        results = measure_sets(experiment, sets, methods, tracker, folder, adapted, show=False)
    here = fetch(folder)
    described = json.loads((here / METHODS_FILE).read_text(encoding="utf-8"))
    cost = described["cosine"]["cost"]
    truncated = [embedder.tokenise(one.texts).truncated for one in sets]
    model = experiment.evaluate.model
    return MeasuredEmbedder(
        name,
        results,
        pq.read_table(here / PREDICTIONS_FILE),
        None if model is None else str(model),
        embedder.dimension,
        embedder.fingerprint.max_tokens,
        embedder.parameters,
        cost["texts_per_second"],
        cost["peak_memory_bytes"],
        float(np.concatenate(truncated).mean()),
    )


def _write(home: Place, found: Sequence[dict[str, Any]], tables: Sequence[Any], end: str) -> None:
    """The tables beside the embedders' own results."""
    with replace_folder(home / "summary", EMBEDDERS_FILE) as new:
        (new / EMBEDDERS_FILE).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        parts = [f"{table.title}\n\n{table.to_markdown()}" for table in tables]
        (new / "embedders.md").write_text("\n\n".join([*parts, end]) + "\n", encoding="utf-8")


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")
