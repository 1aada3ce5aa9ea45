"""Measuring, on the user's own labelled rows, what reading long texts whole is worth."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from scipy.special import softmax

from sce.baselines.cosine import cosine_scores
from sce.datasets.custom import read_label_set
from sce.datasets.labelled import read_labelled
from sce.embedding.embedder import TextEmbedder, load_embedder
from sce.embedding.settings import CHUNK_TOKENS
from sce.errors import ConfigError
from sce.evaluation import plots
from sce.evaluation.long_texts import (
    Answer,
    Vectors,
    compare_readings,
    to_curves,
    to_records,
    to_table,
)
from sce.labels import LabelSet
from sce.model.answers import Answers
from sce.model.calibration import Temperature
from sce.model.label_vectors import TextVectors
from sce.model.options import Scoring
from sce.model.pooling import ChunkVectors, answer_chunks
from sce.predictor import Predictor
from sce.storage import Place, fetch, put, write_text
from sce.training.random_keys import some_places
from sce.workflows.experiment import Experiment

LONG_TEXTS_FILE = "long_texts"
EVERY_POSITION = 1 << 20


def measure_long_texts(experiment: Experiment, folder: Place) -> list[dict[str, Any]]:
    """Beginnings of the user's texts beside their chunks; printed, and written to `folder`.

    Raises:
        InputError: there are no such rows, or the method reads no vectors.
    """
    config = experiment.evaluate
    if config.labelled is None or experiment.method == "prompted":
        raise ConfigError(
            "evaluate.long_texts: it measures embeddings of rows of your own; give "
            "evaluate.labelled, and a method other than prompted."
        )
    given = config.labelled_labels
    known = None if given is None else read_label_set(given)[0]
    texts, names, label_set = read_labelled(
        config.labelled, config.text_column, config.label_column, known
    )
    places = some_places([str(i) for i in range(len(texts))], config.rows_per_set)
    texts, names = [texts[i] for i in places], [names[i] for i in places]
    embedder = load_embedder(experiment.embedder)
    methods = _methods(experiment, embedder)
    read = readings(experiment, embedder, texts)
    found = compare_readings(read, methods, texts, names, label_set, experiment.seed)
    table = to_table(found, f"{config.labelled.stem}: {len(texts):,} texts, read in part and whole")
    Console(stderr=True).print(table)
    records = to_records(found)
    write_text(folder / f"{LONG_TEXTS_FILE}.json", json.dumps(records, indent=1) + "\n")
    write_text(folder / f"{LONG_TEXTS_FILE}.md", table.to_markdown())
    figure = plots.reliability_figure(to_curves(found), f"{config.labelled.stem}, long texts")
    picture = folder / f"{LONG_TEXTS_FILE}_reliability.png"
    with TemporaryDirectory() as scratch:  # the folder may be a URI
        put(plots.save(figure, Path(scratch) / picture.name), picture)
    return [{name: v for name, v in one.items() if name != "bins"} for one in records]


def readings(
    experiment: Experiment, embedder: TextEmbedder, texts: list[str]
) -> dict[str, Vectors]:
    """Vectors of what is read of the texts, by its name."""
    most = embedder.fingerprint.max_tokens
    longest = load_embedder(experiment.embedder.model_copy(update={"max_tokens": EVERY_POSITION}))
    found: dict[str, Vectors] = {}
    for tokens in sorted({min(CHUNK_TOKENS, most), most, longest.fingerprint.max_tokens}):
        cut = embedder
        if tokens != most:
            cut = load_embedder(experiment.embedder.model_copy(update={"max_tokens": tokens}))
        read = cut.embed(texts)
        share = f"{read.truncated.mean():.0%} cut"
        found[f"first {tokens} ({share})"] = read.vectors
    chunks, _ = embedder.embed_chunks(texts)
    return found | {f"chunks of {min(CHUNK_TOKENS, most)}": chunks}


def _methods(experiment: Experiment, embedder: TextEmbedder) -> dict[str, Answer]:
    text_vectors: TextVectors = lambda given: embedder.embed(given).vectors  # noqa: E731
    if experiment.method == "similarity":
        version = experiment.model.label_vectors
        return {"cosine": _by_cosine(text_vectors, version, Temperature())}
    predictor = Predictor.from_pretrained(fetch(experiment.measured_model), embedder)
    settings = predictor.model.config
    temperature = Temperature(*settings.cosine_calibration)
    cosine = _by_cosine(text_vectors, settings.label_vectors, temperature)
    return {"sce": predictor.answer, "cosine": cosine}


def _by_cosine(text_vectors: TextVectors, version: int, temperature: Temperature) -> Answer:
    def answer(vectors: Vectors, labels: LabelSet, scoring: Scoring) -> Answers:
        if isinstance(vectors, ChunkVectors):
            return answer_chunks(answer, vectors, labels, scoring)
        logits_NK = cosine_scores(vectors, labels, text_vectors, version).astype(np.float64)
        p_NK = softmax(temperature.scale(logits_NK, len(labels)), axis=1)
        answers = Answers.empty(labels.counts_by_row(len(vectors)), scoring)
        top_NT = np.argsort(-p_NK, axis=1, kind="stable")[:, : answers.top_NT.shape[1]]
        answers.top_NT[:], answers.top_scores_NT[:] = top_NT, np.take_along_axis(p_NK, top_NT, 1)
        if answers.scores_M is not None:
            answers.scores_M[:] = p_NK.reshape(-1)
        return answers

    return answer
