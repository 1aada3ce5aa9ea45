"""Figures against brute force, scikit-learn and hand-worked examples."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from sklearn.metrics import brier_score_loss, log_loss

from sce.evaluation import metrics
from sce.model.calibration import calibration_error


@st.composite
def batches(draw):
    rows, labels = draw(st.integers(1, 30)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    p_NK = rng.dirichlet(np.full(labels, draw(st.sampled_from([0.1, 1.0, 5.0]))), size=rows)
    return p_NK, rng.integers(labels, size=rows)


def brute_force_ece(p_NK, y_N, bins):
    total = 0.0
    for b in range(bins):
        inside = [
            (max(p), float(np.argmax(p) == y))
            for p, y in zip(p_NK, y_N)
            if b / bins < max(p) <= (b + 1) / bins
        ]
        if inside:
            total += abs(sum(c for c, _ in inside) - sum(r for _, r in inside))
    return total / len(y_N)


def brute_force_f1(p_NK, y_N, labels):
    guesses, scores = [int(np.argmax(p)) for p in p_NK], []
    for k in range(labels):
        hit = sum(g == k and y == k for g, y in zip(guesses, y_N))
        named = sum(g == k for g in guesses) + sum(y == k for y in y_N)
        if named:
            scores.append(2 * hit / named)
    return sum(scores) / len(scores)


@settings(max_examples=60)
@given(batches())
def test_every_figure_equals_brute_force(batch):
    p_NK, y_N = batch
    names = list(range(p_NK.shape[1]))
    guesses = [int(np.argmax(p)) for p in p_NK]
    right = sum(g == y for g, y in zip(guesses, y_N)) / len(y_N)
    assert metrics.correct(p_NK, y_N).mean() == pytest.approx(right)
    assert metrics.macro_f1(p_NK, y_N) == pytest.approx(brute_force_f1(p_NK, y_N, len(names)))
    clipped = [max(p[y], 1e-12) for p, y in zip(p_NK, y_N)]
    assert metrics.nll(p_NK, y_N) == pytest.approx(-sum(map(math.log, clipped)) / len(y_N))
    assert metrics.brier(p_NK, y_N) == pytest.approx(
        brier_score_loss(y_N, p_NK, labels=names, scale_by_half=False)
    )
    assert metrics.ece(p_NK, y_N) == pytest.approx(brute_force_ece(p_NK, y_N, 15))
    matrix = metrics.confusion(p_NK, y_N)
    for true, guess in np.ndindex(matrix.shape):
        assert matrix[true, guess] == sum((g, y) == (guess, true) for g, y in zip(guesses, y_N))


def test_nll_is_that_of_scikit_learn():
    p_NK = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]])
    assert metrics.nll(p_NK, [0, 2, 0]) == pytest.approx(
        log_loss([0, 2, 0], p_NK, labels=[0, 1, 2])
    )
    assert metrics.nll([[0.0, 1.0]], [0]) == pytest.approx(-math.log(1e-12))


def test_worked_example():
    p_NK = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    figures = metrics.summarise(p_NK, [0, 2, 0])
    assert (figures["rows"], figures["labels"]) == (3, 3)
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["brier"] == pytest.approx((0.02 + (0.04 + 0.25 + 0.49) + 0.0) / 3)
    assert figures["ece"] == pytest.approx((0.1 + 0.5 + 0.0) / 3)
    assert 0.0 <= figures["accuracy_low"] <= 2 / 3 <= figures["accuracy_high"] <= 1.0


def test_a_bin_holds_its_upper_edge():
    # 0.6 is the edge of the ninth bin of 15: with 0.61 in the tenth, two bins and not one.
    found = metrics.ece([[0.6, 0.4], [0.61, 0.39]], [0, 1])
    assert found == pytest.approx((0.4 + 0.61) / 2)
    found = metrics.ece([[0.59, 0.41], [0.6, 0.4]], [0, 1])
    assert found == pytest.approx(abs(1 - 0.59 - 0.6) / 2)


def test_flip_rate_counts_a_row_once():
    first = ["a", "b", "c", "d"]
    shuffles = [["a", "b", "c", "a"], ["a", "c", "c", "b"]]
    assert metrics.flip_rate(first, shuffles) == pytest.approx(0.5)
    assert metrics.flip_rate(first, [first]) == 0.0
    with pytest.raises(ValueError, match="one shuffle"):
        metrics.flip_rate(first, [])


def test_bootstrap_interval_is_that_of_scipy():
    values = np.random.default_rng(1).normal(0.3, 1.0, size=400)
    low, high = metrics.bootstrap_interval(values, samples=4000)
    reference = bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.01)
    assert metrics.bootstrap_interval(values, samples=4000) == (low, high)
    assert metrics.bootstrap_interval(values, samples=4000, seed=1) != (low, high)


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        low, high = metrics.bootstrap_interval(rng.random(200) < 0.7, samples=400, seed=trial)
        covered += low <= 0.7 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_bootstrap_interval_of_degenerate_input():
    assert metrics.bootstrap_interval([1.0] * 5) == (1.0, 1.0)
    assert all(map(math.isnan, metrics.bootstrap_interval([])))


def test_mcnemar_exact():
    """7 against 1 discordant rows: 2 * (C(8,0) + C(8,1)) / 2**8."""
    a = [1] * 7 + [0] + [1] * 20
    b = [0] * 7 + [1] + [1] * 20
    assert metrics.mcnemar(a, b) == pytest.approx(2 * (1 + 8) / 256)
    assert metrics.mcnemar(a, a) == 1.0


@pytest.mark.parametrize(
    ("probabilities", "targets", "message"),
    [
        ([[0.5, 0.5]], [2], "outside 0..1"),
        ([[0.5, 0.5]], [-1], "outside 0..1"),
        ([[0.5, 0.5]], [0, 1], "are needed"),
        (np.zeros((0, 3)), [], "are needed"),
        ([[float("nan"), 0.5]], [0], "NaN"),
    ],
)
def test_wrong_input_is_refused(probabilities, targets, message):
    with pytest.raises(ValueError, match=message):
        metrics.summarise(probabilities, targets)


def test_the_bins_of_a_reliability_diagram_have_known_values():
    sure_N, right_N = [0.0, 0.05, 0.3, 0.36, 0.999, 1.0], [0, 1, 0, 1, 1, 1]
    first, second, last = metrics.reliability(sure_N, right_N)
    assert first == (pytest.approx(0.025), 0.5, 2)
    assert second == (pytest.approx(0.33), 0.5, 2), "a bin holds its lower edge"
    assert last == (pytest.approx(0.9995), 1.0, 2), "1 is of the last bin"
    halves = [metrics.reliability(sure_N[i::2], right_N[i::2]) for i in (0, 1)]
    for one, whole in zip(metrics.joined(halves), (first, second, last), strict=True):
        assert one == pytest.approx(whole)
    # Two bins of 15 with gaps 0.9 - 1 and 0.4 - 0, weighed by their rows.
    error = calibration_error(np.array([0.9, 0.9, 0.4, 0.4]), np.array([1, 1, 0, 0]))
    assert error == pytest.approx(0.5 * 0.1 + 0.5 * 0.4)
