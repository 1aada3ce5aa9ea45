"""From the answers of chunks to those of texts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sce.errors import InputError
from sce.labels import LabelSet, RaggedLabels
from sce.model.answers import Answers
from sce.model.linear_labels import LinearLabels
from sce.model.options import POOLINGS, AnswerOptions, Scoring
from sce.model.pooling import ChunkVectors, answer_chunks, pool
from sce.model.products import round_weights
from sce.model.rejection import STAND_IN

D = 16
NAMES = ["b", "a", "d", "c"]


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def labels_of(names) -> LinearLabels:
    """The same label for the same name, whatever the order."""
    weights = np.stack([np.random.default_rng(ord(name)).normal(size=D) for name in names])
    return LinearLabels(
        LabelSet.parse(list(names)),
        round_weights(weights),
        np.zeros(len(names)),
        0.3,
        {},
        usual_2K=np.array([[0.0], [1.0]]).repeat(len(names), axis=1),
        own_KD=unit(weights),
        rejection=STAND_IN,
    )


def chunks_of(counts, seed=0) -> ChunkVectors:
    total = int(np.sum(counts))
    vectors = unit(np.random.default_rng(seed).normal(size=(total, D)))
    spans = np.stack([np.arange(total) * 10, np.arange(total) * 10 + 10], axis=1)
    return ChunkVectors(vectors, np.array(counts, np.int64), spans)


def answer(chunks, labels, **asked) -> Answers:
    return answer_chunks(
        lambda vectors, labels, scoring: labels.answer(vectors, scoring),
        chunks,
        labels,
        Scoring(**asked),
    )


@pytest.mark.parametrize("pooling", POOLINGS)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.permutations(range(4)))
@settings(max_examples=15, deadline=None)
def test_neither_order_nor_neighbours_change_a_bit(pooling, counts, order):
    chunks, labels = chunks_of(counts), labels_of(NAMES)
    asked = {"top_k": 4, "return_scores": True, "pooling": pooling}
    found = answer(chunks, labels, **asked)
    turned = answer(chunks, labels_of([NAMES[k] for k in order]), **asked)
    scores_NK, turned_NK = (one.scores_M.reshape(-1, 4) for one in (found, turned))
    np.testing.assert_array_equal(scores_NK[:, order], turned_NK)
    np.testing.assert_array_equal(found.top_NT, np.array(order)[turned.top_NT])
    np.testing.assert_array_equal(found.where_N2, turned.where_N2)
    for row in range(len(counts)):
        alone = answer(chunks.part(row, row + 1), labels, **asked)
        np.testing.assert_array_equal(alone.scores_M, scores_NK[row])
        np.testing.assert_array_equal(alone.where_N2[0], found.where_N2[row])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_one_chunk_is_answered_as_a_text(pooling):
    chunks, labels = chunks_of([1, 1, 1]), labels_of(NAMES)
    found = answer(chunks, labels, top_k=2, pooling=pooling)
    plain = labels.answer(chunks.vectors_CD, Scoring(2))
    np.testing.assert_array_equal(found.top_NT, plain.top_NT)
    np.testing.assert_allclose(found.top_scores_NT, plain.top_scores_NT, atol=1e-6)
    assert found.scores_M is None
    np.testing.assert_array_equal(found.where_N2, chunks.spans_C2)
    for mode in ("single", "multi"):
        none = answer(chunks, labels, mode=mode, pooling=pooling, none_of_these=True).none_N
        whole = labels.answer(chunks.vectors_CD, Scoring(mode=mode, none_of_these=True)).none_N
        np.testing.assert_allclose(none, whole, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_label_is_found_in_the_chunk_that_says_it(pooling):
    labels = labels_of(NAMES)
    toward = unit(labels.weight_KD)
    dull = unit(np.ones(D) - toward * (np.ones(D) @ toward.T)[:, None])[0]
    vectors = unit(np.stack([dull, toward[2], dull, dull]))
    spans = np.array([[0, 5], [5, 9], [9, 20], [0, 4]])
    found = answer(ChunkVectors(vectors, np.array([3, 1]), spans), labels, pooling=pooling)
    assert found.top_NT[0, 0] == 2
    assert found.where_N2.tolist() == [[5, 9], [0, 4]]


def test_what_the_poolings_are():
    p_CK = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]])
    counts = np.array([2, 1])
    np.testing.assert_allclose(pool(p_CK, counts, "mean"), [[0.6, 0.4], [0.2, 0.8]])
    np.testing.assert_allclose(pool(p_CK, counts, "max"), [[0.5625, 0.4375], [0.2, 0.8]])
    weights = np.exp(p_CK[:2])
    expected = (weights * p_CK[:2]).sum(0) / weights.sum(0)
    np.testing.assert_allclose(pool(p_CK, counts, "attention")[0], expected / expected.sum())


def test_the_mean_vector_of_a_text():
    vectors = unit(np.eye(D)[:3])
    chunks = ChunkVectors(vectors, np.array([1, 2]), np.zeros((3, 2), np.int64))
    mean = chunks.mean_vectors()
    np.testing.assert_array_equal(mean[0], vectors[0])
    np.testing.assert_allclose(np.linalg.norm(mean, axis=1), 1, atol=1e-6)
    opposed = ChunkVectors(np.stack([vectors[0], -vectors[0]]), np.array([2]), np.zeros((2, 2)))
    np.testing.assert_array_equal(opposed.mean_vectors()[0], vectors[0])


def test_a_set_a_text_and_no_text_at_all():
    sets = RaggedLabels.from_sets([["a", "b"], ["c", "b", "a"]])

    def by_name(vectors, labels, scoring):
        parts = [
            labels_of(names).answer(vectors[i : i + 1], scoring)
            for i, names in enumerate(labels.names_by_row(len(vectors)))
        ]
        return Answers.join(parts)

    chunks = chunks_of([2, 3])
    for pooling in POOLINGS:
        scoring = Scoring(3, True, pooling)
        found = answer_chunks(by_name, chunks, sets, scoring)
        one = answer(chunks.part(1, 2), labels_of(["c", "b", "a"]), top_k=3, pooling=pooling)
        np.testing.assert_array_equal(found.top_NT[1], one.top_NT[0])
        assert found.top_NT[0, 2] == -1
        assert len(answer(chunks_of([]), labels_of(NAMES), pooling=pooling)) == 0


def test_what_is_refused():
    for wrong in (
        {"long_text": "cut"},
        {"pooling": "mean"},
        {"long_text": "chunk", "pooling": "x"},
    ):
        with pytest.raises(InputError, match=r"long_text|pooling"):
            AnswerOptions(**wrong)
    assert AnswerOptions(long_text="chunk").scoring.pooling == "vector"
