"""Validation and calibration of rows with one right label and of rows with several."""

import numpy as np
import pytest
import torch
from sklearn.metrics import label_ranking_average_precision_score

from sce.labels import LabelSet
from sce.model.background import Background
from sce.model.encoder import SCEConfig, SCEModel
from sce.model.label_vectors import TextLookup
from sce.model.logistic import UNTRAINED, trained_logistic
from sce.predictor import Predictor
from sce.training.data import Rows
from sce.training.validation import Validator
from sce.workflows.train import _calibrate
from tests.training.test_episodes import ENCODER, text_vectors

SETS = {
    "topics": LabelSet.parse(["sport", {"name": "money", "synonyms": ["cash"]}, "art", "war"]),
    "tones": LabelSet.parse(["glad", "cross"]),
}


def rows(count=40, several=True) -> Rows:
    """Texts beside the labels that are right for them."""
    rng, names = np.random.default_rng(0), SETS["topics"].names
    right = [tuple(names[k] for k in np.flatnonzero(rng.random(4) < 0.4)) for _ in range(count)]
    labels = [*right, *["glad", "cross"] * 5] if several else ["glad", "cross"] * 5
    sets = [*["topics"] * count, *["tones"] * 10] if several else ["tones"] * 10
    vectors = [
        text_vectors([one] if isinstance(one, str) else [*one, f"noise {i}"]).sum(0)
        + 0.3 * text_vectors([f"row {i}"])[0]
        for i, one in enumerate(labels)
    ]
    vectors = np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"r{i}" for i in range(len(labels))]
    return Rows(ids, sets, labels, sets, vectors.astype(np.float32))


def model(several=UNTRAINED) -> SCEModel:
    torch.manual_seed(0)
    config = SCEConfig(encoder=ENCODER, embedding_dim=64, label_vectors=1, several=several)
    return SCEModel(config).eval()


def test_the_figures_are_those_of_scikit_learn_and_the_coefficients_are_fitted():
    data, one = rows(), model()
    background = Background.of(data.vectors_ND)
    validator = Validator(data, SETS, text_vectors, None, 1, background)
    scores = validator.scores(one)
    found = validator.figures(scores, UNTRAINED)
    logistic, right = trained_logistic(UNTRAINED), validator.right_NK[:40]
    precisions, losses = [], []
    for _, _, z, s, right_nK in validator.several_parts(scores):
        p = logistic(z, None, s)
        some = right_nK.any(1)
        precisions.append(label_ranking_average_precision_score(right_nK[some], p[some]))
        losses.append(-np.log(np.where(right_nK, p, 1 - p)).mean())
    assert found["validation/topics/lrap"] == pytest.approx(np.mean(precisions))
    assert found["validation/topics/log_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    mean = (found["validation/topics/lrap"] + found["validation/tones/accuracy"]) / 2
    assert found["validation/accuracy"] == pytest.approx(mean)
    assert (validator.targets_N[:40] == -1).all()
    assert right.sum() > 20

    fits = _calibrate(one, validator, TextLookup({}, text_vectors))
    assert fits["sce"].rows in (0, 10), "the temperature is of rows with one right label"
    assert one.config.several == pytest.approx(one.several_weight.tolist())
    after = validator.figures(scores, one.config.several)
    assert after["validation/topics/log_loss"] < found["validation/topics/log_loss"]


def test_what_was_fitted_is_what_is_answered(tmp_path):
    data = rows()
    background = Background.of(data.vectors_ND)
    validator = Validator(data, SETS, text_vectors, None, 1, background)
    one = model((1.3, 0.2, -1.0, 0.9))
    one.save_pretrained(tmp_path)
    again = SCEModel.from_pretrained(tmp_path).eval()
    assert again.config.several == [1.3, 0.2, -1.0, 0.9]

    class Embedder:
        fingerprint = None

    predictor = Predictor(
        again,
        Embedder(),
        text_vectors=text_vectors,
        background=background,  # type: ignore[arg-type]
    )
    found = predictor.predict(
        embeddings=data.vectors_ND[:40], labels=SETS["topics"], mode="multi", return_scores=True
    )
    _, _, z, s, _ = list(validator.several_parts(validator.scores(one)))[1]  # all that is known
    wanted = trained_logistic(one.config.several)(z, None, s)
    names = SETS["topics"].canonical().names
    np.testing.assert_allclose(
        [[row.scores[name] for name in names] for row in found], wanted, atol=1e-5
    )


def test_rows_of_one_label_alone_read_what_they_did():
    found = Validator(rows(several=False), SETS, text_vectors, None, 1)
    figures = found.figures(found.scores(model(())))
    assert set(figures) == {"validation/accuracy", "validation/nll", "validation/tones/accuracy"}


def test_only_rows_with_several_labels_have_a_temperature_of_those_with_one():
    data = rows()
    few = Rows(*(part[:40] for part in (data.ids, data.datasets, data.labels, data.sets)),
               data.vectors_ND[:40])  # fmt: skip
    validator = Validator(few, SETS, text_vectors, None, 1, Background.of(few.vectors_ND))
    fits = _calibrate(model(), validator, TextLookup({}, text_vectors))
    assert fits["sce"].rows == sum(len(one) == 1 for one in few.labels)
    assert "validation/nll" not in validator.figures(validator.scores(model()), UNTRAINED)
