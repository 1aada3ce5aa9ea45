"""None of these, sets of labels and reasons: equal in every order, alone or among other rows."""

from dataclasses import replace

import numpy as np
import pytest

from sce.errors import InputError
from sce.labels import RaggedLabels
from sce.model.decisions import predictions
from sce.model.logistic import none_scores
from sce.model.options import AnswerOptions, Scoring
from sce.model.pooling import ChunkVectors, pool
from sce.model.rejection import (
    Rejection,
    at_share,
    fit_rejection,
    learn_rejection,
    share_for_mean,
)
from sce.model.settings import EXACT
from sce.predictor import Predictor
from tests.tiny_bulk import build_models, load_predictor, text

LABELS = [
    {"name": "sport", "examples": ["the team won", "a goal in extra time", "the cup", "a match"]},
    {"name": "markets", "examples": ["rates rose"]},
    "stars",
]
TEXTS = [text(i) for i in range(12)]
EVIDENCE = {"none_of_these": True, "coverage_cut": 0.2, "explain": True}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return load_predictor(build_models(tmp_path_factory.mktemp("model"), "sce"))


def test_every_order_gives_the_same_to_the_bit(predictor):
    vectors = predictor.embedder.embed(TEXTS).vectors
    straight = predictor.predict(vectors, LABELS, **EVIDENCE)
    assert predictor.predict(vectors, LABELS[::-1], **EVIDENCE) == straight


def test_none_score_depends_on_no_other_row_and_on_no_grouping(predictor):
    vectors = predictor.embedder.embed(TEXTS).vectors
    together = [one.none_score for one in predictor.predict(vectors, LABELS, none_of_these=True)]
    alone = [predictor.predict(v[None], LABELS, none_of_these=True)[0] for v in vectors]
    assert [one.none_score for one in alone] == together
    sets = RaggedLabels.from_sets([LABELS, ["stars", "other"]] * 6)
    mixed = predictor.predict(vectors, sets, none_of_these=True)
    assert [one.none_score for one in mixed][::2] == together[::2]


def test_none_score_of_sets_a_row_is_that_of_each_set(predictor):
    vectors = predictor.embedder.embed(TEXTS).vectors
    sets = [["stars", "sport"], ["markets", "stars"], ["a", "b"], ["stars", "sport", "b"]] * 3
    asked = RaggedLabels.from_sets(sets)
    found = predictor.predict(vectors, asked, none_of_these=True)
    for x_D, names, one in zip(vectors, sets, found):
        (alone,) = predictor.predict(x_D[None], names, none_of_these=True)
        assert one.none_score == alone.none_score


def test_none_score_of_a_large_tree_is_that_of_its_leaves(predictor):
    """The shortlist of a tree goes by vectors that are longer than 1."""
    leaves = {f"node {i}": [f"leaf {i} {j}" for j in range(6)] for i in range(40)}
    vectors = predictor.embedder.embed(TEXTS).vectors
    exact = Predictor(predictor.model, predictor.embedder, shortlist_above=EXACT)
    for one, other in zip(
        predictor.predict(vectors, leaves, none_of_these=True),
        exact.predict(vectors, leaves, none_of_these=True),
        strict=True,
    ):
        assert one.none_score == other.none_score


def test_a_row_above_the_threshold_has_no_label_and_keeps_its_score(predictor):
    plain = predictor.predict(TEXTS, LABELS)
    none = sorted(one.none_score for one in predictor.predict(TEXTS, LABELS, none_of_these=True))
    asked = {"none_of_these": True, "none_threshold": none[6]}
    for one, before in zip(predictor.predict(TEXTS, LABELS, **asked), plain):
        assert (one.label is None) == (one.none_score > np.float32(none[6]))
        assert one.score == pytest.approx(before.score, abs=1e-6)


def test_none_is_answered_where_it_is_likelier_than_the_best_label(predictor):
    vectors = predictor.embedder.embed(TEXTS).vectors
    for share in (0.1, 0.5, 0.9999):
        asked = {"none_of_these": True} | ({} if share == 0.1 else {"none_share": share})
        for one in predictor.predict(vectors, LABELS, **asked):
            assert (one.label is None) == (one.none_score > (1 - one.none_score) * one.score)
    none = [one.label is None for one in predictor.predict(vectors, LABELS, **asked)]
    assert any(none)
    plain = predictor.predict(vectors, LABELS, **asked, none_threshold=1.0)
    assert all(one.label is not None for one in plain)


def test_another_share_multiplies_the_odds_and_keeps_the_order():
    fitted = np.array([0.0, 0.2, 0.5, 0.9, 1.0], np.float32)
    found = at_share(fitted, 0.1)
    np.testing.assert_allclose(found[1:4], [0.25 / 9.25, 1 / 10, 9 / 18], rtol=1e-5)
    assert (np.diff(found) > 0).all()
    assert at_share(fitted, 0.5) is fitted
    share = share_for_mean(fitted[1:4], 0.06)
    assert at_share(fitted[1:4], share).mean() == pytest.approx(0.06, abs=1e-5)


def test_the_set_holds_the_best_label_and_all_over_the_cut(predictor):
    asked = {"return_scores": True, "coverage_cut": 0.34}
    for one in predictor.predict(TEXTS, LABELS, **asked):
        over = {name for name, p in one.scores.items() if p >= np.float32(0.34)}
        assert {name for name, _ in one.labels} == over | {one.label}
        assert one.labels[0] == (one.label, one.score)
    assert predictor.predict(TEXTS, LABELS, coverage_cut=0.34)[0].scores is None


