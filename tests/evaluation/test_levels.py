"""Figures of a tree, by hand and against sets of ancestors."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sce.evaluation.levels import (
    Hierarchical,
    accuracy_by_level,
    figures_by_level,
    hierarchical,
    node_probabilities,
)

RIGHT = [("billing", "refund"), ("billing", "invoice"), ("delivery", "late", "days"), ("praise",)]
ANSWERED = [("billing", "refund"), ("billing",), ("delivery", "lost"), ()]


def test_precision_and_recall_count_the_nodes_on_the_paths():
    found = hierarchical(ANSWERED, RIGHT)
    # Right nodes: 2 + 1 + 1 + 0, of 5 that were answered and 8 that there are.
    assert (found.precision, found.recall) == (4 / 5, 4 / 8)
    assert found.f1 == pytest.approx(2 * 0.8 * 0.5 / 1.3)


def test_a_name_under_another_parent_is_another_node():
    assert hierarchical([("a", "other")], [("b", "other")]) == Hierarchical(0.0, 0.0)
    assert hierarchical([("a", "other")], [("b", "other")]).f1 == 0.0


def test_no_answer_at_all_has_no_precision():
    found = hierarchical([(), ()], [("a",), ("b",)])
    assert (math.isnan(found.precision), found.recall, math.isnan(found.f1)) == (True, 0.0, True)


paths = st.lists(st.sampled_from("xyz"), min_size=0, max_size=4).map(tuple)


@given(st.lists(st.tuples(paths, paths.filter(len)), min_size=1, max_size=8))
def test_it_is_what_sets_of_ancestors_say(rows):
    def above(path):
        return {path[: i + 1] for i in range(len(path))}

    answered, right = zip(*rows)
    both = sum(len(above(a) & above(b)) for a, b in rows)
    said, there = sum(map(len, answered)), sum(map(len, right))
    found = hierarchical(answered, right)
    assert found.recall == both / there
    assert found.precision == both / said if said else math.isnan(found.precision)
    levels = accuracy_by_level(answered, right)
    assert sum(level.accuracy * level.rows for level in levels) == pytest.approx(both)


def test_each_level_counts_the_rows_that_go_as_deep():
    one, two, three = accuracy_by_level(ANSWERED, RIGHT)
    assert (one.rows, one.answered, one.accuracy, one.precision) == (4, 3 / 4, 3 / 4, 1.0)
    assert (two.rows, two.answered, two.accuracy, two.precision) == (3, 2 / 3, 1 / 3, 1 / 2)
    assert (three.rows, three.answered, three.accuracy) == (1, 0.0, 0.0)
    assert math.isnan(three.precision)


LEAVES = [("a", "x"), ("a", "y"), ("b",), ("a", "z")]
P = np.array([[0.2, 0.25, 0.4, 0.15], [0.1, 0.1, 0.7, 0.1]])


def test_a_node_has_the_probability_of_its_leaves():
    p_NV, nodes, place_K = node_probabilities(P, LEAVES, 1)
    assert nodes == [("a",), ("b",)]
    assert place_K.tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(p_NV, [[0.6, 0.4], [0.3, 0.7]])


def test_the_best_node_may_not_be_above_the_best_leaf():
    top, leaves = figures_by_level(P, LEAVES, [0, 2])
    # Row 0: the best leaf is b, and a is the better node.
    assert (top["nodes"], top["accuracy"], top["accuracy_of_best_leaf"]) == (2, 1.0, 0.5)
    assert top["nll"] == pytest.approx(-(math.log(0.6) + math.log(0.7)) / 2)
    assert (leaves["level"], leaves["nodes"], leaves["accuracy"]) == (2, 4, 0.5)


@pytest.mark.parametrize(
    ("answered", "right", "said"),
    [([("a",)], [], "1 answers for 0 rows"), ([()], [()], "a right path is empty")],
)
def test_rows_that_cannot_be_measured_are_refused(answered, right, said):
    for measure in (hierarchical, accuracy_by_level):
        with pytest.raises(ValueError, match=said):
            measure(answered, right)
