"""What texts are like in general: closed forms against counted ones, and the file."""

import numpy as np
import pytest

from sce.errors import InputError
from sce.model.background import BACKGROUND_FILE, Background


def unit(rows: int, dimension: int, seed: int, centre: float = 0.3) -> np.ndarray:
    x_ND = np.random.default_rng(seed).normal(centre, 1, (rows, dimension))
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)


CORPUS, LABELS, TEXTS = unit(400, 24, 0), unit(7, 24, 1), unit(5, 24, 2)


def test_z_counts_standard_deviations_of_the_corpus_cosines():
    cosines = CORPUS.astype(float) @ LABELS.T
    asked = TEXTS.astype(float) @ LABELS.T
    expected = (asked - cosines.mean(0)) / cosines.std(0, ddof=1)
    found = Background.of(CORPUS).z_scores(TEXTS, LABELS)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_no_number_depends_on_other_rows_or_labels():
    background = Background.of(CORPUS)
    whole = background.z_scores(TEXTS, LABELS)
    for i in range(len(TEXTS)):
        for k in range(len(LABELS)):
            assert background.z_scores(TEXTS[[i]], LABELS[[k]])[0, 0] == whole[i, k]


def test_without_a_corpus_it_is_the_cosine_times_a_constant():
    found = Background.isotropic(24)
    assert not found.measured
    expected = np.sqrt(24) * TEXTS @ LABELS.T
    np.testing.assert_allclose(found.z_scores(TEXTS, LABELS), expected, atol=1e-3)


def test_it_comes_back_as_it_was_saved(tmp_path):
    made = Background.of(CORPUS)
    made.save(tmp_path)
    found = Background.load(tmp_path, 24)
    assert found.rows == 400
    assert found.measured
    assert (found.z_scores(TEXTS, LABELS) == made.z_scores(TEXTS, LABELS)).all()


def test_a_folder_without_the_file_has_the_stand_in(tmp_path):
    assert not Background.load(tmp_path, 24).measured


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    Background.of(CORPUS).save(tmp_path)
    with pytest.raises(InputError, match="32 numbers"):
        Background.load(tmp_path, 32)
    (tmp_path / BACKGROUND_FILE).write_bytes(b"{}")
    with pytest.raises(InputError, match="damaged"):
        Background.load(tmp_path, 24)
    with pytest.raises(InputError, match="two vectors"):
        Background.of(CORPUS[:1])
