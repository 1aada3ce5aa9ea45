"""Which embedder is recommended, and what stands beside it."""

import numpy as np
import pyarrow as pa
import pytest

from sce.evaluation.embedder_choice import (
    MeasuredEmbedder,
    accuracy_table,
    cost_table,
    recommend,
    to_dict,
)
from sce.evaluation.evaluate import PREDICTIONS

ROWS, SCALE = 2000, 5


def measured(name, right, rate, name_only=None, **settings):
    """An embedder whose methods answer so many of 400 rows rightly, five times over."""
    tables, results = [], []
    for information, of_kind in (("name", name_only), ("all", right)):
        if of_kind is None:
            continue
        for method, count in of_kind.items():
            count *= SCALE
            columns = {
                "method": method,
                "set": "tickets",
                "dataset": "own",
                "group": "own",
                "information": information,
                "labels": 3,
                "row_id": [str(i) for i in range(ROWS)],
                "target": ["a"] * ROWS,
                "predicted": ["a"] * count + ["b"] * (ROWS - count),
                "probability": 0.5,
                "target_probability": 0.5,
            }
            columns = {
                key: value if isinstance(value, list) else pa.repeat(value, ROWS)
                for key, value in columns.items()
            }
            tables.append(pa.table(columns).cast(PREDICTIONS))
        group = "own" + " by name" * (information == "name")
        result = {"name": "tickets", "group": group, "information": information, "rows": ROWS}
        results.append(result | {m: {"accuracy": SCALE * c / ROWS} for m, c in of_kind.items()})
    parts = {"model": None, "dimension": 384, "max_tokens": 256, "parameters": 22_000_000}
    parts |= {"peak_memory_bytes": 10**9, "truncated": 0.125} | settings
    return MeasuredEmbedder(name, results, pa.concat_tables(tables), texts_per_second=rate, **parts)


def test_a_clear_gain_is_worth_its_time():
    small = measured("small", {"cosine": 200, "sce": 210, "adapted": 220}, 100)
    large = measured("large", {"cosine": 260, "adapted": 250}, 12.5)
    found = recommend([large, small])
    assert found.name == "large"
    assert "large (cosine) beside small (adapted): +10.0 points [+" in found.reason
    assert "on 2,000 rows" in found.reason
    assert "8.0 times the time (22.2 hours rather than 2.8 hours a million texts)" in found.reason


@pytest.mark.parametrize(
    ("right", "reason"),
    [(203, "less than 1.0 points"), (200, "no clear gain"), (150, "no clear gain")],
)
def test_the_faster_one_is_taken_without_a_gain(right, reason):
    small = measured("small", {"cosine": 200}, 100)
    found = recommend([small, measured("large", {"cosine": right}, 10)])
    assert found.name == "small"
    assert reason in found.reason


def test_a_third_one_is_compared_with_what_was_chosen_so_far():
    sizes = [("small", 200, 100), ("base", 260, 20), ("large", 262, 5)]
    found = recommend([measured(name, {"cosine": right}, rate) for name, right, rate in sizes])
    assert found.name == "base"
    assert "large (cosine) beside base (cosine)" in found.reason


def test_one_embedder_is_recommended_for_want_of_another():
    assert recommend([measured("small", {"cosine": 200}, 100)]).name == "small"


def test_rows_are_compared_row_by_row_whatever_their_order():
    small, large = (measured(name, {"cosine": 200}, 9) for name in ("small", "large"))
    order = np.random.default_rng(0).permutation(ROWS)
    turned = MeasuredEmbedder(**vars(large) | {"predictions": large.predictions.take(order)})
    assert small.right() == turned.right()
    assert "+0.0 points [+0.0, +0.0]" in recommend([small, turned]).reason


def test_the_tables_hold_what_was_measured():
    small = measured("small", {"cosine": 200, "adapted": 220}, 100, {"cosine": 100, "adapted": 180})
    large = measured(
        "large",
        {"cosine": 260, "sce": 270, "adapted": 250},
        0.5,
        {"cosine": 120, "sce": 90, "adapted": 80},
    )
    table = accuracy_table([small, large])
    assert table.columns == ["embedder", "cosine", "SCE", "adapted"]
    assert table.rows == [
        ["tickets, names alone"], ["small", "25.0", "–", "45.0"], ["large", "30.0", "22.5", "20.0"],
        ["tickets"], ["small", "50.0", "–", "55.0"], ["large", "65.0", "67.5", "62.5"],
        ["mean"], ["small", "37.5", "–", "50.0"], ["large", "47.5", "45.0", "41.2"],
    ]  # fmt: skip
    cost = {row[0]: row[1:] for row in cost_table([small, large]).rows}
    assert cost["texts a second"] == ["100.0", "0.5"]
    assert cost["a million texts"] == ["2.8 hours", "555.6 hours"]
    assert cost["rows cut there, %"] == ["12.5", "12.5"]
    kept = to_dict(large)
    assert (kept["best"], kept["hours_per_million_texts"]) == ("sce", pytest.approx(555.556))
