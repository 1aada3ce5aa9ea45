"""Measuring the model of an experiment: on its test sets and on the user's own rows."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from transformers import logging as transformers_logging

from sce import plots
from sce.baselines.cosine import CosineBaseline
from sce.calibration import Temperature
from sce.datasets.custom import read_label_file
from sce.datasets.labelled import read_labelled
from sce.datasets.prepare import PreparedData
from sce.distributed.embed import embed_prepared
from sce.embedder import TextEmbedder, load_embedder
from sce.errors import ConfigError, InputError
from sce.evaluation import Evaluated, EvaluationSet, evaluate_sets, headline_metrics
from sce.experiment import Experiment
from sce.labels import LabelSet
from sce.model import SCEConfig
from sce.predictor import Predictor
from sce.report import print_results, to_markdown
from sce.store import EmbeddingStore, embedding_matrix
from sce.tracking import Tracker, tracking_uri
from sce.training_data import TextLookup

logger = logging.getLogger("sce")


def evaluate(experiment: Experiment) -> dict[str, Any]:
    """Measure the model in `model_dir` again, on its test sets or on the user's own rows.

    Raises:
        InputError: there is no model, or no rows to measure it on.
    """
    transformers_logging.disable_progress_bar()
    started = time.perf_counter()
    tracking_uri(experiment.tracking, experiment.home.parent)
    if not (experiment.model_dir / "config.json").exists():
        raise InputError(
            f"there is no model in {experiment.model_dir}. jobs/train_sce.py makes one."
        )
    # Who asks about rows of his own has no wish to wait for all the other sets.
    only_own = experiment.evaluate.labelled is not None and not experiment.evaluate.sets
    prepared = None
    if experiment.data_dir.exists() and not only_own:
        prepared = PreparedData.load(experiment.data_dir)
        embed_prepared(
            experiment.data_dir,
            experiment.embeddings_dir,
            experiment.embedder,
            experiment.resources,
        )
    elif not only_own:
        raise InputError(
            f"there is no prepared data in {experiment.data_dir}. Run jobs/prepare_data.py, or "
            "give rows of your own: --evaluate.labelled FILE."
        )
    labelled = experiment.evaluate.labelled
    folder = experiment.own_results_dir / labelled.stem if labelled else experiment.results_dir
    with open_tracker(experiment, None, "evaluate") as tracker:
        tracker.log_params(experiment.model_dump(mode="json"))
        evaluated = measure(experiment, prepared, tracker, folder)
    results = [e.result for e in evaluated]
    return {
        "model": str(experiment.model_dir),
        "results": str(folder),
        "sets": len(results),
        "test": {k: round(v, 4) for k, v in headline_metrics(results).items() if "mean_" in k},
        "mlflow_run_id": tracker.run_id,
        "seconds": round(time.perf_counter() - started, 1),
    }


def open_tracker(experiment: Experiment, run_id: str | None, job: str) -> Tracker:
    """The MLflow run of a job; by default in a database beside the run folders, so that the
    runs of several experiments stand in one list."""
    folder = experiment.home.parent
    name = f"{experiment.name}-seed{experiment.seed}" + ("" if job == "train" else f"-{job}")
    tags = {"job": job, "method": experiment.name, "seed": str(experiment.seed)}
    return Tracker.resume(experiment.tracking, run_id, name, tags, folder)


def measure(
    experiment: Experiment,
    prepared: PreparedData | None,
    tracker: Tracker,
    folder: Path,
) -> list[Evaluated]:
    """Evaluate the written model on the test sets of `prepared` and on the user's own rows,
    where there are any; print the table, write the results to `folder` and log them."""
    config = experiment.evaluate
    embedder = load_embedder(experiment.embedder)
    known, known_MD = [], np.empty((0, embedder.dimension), np.float32)
    if prepared is not None:
        rows_store = EmbeddingStore.open(experiment.embeddings_dir / "rows")
        labels = EmbeddingStore.open(experiment.embeddings_dir / "labels").read(
            ["text", "embedding"]
        )
        known, known_MD = labels["text"].to_pylist(), embedding_matrix(labels["embedding"])
    text_vectors = TextLookup(known, known_MD, lambda texts: embedder.embed(texts).vectors)
    predictor = Predictor.from_pretrained(experiment.model_dir, embedder, text_vectors=text_vectors)
    sce_config: SCEConfig = predictor.model.config
    cosine = CosineBaseline(text_vectors, Temperature(*sce_config.cosine_calibration))
    sets = []
    if config.labelled is not None:
        sets.append(_own_set(experiment, embedder))
    if prepared is not None:
        sets += _test_sets(prepared, rows_store, config.sets)
    if not sets:
        raise InputError("there are no test rows to measure the model on.")
    logger.info("measuring %d label sets, %d rows", len(sets), sum(len(s.labels) for s in sets))
    started = time.perf_counter()
    evaluated = evaluate_sets(sets, predictor, cosine, config, experiment.seed)
    results = [e.result for e in evaluated]
    logger.info("measured in %.1f s", time.perf_counter() - started)

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(to_markdown(results, show_all=True), encoding="utf-8")
    if config.pictures:
        for one in evaluated:
            if one.result["information"] == "all":
                name = one.result["name"]
                figure = plots.confusion_figure(one.confusion_KK, one.label_names, name)
                plots.save(figure, folder / "confusion" / f"{name.replace('/', '_')}.png")
    print_results(results)
    tracker.log_metrics(headline_metrics(results))
    tracker.log_artifact(folder, "results")
    return evaluated


def _test_sets(
    prepared: PreparedData, store: EmbeddingStore, wanted: Sequence[str]
) -> list[EvaluationSet]:
    """Every label set with test rows, or those that `wanted` names by set or dataset."""
    table = prepared.select("test")
    known = {*table["label_set"].to_pylist(), *table["dataset"].to_pylist()}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ConfigError(
            f"evaluate.sets: {unknown[0]!r} has no test rows. These have: "
            f"{', '.join(sorted(known))}."
        )
    sets = []
    for name in sorted(set(table["label_set"].to_pylist())):
        members = table.filter(pc.equal(table["label_set"], name))
        dataset = members["dataset"][0].as_py()
        if wanted and name not in wanted and dataset not in wanted:
            continue
        sets.append(
            EvaluationSet(
                name=name,
                dataset=dataset,
                group="seen" if name in prepared.seen_label_sets else "unseen",
                label_set=prepared.label_sets[name],
                vectors_ND=store.vectors_for(members["row_id"].to_pylist()),
                labels=members["label"].to_pylist(),
            )
        )
    return sets


def _own_set(experiment: Experiment, embedder: TextEmbedder) -> EvaluationSet:
    config = experiment.evaluate
    assert config.labelled is not None
    label_set = None
    if config.labelled_labels is not None:
        label_set = LabelSet.parse(
            read_label_file(config.labelled_labels), str(config.labelled_labels)
        )
    texts, names, label_set = read_labelled(
        config.labelled, config.text_column, config.label_column, label_set
    )
    return EvaluationSet(
        config.labelled.stem, "own", "own", label_set, embedder.embed(texts).vectors, names
    )
