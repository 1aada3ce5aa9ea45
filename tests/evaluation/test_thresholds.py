"""The precision-coverage curve by hand and by brute force; what a choice owns up to."""

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import binomtest

from sce.errors import InputError
from sce.evaluation import thresholds as threshold
from sce.evaluation.thresholds import (
    FEWEST_ROWS,
    choose_threshold,
    precision_coverage,
    wilson_interval,
)

SCORES = [0.9, 0.8, 0.8, 0.6, 0.5, 0.5]
RIGHT = [True, True, False, True, False, False]

labelled = st.lists(
    st.tuples(st.sampled_from([0.125, 0.3, 0.5, 0.50001, 0.7, 0.99]), st.booleans()), min_size=1
)
anything = st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1)


def curve_of(rows):
    return precision_coverage([score for score, _ in rows], [right for _, right in rows])


def test_the_curve_by_hand():
    curve = precision_coverage(SCORES, RIGHT)
    np.testing.assert_array_equal(curve.thresholds, np.array([0.5, 0.6, 0.8, 0.9], np.float32))
    assert curve.thresholds.dtype == np.float32
    assert curve.rows.tolist() == [6, 4, 3, 1]
    assert curve.right.tolist() == [3, 3, 2, 1]
    np.testing.assert_allclose(curve.coverage, [1, 4 / 6, 0.5, 1 / 6])
    np.testing.assert_allclose(curve.precision, [0.5, 0.75, 2 / 3, 1])


def test_wilson_is_the_one_of_scipy():
    for right, rows in [(0, 1), (1, 1), (3, 4), (19, 20), (0, 500), (500, 500), (4321, 5000)]:
        exact = binomtest(right, rows).proportion_ci(0.95, "wilson")
        low, high = wilson_interval(right, rows)
        assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-12)


@given(labelled)
def test_every_point_counts_the_rows_at_or_above_it(rows):
    curve = curve_of(rows)
    score_N = np.array([score for score, _ in rows], np.float32)
    right_N = np.array([right for _, right in rows])
    assert curve.thresholds.tolist() == sorted(set(score_N.tolist()))
    for i, t in enumerate(curve.thresholds):
        assert curve.rows[i] == (score_N >= t).sum()
        assert curve.right[i] == right_N[score_N >= t].sum()


@given(anything)
def test_a_shown_threshold_answers_the_same_rows_however_it_is_compared(rows):
    curve = curve_of(rows)
    score_N = np.array([score for score, _ in rows], np.float32)
    for i, t in enumerate(curve.thresholds):
        shown = float(str(curve.point(i).threshold))
        kept = (score_N >= t).tolist()
        assert (score_N >= np.float32(shown)).tolist() == kept
        assert [float(score) >= shown for score in score_N] == kept
        assert t - 0.001001 <= shown <= t


def test_a_threshold_is_rounded_down_only_while_it_tells_the_same_rows_apart():
    curve = precision_coverage([0.41239, 0.41234568, 0.3], [True, True, False])
    assert [curve.point(i).threshold for i in range(3)] == [0.3, 0.412, 0.41238]
    far = precision_coverage([0.9199], [True])
    assert far.point(0).threshold == 0.919  # not 0.9: no row was seen between


@given(labelled, st.sampled_from([0.3, 0.5, 0.75, 0.9, 1.0]))
def test_the_choice_is_the_lowest_threshold_that_reaches_the_target(rows, target):
    curve = curve_of(rows)
    choice = choose_threshold(curve, target)
    ratios = [right / n for right, n in zip(curve.right.tolist(), curve.rows.tolist())]
    reached = [i for i, ratio in enumerate(ratios) if ratio >= target]
    if reached:
        assert choice.point == curve.point(reached[0])
        if choice.point.rows < FEWEST_ROWS:
            with pytest.raises(InputError, match="too few to know"):
                _ = choice.threshold
        else:
            assert choice.threshold == choice.point.threshold
    else:
        assert choice.point is None
        assert choice.best.precision == max(ratios)
    if choice.cautious:
        assert choice.cautious.low >= target
        assert choice.cautious.rows <= choice.point.rows
    assert len(choice.warnings) > 0  # fewer than 100 rows are never enough


def test_a_dip_above_the_choice_does_not_move_it():
    choice = choose_threshold(precision_coverage(SCORES, RIGHT), 0.75)
    assert (choice.point.rows, choice.point.right) == (4, 3)
    assert choice.point.threshold == 0.6


