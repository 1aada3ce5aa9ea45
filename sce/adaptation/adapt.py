"""Adapted labels from a corpus: the fit's steps put together, and what its report says of it.

Shapes: N rows of the corpus, S rows of a sample, K labels in canonical order, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version as version_of
from typing import Any

import numpy as np

from sce.adaptation.artefact import AdaptedLabels
from sce.adaptation.choice import Chosen, calibrate, choose
from sce.adaptation.fit import OWN_SCALE, Fitter, Start, grain
from sce.adaptation.mixture import POSTERIOR_BITS, Scores, Sums, start_scores
from sce.adaptation.passes import WHOLE, AddUp, Block, LastPass, Totals, in_memory
from sce.adaptation.settings import FITS, MIN_CHOICE_ROWS, AdaptSettings
from sce.config import VERSION
from sce.errors import DataError
from sce.labels import LabelSet
from sce.model.label_vectors import LABEL_VECTORS, TextVectors
from sce.model.products import VECTOR_BITS, exact_cosines
from sce.model.rejection import STAND_IN, Rejection

MIN_VARIANCE = 1e-6
"""Of a label's scores over a corpus, in which all texts may be alike."""
ABSENT = 0.2
"""A label whose share of the sharp posterior is below this part of an even share seems to have no
text in the corpus."""
CALIBRATION_ROWS = 5000


def adapt(
    vectors_ND: np.ndarray,
    label_set: LabelSet,
    text_vectors: TextVectors,
    embedder: Mapping[str, Any],
    *,
    version: int = LABEL_VECTORS,
    labelled: tuple[np.ndarray, Sequence[Any]] | None = None,
    shares: Mapping[str, float] | None = None,
    settings: AdaptSettings | None = None,
) -> AdaptedLabels:
    """Fit labels to a corpus that lies in memory.

    Args:
        vectors_ND: unit vectors of the corpus, float32.
        text_vectors: of the labels' texts, by the same embedder.
        embedder: its fingerprint.
        version: of the labels' vectors (`sce.model.label_vectors`).
        labelled: vectors of labelled rows, and their labels by name or by place in `label_set`.
        shares: of the classes, by name.

    Raises:
        DataError: fewer texts than labels, one label, vectors that are not finite.
    """
    settings = settings or AdaptSettings()
    bad = np.flatnonzero(~np.isfinite(vectors_ND).all(1))
    if len(bad):
        raise DataError(f"vectors[{bad[0]}]: holds NaN or infinity ({len(bad)} such rows).")
    if labelled is not None:
        names = [n if isinstance(n, str) else label_set.names[int(n)] for n in labelled[1]]
        labelled = labelled[0], names
    start = Start.of(label_set, text_vectors, version, labelled, shares, settings.labelled_weight)
    fitter = Fitter.of(start, settings)
    blocks = Block.split(vectors_ND)
    add_up = in_memory(blocks)
    fitter.run(add_up)
    hash_N = np.concatenate([block.hash_B for block in blocks] or [np.zeros(0, np.uint64)])
    sample_S = np.argsort(hash_N, kind="stable")[:CALIBRATION_ROWS]
    corpus = {"source": None, "rows": len(vectors_ND), "fitted_rows": len(vectors_ND)}
    return finish(fitter, add_up, vectors_ND[sample_S], label_set, embedder, version, corpus)


def finish(
    fitter: Fitter,
    add_up: AddUp,
    sample_SD: np.ndarray,
    label_set: LabelSet,
    embedder: Mapping[str, Any],
    version: int,
    corpus: Mapping[str, Any],
    model: Mapping[str, Any] | None = None,
    labels_file: Mapping[str, str] | None = None,
    rejection: Rejection = STAND_IN,
) -> AdaptedLabels:
    """The artefact of a fit whose rounds are done.

    Args:
        sample_SD: vectors of some rows of the corpus, to calibrate on.
        label_set: as the user wrote it; the fit's own is in canonical order.
        corpus: its source, rows and fitted_rows.
        model: whose labels' vectors they are; None without one.
        labels_file: see `AdaptedLabels`.
        rejection: of the model; its level is moved to the sample's.
    """
    chosen = choose(fitter)
    own_KD = fitter.start.own_vectors()
    own = start_scores(own_KD, OWN_SCALE)
    last = add_up(LastPass(own, chosen.scores), "the last pass")
    agreement = float(last["agreed"].sum() / last["flows"].sum())
    calibration = calibrate(fitter, chosen, sample_SD, agreement)
    scores = chosen.scores[WHOLE]
    settings = fitter.settings.model_dump(mode="json")
    mixture = {} if chosen.trust == "none" else vars(fitter.mixture(chosen.trust))
    facts = {
        "model": model,
        "label_vectors": version,
        "corpus": dict(corpus),
        "settings": settings | {"mixture": mixture},
        "versions": {"sce": VERSION} | {name: version_of(name) for name in ("numpy", "scipy")},
        "report": _report(fitter, chosen, last, agreement, calibration, corpus),
    }
    order_K = np.argsort(label_set.canonical_order)
    own_KD = own_KD.astype(np.float32)
    return AdaptedLabels(
        label_set,
        scores.weight_KD[order_K],
        scores.bias_K[order_K],
        calibration["temperature"],
        embedder,
        facts,
        labels_file or {},
        usual_2K=_usual(fitter, scores)[:, order_K],
        own_KD=own_KD[order_K],
        rejection=rejection.at_level(exact_cosines(sample_SD, own_KD).max(axis=1), len(own_KD)),
    )


