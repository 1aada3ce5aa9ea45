"""Labels as a linear classifier: answers that do not depend on the batch, in exact arithmetic."""

import numpy as np
import pytest

from sce.errors import InputError
from sce.labels import LabelSet
from sce.model.linear_labels import LinearLabels
from sce.model.options import Scoring
from sce.model.products import VECTOR_BITS, exact_products, round_weights, vector_integers


def unit(rows: int, width: int = 384) -> np.ndarray:
    x_ND = np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_vectors_become_integers_as_float64_rounds_them(kind):
    x_ND = unit(200).astype(kind)
    x_ND[0, :8] = [0.5 * 2.0**-18, 1.5 * 2.0**-18, -2.5 * 2.0**-18, 0, -0.0, 1, -1, 2.0**-149]
    found_ND = vector_integers(x_ND)
    assert found_ND.dtype == np.float64
    expected_ND = np.rint(x_ND.astype(np.float64) * 2.0**VECTOR_BITS)
    assert found_ND.tobytes() == expected_ND.tobytes()
    assert found_ND[0, :8].tolist() == [0, 2, -2, 0, 0, 2**18, -(2**18), 0]


def test_a_given_vector_is_left_as_it_is():
    x_ND = unit(3)
    before_ND = x_ND.copy()
    vector_integers(x_ND)
    assert np.array_equal(x_ND, before_ND)


def test_products_are_exact_and_an_answer_knows_no_batch():
    random = np.random.default_rng(1)
    weight_KD = round_weights(random.standard_normal((5, 384)))
    x_ND = unit(100)
    exact = [[sum(int(a) * int(b) for a, b in zip(x_D, w_D)) for w_D in scaled(weight_KD)]
             for x_D in vector_integers(x_ND[:3])]  # fmt: skip
    found_NK = exact_products(vector_integers(x_ND[:3]), weight_KD)
    ratio = found_NK / np.array(exact, float)
    assert np.all(ratio == ratio[0, 0])
    assert np.log2(ratio[0, 0]).is_integer()
    labels = LinearLabels(LabelSet.parse(list("abcde")), weight_KD, random.random(5), 1.5, {})
    whole = labels.answer(x_ND, Scoring(2, True))
    for start in (0, 1, 57):
        part = labels.answer(x_ND[start : start + 7], Scoring(2, True))
        assert np.array_equal(part.top_NT, whole.top_NT[start : start + 7])
        assert np.array_equal(part.top_scores_NT, whole.top_scores_NT[start : start + 7])


def scaled(weight_KD: np.ndarray) -> np.ndarray:
    """Weights as the integers that they are multiples of."""
    x_KD = weight_KD.astype(np.float64)
    while not np.array_equal(x_KD, np.rint(x_KD)):
        x_KD = x_KD * 2
    return x_KD


def test_several_labels_against_the_corpus_that_they_were_fitted_to():
    random = np.random.default_rng(2)
    weight_KD = round_weights(20 * random.normal(size=(3, 384)).astype(np.float32))
    names = ["b", "a", "c"]
    corpus_ND = unit(400)
    plain = LinearLabels(LabelSet.parse(names), weight_KD, np.zeros(3), 1.0, {})
    scores_NK = plain.scores(corpus_ND)
    usual_2K = np.stack([scores_NK.mean(0), scores_NK.std(0)])
    asked = Scoring(top_k=2, mode="multi")

    def answers(order):
        labels = LabelSet.parse([names[i] for i in order])
        made = LinearLabels(
            labels, weight_KD[order], np.zeros(3), 1.0, {}, usual_2K=usual_2K[:, order]
        )
        return made.answer(corpus_ND, asked).scores_M.reshape(-1, 3)

    def made(scoring):
        labels = LabelSet.parse(names)
        fitted = LinearLabels(labels, weight_KD, np.zeros(3), 1.0, {}, usual_2K=usual_2K)
        return fitted.answer(corpus_ND, scoring)

    found_NK = answers([0, 1, 2])
    assert (answers([2, 0, 1]) == found_NK[:, [2, 0, 1]]).all()
    z_NK = (scores_NK - usual_2K[0]) / usual_2K[1]
    assert found_NK[z_NK.max(1) < 0].max() < 0.3
    assert found_NK.sum(1).std() > 0.05  # they do not add up to 1
    for mode in ("single", "multi"):
        with pytest.raises(InputError, match="fitted by an earlier version"):
            made(Scoring(mode=mode, none_of_these=True))
    with pytest.raises(InputError, match="fitted by an earlier version"):
        plain.answer(corpus_ND, asked)
    with pytest.raises(InputError, match="contrast_labels"):
        made(Scoring(mode="multi", contrast=("x",)))
