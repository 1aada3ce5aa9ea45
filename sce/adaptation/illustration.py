"""What a fit looks like on a sample of the corpus: typical texts, texts that moved, places in a
plane, and the rows whose labelling would teach most.

Rows are put in order of their ids first, so that the same sample gives the same illustration in any
order. Labels stand in canonical order, as in the fit's report.

Shapes: S rows of the sample, C of them that may be asked about, K labels in canonical order, D
dimensions of the embedder, 2 of the plane.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline

from sce.errors import InputError
from sce.model.linear_labels import LinearLabels
from sce.model.products import exact_products, round_weights, vector_integers

MAX_SAMPLE_ROWS = 5000
"""Time and memory grow with the square of the rows (a distance for each two)."""
SHOWN_TEXTS = 5
QUESTIONS = 20
RANDOM_QUESTIONS = 30
SURE_ROWS = 5
"""A label with fewer sure rows than this, of a probability of at least one half, is asked about."""
_PAIR_QUESTIONS = 3
_NEIGHBOURS = 10
_ALIKE = 0.9
"""Two texts with a larger cosine teach the same: one question for both."""
_SHRINKAGE = 0.9
"""Of the plane's covariance: the geometry that the mixture fits in."""
_COMPONENTS = 50
"""Principal components in which the plane is sought."""


class Example(NamedTuple):
    """A row and the probability of its answer. `text` is None where the corpus has no texts."""

    id: str
    text: str | None
    probability: float


class Moved(NamedTuple):
    """A row that the labels' own vectors answered with `from_label`."""

    id: str
    text: str | None
    from_label: str
    probability: float


class Question(NamedTuple):
    """A row to be labelled by hand: its answer, and the label that it might have instead."""

    id: str
    text: str | None
    answer: str
    second: str


@dataclass(frozen=True, eq=False)
class Illustration:
    """Texts and places of a fit.

    Attributes:
        names: the labels, in canonical order.
        typical: of each label that answers a row, up to five rows, the most typical first.
        moved: of each label that rows moved to, up to five of them.
        points_S2: the sample in the plane that shows the answers furthest apart.
        answers_S: each row's answer, a place in `names`.
        old_places_K2: the labels' own vectors in that plane.
        new_places_K2: the mean of the rows that a label answers, each counted by its probability;
            NaN where it answers none.
        to_label: up to 20 rows, the one that would teach most first.
        at_random: up to 30 others, so that what is measured on the labelled rows is fair.
    """

    names: list[str]
    typical: dict[str, list[Example]]
    moved: dict[str, list[Moved]]
    points_S2: np.ndarray
    answers_S: np.ndarray
    old_places_K2: np.ndarray
    new_places_K2: np.ndarray
    to_label: list[Question]
    at_random: list[Question]

    def __len__(self) -> int:
        """Rows of the sample."""
        return len(self.answers_S)


class _Sample(NamedTuple):
    ids: list[str]
    texts: list[str | None]
    vectors_SD: np.ndarray
    old_SK: np.ndarray
    p_SK: np.ndarray


def illustrate(
    labels: LinearLabels,
    ids: Sequence[str],
    texts: Sequence[str | None] | None,
    vectors_SD: np.ndarray,
    own_vectors_KD: np.ndarray,
    labelled_texts: Collection[str] = (),
) -> Illustration:
    """Show what a fit does to a sample of its corpus.

    Args:
        labels: the fitted labels.
        ids: of the sample's rows; at most 5,000, and none is right too.
        texts: of the same rows; None where the corpus has none.
        vectors_SD: their unit vectors, float32.
        own_vectors_KD: the labels' own unit vectors, in the user's order, as `labels` has them.
        labelled_texts: texts that have their label already, of which nobody is asked again.

    Raises:
        InputError: these are not as many ids as texts as vectors, or too many.
    """
    rows, shown = len(ids), [None] * len(ids) if texts is None else list(texts)
    if not rows == len(shown) == len(vectors_SD) or rows > MAX_SAMPLE_ROWS:
        raise InputError(
            f"illustrate: {rows} ids, {len(shown)} texts, {len(vectors_SD)} vectors; as many of "
            f"each, at most {MAX_SAMPLE_ROWS:,}."
        )
    order_K = labels.label_set.canonical_order
    names = [labels.names[k] for k in order_K]
    own_KD = np.asarray(own_vectors_KD, np.float64)[order_K]
    if not rows:
        nowhere_K2 = np.full((len(names), 2), np.nan)
        empty_S2, empty_S = np.empty((0, 2)), np.empty(0, np.int64)
        return Illustration(names, {}, {}, empty_S2, empty_S, nowhere_K2, nowhere_K2, [], [])
    order_S = sorted(range(rows), key=lambda i: (ids[i], shown[i] or ""))
    x_SD = np.asarray(vectors_SD, np.float32)[order_S]
    sample = _Sample(
        [ids[i] for i in order_S],
        [shown[i] for i in order_S],
        x_SD,
        exact_products(vector_integers(x_SD), round_weights(own_KD)),
        labels.probabilities(x_SD)[:, order_K],
    )
    answers_S = sample.p_SK.argmax(1)
    means_KD = _means(sample)
    typical, moved = _examples(sample, names, means_KD)
    points_S2, old_K2, new_K2 = _plane(x_SD, answers_S, own_KD, means_KD)
    questions = _questions(sample, names, {_key(text) for text in labelled_texts})
    return Illustration(names, typical, moved, points_S2, answers_S, old_K2, new_K2, *questions)


