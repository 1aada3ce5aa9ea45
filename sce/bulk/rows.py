"""What is wrong with a row, as a word in its `error` column; and what the good rows hold.

Nothing here raises on a bad row, and nothing loops over rows but what turns text into Python.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sce.embedding.row_checks import text_is_empty, vector_errors
from sce.embedding.store import CHUNK_SPANS, CHUNK_VECTORS, chunks_of
from sce.errors import MAX_ID_CHARS, MAX_TEXT_BYTES, ROW_ERRORS
from sce.labels import Label, RaggedLabels, name_error, normalise_name
from sce.model.pooling import ChunkVectors


@dataclass
class Errors:
    """The errors of a block's rows, "" for none; the first that is found stays."""

    codes_N: np.ndarray

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Errors:
        return cls(np.array(column.to_pylist(), object))

    def mark(self, bad_N: np.ndarray, code: str) -> None:
        assert code in ROW_ERRORS, code
        self.codes_N[bad_N & (self.codes_N == "")] = code

    def mark_found(self, asked_N: np.ndarray, codes_G: np.ndarray) -> None:
        """Errors of the rows that were asked for, "" for none."""
        assert set(codes_G.tolist()) <= {"", *ROW_ERRORS}
        self.codes_N[asked_N] = codes_G

    def good(self) -> np.ndarray:
        """bool [N]: no error so far."""
        return np.asarray(self.codes_N == "", bool)


def check_ids(ids: pa.ChunkedArray, errors: Errors) -> None:
    errors.mark(_mask(pc.is_null(ids)), "id_missing")
    errors.mark(_mask(pc.greater(pc.utf8_length(ids), MAX_ID_CHARS)), "id_too_long")


def check_texts(texts: pa.ChunkedArray, errors: Errors) -> None:
    errors.mark(_mask(pc.is_null(texts)), "text_null")
    blank = [text is not None and text_is_empty(text) for text in texts.to_pylist()]
    errors.mark(np.array(blank, bool), "text_empty")
    errors.mark(_mask(pc.greater(pc.binary_length(texts), MAX_TEXT_BYTES)), "text_too_large")


def check_vectors(column: pa.ChunkedArray, dimension: int, errors: Errors) -> np.ndarray:
    """The vectors of the good rows, float32 [good rows, D]; a view of the column's buffer where
    every row is good and it is one chunk."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    errors.mark(_mask(pc.is_null(array)), "embedding_missing")
    lengths_N = pc.fill_null(pc.list_value_length(array), -1).to_numpy(zero_copy_only=False)
    errors.mark(lengths_N != dimension, "embedding_wrong_size")
    vectors_GD = _matrix(array, errors.good(), dimension)
    codes_G = vector_errors(vectors_GD)
    good_G = codes_G == ""
    if good_G.all():
        return vectors_GD
    errors.mark_found(errors.good(), codes_G)
    return np.ascontiguousarray(vectors_GD[good_G])


def check_chunks(block: pa.Table, errors: Errors) -> ChunkVectors:
    """The vectors of the chunks of the good rows. One that is none of the embedder's makes a bad
    row of its text's."""
    columns = block[CHUNK_VECTORS], block[CHUNK_SPANS]
    counts_N = pc.fill_null(pc.list_value_length(columns[0]), 0).to_numpy()
    errors.mark(counts_N == 0, "embedding_missing")
    found = chunks_of(*(column.filter(pa.array(errors.good())) for column in columns))
    codes_C = vector_errors(found.vectors_CD)
    if (codes_C == "").all():
        return found
    codes_G = np.full(len(found), "", object)
    bad_C = np.flatnonzero(codes_C != "")[::-1]  # the first of a text stays
    codes_G[found.owners[bad_C]] = codes_C[bad_C]
    errors.mark_found(errors.good(), codes_G)
    return chunks_of(*(column.filter(pa.array(errors.good())) for column in columns))


def check_labels(column: pa.ChunkedArray, errors: Errors) -> None:
    """Refuse lists that are no label sets: missing, with blank, over-long or equal names."""
    array = _as_lists(column)
    lengths_N = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    errors.mark(lengths_N == 0, "labels_missing")
    owner_M = np.repeat(np.arange(len(lengths_N)), lengths_N)
    key_M, keys = _keys(array.flatten())
    error_M = np.array([*map(name_error, keys), name_error("")], object)[key_M]  # -1: no key
    pair_M = owner_M * (len(keys) + 1) + key_M
    again_M = np.ones(len(pair_M), bool)
    again_M[np.unique(pair_M, return_index=True)[1]] = False
    for code, bad_M in (
        ("label_empty", error_M == "label_empty"),
        ("label_too_long", error_M == "label_too_long"),
        ("label_duplicate", again_M),
    ):
        errors.mark(np.bincount(owner_M[bad_M], minlength=len(lengths_N)) > 0, code)


def row_labels(
    column: pa.ChunkedArray, good_N: np.ndarray, known: dict[str, Label]
) -> tuple[RaggedLabels, pa.Array]:
    """The label sets of the good rows, and their names as the rows have them, flat. Of the labels
    that are not among the `known`, by key, nothing but the name is known."""
    array = _as_lists(column).filter(pa.array(good_N))
    lengths_G = pc.list_value_length(array).to_numpy(zero_copy_only=False)
    names = array.flatten()
    key_M, keys = _keys(names)
    labels = tuple(known.get(key) or Label(key) for key in keys)
    offsets = np.concatenate([[0], np.cumsum(lengths_G)]).astype(np.int64)
    return RaggedLabels(labels, key_M, offsets), names


def _mask(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), bool)


def _matrix(array: pa.Array, good_N: np.ndarray, dimension: int) -> np.ndarray:
    """The vectors of the good rows, all of `dimension` numbers; a null in one is NaN."""
    whole = bool(good_N.all())
    if whole and pa.types.is_fixed_size_list(array.type):
        values = array.values.slice(array.offset * dimension, len(array) * dimension)
    else:
        values = (array if whole else array.filter(pa.array(good_N))).flatten()
    values = values.cast(pa.float32())
    if values.null_count:
        values = pc.fill_null(values, np.nan)
    vectors: np.ndarray = values.to_numpy(zero_copy_only=True)
    return vectors.reshape(-1, dimension)


def _as_lists(column: pa.ChunkedArray) -> pa.Array:
    array = column.cast(pa.list_(pa.string()))
    return array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)


def _keys(names: pa.Array) -> tuple[np.ndarray, list[str]]:
    """For each name the number of its key, -1 for a null or blank one, and the distinct keys."""
    encoded = names.dictionary_encode()
    distinct = [normalise_name(name) for name in encoded.dictionary.to_pylist()]
    numbers: dict[str, int] = {}
    number_of = [numbers.setdefault(key, len(numbers)) if key else -1 for key in distinct]
    code_M = pc.fill_null(encoded.indices, len(distinct)).to_numpy(zero_copy_only=False)
    return np.array([*number_of, -1], np.int64)[code_M], list(numbers)