def _usual(fitter: Fitter, scores: Scores) -> np.ndarray:
    """Mean and standard deviation of each label's score over the corpus, float64 [2, K]."""
    moments = fitter.moments(WHOLE)
    rows, weight_KD = max(1, moments.rows), scores.weight_KD.astype(np.float64)
    mean_D = moments.sum_D * 2.0**-VECTOR_BITS / rows
    product_DD = moments.product_DD * 2.0 ** -(2 * VECTOR_BITS) / rows
    covariance_DD = product_DD - np.outer(mean_D, mean_D)
    mean_K = (weight_KD * mean_D).sum(axis=1) + scores.bias_K
    variance_K = np.array([w_D @ covariance_DD @ w_D for w_D in weight_KD])
    return np.stack([mean_K, np.sqrt(np.maximum(variance_K, MIN_VARIANCE))])


def _report(
    fitter: Fitter,
    chosen: Chosen,
    last: Totals,
    agreement: float,
    calibration: Mapping[str, Any],
    corpus: Mapping[str, Any],
) -> dict[str, Any]:
    """What `AdaptedLabels.report` holds: figures alone, the same for the same fit.

    rows, fitted_rows, label_count, rows_a_label, adapted, trust, why, grain, agreement, changed,
    calibration, choice, and for each label: name, presence (its share of the sharp posterior times
    K), mass_before and mass_after (shares of the corpus), moved (1 - cosine of its centroid with
    its own vector, corpus and labels centred), towards (the label whose vector the centroid is
    nearer to), took_from and took (the largest flow), agreement, rows (labelled), seems_absent,
    adapted.
    """
    flows_KK, rows = last["flows"], int(last["flows"].sum())
    labelled_K = np.bincount(fitter.start.targets_M, minlength=len(flows_KK))
    adapted = chosen.trust != "none"
    assert fitter.totals is not None
    before_K = shares_of(fitter.totals["start", WHOLE])
    after_K = shares_of(last["sums"])
    sharp_K = shares_of(fitter.totals["sharp", WHOLE])
    moved_K, towards_K = _movements(fitter, last["sums"])
    answers_K = flows_KK.sum(0)
    names = fitter.start.label_set.names
    labels = []
    for k, name in enumerate(names):
        into_K = np.where(np.arange(len(names)) == k, 0, flows_KK[:, k])
        source = int(into_K.argmax())
        mass = after_K[k] * rows
        own = k in chosen.kept or (adapted and mass < FITS["default"].pseudo_rows)
        labels.append(
            {
                "name": name,
                "presence": float(sharp_K[k] * len(names)),
                "mass_before": float(before_K[k]),
                "mass_after": float(after_K[k]),
                "moved": float(moved_K[k]),
                "towards": None if towards_K[k] < 0 else names[towards_K[k]],
                "took_from": names[source] if into_K[source] else None,
                "took": float(into_K[source] / rows),
                "agreement": float(last["agreed"][k] / answers_K[k]) if answers_K[k] else None,
                "rows": int(labelled_K[k]),
                "seems_absent": bool(sharp_K[k] * len(names) < ABSENT and not labelled_K[k]),
                "adapted": adapted and not own,
            }
        )
    return {
        "rows": corpus["rows"],
        "fitted_rows": rows,
        "label_count": len(names),
        "rows_a_label": rows / len(names),
        "adapted": adapted,
        "trust": chosen.trust,
        "why": _why(fitter, chosen),
        "grain": grain(fitter.moments(WHOLE), fitter.start.text_KD),
        "agreement": agreement if adapted else None,
        "changed": float(1 - np.trace(flows_KK) / rows),
        "calibration": dict(calibration),
        "choice": chosen.comparison,
        "labels": labels,
    }


def _why(fitter: Fitter, chosen: Chosen) -> str:
    """What the fit rests on."""
    asked, rows = fitter.settings.trust, len(fitter.start.targets_M)
    if asked not in ("auto", "none") and chosen.trust == asked:
        return f"trust: {asked}, as it was asked for."
    if asked == "none":
        return "trust: none was asked for: the labels' own vectors."
    if reason := fitter.reason_not_to_adapt():
        return reason
    if chosen.comparison is not None:
        return f"{rows} labelled rows, each answered by a fit that had not seen it, decided."
    given = f"{rows} labelled row(s) took part, too few to choose by ({MIN_CHOICE_ROWS})."
    assumed = "No labelled rows: it is assumed that the labels are what the corpus groups by."
    return given if rows else assumed


def _movements(fitter: Fitter, sums: Sums) -> tuple[np.ndarray, np.ndarray]:
    """For each label 1 - the cosine of its centroid with its own vector, and the place of the label
    whose vector is nearer to the centroid, -1 for none; both centred."""
    moments, g_KD = fitter.moments(WHOLE), fitter.start.own_vectors()
    mass_K = sums.mass_K * 2.0**-POSTERIOR_BITS
    total_KD = sums.vectors_KD * 2.0 ** -(POSTERIOR_BITS + VECTOR_BITS)
    mean_D = moments.sum_D * 2.0**-VECTOR_BITS / moments.rows
    centroid_KD = total_KD / np.maximum(mass_K, 1e-9)[:, None] - mean_D
    own_KD = g_KD - g_KD.mean(0)
    cosine_KK = _unit(centroid_KD) @ _unit(own_KD).T
    nearest_K = cosine_KK.argmax(1)
    itself = nearest_K == np.arange(len(nearest_K))
    gone = (mass_K < 1) | itself
    return 1 - np.diag(cosine_KK), np.where(gone, -1, nearest_K)


def _unit(x_KD: np.ndarray) -> np.ndarray:
    return x_KD / np.maximum(np.linalg.norm(x_KD, axis=1, keepdims=True), 1e-12)


def shares_of(sums: Sums) -> np.ndarray:
    """Each label's share of a posterior, [K]."""
    mass_K = sums.mass_K * 2.0**-POSTERIOR_BITS
    return mass_K / mass_K.sum()
