"""The predictor: forms of labels, order invariance bit for bit, thresholds, refusals."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sce.embedder import EmbedderConfig, load_embedder
from sce.errors import FingerprintMismatch, InputError, LabelError
from sce.labels import LabelSet
from sce.predictor import Predictor
from sce.pretrained import ModelConfig, build_model
from tests.tiny_models import build_roberta, build_sentence_transformer

TEXTS = ["the river rose overnight", "a short text", "the engine will not start", "thank you"]
LABELS = [
    {"name": "flood", "synonyms": ["deluge"], "description": "water where it should not be"},
    {"name": "engine trouble", "examples": ["it will not start", "smoke from the bonnet"]},
    "praise",
    "complaint",
    "other",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    build_sentence_transformer(folder / "embedder")
    build_roberta(folder / "roberta")
    return folder


@pytest.fixture(scope="module")
def embedder(folder):
    return load_embedder(
        EmbedderConfig(kind="sentence_transformers", model=str(folder / "embedder"))
    )


@pytest.fixture(scope="module", params=["tokens", "embedder"])
def predictor(request, folder, embedder):
    config = ModelConfig(
        encoder=str(folder / "roberta"), label_source=request.param, adaptor_init="normal"
    )
    fresh = build_model(config, embedder.fingerprint.to_dict(), 0.0, seed=0)
    fresh.model.config.calibration = [0.3, 0.1]
    return Predictor(fresh.model, embedder, fresh.tokenizer)


def permuted(predictor: Predictor, order: list[int]) -> bool:
    queries = predictor.embedder.embed(TEXTS).vectors
    label_set = LabelSet.parse(LABELS)
    moved = LabelSet(tuple(label_set.labels[i] for i in order))
    straight = predictor.scores(queries, label_set)
    return bool((predictor.scores(queries, moved) == straight[:, order]).all())


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(5)))
def test_every_order_gives_the_same_answer_bit_for_bit(predictor, order):
    assert permuted(predictor, order)


def test_the_same_in_bfloat16(predictor):
    model = copy.deepcopy(predictor.model).to(torch.bfloat16)
    assert permuted(Predictor(model, predictor.embedder, predictor.tokenizer), [4, 2, 0, 1, 3])


def test_probabilities_add_up_and_are_calibrated(predictor):
    queries = predictor.embedder.embed(TEXTS).vectors
    calibrated = predictor.probabilities(queries, LABELS)
    np.testing.assert_allclose(calibrated.sum(1), 1, atol=1e-9)
    scores = predictor.scores(queries, LABELS).astype(float) / np.exp(0.3 + 0.1 * np.log(5))
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(calibrated, expected, atol=1e-6)


def test_texts_and_their_embeddings_give_the_same_answers(predictor):
    vectors = predictor.embedder.embed(TEXTS).vectors
    from_texts = predictor.predict(TEXTS, LABELS, return_scores=True, top_k=2)
    from_vectors = predictor.predict(labels=LABELS, embeddings=vectors, return_scores=True, top_k=2)
    assert from_texts == from_vectors
    for prediction in from_texts:
        assert prediction.label == max(prediction.scores, key=prediction.scores.get)
        assert prediction.top[0] == (prediction.label, prediction.score)
        assert list(prediction.scores) == [
            "flood",
            "engine trouble",
            "praise",
            "complaint",
            "other",
        ]


def test_a_row_does_not_depend_on_its_neighbours(predictor):
    together = predictor.predict(TEXTS, LABELS)
    for text, prediction in zip(TEXTS, together, strict=True):
        alone = predictor.predict(text, LABELS)[0]
        assert alone.label == prediction.label
        assert alone.score == pytest.approx(prediction.score, abs=1e-5)


def test_a_label_set_a_row(predictor):
    sets = [["flood", "fire"], ["a", "b", "c"], ["flood", "fire"], ["c", "b", "a"]]
    found = predictor.predict(TEXTS, sets, return_scores=True)
    for text, label_set, prediction in zip(TEXTS, sets, found, strict=True):
        assert list(prediction.scores) == label_set
        expected = predictor.predict(text, label_set)[0]
        assert (prediction.label, prediction.score) == (
            expected.label,
            pytest.approx(expected.score, abs=1e-5),
        )
    with pytest.raises(InputError, match="2 label sets for 4 texts"):
        predictor.predict(TEXTS, sets[:2])


def test_below_the_threshold_the_label_is_none_and_the_score_stays(predictor):
    for prediction in predictor.predict(TEXTS, LABELS, threshold=1.1):
        assert prediction.label is None
        assert 0 < prediction.score < 1


def test_other_forms_of_labels(predictor):
    mapping = predictor.predict(TEXTS[0], {"flood": "water", "fire": "flames"})
    assert mapping[0].label in ("flood", "fire")
    assert predictor.predict(TEXTS, candidate_labels=["x"])[0].score == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"texts": TEXTS, "labels": []}, LabelError, "empty"),
        ({"labels": ["a"]}, InputError, "either texts or embeddings"),
        ({"embeddings": np.zeros((2, 5)), "labels": ["a"]}, InputError, r"\[N, 32\]"),
        ({"embeddings": np.full((2, 32), np.nan), "labels": ["a"]}, InputError, "NaN"),
    ],
)
def test_wrong_input_is_refused(predictor, call, error, message):
    with pytest.raises(error, match=message):
        predictor.predict(**call)


def test_another_embedder_is_refused(folder, predictor, tmp_path):
    build_sentence_transformer(tmp_path / "other", pooling="cls")
    other = load_embedder(
        EmbedderConfig(kind="sentence_transformers", model=str(tmp_path / "other"))
    )
    with pytest.raises(FingerprintMismatch, match="pooling"):
        Predictor(predictor.model, other)


def test_a_saved_model_answers_like_the_one_in_memory(predictor, tmp_path):
    predictor.model.save_pretrained(tmp_path)
    if predictor.tokenizer is not None:
        predictor.tokenizer.save_pretrained(tmp_path)
    loaded = Predictor.from_pretrained(tmp_path, predictor.embedder)
    assert loaded.predict(TEXTS, LABELS) == predictor.predict(TEXTS, LABELS)
    assert "/" not in (tmp_path / "config.json").read_text(), "no path of a machine in it"


def test_no_model_is_an_input_error(tmp_path, embedder):
    with pytest.raises(InputError, match="no SCE model at"):
        Predictor.from_pretrained(tmp_path / "nowhere", embedder)
