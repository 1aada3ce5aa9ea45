"""Temperature scaling: make the scores mean what they say, without changing any answer.

After training, one or two numbers are fitted on validation rows so that the probabilities
softmax(logits / T) fit the targets best (Guo et al. 2017, section 4.2). Users bring label
sets of every size, so T may depend on the number of labels K: T(K) = exp(a + b log K). That form
is taken only if it is proven to predict the label sets of held-out counts better than a constant T
does, and is used no further than the counts that it was fitted on. Dividing by a positive number
never changes which label is first.

Legend of shapes: N rows, K labels of a row's own set, Kmax the widest set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import logsumexp

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
MAX_SLOPE = 1.0
MIN_DISTINCT_COUNTS = 3
MIN_SETS = 6
"""With fewer label sets the error of a mean over them says nothing."""
MIN_ERRORS = 2.0
"""Standard errors that T(K) has to save on held-out label counts."""
FOLDS = 5
ECE_BINS = 15


def expected_calibration_error(p_NK: np.ndarray, targets_N: np.ndarray) -> float:
    """Of the predicted label (Guo et al. 2017, equation 3): see `calibration_error`."""
    return calibration_error(p_NK.max(axis=1), p_NK.argmax(axis=1) == targets_N)


def calibration_error(p_N: np.ndarray, right_N: np.ndarray) -> float:
    """How far probabilities are from the share that is right.

    They are sorted into 15 bins of equal width, each of which holds its upper edge and not its
    lower one; |share right - mean probability| of the bins is weighted by their size.
    """
    bin_N = np.clip(np.ceil(p_N * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    gaps = np.bincount(bin_N, weights=p_N - right_N, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(p_N))


@dataclass(frozen=True)
class Temperature:
    """T(K) = exp(a + b log K), kept within 0.05 and 20. The default leaves logits as they are.

    Attributes:
        fewest, most: label counts that it was fitted on; of a set with fewer or more labels it is
            T(fewest) or T(most). None, as in models written before, for no such end.
    """

    a: float = 0.0
    b: float = 0.0
    fewest: float | None = None
    most: float | None = None

    def to_list(self) -> list[float]:
        """Its attributes as a model's configuration keeps them."""
        ends = [] if self.fewest is None or self.most is None else [self.fewest, self.most]
        return [self.a, self.b, *ends]

    def at(self, label_counts: ArrayLike) -> np.ndarray:
        """T for each label count (float64, the shape of `label_counts`)."""
        counts = np.asarray(label_counts, dtype=np.float64)
        if self.fewest is not None or self.most is not None:
            counts = np.clip(counts, self.fewest, self.most)
        log_K = np.log(counts)
        return np.clip(np.exp(self.a + self.b * log_K), MIN_TEMPERATURE, MAX_TEMPERATURE)

    def scale(self, logits: Any, label_counts: ArrayLike) -> Any:
        """logits / T(K), in the dtype and kind (numpy or torch, any device) of `logits`.

        Args:
            logits: [..., Kmax]; padding may be -inf.
            label_counts: number of labels of each row, shape `logits.shape[:-1]` or one int.
        """
        temperature = np.asarray(self.at(label_counts))[..., None]
        if hasattr(logits, "new_tensor"):
            return logits / logits.new_tensor(temperature)
        return logits / temperature.astype(logits.dtype)


@dataclass(frozen=True)
class TemperatureFit:
    """A chosen temperature and why. NLL figures are means over the fitted rows, in nats, in which a
    label set counts for the square root of its rows.

    Attributes:
        kind: "identity" where there was nothing to fit.
        reason: one sentence for the model card.
        rows: rows that carry information (K >= 2).
        nll_uncalibrated: at T = 1.
        nll_constant: with the best constant T.
        nll_by_label_count: with the best T(K); None if it was not tried.
        held_out_gain: mean NLL that T(K) saves against constant T on held-out label counts.
        held_out_error: standard error of that mean, by label sets: rows of one set err together.
    """

    temperature: Temperature
    kind: Literal["identity", "constant", "by_label_count"]
    reason: str
    rows: int
    nll_uncalibrated: float | None = None
    nll_constant: float | None = None
    nll_by_label_count: float | None = None
    held_out_gain: float | None = None
    held_out_error: float | None = None


