"""Several labels a text: the probability of each label for itself.

A label's cosine to a text is held against that label's cosines to texts in general, z (see
`sce.model.background`), and against the other labels, and goes through a logistic function:

    p_k = sigmoid(a z_k - b log mean_j exp z_j + c)

where j runs over the labels of the row's set or, where contrast labels are stated, over those and
label k itself; p_k then does not depend on which others are asked for. The p_k of a row add up to
anything.

A model that was trained on rows with several right labels adds what its encoder's scores s say,

    + d (s_k - log mean_j exp s_j)

with coefficients of its own, fitted on its validation rows. Others do not ask the encoder: measured
by hand on 111,840 pairs of a text and a label (60 texts of each training set of the starter corpus:
none to five of a set's texts joined, or one of another domain; folds by label set), log loss and
average precision are 0.407 and 0.505 with a cosine alone, 0.406 and 0.512 with z alone, 0.403 and
0.514 with the encoder's score beside it; with the mean over the set 0.391 and 0.559, with the
encoder's log softmax in its place 0.389 and 0.563: too little for what it costs, against one
product a block.

No torch. Tensor names carry their shape: R rows, K labels of a row, C contrast labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sce.model.answers import Answers
from sce.model.background import Background


@dataclass(frozen=True)
class Logistic:
    """p = sigmoid(a z - b log mean exp z + c + d (s - log mean exp s)).

    Attributes:
        rests_on: what the probabilities rest on, in words.
    """

    a: float
    b: float
    c: float
    rests_on: str
    d: float = 0.0

    def __call__(
        self,
        z_RK: np.ndarray,
        contrast_RC: np.ndarray | None = None,
        scores_RK: np.ndarray | None = None,
    ) -> np.ndarray:
        """Probabilities float32 [R, K] of z-scores [R, K], in canonical order.

        Args:
            contrast_RC: z-scores of the contrast labels, where there are any.
            scores_RK: of the encoder, where it is asked.
        """
        from scipy.special import expit  # a third of a second

        return expit(self.logits(z_RK, contrast_RC, scores_RK)).astype(np.float32)

    def logits(
        self,
        z_RK: np.ndarray,
        contrast_RC: np.ndarray | None = None,
        scores_RK: np.ndarray | None = None,
    ) -> np.ndarray:
        """The same before the sigmoid, float64."""
        from scipy.special import logsumexp

        if contrast_RC is None:
            level = log_mean_exp(z_RK)
        else:
            others = logsumexp(contrast_RC, axis=1, keepdims=True)
            level = np.logaddexp(others, z_RK) - np.log(contrast_RC.shape[1] + 1)
        logit_RK = self.a * z_RK - self.b * level + self.c
        if scores_RK is not None:
            s_RK = scores_RK.astype(np.float64)
            logit_RK = logit_RK + self.d * (s_RK - log_mean_exp(s_RK))
        return logit_RK


OF_CORPUS = Logistic(
    1.0766,
    0.5118,
    -2.1087,
    "each label's similarity against that to the model's training texts, fitted on joined texts "
    "of the starter corpus",
)
OF_NO_CORPUS = Logistic(
    0.6887,
    0.2999,
    -2.4811,
    "each label's cosine, fitted on joined texts of the starter corpus with the shipped embedder: "
    "this model has no background of its own (train it again), so treat them as a ranking",
)
"""Both fitted by hand on the texts that the module names, a random part of the labels of every
second one; on held-out label sets the calibration error is 0.006."""


OF_OWN_CORPUS = (
    "each label's score against its scores over the corpus that the labels were fitted to, by what "
    "was fitted on joined texts of the starter corpus"
)


OF_TRAINING = (
    "the encoder and each label's similarity against that to the model's training texts, fitted on "
    "validation rows with several right labels"
)
UNTRAINED = (OF_CORPUS.a, OF_CORPUS.b, OF_CORPUS.c, 0.5)
"""(a, b, c, d) where a training on several labels begins."""
MIN_PAIRS = 20
"""Of a text and a label, right ones and wrong ones, that coefficients are fitted on."""


def logistic_of(background: Background) -> Logistic:
    """The one that was fitted for such a background."""
    return OF_CORPUS if background.measured else OF_NO_CORPUS


NONE_BIAS, NONE_SLOPE = -1.159, 1.123
NONE_FITTED_SHARE = 0.29
"""See `none_scores`: of rows that none fits, among those that these were fitted on."""


def none_scores(p_RK: np.ndarray) -> np.ndarray:
    """Probability that no label is right, float32 [R], of each label's own in any order:

        sigmoid(-1.159 - 1.123 logit max_k p_k)

    Fitted and measured by hand on joined texts of the starter corpus's training sets, 12,231 rows
    of which three to seven tenths of the labels were left, so that none fits 29 %, in five folds by
    label set: area under the ROC curve, mean over the sets, 0.742; calibration error 0.016, log
    loss 0.522. The product of the complements, as if one label said nothing of another, reads
    0.723, 0.017 and 0.521; the score of one right label (`sce.model.rejection`) 0.745, 0.092 and
    0.563. Of labels that were fitted to such texts neither is calibrated, which is why these have
    no such score.
    """
    from scipy.special import expit, logit

    most_R = np.clip(p_RK.max(axis=1).astype(np.float64), 1e-7, 1 - 1e-7)
    return expit(NONE_BIAS - NONE_SLOPE * logit(most_R)).astype(np.float32)


def trained_logistic(several: Sequence[float]) -> Logistic:
    """Of a model that was trained on rows with several right labels, by its (a, b, c, d)."""
    a, b, c, d = several
    return Logistic(a, b, c, OF_TRAINING, d)


def log_mean_exp(values_RK: np.ndarray) -> np.ndarray:
    """log mean_j exp v_j of each row, [R, 1]."""
    from scipy.special import logsumexp

    level_R1: np.ndarray = logsumexp(values_RK, axis=1, keepdims=True)
    return level_R1 - np.log(values_RK.shape[1])


def fit_logistic(
    rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], otherwise: Sequence[float]
) -> list[float]:
    """(a, b, c, d) by the likelihood of rows whose right labels are known.

    Args:
        rows: of each label set z-scores, encoder's scores and which labels are right, [R, K] all.
        otherwise: where there are too few of them.
    """
    from sklearn.linear_model import LogisticRegression

    parts = [
        (
            z.ravel(),
            np.broadcast_to(-log_mean_exp(z), z.shape).ravel(),
            (s - log_mean_exp(s)).ravel(),
        )
        for z, s, _ in rows
    ]
    right = np.concatenate([r.ravel() for _, _, r in rows]) if rows else np.zeros(0, bool)
    if min(right.sum(), (~right).sum()) < MIN_PAIRS:
        return list(otherwise)
    x_M3 = np.concatenate([np.stack(part, axis=1) for part in parts])
    found = LogisticRegression(C=1e4, max_iter=1000).fit(x_M3, right)
    a, b, d = (float(one) for one in found.coef_[0])
    return [a, b, float(found.intercept_[0]), d]


def fill_answers(
    answers: Answers, rows_R: np.ndarray, p_RK: np.ndarray, user_places: np.ndarray
) -> None:
    """Write probabilities, in canonical order, the best labels and, where it is asked for, the
    probability of none, of some rows into `answers`; equal labels come in canonical order.

    Args:
        user_places: for each canonical place the place in the user's order, [K] or [R, K].
    """
    assert answers.scores_M is not None
    user_RK = np.broadcast_to(user_places, p_RK.shape)
    answers.scores_M[answers.offsets[rows_R][:, None] + user_RK] = p_RK
    width = min(answers.top_NT.shape[1], p_RK.shape[1])
    if width == 1:
        best_RT = p_RK.argmax(1)[:, None]
    else:
        best_RT = np.argsort(-p_RK, axis=1, kind="stable")[:, :width]
    answers.top_NT[rows_R, :width] = np.take_along_axis(user_RK, best_RT, 1)
    answers.top_scores_NT[rows_R, :width] = np.take_along_axis(p_RK, best_RT, 1)
    if answers.none_N is not None:
        answers.none_N[rows_R] = none_scores(p_RK)
