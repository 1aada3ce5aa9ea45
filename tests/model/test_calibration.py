"""Temperatures that were put into the data come out of the fit; bad data cannot explode it."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from sce.model.calibration import (
    Temperature,
    TemperatureFit,
    expected_calibration_error,
    fit_temperature,
)


def sampled(temperature, counts, rows_each, seed=0):
    """Rows whose targets are drawn from softmax(logits / T(K)): T(K) is then the truth."""
    rng = np.random.default_rng(seed)
    logits, targets = [], []
    for count in counts:
        for _ in range(rows_each):
            z_K = rng.normal(0.0, 3.0, size=count)
            logits.append(z_K)
            targets.append(int(rng.choice(count, p=softmax(z_K / temperature(count)))))
    return logits, targets


def mean_nll(logits, targets, temperature):
    return np.mean([-log_softmax(z / temperature.at(len(z)))[y] for z, y in zip(logits, targets)])


def test_constant_temperature_is_the_best_one():
    logits, targets = sampled(lambda K: 2.5, [2, 4, 8, 16], 400)
    fit = fit_temperature(logits, targets)
    assert fit.kind == "constant"
    assert fit.temperature.at(7) == pytest.approx(2.5, rel=0.1)

    def loss(log_T):
        return mean_nll(logits, targets, Temperature(log_T))

    best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-6})
    assert fit.temperature.a == pytest.approx(best.x, abs=1e-3)
    assert fit.nll_constant == pytest.approx(best.fun, abs=1e-8)
    assert fit.nll_uncalibrated == pytest.approx(loss(0.0))
    assert fit.nll_constant < fit.nll_uncalibrated


def test_temperature_by_label_count_is_taken_when_the_data_says_so():
    logits, targets = sampled(lambda K: np.exp(-0.5 + 0.6 * np.log(K)), [2, 3, 5, 9, 20, 60], 500)
    fit = fit_temperature(logits, targets)
    assert fit.kind == "by_label_count"
    assert fit.temperature.b == pytest.approx(0.6, abs=0.1)
    assert fit.temperature.a == pytest.approx(-0.5, abs=0.2)
    assert fit.held_out_gain > fit.held_out_error > 0
    assert fit.nll_by_label_count < fit.nll_constant
    assert fit.nll_by_label_count == pytest.approx(mean_nll(logits, targets, fit.temperature))


def test_two_label_counts_are_too_few_for_a_slope():
    logits, targets = sampled(lambda K: K / 5, [2, 40], 500)
    fit = fit_temperature(logits, targets)
    assert (fit.kind, fit.temperature.b, fit.nll_by_label_count) == ("constant", 0.0, None)


def test_it_is_used_no_further_than_it_was_fitted():
    logits, targets = sampled(lambda K: np.exp(-0.5 + 0.6 * np.log(K)), [3, 5, 9, 12, 16, 20], 500)
    fit = fit_temperature(logits, targets)
    assert fit.kind == "by_label_count"
    assert (fit.temperature.fewest, fit.temperature.most) == (3, 20)
    at = fit.temperature.at([1, 2, 3, 10, 20, 150, 1000])
    assert at[0] == at[1] == at[2] < at[3] < at[4] == at[5] == at[6]
    assert Temperature(*fit.temperature.to_list()) == fit.temperature
    written_before = Temperature(*fit.temperature.to_list()[:2])
    assert written_before.at(150) > 2 * at[5]


def test_rows_of_one_large_set_prove_nothing():
    """Training on a user's 500 rows of one set beside the starter corpus: the many rows of that set
    are alike, whatever it is that makes them so."""
    counts = [4, 5, 6, 7, 8, 9, 10, 12]
    logits, targets = sampled(lambda K: 1.0, counts, 40)
    sets = [f"starter/{K}" for K in counts for _ in range(40)]
    own = sampled(lambda K: 0.3, [15], 500, seed=1)
    logits, targets, sets = logits + own[0], targets + own[1], sets + ["own"] * 500
    fit = fit_temperature(logits, targets, sets)
    assert fit.kind == "constant"
    # With every row taken for independent the slope looked proven.
    assert fit.held_out_gain < 2 * fit.held_out_error
    assert fit_temperature(logits, targets).held_out_error < fit.held_out_error


@pytest.mark.parametrize("labels", [2, 150])
def test_a_foreign_set_is_calibrated_no_worse_than_without_a_temperature(labels):
    counts = [4, 5, 6, 7, 8, 9, 10, 12]
    logits, targets = sampled(lambda K: 1.0, counts, 75)
    sets = [f"starter/{K}" for K in counts for _ in range(75)]
    own = sampled(lambda K: 0.5, [15], 75, seed=1)
    fit = fit_temperature(logits + own[0], targets + own[1], sets + ["own"] * 75)
    foreign = sampled(lambda K: 1.0, [labels], 2000, seed=2)
    z_NK, y_N = np.array(foreign[0]), np.array(foreign[1])
    plain = expected_calibration_error(softmax(z_NK, axis=1), y_N)
    fitted = expected_calibration_error(softmax(fit.temperature.scale(z_NK, labels), axis=1), y_N)
    assert fitted <= plain + 0.03


def test_the_order_of_rows_is_nothing():
    logits, targets = sampled(lambda K: 0.4 * K, [2, 4, 9], 200)
    fit = fit_temperature(logits, targets)
    back = fit_temperature(logits[::-1], targets[::-1])
    assert back.kind == fit.kind
    assert back.temperature.at(9) == pytest.approx(fit.temperature.at(9), rel=1e-4)


def test_degenerate_data_leaves_the_identity():
    right = fit_temperature([[5.0, 1.0], [0.2, 0.1, 0.0]], [0, 0])
    assert (right.kind, right.temperature) == ("identity", Temperature())
    single = fit_temperature([[3.0], [1.0]], [0, 0])
    assert (single.kind, single.rows, single.nll_constant) == ("identity", 0, None)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from([1e-6, 1.0, 1e4]))
def test_no_data_pushes_the_temperature_out_of_bounds_or_makes_nll_worse(seed, rows, size):
    rng = np.random.default_rng(seed)
    logits = [rng.normal(0, size, size=rng.integers(1, 7)) for _ in range(rows)]
    targets = [int(rng.integers(len(z))) for z in logits]
    fit = fit_temperature(logits, targets)
    found = fit.temperature.at(np.arange(1, 1001))
    assert np.isfinite(found).all()
    assert found.min() >= 0.05
    assert found.max() <= 20.0
    if fit.kind == "constant":
        assert fit.nll_constant <= fit.nll_uncalibrated + 1e-9


def test_scale_in_numpy_and_torch_divides_and_keeps_the_dtype():
    temperature = Temperature(a=0.1, b=0.3)
    z_NK = np.array([[1.0, 2.0, -np.inf], [3.0, -1.0, 0.5]], dtype=np.float32)
    T_N = np.exp(0.1 + 0.3 * np.log([2, 3]))
    scaled = temperature.scale(z_NK, [2, 3])
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, z_NK / T_N[:, None], rtol=1e-6)
    for dtype in (torch.float32, torch.bfloat16):
        other = temperature.scale(torch.tensor(z_NK).to(dtype), [2, 3])
        assert other.dtype == dtype
        np.testing.assert_allclose(other.float().numpy(), scaled, rtol=2e-2)
    np.testing.assert_allclose(temperature.scale(z_NK[0], 2), scaled[0], rtol=1e-6)


def test_round_trip_through_json():
    fit = fit_temperature(*sampled(lambda K: K / 4, [2, 4, 9, 20], 100))
    read = json.loads(json.dumps(asdict(fit)))
    assert TemperatureFit(**read | {"temperature": Temperature(**read["temperature"])}) == fit


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        ([], [], "at least one"),
        ([[1.0, 2.0]], [0, 1], "same number"),
        ([[1.0, 2.0]], [2], "outside"),
        ([[1.0, np.nan]], [0], "finite"),
    ],
)
def test_wrong_input_is_refused(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, targets)
