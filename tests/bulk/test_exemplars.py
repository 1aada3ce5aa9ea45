"""Rows of a corpus as reasons: the surest of a label, the nearest first, never the row itself."""

import numpy as np
import pyarrow as pa
import pytest

from sce.bulk.exemplars import MOST_A_LABEL, Exemplars
from sce.embedding.store import embedding_column
from sce.model.answers import Example


def unit(angles) -> np.ndarray:
    radians = np.deg2rad(np.asarray(angles, np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def made(labels, scores, texts, angles) -> Exemplars:
    ids = [f"t{i}" for i in range(len(labels))]
    block = pa.table({"id": ids, "embedding": embedding_column(unit(angles))})
    answered = pa.table({"label": pa.array(labels, pa.string()), "score": scores})
    return Exemplars.of(block, pa.chunked_array([texts]), answered)


def test_the_surest_rows_of_a_label_are_kept_a_text_once():
    found = made(
        ["a", "b", "a", None, "a", "a"],
        [0.2, 0.9, 0.8, 0.99, 0.7, 0.6],
        ["one", "two", "three", "four", "three", None],
        [0, 10, 20, 30, 40, 50],
    )
    of_a = found.places["a"].tolist()
    assert [found.texts[x] for x in of_a] == ["three", "one"]
    assert [found.ids[x] for x in of_a] == ["t2", "t0"]
    np.testing.assert_array_equal(found.vectors_XD[of_a], unit([20, 0]))
    rows = MOST_A_LABEL + 9
    many = made(["a"] * rows, np.linspace(0, 1, rows), [str(i) for i in range(rows)], range(rows))
    assert many.texts == [str(i) for i in reversed(range(9, rows))]


def test_the_nearest_stand_beside_the_labels_own_examples():
    found = made(["a"] * 4 + ["b"], [0.9] * 5, list("vwxyz"), [0, 5, 10, 30, 1])
    own = (Example("own", "a", 0.99),)
    asked = [own, (), (), ()], ["a", "a", None, "b"], ["t0", "else", "t9", "t4"], unit([0, 0, 0, 0])
    first, second, without, alone = found.beside(*asked)
    assert [(one.text, one.row) for one in first] == [("w", "t1"), ("own", None), ("x", "t2")]
    assert [one.row for one in second] == ["t0", "t1", "t2"]
    assert second[1].similarity == pytest.approx(np.cos(np.deg2rad(5)), abs=1e-4)
    assert (without, alone) == ((), ()), "no label, and no exemplar but the row itself"
