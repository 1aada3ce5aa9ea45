"""Figures of several labels a text, and thresholds that labelled rows ask for."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from sce.datasets.labelled import read_several
from sce.errors import DataError, InputError
from sce.evaluation.evaluate import EvaluationSet
from sce.evaluation.settings import EvaluateConfig
from sce.evaluation.several import as_options, choose_thresholds, figures, matrix_of
from sce.labels import LabelSet
from sce.workflows.evaluate_several import OF_THRESHOLDS, SHOWN, joined_in_pairs, several_table

NAMES = {"a": 0, "b": 1, "c": 2}


def rows(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Right labels [N, 3] and probabilities whose scale differs from label to label."""
    random = np.random.default_rng(seed)
    right_NK = random.random((count, 3)) < [0.5, 0.3, 0.1]
    p_NK = np.clip((right_NK * 0.3 + random.random((count, 3)) * 0.5) * [1, 0.6, 0.3], 0, 1)
    return right_NK, p_NK.astype(np.float32)


def test_thresholds_of_each_label_beat_one_for_all_on_other_rows():
    least_K = choose_thresholds(*rows())
    right_NK, p_NK = rows(seed=1)
    own = figures(right_NK, p_NK, least_K, list(NAMES))
    for one in np.linspace(0.05, 0.7, 20):
        assert figures(right_NK, p_NK, np.full(3, one), list(NAMES))["macro_f1"] < own["macro_f1"]
    assert least_K[0] > least_K[1] > least_K[2]


@pytest.mark.parametrize("target", [0.7, 0.9, 1.0])
def test_a_precision_is_reached_and_a_rate_is_met(target):
    right_NK, p_NK = rows()
    least_K = choose_thresholds(right_NK, p_NK, "precision", target)
    found_NK = p_NK >= least_K
    assert ((right_NK & found_NK).sum(0) >= target * found_NK.sum(0)).all()
    rate = choose_thresholds(right_NK, p_NK, "rate", target)
    assert (p_NK >= rate).mean(0) == pytest.approx(target, abs=0.01)


def test_figures_of_a_perfect_and_of_a_known_answer():
    right_NK = matrix_of([["a", "b"], ["c"], []], NAMES)
    perfect = figures(right_NK, right_NK.astype(float), np.full(3, 0.5), list(NAMES))
    assert perfect["micro_f1"] == perfect["exact_match"] == perfect["lrap"] == 1
    p_NK = np.array([[0.9, 0.2, 0.6], [0.1, 0.2, 0.8], [0.1, 0.1, 0.1]])
    found = figures(right_NK, p_NK, np.full(3, 0.5), list(NAMES))
    assert found["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["labels"]["c"] == {"precision": 0.5, "recall": 1.0, "rows": 1}
    assert found["coverage_error"] == 2.0


def test_what_thresholds_cannot_be_found_by():
    right_NK, p_NK = rows(50)
    with pytest.raises(InputError, match="target above 0"):
        choose_thresholds(right_NK, p_NK, "precision")
    with pytest.raises(InputError, match="none of these has a label"):
        choose_thresholds(np.zeros_like(right_NK), p_NK)
    assert as_options(["a"], np.array([0.5678], np.float32)) == {"a": 0.567}


def test_rows_with_lists_of_labels(tmp_path):
    file = tmp_path / "mine.jsonl"
    given = [{"text": "x", "labels": ["b", " a"]}, {"text": "y", "labels": []}]
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    assert read_several(file) == (["x", "y"], [["b", "a"], []], LabelSet.parse(["a", "b"]))
    (tmp_path / "mine.csv").write_text("text,labels\nx,b; a\ny,\n")
    assert read_several(tmp_path / "mine.csv")[1] == [["b", "a"], []]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "y"}, "mine.jsonl:2: 'labels' holds no list"),
        ({"text": " ", "labels": ["a"]}, "mine.jsonl:2: 'text' holds no text"),
        ({"text": "y", "labels": ["a", 3]}, "mine.jsonl:2: 'labels' holds no list"),
        ({"text": "y", "labels": ["q"]}, "'q'"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, said):
    file = tmp_path / "mine.jsonl"
    first = {"text": "x", "labels": ["a"]}
    file.write_text("".join(json.dumps(one) + "\n" for one in (first, row)))
    with pytest.raises(DataError, match=said):
        read_several(file, labels=LabelSet.parse(["a", "b"]))


def test_rows_joined_in_pairs_have_the_labels_of_both():
    texts, labels = [f"text {i}" for i in range(30)], [list(NAMES)[i % 3] for i in range(30)]
    one = EvaluationSet("s", "d", "unseen", LabelSet.parse(list(NAMES)), labels, texts, labels)
    joined = joined_in_pairs(one)
    of_text = dict(zip(texts, labels))
    for text, names in zip(joined.texts, joined.labels, strict=True):
        words = text.split()
        assert {of_text[f"text {words[1]}"], of_text[f"text {words[3]}"]} == set(names)


def test_labels_are_in_their_own_column_unless_another_is_named():
    assert EvaluateConfig(mode="multi").label_column == "labels"
    assert EvaluateConfig(mode="multi", label_column="label").label_column == "label"
    assert EvaluateConfig().label_column == "label"


def test_the_table_fits_a_terminal_of_80_characters():
    figures_of = dict.fromkeys(SHOWN, 1.0)
    default = dict.fromkeys(OF_THRESHOLDS, 0.5)
    one = {"name": "starter/complaint reason", "label_count": 12}
    one |= {"sce": figures_of, "cosine": figures_of}
    one |= {"sce_default": default, "cosine_default": default}
    said = io.StringIO()
    Console(file=said, width=80).print(several_table([one]))
    lines = said.getvalue().splitlines()
    heads = next(line for line in lines if "micro-F1" in line)
    for head in ("macro-F1", "exact", "LRAP", "cover", "default"):
        assert head in heads
    assert any("mode multi" in line and line.count("100.0") == 4 for line in lines)
    assert max(map(len, lines)) <= 80
