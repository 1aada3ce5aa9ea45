"""Readings of long texts side by side."""

import numpy as np
import pytest

from sce.evaluation.folds import share_out
from sce.evaluation.long_texts import compare_readings, to_records, to_table
from sce.labels import LabelSet
from sce.model.answers import Answers
from sce.model.options import POOLINGS
from sce.model.pooling import ChunkVectors, answer_chunks

LABELS = LabelSet.parse(["a", "b"])


def answer(vectors, labels, scoring) -> Answers:
    """By the two numbers of a vector, squared."""
    if isinstance(vectors, ChunkVectors):
        return answer_chunks(answer, vectors, labels, scoring)
    answers = Answers.empty(labels.counts_by_row(len(vectors)), scoring)
    p_N2 = np.square(vectors)
    answers.top_NT[:, 0] = p_N2.argmax(1)
    answers.top_scores_NT[:, 0] = p_N2.max(1)
    answers.scores_M[:] = p_N2.reshape(-1)
    return answers


def test_what_the_beginning_does_not_say_is_found_in_the_chunks():
    """Every text begins with a weak "a"; those of "b" go on with a strong "b"."""
    names = ["a", "b"] * 20
    texts = [f"text {i}" for i in range(40)]
    weak, strong = np.sqrt([[0.6, 0.4], [0.05, 0.95]]).astype(np.float32)
    firsts = np.tile(weak, (40, 1))
    rest = np.array([weak if name == "a" else strong for name in names])
    both = np.stack([firsts, rest], axis=1).reshape(-1, 2)
    spans = np.tile([[0, 5], [5, 9]], (40, 1))
    chunks = ChunkVectors(both, np.full(40, 2), spans)
    readings = {"first": firsts, "chunks": chunks}
    found = compare_readings(readings, {"sce": answer}, texts, names, LABELS)
    assert [one.reading for one in found] == ["first", *(f"chunks, {how}" for how in POOLINGS)]
    assert [one.accuracy for one in found] == [0.5, 1, 1, 1, 1]
    assert found[0].chosen == 0.5
    assert [one.vectors for one in found] == [1, 2, 2, 2, 2]
    other = share_out(texts, names, 0) == 1
    right = np.where(np.array(names)[other] == "a", 0.6, 0.4)
    assert found[0].nll == pytest.approx(-np.log(right).mean(), abs=1e-6)
    assert set(to_records(found)[0]) >= {"method", "reading", "accuracy", "nll", "ece"}
    assert "| chunks, vector" in to_table(found, "Readings").to_markdown()