@dataclass(frozen=True)
class _Rows:
    """logits [N, Kmax] with -inf padding, targets [N], counts [N] of labels, sets [N] by number."""

    logits: np.ndarray
    targets: np.ndarray
    counts: np.ndarray
    sets: np.ndarray

    def take(self, keep_N: np.ndarray) -> _Rows:
        kept = (self.logits, self.targets, self.counts, self.sets)
        return _Rows(*(values[keep_N] for values in kept))

    @cached_property
    def weights(self) -> np.ndarray:
        """[N], with the sum 1: a label set counts for the square root of its rows. Who asks has a
        set of his own, so many rows of one set are no more than a better look at that one."""
        place_N = np.unique(self.sets, return_inverse=True)[1]
        weight_N = 1 / np.sqrt(np.bincount(place_N)[place_N])
        return weight_N / weight_N.sum()

    def mean(self, values_N: np.ndarray) -> float:
        return float(self.weights @ values_N)

    def at_target(self, values_NK: np.ndarray) -> np.ndarray:
        return values_NK[np.arange(len(self.targets)), self.targets]

    def losses(self, temperature: Temperature) -> np.ndarray:
        """Negative log likelihood of the targets, [N]."""
        scaled_NK = temperature.scale(self.logits, self.counts)
        return logsumexp(scaled_NK, axis=1) - self.at_target(scaled_NK)


def fit_temperature(
    logits: Sequence[ArrayLike], targets: ArrayLike, sets: Sequence[str] | None = None
) -> TemperatureFit:
    """Fit T and T(K) by the likelihood of `targets` and choose between them. A label set counts for
    the square root of its rows.

    Constant T is exact: NLL is convex in 1/T. If every row with K >= 2 is already right, NLL
    falls for ever as T goes to 0, so T stays 1; if no row has two labels there is nothing to
    fit and T stays 1. Otherwise T is sought within [0.05, 20] and the slope b within [-1, 1],
    so that no data can push either further. T(K) is tried from three distinct K and six label
    sets on: label counts are dealt to five groups in order of size, each group is predicted from
    the others, and T(K) is chosen if the NLL that it saves exceeds two standard errors of a mean
    over label sets. It ends at the smallest and the largest K.

    Args:
        logits: N arrays, each of the length K of its row.
        targets: position of the right label, [N].
        sets: names of the rows' label sets, [N]; without them rows of one K are one set.

    Raises:
        ValueError: no rows, lengths that differ, a target outside its set, a logit that is
            not finite.
    """
    rows = _checked(logits, targets, sets)
    rows = rows.take(rows.counts >= 2)
    if not len(rows.targets):
        return TemperatureFit(Temperature(), "identity", "No row has two labels.", 0)
    before = rows.mean(rows.losses(Temperature()))
    if (rows.at_target(rows.logits) == rows.logits.max(axis=1)).all():
        reason = "Every validation row is right, so the data set no lower end to T."
        return TemperatureFit(Temperature(), "identity", reason, len(rows.targets), before)

    constant = _fit(rows)
    found: dict[str, Any] = {"rows": len(rows.targets), "nll_uncalibrated": before}
    found["nll_constant"] = rows.mean(rows.losses(constant))
    counts = np.unique(rows.counts)
    if len(counts) < MIN_DISTINCT_COUNTS:
        reason = f"{len(counts)} distinct label count(s); T(K) needs {MIN_DISTINCT_COUNTS}."
        return TemperatureFit(constant, "constant", reason, **found)

    set_count = len(np.unique(rows.sets))
    if set_count < MIN_SETS:
        reason = f"{set_count} label sets; T(K) needs {MIN_SETS}."
        return TemperatureFit(constant, "constant", reason, **found)

    gain_N = _held_out_gain(rows, counts)
    gain, error = rows.mean(gain_N), _error_by_sets(gain_N, rows)
    sloped = _fit(rows, start_from=constant)
    sloped = replace(sloped, fewest=float(counts[0]), most=float(counts[-1]))
    found["nll_by_label_count"] = rows.mean(rows.losses(sloped))
    found |= {"held_out_gain": gain, "held_out_error": error}
    measured = f"saves {gain:.4f} nats a row on held-out label counts, standard error {error:.4f}"
    if gain > MIN_ERRORS * error:
        return TemperatureFit(sloped, "by_label_count", f"T(K) {measured}.", **found)
    return TemperatureFit(constant, "constant", f"T(K) only {measured}.", **found)


