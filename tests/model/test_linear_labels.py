"""Labels as a linear classifier: answers that do not depend on the batch, in exact arithmetic."""

import numpy as np
import pytest

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
