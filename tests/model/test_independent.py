"""Several labels a text: a probability of each label for itself, and which of them are answered."""

import numpy as np
import pytest
import torch

from sce.errors import InputError
from sce.labels import LabelSet, RaggedLabels
from sce.model.answers import Answers
from sce.model.background import Background
from sce.model.decisions import decide, predictions
from sce.model.encoder import SCEConfig, SCEModel
from sce.model.grouping import GroupScorer
from sce.model.independent import IndependentScorer
from sce.model.logistic import (
    OF_CORPUS,
    UNTRAINED,
    fill_answers,
    fit_logistic,
    logistic_of,
    trained_logistic,
)
from sce.model.options import AnswerOptions, Scoring, default_thresholds
from sce.model.scoring import Scorer

NAMES = ["weather", "sport", "money", "late delivery", "music"]
MULTI = Scoring(mode="multi")
WIDTH = 24


def text_vectors(texts):
    rows = [np.random.default_rng(sum(map(ord, text))).normal(size=WIDTH) for text in texts]
    return unit(np.array(rows))


def unit(x_ND: np.ndarray) -> np.ndarray:
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)


QUERIES = unit(np.random.default_rng(3).normal(size=(50, WIDTH)))


class PooledModel:
    """What the scorer asks of a model: how what is known of labels becomes one vector."""

    class config:  # noqa: N801
        label_vectors = 1
        several = ()

    class query_adaptor:  # noqa: N801
        weight = np.zeros(1)

    def __init__(self) -> None:
        self.query_adaptor.weight = torch.zeros(1)

    def pool_labels(self, text_KD, examples_KD, counts_K):
        return text_KD


@pytest.fixture
def scorer() -> IndependentScorer:
    corpus = np.random.default_rng(4).normal(size=(300, WIDTH)) + 0.3
    return IndependentScorer(PooledModel(), Background.of(unit(corpus)), None)


def probabilities(scorer, labels, scoring=MULTI, queries=QUERIES) -> Answers:
    answers = Answers.empty(labels.counts_by_row(len(queries)), scoring)
    scorer.fill(answers, queries, labels, scoring, text_vectors)
    return answers


def test_every_order_of_the_labels_and_every_batch_gives_the_same_bits(scorer):
    whole = probabilities(scorer, LabelSet.parse(NAMES)).scores_M.reshape(-1, 5)
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        labels = LabelSet.parse([NAMES[i] for i in order])
        found = probabilities(scorer, labels)
        assert (found.scores_M.reshape(-1, 5) == whole[:, order]).all()
    alone = probabilities(scorer, LabelSet.parse(NAMES), queries=QUERIES[7:8])
    assert (alone.scores_M == whole[7]).all()
    own = RaggedLabels.from_sets([NAMES if i % 2 else NAMES[:2] for i in range(50)])
    by_row = probabilities(scorer, own)
    assert (by_row.scores_M[by_row.offsets[1] : by_row.offsets[2]] == whole[1]).all()


def test_with_contrast_labels_no_other_label_matters(scorer):
    scoring = AnswerOptions(mode="multi", contrast_labels=["news", "anything else"]).scoring
    assert scoring == AnswerOptions(mode="multi", contrast_labels=["anything else", "news"]).scoring
    few = probabilities(scorer, LabelSet.parse(NAMES[:2]), scoring).scores_M.reshape(-1, 2)
    many = probabilities(scorer, LabelSet.parse(NAMES), scoring).scores_M.reshape(-1, 5)
    assert (few == many[:, :2]).all()
    without = probabilities(scorer, LabelSet.parse(NAMES)).scores_M.reshape(-1, 5)
    assert not (without == many).any()


def test_several_labels_may_be_likely_at_once_or_none(scorer):
    p_K = OF_CORPUS(np.array([[6.0, 5.8, -1.0, 0.0, 0.5]]))[0]
    assert (p_K[:2] > 0.5).all()
    assert (p_K[2:] < 0.1).all()
    assert (OF_CORPUS(np.zeros((1, 5)))[0] < 0.2).all()


