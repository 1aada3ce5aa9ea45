"""A trained model that is trained further: its folds, its old rows, and when it stops."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sce.labels import LabelSet
from sce.model.encoder import SCEConfig, SCEModel
from sce.training.continued import Continuation, best_epoch, scores_of_best
from sce.training.data import Rows
from sce.training.settings import AugmentConfig, TrainConfig
from tests.training.test_episodes import ENCODER, text_vectors

LABELS = LabelSet.parse(["left", "right", "straight on"])


def rows(count: int) -> Rows:
    """Texts that lie near the next label's name: there is something to learn."""
    labels = LABELS.names
    names = [labels[i % 3] for i in range(count)]
    near = text_vectors([labels[(i + 1) % 3] for i in range(count)])
    noise = np.random.default_rng(0).normal(size=near.shape, scale=0.04)
    vectors_ND = near + noise
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    ids, sets = [f"row-{i}" for i in range(count)], ["mine"] * count
    return Rows(ids, sets, names, sets, vectors_ND.astype(np.float32))


@pytest.fixture(scope="module")
def continuation() -> Continuation:
    torch.manual_seed(0)
    model = SCEModel(SCEConfig(encoder=ENCODER, embedding_dim=64, prior_scale=4.0)).eval()
    train = TrainConfig(epochs=4, batch_size=4, learning_rate=1e-2, decay="constant")
    augment = AugmentConfig(view_weights={"name": 1}, example_probability=0)
    return Continuation(model, LABELS, text_vectors, None, augment, train, 0.0, 0)


def test_rows_left_out_are_answered_by_models_that_did_not_see_them(continuation):
    new, fold_N = rows(24), np.arange(24) // 3 % 2
    before = {name: value.clone() for name, value in continuation.model.state_dict().items()}
    targets_N = np.array([LABELS.canonical().index(name) for name in new.labels])
    scores_ENK = continuation.by_folds(new, fold_N)
    assert scores_ENK.shape == (5, 24, 3)
    right_E = (scores_ENK.argmax(2) == targets_N).mean(1)
    assert right_E[0] < 0.2
    assert right_E[-1] > 0.8
    after = continuation.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    # The rows of a fold are no part of what its scores follow from but as texts.
    other = rows(24)
    wrong = [other.labels[(i + fold_N[i]) % 24] for i in range(24)]
    moved = Rows(other.ids, other.datasets, wrong, other.sets, other.vectors_ND)
    again_ENK = continuation.by_folds(moved, fold_N)
    assert np.array_equal(again_ENK[:, fold_N == 1], scores_ENK[:, fold_N == 1])
    assert not np.array_equal(again_ENK[:, fold_N == 0], scores_ENK[:, fold_N == 0])


def test_fewer_epochs_are_the_first_of_the_same_schedule(continuation):
    new, kept = rows(12), {}

    def keep(epoch, model):
        kept[epoch] = continuation.scores(model, new.vectors_ND, LABELS.canonical())

    continuation.run(new, 3, keep)
    two = continuation.run(new, 2)
    found_NK = continuation.scores(two, new.vectors_ND, LABELS.canonical())
    assert np.array_equal(found_NK, kept[2])
    assert sorted(kept) == [1, 2, 3]


def test_an_epoch_is_chosen_by_what_it_says_of_rows_left_out():
    even, first = np.zeros((8, 2)), np.array([[1.0, 0]] * 8)
    targets_N = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    assert best_epoch(np.stack([even, 20 * first]), targets_N) == 1, "a temperature mends that"
    assert best_epoch(np.stack([first, first[:, ::-1]]), targets_N) == 0
    assert best_epoch(np.stack([first, first]), targets_N) == 0, "the fewest of equal ones"


def test_no_row_chooses_the_model_that_answers_it():
    targets_N = np.array([0, 0, 1, 1])
    fold_N = np.array([0, 0, 1, 1])
    always_first = np.array([[3.0, 0]] * 4)
    scores_ENK = np.stack([np.zeros((4, 2)), always_first])
    found_NK = scores_of_best(scores_ENK, targets_N, fold_N)
    assert np.array_equal(found_NK[:2], scores_ENK[0, :2]), "chosen by rows that it gets wrong"
    assert np.array_equal(found_NK[2:], scores_ENK[1, 2:])


def test_the_tuned_weights_are_between_those_before_and_after(continuation):
    after = continuation.run(rows(12), 2).state_dict()
    half = replace(continuation, kept=0.5).run(rows(12), 2).state_dict()
    before = continuation.model.state_dict()
    for name, weight in half.items():
        torch.testing.assert_close(weight, (before[name] + after[name]) / 2)
