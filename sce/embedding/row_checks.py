"""What the embedder takes and gives: when a text is empty, and when a vector is none of its own.

Shapes: N rows, D the embedder's dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sce.errors import MAX_NORM_ERROR, DataError


def text_is_empty(text: str) -> bool:
    """Whether nothing is left to embed: "" or white space alone, by Python's idea of it (Arrow has
    another)."""
    return not text or text.isspace()


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate, which no tokenizer and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_texts(texts: Sequence[str]) -> None:
    """Raises `DataError` with the position of the first that is empty or not a text."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"texts[{i}]: a text is needed, not {type(text).__name__}.")
        if text_is_empty(text):
            raise DataError(f"texts[{i}]: the text is empty.")


def check_unicode(texts: Sequence[str]) -> None:
    """Raises `DataError` with the position of the first text that is not Unicode."""
    for i, text in enumerate(texts):
        if not is_unicode(text):
            raise DataError(f"texts[{i}]: the text has a lone surrogate, not Unicode.")


def vector_errors(vectors_ND: np.ndarray) -> np.ndarray:
    """What is wrong with each vector, a word of `ROW_ERRORS` or ""; object array [N]."""
    codes_N = np.full(len(vectors_ND), "", object)
    with np.errstate(over="ignore", invalid="ignore"):
        norms_N = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND))
    codes_N[~(np.abs(norms_N - 1) <= MAX_NORM_ERROR)] = "embedding_not_unit"
    codes_N[~np.isfinite(vectors_ND).all(axis=1)] = "embedding_not_finite"
    return codes_N
