"""Adapted labels as methods: what they are fitted to, what they may see, where they stand."""

import json
import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sce.workflows.methods as methods
from sce.adaptation.artefact import AdaptedLabels
from sce.datasets.prepare import DataConfig, PreparedData, SourceConfig, prepare_data
from sce.embedding.embedder import load_embedder
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import EmbeddingStore, Manifest, embedding_column, write_manifest
from sce.errors import ConfigError, FingerprintMismatch, InputError
from sce.evaluation.evaluate import evaluate_sets
from sce.evaluation.settings import EvaluateConfig
from sce.labels import LabelSet
from sce.model.products import round_weights
from sce.workflows import evaluate
from sce.workflows.methods import AdaptedMethod, SimilarityMethod
from tests.tiny_models import build_sentence_transformer

VERSION = 0
TEXTS = {
    label: [f"{start} {chr(97 + i)}" for i in range(24)]
    for label, start in (("money", "refund my order"), ("sky", "a galaxy of light"))
}


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    folder = build_sentence_transformer(tmp_path_factory.mktemp("models") / "bert")
    return load_embedder(EmbedderConfig(kind="sentence_transformers", model=str(folder)))


@pytest.fixture
def fits(monkeypatch):
    """Stands in for the fit: centroids of what is labelled, else the labels' own vectors. Keeps
    what each fit was given."""
    given = []

    def adapt(vectors_ND, label_set, text_vectors, embedder, *, version, labelled=None):
        assert version == VERSION
        given.append((vectors_ND, label_set, labelled))
        weight_KD = text_vectors(label_set.names).astype(np.float64)
        for k in range(len(label_set)):
            if labelled is not None and k in labelled[1]:
                weight_KD[k] = labelled[0][np.array(labelled[1]) == k].mean(0)
        report = {"trust": "careful", "fitted_rows": len(vectors_ND), "choice": None}
        return AdaptedLabels(
            label_set, round_weights(20 * weight_KD), np.zeros(len(label_set)),
            float(len(given)), embedder, {"report": report}, {},
        )  # fmt: skip

    monkeypatch.setattr(methods, "adapt", adapt)
    return given


