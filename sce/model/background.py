"""What texts are like in general, so that a similarity to a label says something by itself.

Cosines of one embedder lie in a narrow band, which differs from label to label: a name such as
"other news" is somewhat near to everything. A `Background` holds mean and covariance of the vectors
of a corpus; from them each label's similarities to that corpus have a mean and a standard
deviation in closed form, and z = (x.g - m.g) / sqrt(g'Cg) counts how many of these a text stands
above what is usual for that label. A trained model has that of its training texts in a file beside
its weights; a folder without one gets `Background.isotropic`, in which z is the cosine times
sqrt(D).

Tensor names carry their shape: N texts, K labels, D the embedder's dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sce.errors import InputError
from sce.model.products import exact_cosines

BACKGROUND_FILE = "background.safetensors"
"""Beside the weights of a model."""
MIN_DEVIATION = 1e-3
"""Of a label's cosines: one that is as near to all texts stands out from none."""


@dataclass(frozen=True, eq=False)
class Background:
    """Of the vectors of a corpus.

    Attributes:
        mean_D: float32.
        covariance_DD: float32, of vectors and not of their means.
        rows: vectors that they are of; 0 where none were looked at.
    """

    mean_D: np.ndarray
    covariance_DD: np.ndarray
    rows: int

    @classmethod
    def of(cls, vectors_ND: np.ndarray) -> Background:
        """Of these vectors, at least two. Their sums are float64."""
        x_ND = np.asarray(vectors_ND, np.float64)
        if len(x_ND) < 2:
            raise InputError(f"a background needs two vectors or more, not {len(x_ND)}.")
        mean_D = x_ND.mean(axis=0)
        x_ND = x_ND - mean_D
        covariance_DD = x_ND.T @ x_ND / (len(x_ND) - 1)
        return cls(mean_D.astype(np.float32), covariance_DD.astype(np.float32), len(x_ND))

    @classmethod
    def isotropic(cls, dimension: int) -> Background:
        """Of unit vectors that point anywhere: mean 0, covariance I / D. For a model that has none
        of its own."""
        covariance_DD = np.eye(dimension, dtype=np.float32) / dimension
        return cls(np.zeros(dimension, np.float32), covariance_DD, 0)

    @property
    def measured(self) -> bool:
        """Whether it is of a corpus, rather than a stand-in for one."""
        return self.rows > 0

    def cosines_of(self, labels_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each label's cosines to the corpus, float64 [K] both, by
        the labels' unit vectors. Each label's are the same whichever others stand beside it."""
        g_KD = np.asarray(labels_KD, np.float64)
        mean_K = (g_KD * self.mean_D).sum(axis=1)
        variance_K = np.array([g_D @ self._covariance @ g_D for g_D in g_KD])
        return mean_K, np.maximum(np.sqrt(np.maximum(variance_K, 0)), MIN_DEVIATION)

    def z_scores(self, queries_ND: np.ndarray, labels_KD: np.ndarray) -> np.ndarray:
        """How many standard deviations each text's cosine to each label stands above that label's
        mean over the corpus, float64 [N, K]. Of unit vectors both; no number depends on the other
        rows or labels."""
        mean_K, deviation_K = self.cosines_of(labels_KD)
        return (exact_cosines(queries_ND, labels_KD) - mean_K) / deviation_K

    @cached_property
    def _covariance(self) -> np.ndarray:
        return self.covariance_DD.astype(np.float64)

    def save(self, folder: Path) -> None:
        """Write `BACKGROUND_FILE`, beside a model's weights."""
        from safetensors.numpy import save_file

        tensors = {"mean": self.mean_D, "covariance": self.covariance_DD}
        save_file(tensors, folder / BACKGROUND_FILE, {"rows": str(self.rows)})

    @classmethod
    def load(cls, folder: Path, dimension: int) -> Background:
        """What `save` wrote; `isotropic` where the folder has none.

        Raises:
            InputError: the file is damaged, or of another dimension.
        """
        from safetensors import SafetensorError, safe_open

        file = folder / BACKGROUND_FILE
        if not file.is_file():
            return cls.isotropic(dimension)
        try:
            with safe_open(file, "numpy") as opened:
                rows = int((opened.metadata() or {})["rows"])
                found = cls(opened.get_tensor("mean"), opened.get_tensor("covariance"), rows)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{file}: it is damaged: {error}") from None
        shapes = found.mean_D.shape, found.covariance_DD.shape
        if shapes != ((dimension,), (dimension, dimension)):
            raise InputError(f"{file}: shapes {shapes}, but the model reads {dimension} numbers.")
        return found