def test_a_target_that_equals_a_ratio_is_reached():
    for right in (7, 9, 19):
        rows = 20 if right == 19 else 10
        curve = precision_coverage([0.5] * rows, [True] * right + [False] * (rows - right))
        assert choose_threshold(curve, right / rows).point is not None


def test_an_unreachable_target_says_what_is_in_reach():
    choice = choose_threshold(precision_coverage([0.9, 0.9, 0.5, 0.25], [1, 0, 1, 0]), 0.95)
    assert choice.point is None
    with pytest.raises(
        InputError, match=r"95\.00 %.*best is 66\.67 % at threshold 0\.5,.*75\.00 %"
    ):
        _ = choice.threshold
    assert any("of the best one" in warning for warning in choice.warnings)


def test_no_warning_where_there_is_nothing_to_warn_of():
    rows = 5000
    score_N = np.linspace(0.1, 0.9, rows)
    right_N = np.arange(rows) >= 2000  # sure rows are right
    choice = choose_threshold(precision_coverage(score_N, right_N), 0.9)
    assert choice.point.rows == 3333  # 3000 right of 3333 is the last ratio of 0.9 or more
    assert len(choice.warnings) == 1  # the point estimate alone is never safe
    assert f"threshold {choice.cautious.threshold}" in choice.warnings[0]
    # A gap in the scores leaves the choice no way to graze the target.
    score_N = np.where(right_N, 0.8, 0.2)
    choice = choose_threshold(precision_coverage(score_N, right_N), 0.9)
    assert choice.warnings == ()
    assert choice.point == choice.cautious


def test_each_doubt_is_said():
    few = choose_threshold(precision_coverage([0.9] * 20 + [0.1] * 80, [1] * 20 + [0] * 80), 0.9)
    assert [("interval begins" in w, "Only 20 of 100" in w) for w in few.warnings] == [
        (True, False),
        (False, True),
    ]
    assert "none has its lower bound there" in few.warnings[0]
    every = choose_threshold(precision_coverage([0.4] * 200, [1] * 200), 0.9)
    assert every.warnings == (
        "Every labelled row is answered: the target is reached without a threshold.",
    )


@pytest.mark.parametrize("target", [0, -1, 1.01, 95, math.nan])
def test_targets_out_of_range_are_refused(target):
    with pytest.raises(InputError, match="above 0, at most 1"):
        choose_threshold(precision_coverage(SCORES, RIGHT), target)


def test_bad_rows_are_refused():
    with pytest.raises(InputError, match="there are none"):
        precision_coverage([], [])
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        precision_coverage([0.1, 0.2], [True])
    with pytest.raises(ValueError, match="finite"):
        precision_coverage([0.1, math.nan], [True, False])
    with pytest.raises(ValueError, match="neither true nor false"):
        precision_coverage([0.1, 0.2], [1, 0.5])


def test_the_table_has_steps_of_coverage_and_the_marked_points():
    rng = np.random.default_rng(3)
    score_N = rng.random(4000)
    curve = precision_coverage(score_N, rng.random(4000) < score_N)
    choice = choose_threshold(curve, 0.85)
    markdown = threshold.to_markdown(curve, choice)
    table = [line for line in markdown.splitlines() if line.startswith("|")][2:]
    assert 10 <= len(table) <= 12
    cells = [line.strip("| ").split(" | ") for line in table]
    assert cells[0][1:3] == ["100.00 %", "4,000"]
    assert [row[1] for row in cells if row[1].endswith("0.00 %")][-1] == "10.00 %"
    chosen = [line for line in table if line.endswith("| chosen |")]
    assert len(chosen) == 1
    assert f"| {choice.threshold} |" in chosen[0]
    assert sum("lower bound reaches" in line for line in table) == 1
    console = Console(width=120, record=True, file=io.StringIO())
    threshold.to_terminal(curve, choice, console)
    text = " ".join(console.export_text().split())
    assert choice.headline() in text
    assert f"Warning: {choice.warnings[0]}" in text
    assert str(choice.threshold) in text


def test_one_row_makes_a_table_too():
    curve = precision_coverage([0.25], [False])
    choice = choose_threshold(curve, 0.5)
    assert "| 0.25 | 100.00 % | 1 | 0.00 % | [0.00 %, 79.35 %] | best |" in threshold.to_markdown(
        curve, choice
    )
    threshold.to_terminal(curve, choice, Console(file=io.StringIO()))
