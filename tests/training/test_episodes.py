"""Episodes: the right label is always a candidate, nothing else may be right, and every choice
follows from (seed, epoch, row id)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sce.labels import Label, LabelSet
from sce.model.background import Background
from sce.model.encoder import SCEConfig, SCEModel
from sce.model.label_vectors import label_vectors
from sce.model.logistic import trained_logistic
from sce.training.data import Rows
from sce.training.episodes import EpisodeObjective, EpisodeSampler
from sce.training.settings import AugmentConfig

SETS = {
    "animals": LabelSet.parse(
        [
            {"name": f"animal {i}", "synonyms": [f"beast {i}", f"creature {i}"][: i % 3]}
            for i in range(9)
        ]
    ),
    "colours": LabelSet.parse([{"name": "red", "description": "like blood"}, "green", "blue"]),
    "one": LabelSet.parse(["only", "other"]),
}

ENCODER = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


ROWS = [
    (f"{name}-{label}-{i}", label, name)
    for name, label_set in SETS.items()
    for label in label_set.names
    for i in range(4)
    if label != "other"
]
ROW_IDS = [row_id for row_id, *_ in ROWS]


def text_vectors(texts):
    """A vector of its own for each text, the same every time."""
    rows = [np.random.default_rng(list(t.encode())).normal(size=64) for t in texts]
    return (np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def sampler(config=None, seed=0, order=None, version=0) -> EpisodeSampler:
    rows = [ROWS[i] for i in order] if order is not None else ROWS
    ids, labels, sets = (list(column) for column in zip(*rows))
    rows = Rows(ids, sets, labels, sets, text_vectors(ids))
    config = config or AugmentConfig()
    return EpisodeSampler(rows, SETS, text_vectors, None, config, seed, version)


def all_rows(s: EpisodeSampler) -> np.ndarray:
    return np.arange(len(s.keys_N))


@pytest.mark.parametrize("epoch", range(3))
def test_the_right_label_is_a_candidate_and_no_label_stands_twice(epoch):
    s = sampler(AugmentConfig(max_candidates=6, foreign_similarity_limit=2.0))
    labels_BK, right_BK = s._candidates(epoch, all_rows(s))
    assert (right_BK.sum(1) == 1).all()
    assert (labels_BK[right_BK] == s.row_labels_NP[:, 0]).all()
    for row in labels_BK:
        kept = row[row >= 0]
        assert len(set(kept)) == len(kept) <= 6
        assert (row[: len(kept)] >= 0).all(), "padding comes last"
    assert ((labels_BK >= 0).sum(1) >= 2).all()


def test_foreign_labels_come_from_other_sets_and_are_not_too_like_the_right_one():
    s = sampler(AugmentConfig(foreign_probability=1.0, foreign_similarity_limit=0.05))
    labels_BK, _ = s._candidates(0, all_rows(s))
    foreign_BK = (labels_BK >= 0) & (s.set_of_L[labels_BK] != s.row_set_N[:, None])
    assert foreign_BK.any(1).mean() > 0.5
    similar_BK = s._similarity_LL[s.row_labels_NP[:, :1], labels_BK]
    assert similar_BK[foreign_BK].max() < 0.05


def test_without_augmentation_the_candidates_are_the_label_set_by_name():
    """The paper's candidate sets (section 2.2): all labels of the row's dataset."""
    config = AugmentConfig(
        subset_probability=0, foreign_probability=0, example_probability=0, view_weights={"name": 1}
    )
    s = sampler(config)
    episodes = s.draw(0, all_rows(s))
    sizes = np.array([len(SETS[n]) for n in sorted(SETS)])
    np.testing.assert_array_equal(episodes.mask_BK.sum(1), sizes[s.row_set_N])
    assert episodes.example_rows_BKX is None
    names = [label.key for n in sorted(SETS) for label in SETS[n].labels]
    right = s.texts_MD[episodes.text_index_BK[all_rows(s), episodes.targets_B]]
    np.testing.assert_allclose(
        right, text_vectors([names[i] for i in s.row_labels_NP[:, 0]]), atol=1e-6
    )


def test_the_papers_synonyms_replace_the_right_label_alone():
    config = AugmentConfig(view_weights={"synonym": 1}, synonym_scope="right", max_candidates=9)
    s = sampler(config)
    rows = all_rows(s)
    replaced = 0
    for epoch in range(5):
        labels_BK, right_BK = s._candidates(epoch, rows)
        text_BK, _ = s._views(epoch, rows, labels_BK, right_BK)
        by_name_BK = s.names_LP[labels_BK.clip(min=0), 0]
        others = ~right_BK & (labels_BK >= 0)
        assert (text_BK == by_name_BK)[others].all()
        replaced += (text_BK != by_name_BK)[right_BK].sum()
    assert replaced > 0


def test_examples_carry_their_label_and_are_never_the_row_itself():
    s = sampler(AugmentConfig(example_probability=1.0))
    seen = 0
    for epoch in range(4):
        rows = all_rows(s)
        labels_BK, right_BK = s._candidates(epoch, rows)
        found = s._examples(epoch, rows, labels_BK, right_BK)
        for b, k, x in np.argwhere(found >= 0):
            assert s.row_labels_NP[found[b, k, x], 0] == labels_BK[b, k]
            assert found[b, k, x] != rows[b]
            seen += 1
        for examples_KX in found:
            for examples_X in examples_KX:
                kept = examples_X[examples_X >= 0]
                assert len(set(kept)) == len(kept)
    assert seen > 100


def test_an_episode_follows_from_seed_epoch_and_row_id():
    s = sampler()
    rows = all_rows(s)
    whole = s.draw(2, rows)
    for row in (0, 7, 30):
        alone = s.draw(2, np.array([row]))
        width = alone.mask_BK.sum()
        np.testing.assert_array_equal(
            whole.text_index_BK[row, :width], alone.text_index_BK[0, :width]
        )
        assert whole.targets_B[row] == alone.targets_B[0]
    other = s.draw(3, rows)
    assert other.mask_BK.shape != whole.mask_BK.shape or (other.targets_B != whole.targets_B).any()


def test_the_order_in_which_rows_were_read_does_not_matter():
    straight = sampler()
    order = np.random.default_rng(1).permutation(len(straight.keys_N))
    moved = sampler(order=order)
    a, b = straight.draw(1, order), moved.draw(1, np.arange(len(order)))
    np.testing.assert_array_equal(a.text_index_BK, b.text_index_BK)
    np.testing.assert_array_equal(a.targets_B, b.targets_B)


def test_gather_fetches_the_vectors_and_means_that_the_indices_name():
    s = sampler(AugmentConfig(example_probability=1.0))
    queries = torch.from_numpy(s.queries_ND)
    model = SCEModel(SCEConfig(encoder=ENCODER, embedding_dim=64))
    objective = EpisodeObjective(model, s, torch.device("cpu"))
    episodes = s.draw(0, all_rows(s)[:8])
    inputs = objective.gather(episodes)
    assert inputs["query_embeddings"].shape == (8, 64)
    for b in range(8):
        for k in range(episodes.mask_BK.shape[1]):
            rows = episodes.example_rows_BKX[b, k]
            rows = rows[rows >= 0]
            assert inputs["example_counts"][b, k] == len(rows)
            expected = queries[rows].mean(0) if len(rows) else torch.zeros(64)
            torch.testing.assert_close(inputs["example_embeddings"][b, k], expected)


VIEW_LABELS = {
    "name": lambda label: Label(label.name),
    "all": lambda label: label,
    "name_description": lambda label: replace(label, synonyms=()),
}


@pytest.mark.parametrize("view", VIEW_LABELS)
def test_a_label_is_shown_as_the_finished_model_will_read_it(view):
    """Also with examples, whose weight depends on what the view says of the label."""
    s = sampler(AugmentConfig(example_probability=1.0, view_weights={view: 1}), version=1)
    labels = [label for name in sorted(SETS) for label in SETS[name].labels]
    model = SCEModel(SCEConfig(encoder=ENCODER, embedding_dim=64, label_vectors=1))
    rows = all_rows(s)
    episodes = s.draw(0, rows)
    labels_BK, _ = s._candidates(0, rows)
    inputs = EpisodeObjective(model, s, torch.device("cpu")).gather(episodes)
    assert "example_embeddings" not in inputs
    with_examples = 0
    for b, k in np.argwhere(labels_BK >= 0):
        shown = VIEW_LABELS[view](labels[labels_BK[b, k]])
        found = episodes.example_rows_BKX[b, k]
        ids = [ROW_IDS[i] for i in found[found >= 0]]
        with_examples += bool(ids)
        expected = label_vectors(LabelSet((replace(shown, examples=tuple(ids)),)), text_vectors, 1)
        torch.testing.assert_close(inputs["label_embeddings"][b, k], torch.from_numpy(expected[0]))
    assert with_examples > 100


def test_a_synonym_is_shown_as_it_is():
    s = sampler(version=1)
    (i,) = s.names_LP[1, 1:2]  # "animal 1" has one synonym
    np.testing.assert_allclose(s.texts_MD[i], text_vectors(["beast 1"])[0], atol=1e-6)


MANY = [(f"many {i}", tuple(f"animal {k}" for k in range(i % 8)), "animals") for i in range(48)] + [
    (f"{i} of both", ("only", "other"), "one") for i in range(8)
]


def several_sampler(config=None, order=None, seed=0) -> EpisodeSampler:
    """Rows with none to seven right labels, and rows of a set all of whose labels are right."""
    rows = [*MANY, *ROWS]
    rows = rows if order is None else [rows[i] for i in order]
    ids, labels, sets = (list(column) for column in zip(*rows))
    rows = Rows(ids, sets, labels, sets, text_vectors(ids))
    return EpisodeSampler(rows, SETS, text_vectors, None, config or AugmentConfig(), seed, 1)


def test_episodes_hold_none_to_five_of_several_right_labels():
    s = several_sampler(AugmentConfig(max_candidates=8))
    seen: set[int] = set()
    rows = np.arange(len(MANY))
    for epoch in range(6):
        labels_BK, right_BK = s._candidates(epoch, rows)
        for b, row in enumerate(rows):
            kept = labels_BK[b][labels_BK[b] >= 0]
            assert len(set(kept)) == len(kept)
            assert 2 <= len(kept) <= 8
            assert set(labels_BK[b][right_BK[b]]) == set(kept) & set(s.row_labels_NP[row])
        seen |= set(right_BK.sum(1).tolist())
    assert seen == {0, 1, 2, 3, 4, 5}
    assert (s.draw(0, rows).targets_B == -1).all()
    assert (s.draw(0, np.arange(len(MANY), len(MANY) + 5)).targets_B >= 0).all()


def test_rows_of_one_label_are_drawn_the_same_beside_rows_of_several():
    alone, beside = sampler(version=1), several_sampler(AugmentConfig(example_probability=0))
    a = alone._candidates(3, all_rows(alone))[0]
    b = beside._candidates(3, np.arange(len(MANY), len(beside.keys_N)))[0]
    np.testing.assert_array_equal(a, b)


def test_several_right_labels_follow_from_seed_epoch_and_row_id():
    straight = several_sampler()
    order = np.random.default_rng(1).permutation(len(straight.keys_N))
    a, b = straight.draw(1, order), several_sampler(order=order).draw(1, np.arange(len(order)))
    np.testing.assert_array_equal(a.text_index_BK, b.text_index_BK)
    np.testing.assert_array_equal(a.right_BK, b.right_BK)
    np.testing.assert_array_equal(a.mask_BK, several_sampler(seed=0).draw(1, order).mask_BK)


def test_examples_of_several_right_labels_are_never_the_row_itself():
    s = several_sampler(AugmentConfig(example_probability=1.0))
    rows, seen = np.arange(len(MANY)), 0
    labels_BK, right_BK = s._candidates(0, rows)
    found = s._examples(0, rows, labels_BK, right_BK)
    for b, k, x in np.argwhere(found >= 0):
        assert labels_BK[b, k] in s.row_labels_NP[found[b, k, x]]
        assert found[b, k, x] != rows[b]
        seen += right_BK[b, k]
    assert seen > 20


def test_the_loss_of_several_is_that_of_the_answer():
    """What training lowers is the log loss of what mode multi answers, whatever the padding."""
    s = several_sampler(AugmentConfig(example_probability=0.5))
    several = (1.2, 0.4, -1.0, 0.7)
    config = SCEConfig(encoder=ENCODER, embedding_dim=64, label_vectors=1, several=several)
    torch.manual_seed(0)
    model = SCEModel(config).eval()
    objective = EpisodeObjective(model, s, torch.device("cpu"))
    rows = np.array([3, 7, 50, len(MANY) + 1])
    inputs = objective.gather(s.draw(0, rows))
    whole, expected = model(**inputs), []
    background = Background.of(s.queries_ND)
    for b, row in enumerate(rows):
        mask = inputs["label_mask"][b]
        one = inputs["query_embeddings"][b : b + 1], inputs["label_embeddings"][b, mask]
        logits = model(one[0], one[1]).logits
        if row >= len(MANY):
            target = inputs["targets"][b : b + 1]
            expected.append(torch.nn.functional.cross_entropy(logits, target).item())
            continue
        z = background.z_scores(one[0].numpy(), one[1].numpy())
        p = trained_logistic(several)(z, None, logits.detach().numpy())[0]
        right = inputs["right_labels"][b, mask].numpy()
        expected.append(-np.log(np.where(right, p, 1 - p)).mean())
    assert whole.loss.item() == pytest.approx(np.mean(expected), rel=1e-3)
    whole.loss.backward()
    assert model.several_weight.grad.abs().sum() > 0
    single = objective.gather(s.draw(0, rows[3:]))
    assert "right_labels" not in single
    model.zero_grad()
    model(**single).loss.backward()
    assert (model.several_weight.grad == 0).all(), "DDP waits for a gradient in every step"