def answered(scores_NK: list[list[float]], names=NAMES, **options) -> list:
    p_NK = np.array(scores_NK, np.float32)
    answers = Answers.empty(np.full(len(p_NK), p_NK.shape[1]), MULTI)
    order_K = np.array(LabelSet.parse(names).canonical_order)
    fill_answers(answers, np.arange(len(p_NK)), p_NK[:, order_K], order_K)
    asked = AnswerOptions(mode="multi", **options)
    return predictions(answers, [names] * len(p_NK), asked, [False] * len(p_NK))


BEST_FIRST = ["weather", "money", "sport", "late delivery", "music"]
LEAST_FIRST = ["music", "weather", "sport", "late delivery", "money"]
SCORES = [[0.9, 0.6, 0.6, 0.15, 0.1], [0.12, 0.08, 0.04, 0.04, 0.15]]


def test_labels_over_their_thresholds_best_first_and_equal_ones_by_name():
    first, second = answered(SCORES)
    assert [name for name, _ in first.labels] == ["weather", "money", "sport"]
    assert (first.label, first.score) == ("weather", pytest.approx(0.9))
    assert (second.label, second.labels, second.score) == (None, [], pytest.approx(0.15))
    assert first.scores is None


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"threshold": 0.12}, [BEST_FIRST[:4], ["music", "weather"]]),
        ({"threshold": {"weather": 0.95, "music": 0.14}}, [["money", "sport"], ["music"]]),
        ({"at_most": 1}, [["weather"], []]),
        ({"at_least": 2}, [["weather", "money", "sport"], ["music", "weather"]]),
        ({"at_least": 1, "at_most": 1, "threshold": 1.0}, [["weather"], ["music"]]),
        ({"at_least": 9, "at_most": 9, "threshold": 1.0}, [BEST_FIRST, LEAST_FIRST]),
    ],
)  # fmt: skip
def test_thresholds_and_counts(options, wanted):
    found = [[name for name, _ in one.labels] for one in answered(SCORES, **options)]
    assert found == wanted


def test_a_threshold_for_one_label_in_single_mode():
    answers = Answers.empty(np.array([2, 2]), Scoring())
    answers.top_NT[:, 0], answers.top_scores_NT[:, 0] = [0, 1], 0.6
    asked = AnswerOptions(threshold={"b": 0.7})
    assert decide(answers, asked, ["a", "b"]).label_N.tolist() == [0, -1]
    assert decide(answers, asked, ["a", "b", "b", "a"]).label_N.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "several"}, "mode: 'several'"),
        ({"threshold": {"a": 1.5}}, "threshold of 'a': 1.5"),
        ({"threshold": {"a": None}}, "threshold of 'a'"),
        ({"at_least": 1}, "at_least: it goes with mode 'multi'"),
        ({"mode": "multi", "at_most": 0}, "at_most: 0"),
        ({"mode": "multi", "at_least": 3, "at_most": 2}, "at_least: 3, which is more"),
        ({"mode": "multi", "contrast_labels": "news"}, "contrast_labels: a list"),
        ({"mode": "multi", "contrast_labels": ["news", " "]}, r"contrast_labels\[1\]"),
    ],
)
def test_what_cannot_be_had_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        AnswerOptions(**options)


def test_a_threshold_for_a_label_that_is_not_there():
    options = AnswerOptions(threshold={"sport ": 0.5, "chess": 0.5})
    with pytest.raises(InputError, match="threshold: 'chess' is not one of the 5 labels"):
        options.check_labels([NAMES])


def test_a_model_without_a_background_answers_and_says_what_that_rests_on(scorer):
    none = Background.isotropic(scorer._background.mean_D.size)
    bare = IndependentScorer(scorer._model, none, None)
    assert "no background of its own" in bare.logistic.rests_on
    assert "training texts" in logistic_of(Background.of(np.eye(8, dtype=np.float32))).rests_on
    assert scorer.logistic.rests_on != bare.logistic.rests_on


ENCODER = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def trained(several=(1.1, 0.5, -2.0, 0.8)) -> IndependentScorer:
    """Of a model that was trained on rows with several right labels."""
    torch.manual_seed(0)
    config = SCEConfig(encoder=ENCODER, embedding_dim=WIDTH, label_vectors=1, several=several)
    model = SCEModel(config).eval()
    groups = GroupScorer(Scorer(model), None, 2, 2)  # a shortlist, which has no place here
    corpus = np.random.default_rng(4).normal(size=(300, WIDTH)) + 0.3
    return IndependentScorer(model, Background.of(unit(corpus)), groups)


