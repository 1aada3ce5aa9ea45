"""What labelled rows say before a job begins."""

import pyarrow as pa
import pytest

from sce.distributed import trial


def test_the_cut_for_a_coverage_and_how_many_labels_it_leaves(monkeypatch):
    rows = [{"a": 0.6, "b": 0.3, "c": 0.1}] * 8 + [{"a": 0.2, "b": 0.7, "c": 0.1}] * 12
    scores = pa.array([list(one.items()) for one in rows], pa.map_(pa.string(), pa.float32()))
    monkeypatch.setattr(trial, "_answered", lambda *_: pa.table({"scores": scores}))
    names = ["b"] * 8 + ["b"] * 12  # right at 0.3 in eight rows, at 0.7 in twelve
    cut, left = trial.find_cut(None, [""] * 20, names, 0.9, None)
    assert cut == pytest.approx(0.3)
    assert left == pytest.approx((8 * 2 + 12 * 1) / 20)
