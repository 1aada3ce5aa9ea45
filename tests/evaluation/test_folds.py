"""Two folds, and examples of one for the other: a fit sees no label that it is asked for."""

import numpy as np
import pytest

from sce.evaluation.folds import draw_examples, share_out

TEXTS = [f"text number {i}" for i in range(40)]
LABELS = ["a", "b", "b", "b"] * 10


def test_each_label_is_halved():
    folds_N = share_out(TEXTS, LABELS, 0)
    for label, size in (("a", 10), ("b", 30)):
        members = [fold for fold, name in zip(folds_N, LABELS) if name == label]
        assert sum(members) == size / 2
    odd = {int(share_out(TEXTS[:3], ["a"] * 3, seed).sum()) for seed in range(20)}
    assert odd == {1, 2}


def test_the_order_of_rows_does_not_matter_and_the_seed_does():
    order = np.random.default_rng(0).permutation(len(TEXTS))
    texts, labels = [TEXTS[i] for i in order], [LABELS[i] for i in order]
    folds_N = share_out(TEXTS, LABELS, 3)
    assert share_out(texts, labels, 3).tolist() == folds_N[order].tolist()
    assert share_out(TEXTS, LABELS, 4).tolist() != folds_N.tolist()
    drawn, _ = draw_examples(TEXTS, LABELS, folds_N, 0, 2, 3)
    moved, _ = draw_examples(texts, labels, folds_N[order], 0, 2, 3)
    assert sorted(order[moved]) == drawn.tolist()


@pytest.mark.parametrize("fold", [0, 1])
def test_examples_are_of_the_other_fold_and_the_few_are_among_the_many(fold):
    folds_N = share_out(TEXTS, LABELS, 0)
    before: set[int] = set()
    for n in (1, 4):
        places, short = draw_examples(TEXTS, LABELS, folds_N, fold, n, 0)
        assert short == 0
        assert set(folds_N[places]) == {1 - fold}
        assert sorted(LABELS[i] for i in places) == ["a"] * n + ["b"] * n
        assert before <= set(places.tolist())
        before = set(places.tolist())


def test_copies_of_a_text_stand_on_one_side_whatever_their_labels():
    texts = ["Same!", "same", "other", "one more", "SAME", "and another"]
    labels = ["a", "a", "a", "b", "b", "b"]
    for seed in range(20):
        folds_N = share_out(texts, labels, seed)
        assert len(set(folds_N[[0, 1, 4]])) == 1
        for fold in (0, 1):
            places, _ = draw_examples(texts, labels, folds_N, fold, 6, seed)
            assert not {0, 1} <= set(places.tolist()), "a copy is no second example"


def test_a_label_with_too_few_rows_gives_what_it_has():
    texts, labels = TEXTS[:7], ["a"] * 6 + ["b"]
    folds_N = share_out(texts, labels, 0)
    home = int(folds_N[6])
    places, short = draw_examples(texts, labels, folds_N, 1 - home, 3, 0)
    assert [labels[i] for i in places].count("b") == 1
    assert short == 1
    places, short = draw_examples(texts, labels, folds_N, home, 3, 0)
    assert "b" not in [labels[i] for i in places], "its only row is the one to be answered"
    assert short == 1
    places, short = draw_examples(["x"], ["a"], np.zeros(1, int), 0, 3, 0)
    assert (len(places), short) == (0, 1)