def _means(sample: _Sample) -> np.ndarray:
    """The mean of the rows that each label answers, by their probability; NaN without a row."""
    is_answer_SK = sample.p_SK.argmax(1)[:, None] == np.arange(sample.p_SK.shape[1])
    weight_SK = np.where(is_answer_SK, sample.p_SK, 0.0)
    mass_K = weight_SK.sum(0)
    mass_K[mass_K == 0] = np.nan
    return (weight_SK.T @ sample.vectors_SD) / mass_K[:, None]


def _examples(
    sample: _Sample, names: Sequence[str], means_KD: np.ndarray
) -> tuple[dict[str, list[Example]], dict[str, list[Moved]]]:
    """Rows near the middle of their label and sure of it come first, each text once."""
    answers_S, before_S = sample.p_SK.argmax(1), sample.old_SK.argmax(1)
    typical: dict[str, list[Example]] = {}
    moved: dict[str, list[Moved]] = {}
    for k, name in enumerate(names):
        rows = np.flatnonzero(answers_S == k)
        if not len(rows):
            continue
        fit = sample.p_SK[rows, k] * (sample.vectors_SD[rows] @ means_KD[k])
        ranked = rows[np.argsort(-fit, kind="stable")]
        for i in _distinct(sample.texts, ranked):
            row = sample.ids[i], sample.texts[i], float(sample.p_SK[i, k])
            typical.setdefault(name, []).append(Example(*row))
        for i in _distinct(sample.texts, ranked[before_S[ranked] != k]):
            row = sample.ids[i], sample.texts[i], float(sample.p_SK[i, k])
            moved.setdefault(name, []).append(Moved(*row[:2], names[before_S[i]], row[2]))
    return typical, moved


def _distinct(texts: Sequence[str | None], ranked: np.ndarray) -> list[int]:
    """The first rows whose texts differ."""
    found: dict[str | int, int] = {}
    for i in ranked.tolist():
        text = texts[i]
        found.setdefault(i if text is None else _key(text), i)
        if len(found) == SHOWN_TEXTS:
            break
    return list(found.values())


def _key(text: str) -> str:
    """Texts that differ in white space or capitals alone are one."""
    return " ".join(text.split()).casefold()


