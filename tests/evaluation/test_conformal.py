"""Sets of labels for a coverage, on held-out rows of a known distribution."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom

from sce.errors import InputError
from sce.evaluation.conformal import coverage_cut


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_sets_hold_the_right_label_as_often_as_wanted(coverage):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (6000, 8))
    p = softmax(logits, axis=1)
    right = np.array([rng.choice(8, p=softmax(row / 2)) for row in logits])  # over-confident
    of_right = p[np.arange(6000), right].astype(np.float32)
    cut = coverage_cut(of_right[:3000], coverage)
    held = int((of_right[3000:] >= cut).sum())
    low, high = binom.interval(0.999, 3000, coverage)
    assert low - 40 <= held <= high + 40  # the cut is of a sample too


def test_it_is_the_rank_of_the_finite_sample():
    assert coverage_cut(np.arange(1, 20) / 20, 0.9) == pytest.approx(2 / 20)


def test_too_few_rows_or_no_share():
    with pytest.raises(InputError, match="19 are needed"):
        coverage_cut(np.full(18, 0.5), 0.95)
    assert coverage_cut(np.full(19, 0.5), 0.95) == 0.5
    with pytest.raises(InputError, match="between 0 and 1"):
        coverage_cut(np.full(18, 0.5), 1.0)