def write_rows(path, texts=TEXTS):
    rows = [{"text": t, "label": label, "split": "test"} for label in texts for t in texts[label]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_store(folder, embedder, texts, errors=0, ids=None):
    """A store of these texts; the last rows have an error and a vector of zeros."""
    vectors_ND = embedder.embed(texts).vectors
    vectors_ND[len(texts) - errors :] = 0
    ids = ids or [f"r{i}" for i in range(len(texts))]
    names = [""] * (len(texts) - errors) + ["text_empty"] * errors
    folder.mkdir()
    half = len(texts) // 2
    parts = []
    for part in (slice(0, half), slice(half, None)):
        table = pa.table({"row_id": ids[part], "embedding": embedding_column(vectors_ND[part]),
                          "error": names[part]})  # fmt: skip
        parts.append(f"part-{part.start}.parquet")
        pq.write_table(table, folder / parts[-1])
    made_by = embedder.fingerprint.to_dict() | {"id": embedder.fingerprint.id}
    write_manifest(folder, Manifest(made_by, "x", len(texts), 0, 1.0, 1.0, "", parts))
    return EmbeddingStore.open(folder)


def text_vectors(embedder):
    return lambda texts: embedder.embed(list(texts)).vectors


def own_sets(tmp_path, embedder, **settings):
    config = EvaluateConfig(labelled=write_rows(tmp_path / "mine.jsonl"), **settings)
    return evaluate.rows_to_measure(None, config, None, embedder), config


def test_without_examples_all_rows_are_answered_by_one_fit_that_sees_no_label(
    tmp_path, embedder, fits
):
    (rows,), config = own_sets(tmp_path, embedder)
    cosine = SimilarityMethod(embedder, text_vectors(embedder), VERSION)
    adapted = AdaptedMethod(embedder, text_vectors(embedder), VERSION)
    (one,) = evaluate_sets([rows], [cosine], config, adapted=[adapted])
    ((corpus_MD, label_set, labelled),) = fits
    assert labelled is None
    assert label_set == rows.label_set
    np.testing.assert_array_equal(corpus_MD, rows.vectors_ND)
    found = one.result["adapted"]
    assert (found["trust"], found["fitted_rows"]) == ("careful", 48)
    assert "short_labels" not in found
    # The stand-in has the labels' own vectors, as cosine has.
    assert found["accuracy"] == one.result["cosine"]["accuracy"]
    assert found["difference"] == 0


def test_with_examples_no_row_is_answered_by_a_fit_that_saw_its_label(tmp_path, embedder, fits):
    (rows,), config = own_sets(tmp_path, embedder)
    cosine = SimilarityMethod(embedder, text_vectors(embedder), VERSION)
    adapted = AdaptedMethod(embedder, text_vectors(embedder), VERSION, examples=3)
    assert adapted.name == "adapted+3"
    (one,) = evaluate_sets([rows], [cosine], config, adapted=[adapted])
    place_of = {vector.tobytes(): i for i, vector in enumerate(rows.vectors_ND)}
    seen = []
    for _, label_set, (vectors_MD, targets_M) in fits:
        places = [place_of[vector.tobytes()] for vector in vectors_MD]
        assert [label_set.names[t] for t in targets_M] == [rows.labels[i] for i in places]
        assert Counter(targets_M) == {0: 3, 1: 3}
        seen.append(set(places))
    found = adapted._fits_of(rows.request)
    for fold, places in enumerate(seen):
        assert not any(found.fold_N[i] == fold for i in places)
    assert sorted(Counter(found.fold_N.tolist()).values()) == [24, 24]
    scores_NK = adapted.answer([rows.request])[0]
    expected = np.where(
        found.fold_N[:, None] == 0, *(fit.scores(rows.vectors_ND) for fit in found.fits)
    )
    np.testing.assert_array_equal(scores_NK, expected)
    # Each half has its own fit's temperature.
    temperatures = np.array([1.0, 2.0])[found.fold_N][:, None]
    np.testing.assert_array_equal(
        adapted.calibrated(scores_NK, rows.request), scores_NK / temperatures
    )
    assert one.result["adapted+3"]["short_labels"] == 0
    assert len(fits) == 2, "a fit is made once"


def test_another_seed_draws_other_examples_and_few_rows_are_said(tmp_path, embedder, fits):
    (rows,), _ = own_sets(tmp_path, embedder)
    answers = [
        AdaptedMethod(embedder, text_vectors(embedder), VERSION, 2, seed).answer([rows.request])[0]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    assert not np.array_equal(answers[0], answers[2])
    many = AdaptedMethod(embedder, text_vectors(embedder), VERSION, 20)
    assert many.remarks(rows.request)["short_labels"] == 2
    assert [len(labelled[0]) for *_, labelled in fits[-2:]] == [24, 24], "what there is"


def test_a_description_says_what_fit_and_answer_take(tmp_path, embedder, fits):
    (rows,), _ = own_sets(tmp_path, embedder)
    adapted = AdaptedMethod(embedder, text_vectors(embedder), VERSION, 1)
    adapted.answer([rows.request])
    found = adapted.describe([rows])
    assert found["kind"] == "adapted"
    assert "1 labelled rows a label" in found["model"]
    assert found["fit"]["rows"] == 48
    assert found["fit"]["seconds"] > 0
    d = embedder.dimension
    # careful: two rounds, so three posteriors of the corpus and its halves.
    operations = 48 * d**2 + (4 * 3 + 5) * 48 * 2 * d + 3 * 2 * (d**3 / 3 + 2 * 2 * d**2)
    assert found["fit"]["flops"] == pytest.approx(operations)
    assert found["cost"]["embedded_flops_per_text"] == 2 * d
    assert len(fits) == 2
    json.dumps(found)


def test_rows_of_the_user_are_their_own_corpus_whole_and_measured_in_part(tmp_path, embedder):
    (rows,), _ = own_sets(tmp_path, embedder, rows_per_set=10)
    assert len(rows) == len(rows.vectors_ND) == 10
    assert len(rows.corpus_MD) == 48
    expected = embedder.embed(list(rows.texts)).vectors
    np.testing.assert_allclose(rows.vectors_ND, expected, atol=1e-6)
    (rows,), _ = own_sets(tmp_path, embedder, adapted=False)
    assert rows.corpus_MD is None


def test_rows_fewer_than_labels_are_measured_without_being_adapted_to(tmp_path, embedder, caplog):
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(["money", "sky", "sport"]))
    few = write_rows(tmp_path / "few.jsonl", {k: v[:1] for k, v in TEXTS.items()})
    config = EvaluateConfig(labelled=few, labelled_labels=labels)
    with caplog.at_level(logging.WARNING):
        (rows,) = evaluate.rows_to_measure(None, config, None, embedder)
    assert rows.corpus_MD is None
    assert "few: labels are not adapted: 3 labels, 2 different texts" in caplog.text


def test_a_store_stands_for_the_corpus_without_its_rows_in_error(tmp_path, embedder, monkeypatch):
    texts = [t for of_label in TEXTS.values() for t in of_label]
    store = write_store(tmp_path / "store", embedder, [*texts, "x", "y"], errors=2)
    (rows,), _ = own_sets(tmp_path, embedder, corpus=store.folder)
    np.testing.assert_allclose(rows.corpus_MD, embedder.embed(texts).vectors, atol=1e-6)
    monkeypatch.setattr(evaluate, "CORPUS_ROWS", 11)
    (some,), _ = own_sets(tmp_path, embedder, corpus=store.folder)
    known = {vector.tobytes() for vector in rows.corpus_MD}
    assert len(some.corpus_MD) == 11
    assert len({vector.tobytes() for vector in some.corpus_MD} & known) == 11


def test_a_corpus_that_cannot_be_adapted_to_is_refused(tmp_path, embedder):
    small = write_store(tmp_path / "small", embedder, ["one", "two", "three"], errors=2)
    with pytest.raises(InputError, match=r"has 1 texts, fewer than the 2 labels of 'mine'"):
        own_sets(tmp_path, embedder, corpus=small.folder)
    with pytest.raises(InputError, match="no embedding store"):
        own_sets(tmp_path, embedder, corpus=tmp_path / "nowhere")
    other = build_sentence_transformer(tmp_path / "other", pooling="cls")
    other = load_embedder(EmbedderConfig(kind="sentence_transformers", model=str(other)))
    foreign = write_store(tmp_path / "foreign", other, ["one", "two", "three"])
    with pytest.raises(FingerprintMismatch, match="pooling"):
        own_sets(tmp_path, embedder, corpus=foreign.folder)
    with pytest.raises(ConfigError, match="reads texts and adapts no labels"):
        own_sets(tmp_path, None, corpus=small.folder)


def test_test_sets_are_adapted_to_where_they_have_ten_texts_a_label(tmp_path, embedder):
    write_rows(tmp_path / "large.jsonl")
    write_rows(tmp_path / "small.jsonl", {k: [f"{t}!?x" for t in v[:9]] for k, v in TEXTS.items()})
    sources = [
        SourceConfig(dataset="custom", name=name, path=str(tmp_path / f"{name}.jsonl"))
        for name in ("large", "small")
    ]
    prepare_data(DataConfig(sources=sources), tmp_path / "data", 0)
    prepared = PreparedData.load(tmp_path / "data")
    texts, ids = (prepared.rows[name].to_pylist() for name in ("text", "row_id"))
    store = write_store(tmp_path / "rows", embedder, texts, ids=ids)
    config = EvaluateConfig(rows_per_set=7)
    large, small = evaluate.rows_to_measure(prepared, config, store, embedder)
    assert (large.name, len(large), len(large.corpus_MD)) == ("large", 7, 48)
    assert (small.name, small.corpus_MD) == ("small", None)
    config = EvaluateConfig(adapted=False)
    assert all(
        rows.corpus_MD is None
        for rows in evaluate.rows_to_measure(prepared, config, store, embedder)
    )
    corpus = write_store(tmp_path / "corpus", embedder, texts[:5])
    config = EvaluateConfig(corpus=corpus.folder)
    for rows in evaluate.rows_to_measure(prepared, config, store, embedder):
        assert len(rows.corpus_MD) == 5


def test_one_row_and_one_label(tmp_path, embedder, fits):
    path = write_rows(tmp_path / "one.jsonl", {"money": ["refund"]})
    (rows,) = evaluate.rows_to_measure(None, EvaluateConfig(labelled=path), None, embedder)
    assert rows.label_set == LabelSet.parse(["money"])
    assert rows.corpus_MD is None
    rows = replace(rows, corpus_MD=rows.vectors_ND)
    adapted = AdaptedMethod(embedder, text_vectors(embedder), VERSION, 4)
    assert adapted.answer([rows.request])[0].shape == (1, 1)
    assert adapted.remarks(rows.request)["short_labels"] == 1
    assert sum(labelled is None for *_, labelled in fits) >= 1