def _plane(
    x_SD: np.ndarray, answers_S: np.ndarray, own_KD: np.ndarray, means_KD: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, labels' own vectors and labels' means in the plane of linear discriminants; in that of
    the principal components where there are fewer than three answers to tell apart."""
    x_SD, own_KD = x_SD.astype(np.float64), own_KD.astype(np.float64)
    sizes_K = np.bincount(answers_S, minlength=len(own_KD))
    rows = sizes_K[answers_S] > 1
    if (sizes_K > 1).sum() > 2:
        few = min(_COMPONENTS, *x_SD.shape)
        found = make_pipeline(
            PCA(few, svd_solver="full" if len(x_SD) < x_SD.shape[1] else "covariance_eigh"),
            LinearDiscriminantAnalysis("eigen", shrinkage=_SHRINKAGE, n_components=2),
        ).fit(x_SD[rows], answers_S[rows])
    else:
        found = PCA(2, svd_solver="full").fit(np.concatenate([x_SD, own_KD]))
    points_S2 = found.transform(x_SD)
    middle_2 = points_S2.mean(0)
    # A solver may mirror an axis: the row that is furthest out stands on the right, or on top.
    furthest_12 = np.abs(points_S2 - middle_2).argmax(0)[None]
    signs_2 = np.where(np.take_along_axis(points_S2, furthest_12, 0)[0] < middle_2, -1.0, 1.0)
    new_K2 = np.full((len(own_KD), 2), np.nan)
    new_K2[sizes_K > 0] = found.transform(means_KD[sizes_K > 0])
    old_K2 = found.transform(own_KD)
    return tuple((places - middle_2) * signs_2 for places in (points_S2, old_K2, new_K2))


def _questions(
    sample: _Sample, names: Sequence[str], known: Collection[str]
) -> tuple[list[Question], list[Question]]:
    """The rows to ask about, and others drawn at random.

    Of the first, up to half are for labels with few sure rows: the row nearest to the label's own
    vector. The rest are doubtful rows, by the gap between the two best labels and by how many rows
    are like them, a few of each pair of labels.
    """
    count = len(names)
    if count < 2:
        return [], []
    rows = np.array(_one_a_text(sample.texts, known), np.int64)
    x_CD, p_CK = sample.vectors_SD[rows], sample.p_SK[rows]
    best_C2 = np.argsort(-p_CK, axis=1, kind="stable")[:, :2]
    top_C2 = np.take_along_axis(p_CK, best_C2, 1)
    chosen: dict[int, Question] = {}

    def ask(c: int, second: int) -> None:
        i, answer = rows[c], best_C2[c, 0]
        second = best_C2[c, 1] if second == answer else second
        chosen[c] = Question(sample.ids[i], sample.texts[i], names[answer], names[second])

    def is_new(c: int) -> bool:
        return c not in chosen and not (x_CD[list(chosen)] @ x_CD[c] > _ALIKE).any()

    sure_K = np.bincount(best_C2[top_C2[:, 0] >= 0.5, 0], minlength=count)
    few = [k for k in np.argsort(sure_K, kind="stable") if sure_K[k] < SURE_ROWS]
    for k in few[: QUESTIONS // 2]:
        nearest = np.argsort(-sample.old_SK[rows, k], kind="stable")
        if (found := next(filter(is_new, nearest.tolist()), None)) is not None:
            ask(found, k)
    worth_C = (1 - (top_C2[:, 0] - top_C2[:, 1])) * _crowding(x_CD)
    ranked = np.argsort(-worth_C, kind="stable").tolist()
    pairs = Counter(tuple(sorted((q.answer, q.second))) for q in chosen.values())
    a_pair = max(_PAIR_QUESTIONS, -(-QUESTIONS * 2 // (count * (count - 1))))
    for limit in (a_pair, QUESTIONS):
        for c in ranked:
            pair = tuple(sorted(names[k] for k in best_C2[c]))
            if len(chosen) < QUESTIONS and pairs[pair] < limit and is_new(c):
                ask(c, best_C2[c, 1])
                pairs[pair] += 1
    drawn = [c for c in np.random.default_rng(0).permutation(len(rows)).tolist() if c not in chosen]
    teaching = list(chosen.values())
    for c in drawn[:RANDOM_QUESTIONS]:
        ask(c, best_C2[c, 1])
    return teaching, list(chosen.values())[len(teaching) :]


def _one_a_text(texts: Sequence[str | None], known: Collection[str]) -> list[int]:
    """The first row of each text that is not known."""
    found: dict[str | int, int] = {}
    for i, text in enumerate(texts):
        key = i if text is None else _key(text)
        if key not in known:
            found.setdefault(key, i)
    return list(found.values())


def _crowding(x_CD: np.ndarray) -> np.ndarray:
    """The mean cosine of each row with the rows nearest to it, 0 to 1: how many are like it."""
    near = min(_NEIGHBOURS, len(x_CD) - 1)
    if near < 1:
        return np.ones(len(x_CD))
    found_C = np.empty(len(x_CD))
    for start in range(0, len(x_CD), 1000):
        block = slice(start, start + 1000)
        cosines_BC = x_CD[block] @ x_CD.T
        # The nearest of all is the row itself.
        nearest_BN = np.partition(cosines_BC, -near - 1, axis=1)[:, -near - 1 :]
        found_C[block] = (nearest_BN.sum(1) - nearest_BN.max(1)) / near
    return found_C.clip(0.0)
