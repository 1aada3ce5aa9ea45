"""Telling rows that no label fits: the figures, and which labels are taken away."""

import numpy as np
import pytest

from sce.evaluation.rejecting import figures, take_away
from sce.labels import LabelSet


def test_figures_of_scores_that_are_known():
    none_N = np.array([True] * 4 + [False] * 20)
    scores_N = np.array([0.95, 0.9, 0.5, 0.1, *np.linspace(0.0, 0.76, 20)])
    found = figures(scores_N, none_N)
    # 95 % of the 20 rows with a label lie at or below 0.72; two of the four without do.
    assert found["false_acceptance"] == 0.5
    above = [(scores_N[4:] < one).sum() + 0.5 * (scores_N[4:] == one).sum() for one in scores_N[:4]]
    assert found["auroc"] == pytest.approx(sum(above) / 80)
    assert figures(-scores_N, none_N)["auroc"] == pytest.approx(1 - found["auroc"])


def test_half_of_the_labels_are_taken_away_whatever_their_order():
    names = [f"label {i}" for i in range(9)]
    kept = take_away(LabelSet.parse(names))
    assert len(kept) == 5
    turned = take_away(LabelSet.parse(names[::-1]))
    assert set(turned.names) == set(kept.names) < set(names)
    assert len(take_away(LabelSet.parse(["a", "b", "c"]))) == 2
    assert take_away(LabelSet.parse(names), seed=1).names != kept.names