def _fit(rows: _Rows, start_from: Temperature | None = None) -> Temperature:
    """Minimise mean NLL over log T at the mean log K; from a constant T, over the slope too."""
    log_K_N = np.log(rows.counts)
    # Around the mean log K the slope hardly moves the level, so the two are found independently.
    centre = rows.mean(log_K_N)
    from_centre_N = log_K_N - centre
    finite_NK = np.where(np.isfinite(rows.logits), rows.logits, 0.0)  # padding is -inf
    at_target_N = rows.at_target(rows.logits)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope = parameters[1] if len(parameters) == 2 else 0.0
        inverse_N = np.exp(-(parameters[0] + slope * from_centre_N))
        scaled_NK = rows.logits * inverse_N[:, None]
        norm_N = logsumexp(scaled_NK, axis=1)
        losses_N = norm_N - at_target_N * inverse_N
        # d NLL / d log T = (z_target - E[z]) / T, with E under softmax(z / T).
        expected_N = (np.exp(scaled_NK - norm_N[:, None]) * finite_NK).sum(axis=1)
        by_log_T_N = -inverse_N * (expected_N - at_target_N)
        gradient = [rows.mean(by_log_T_N), rows.mean(by_log_T_N * from_centre_N)]
        return rows.mean(losses_N), np.array(gradient[: len(parameters)])

    start = np.zeros(1) if start_from is None else np.array([start_from.a, 0.0])
    log_bounds = (float(np.log(MIN_TEMPERATURE)), float(np.log(MAX_TEMPERATURE)))
    bounds = [log_bounds, (-MAX_SLOPE, MAX_SLOPE)][: len(start)]
    options = {"ftol": 1e-12}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    slope = float(found.x[1]) if start_from is not None else 0.0
    return Temperature(float(found.x[0]) - slope * centre, slope)


def _held_out_gain(rows: _Rows, counts: np.ndarray) -> np.ndarray:
    """NLL of constant T minus NLL of T(K), [N], each row predicted from other label counts."""
    folds = min(FOLDS, len(counts))
    fold_N = np.searchsorted(counts, rows.counts) % folds
    gain_N = np.zeros(len(fold_N))
    for fold in range(folds):
        held = fold_N == fold
        fitted, test = rows.take(~held), rows.take(held)
        constant = _fit(fitted)
        sloped = _fit(fitted, start_from=constant)
        gain_N[held] = test.losses(constant) - test.losses(sloped)
    return gain_N


def _error_by_sets(gain_N: np.ndarray, rows: _Rows) -> float:
    """Standard error of the weighted mean, where rows of one set are not independent."""
    place_N = np.unique(rows.sets, return_inverse=True)[1]
    sum_G = np.bincount(place_N, weights=rows.weights * (gain_N - rows.mean(gain_N)))
    return float(np.sqrt(len(sum_G) / (len(sum_G) - 1) * np.square(sum_G).sum()))


def _checked(logits: Sequence[ArrayLike], targets: ArrayLike, sets: Sequence[str] | None) -> _Rows:
    y_N = np.asarray(targets, dtype=np.int64)
    rows = [np.asarray(row, dtype=np.float64) for row in logits]
    if not len(y_N) or len(y_N) != len(rows):
        raise ValueError(
            f"logits and targets need the same number of rows, at least one: got {len(rows)} and "
            f"{len(y_N)}."
        )
    count_N = np.array([len(row) for row in rows])
    z_NK = np.full((len(rows), count_N.max()), -np.inf)
    for z_K, row in zip(z_NK, rows):
        z_K[: len(row)] = row
    if (y_N < 0).any() or (y_N >= count_N).any():
        raise ValueError("a target lies outside its row's label set.")
    if (np.isfinite(z_NK).sum(axis=1) != count_N).any():
        raise ValueError("a logit is not a finite number.")
    if sets is not None and len(sets) != len(rows):
        raise ValueError(f"{len(sets)} names of label sets for {len(rows)} rows.")
    set_N = count_N if sets is None else np.unique(np.array(sets), return_inverse=True)[1]
    return _Rows(z_NK, y_N, count_N, set_N)
