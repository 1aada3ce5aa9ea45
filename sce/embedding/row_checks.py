"""What may be asked of a row: when a text is none, and when a vector is none of the embedder's; the
same for every entrance (Python, files, HTTP, its client).

Shapes: N rows, D the embedder's dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from sce.errors import MAX_NORM_ERROR, MAX_TEXT_BYTES, ROW_ERRORS, DataError, InputError
from sce.labels import as_list


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


def text_error(text: Any) -> str:
    """What is wrong with a text, a word of `ROW_ERRORS`, or ""."""
    if not isinstance(text, str):
        missing = text is None or type(text).__name__ == "NAType"  # pandas' own
        missing = missing or (isinstance(text, float) and text != text)
        return "text_null" if missing else "text_not_string"
    if text_is_empty(text):
        return "text_empty"
    if 4 * len(text) > MAX_TEXT_BYTES and len(text.encode(errors="replace")) > MAX_TEXT_BYTES:
        return "text_too_large"
    return "" if is_unicode(text) else "text_not_unicode"


def text_errors(texts: Iterable[Any]) -> dict[int, str]:
    """The errors of bad texts, by position."""
    found = ((i, text_error(text)) for i, text in enumerate(texts))
    return {i: error for i, error in found if error}


def check_texts(texts: Iterable[Any]) -> None:
    """Raises `DataError` with the position of the first bad one."""
    for i, text in enumerate(texts):
        if error := text_error(text):
            raise row_refused("texts", i, error)


def row_refused(what: str, row: int, error: str) -> DataError:
    """The error of a row, a word of `ROW_ERRORS`, as one of the whole call."""
    return DataError(f"{what}[{row}]: {ROW_ERRORS.get(error, 'it is refused')} ({error}).")


def as_texts(texts: Any) -> list[Any]:
    """Texts in any container that has them in an order, as a list; its items are not checked.

    Raises:
        DataError: it is no such container: a table, a mapping, a set.
    """
    if isinstance(texts, str):
        return [texts]
    texts = as_list(texts, "texts", DataError)
    if isinstance(texts, (Mapping, Set, bytes)) or not isinstance(texts, Iterable):
        raise DataError(
            f"texts: a {type(texts).__name__}, but a text or a list of texts is needed."
        )
    return list(texts)


def as_vectors(embeddings: Any, dimension: int) -> np.ndarray:
    """Embeddings in any container of N vectors, as float32 [N, D]; the vectors are not checked.

    Raises:
        DataError: they are no numbers, or have not the shape [N, D].
    """
    try:
        if hasattr(embeddings, "to_pylist"):  # of Arrow
            embeddings = embeddings.to_pylist()
        elif str(getattr(embeddings, "dtype", "")).startswith(("object", "List")):
            # A column of vectors, of pandas or Polars.
            embeddings = [np.asarray(vector_D, np.float32) for vector_D in embeddings]
        vectors_ND = np.asarray(embeddings, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"embeddings: not N vectors of {dimension} numbers ({error}).") from None
    if vectors_ND.shape == (0,):
        return np.zeros((0, dimension), np.float32)
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != dimension:
        raise DataError(
            f"embeddings: shape {vectors_ND.shape}, but this model reads [N, {dimension}]."
        )
    return vectors_ND


def is_numeric_array(value: Any) -> bool:
    """Whether what was given for texts is an array of numbers: embeddings."""
    return hasattr(value, "__array__") and np.asarray(value).dtype.kind in "fiu"


def vector_errors(vectors_ND: np.ndarray) -> np.ndarray:
    """What is wrong with each vector, a word of `ROW_ERRORS` or ""; object array [N]."""
    codes_N = np.full(len(vectors_ND), "", object)
    with np.errstate(over="ignore", invalid="ignore"):
        norms_N = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND))
    codes_N[~(np.abs(norms_N - 1) <= MAX_NORM_ERROR)] = "embedding_not_unit"
    codes_N[~np.isfinite(vectors_ND).all(axis=1)] = "embedding_not_finite"
    return codes_N


def bad_vectors(vectors_ND: np.ndarray) -> dict[int, str]:
    """The errors of bad vectors, by position."""
    codes_N = vector_errors(vectors_ND)
    return {i: str(codes_N[i]) for i in np.flatnonzero(codes_N != "").tolist()}


def refuse_rows(what: str, found: Mapping[int, str], errors: str) -> None:
    """Raises `DataError` of the first bad row where `errors` is "raise"; `InputError` where it is
    neither that nor "keep"."""
    if errors not in ("keep", "raise"):
        raise InputError(f"errors: {errors!r} is not one of 'keep', 'raise'.")
    if errors == "raise" and found:
        row = min(found)
        raise row_refused(what, row, found[row])