def test_none_of_several_labels_falls_as_the_likeliest_of_them_rises(predictor):
    vectors = predictor.embedder.embed(TEXTS).vectors
    asked = {"mode": "multi", "none_of_these": True, "return_scores": True, "threshold": 0.0}
    found = predictor.predict(vectors, LABELS, **asked)
    by_best = sorted(found, key=lambda one: one.score)
    none = [one.none_score for one in by_best]
    assert none == sorted(none, reverse=True)
    for one in found:
        best = max(one.scores.values())
        even = np.exp(-1.159) * ((1 - best) / best) ** 1.123
        even *= (0.1 / 0.9) / (0.29 / 0.71)  # of the share that it was fitted on
        assert one.none_score == pytest.approx(even / (1 + even), rel=1e-4)
    for other in (LABELS[::-1], RaggedLabels.from_sets([LABELS] * len(TEXTS))):
        again = predictor.predict(vectors, other, **asked)
        assert [one.none_score for one in again] == [one.none_score for one in found]
    limit = sorted(one.none_score for one in found)[6]
    for one in predictor.predict(vectors, LABELS, **asked, none_threshold=limit):
        assert (one.label is None, one.labels == []) == (one.none_score > limit,) * 2
        assert one.label is None or len(one.labels) == 3
    with pytest.raises(InputError, match="at_least forbids that"):
        AnswerOptions(mode="multi", none_of_these=True, at_least=1)


@pytest.mark.parametrize("mode", ["single", "multi"])
@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_none_score_of_chunks_is_pooled_as_their_probabilities(predictor, mode, pooling):
    counts = np.array([1, 3, 2])
    vectors = predictor.embedder.embed(TEXTS[: counts.sum()]).vectors
    chunks = ChunkVectors(vectors, counts, np.zeros((len(vectors), 2), np.int64))
    asked = Scoring(mode=mode, none_of_these=True, return_scores=True)
    found = predictor.answer(chunks, LABELS, replace(asked, pooling=pooling))
    apart = predictor.answer(vectors, LABELS, asked)
    if mode == "single":
        fits_N = pool(1 - apart.none_N[:, None], counts, pooling, add_up=False)[:, 0]
        np.testing.assert_allclose(found.none_N, 1 - fits_N, atol=1e-6)
        lowest_N = np.minimum.reduceat(apart.none_N, [0, 1, 4])
        assert pooling != "max" or found.none_N == pytest.approx(lowest_N, abs=1e-6)
    else:
        np.testing.assert_array_equal(found.none_N, none_scores(found.scores_M.reshape(3, -1)))
    assert found.none_N[0] == pytest.approx(apart.none_N[0], abs=1e-6)
    turned = predictor.answer(chunks, LABELS[::-1], replace(asked, pooling=pooling))
    np.testing.assert_array_equal(turned.none_N, found.none_N)


def test_why_names_the_nearest_examples_and_the_next_best_label(predictor):
    for asked, one in zip(TEXTS, predictor.predict(TEXTS, LABELS, explain=True, top_k=1)):
        known = {"sport": LABELS[0]["examples"], "markets": ["rates rose"]}.get(one.label, [])
        both = predictor.embedder.embed([asked, *known]).vectors
        cosines = sorted(map(float, both[1:] @ both[0]), reverse=True)[:3]
        assert [e.similarity for e in one.why.nearest] == pytest.approx(cosines, abs=1e-3)
        assert {e.text for e in one.why.nearest} <= set(known)
        assert one.why.competitor[0] not in (one.label, None)
        assert len(one.top) == 1
    assert predictor.predict(TEXTS[:1], ["only"], explain=True)[0].why.competitor is None


def test_the_probability_is_that_of_the_rows_it_was_fitted_on():
    rng = np.random.default_rng(1)
    nearest, counts = rng.uniform(0, 0.8, 20_000), rng.integers(2, 50, 20_000)
    made = Rejection(1.0, 8.0, 0.5)
    none = rng.random(20_000) < made.scores(nearest, counts)
    found = fit_rejection(nearest, counts, none)
    np.testing.assert_allclose(
        found.scores(nearest, counts), made.scores(nearest, counts), atol=0.04
    )
    with pytest.raises(InputError, match="5 of each"):
        fit_rejection(nearest[:3], counts[:3], none[:3])


def test_texts_of_the_labels_taken_away_are_the_likelier_ones():
    rng = np.random.default_rng(2)
    labels = np.linalg.qr(rng.normal(size=(32, 32)))[0][:6].astype(np.float32)
    targets = rng.integers(0, 6, 400)
    texts = labels[targets] + 0.15 * rng.normal(size=(400, 32)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    found = learn_rejection([(texts, labels, targets)])
    assert found.scores(np.array([0.1]), np.array([6])) > 0.9
    assert found.scores(np.array([0.9]), np.array([6])) < 0.1


def test_what_does_not_go_together_is_refused(predictor):
    with pytest.raises(InputError, match="goes with none_of_these"):
        AnswerOptions(none_threshold=0.3)
    with pytest.raises(InputError, match="none_share: it goes with none_of_these"):
        AnswerOptions(none_share=0.3)
    for wrong in (0.0, 1.0, True, float("nan")):
        with pytest.raises(InputError, match="a share between 0 and 1"):
            AnswerOptions(none_of_these=True, none_share=wrong)
    with pytest.raises(InputError, match="from 0 to 1"):
        AnswerOptions(coverage_cut=2.0)
    with pytest.raises(InputError, match="pooling 'vector'"):
        AnswerOptions(long_text="chunk", pooling="max", explain=True)
    answers = predictor.answer(
        np.zeros((0, 32), np.float32), LABELS, AnswerOptions(**EVIDENCE).scoring
    )
    assert predictions(answers, [], AnswerOptions(**EVIDENCE), []) == []