def test_a_model_trained_on_several_labels_asks_its_encoder_in_every_order():
    names = ["refund", "late delivery", "praise", "billing", "login"]
    scorer = trained()
    found = probabilities(scorer, LabelSet.parse(names)).scores_M.reshape(-1, 5)
    without = probabilities(trained((1.1, 0.5, -2.0, 0.0)), LabelSet.parse(names))
    assert np.abs(found - without.scores_M.reshape(-1, 5)).max() > 1e-3
    order = [3, 0, 4, 2, 1]
    moved = probabilities(scorer, LabelSet.parse([names[i] for i in order]))
    np.testing.assert_array_equal(moved.scores_M.reshape(-1, 5), found[:, order])
    ragged = RaggedLabels.from_sets([names] * len(QUERIES))
    each = probabilities(scorer, ragged).scores_M.reshape(-1, 5)
    np.testing.assert_allclose(each, found, atol=1e-5)


def test_contrast_labels_leave_the_encoder_out():
    scoring = Scoring(mode="multi", contrast=("anything else",))
    labels = LabelSet.parse(["refund", "praise"])
    asked = probabilities(trained(), labels, scoring).scores_M
    alone = probabilities(trained(), LabelSet.parse(["refund", "login"]), scoring).scores_M
    np.testing.assert_array_equal(asked[::2], alone[::2])


def test_coefficients_are_found_again_in_rows_drawn_by_them():
    rng = np.random.default_rng(0)
    z_RK, s_RK = rng.normal(size=(4000, 6)) * 2, rng.normal(size=(4000, 6)) * 2
    wanted = (1.2, 0.6, -1.5, 0.9)
    right_RK = rng.random(z_RK.shape) < trained_logistic(wanted)(z_RK, None, s_RK)
    found = fit_logistic([(z_RK, s_RK, right_RK)], UNTRAINED)
    np.testing.assert_allclose(found, wanted, atol=0.1)
    assert fit_logistic([(z_RK[:3], s_RK[:3], right_RK[:3])], UNTRAINED) == list(UNTRAINED)


def test_the_default_threshold_goes_by_the_number_of_labels():
    found = default_thresholds(np.array([2, 4, 11, 26, 200]))
    np.testing.assert_allclose(found, [2 / 28, 4 / 30, 11 / 37, 0.5, 0.5], rtol=1e-6)
    options = AnswerOptions(mode="multi", threshold={"b": 0.9})
    np.testing.assert_allclose(options.thresholds_of(["a", "b"]), [2 / 28, 0.9], rtol=1e-6)
    contrast = AnswerOptions(mode="multi", contrast_labels=["x", "y", "z"])
    np.testing.assert_allclose(contrast.thresholds_of(["a"]), [4 / 30], rtol=1e-6)
    assert AnswerOptions().thresholds_of(["a"]) is None


def test_an_output_says_by_which_default_threshold_it_was_begun():
    for threshold in (None, {"b": 0.9}):
        found = AnswerOptions(mode="multi", threshold=threshold).newer()
        assert found["default_threshold"] == "K / (K + 26), at most 0.5"
    assert "default_threshold" not in AnswerOptions(mode="multi", threshold=0.5).newer()
    assert AnswerOptions().newer() == {}
    none = AnswerOptions(mode="multi", threshold=0.5, none_of_these=True).newer()
    assert none["none_score_of"] == "the largest probability"
    assert "none_score_of" not in AnswerOptions(none_of_these=True).newer()


def test_a_row_of_its_own_set_has_the_threshold_of_its_own_number(scorer):
    """Whichever other rows stand beside it."""
    own = RaggedLabels.from_sets([NAMES if i % 2 else NAMES[:2] for i in range(50)])
    options = AnswerOptions(mode="multi")
    names = [name for one in own.names_by_row(50) for name in one]
    found = decide(probabilities(scorer, own), options, names, [])
    for count, first in ((5, 1), (2, 0)):
        labels = LabelSet.parse(NAMES[:count])
        alone = decide(probabilities(scorer, labels), options, labels.names, [])
        for row in range(first, 50, 2):
            here = slice(*found.lists.offsets[row : row + 2])
            there = slice(*alone.lists.offsets[row : row + 2])
            np.testing.assert_array_equal(found.lists.labels_S[here], alone.lists.labels_S[there])
