"""Vectors and label lists of rows, good and bad, without a model."""

import numpy as np
import pyarrow as pa
import pytest

from sce.bulk.rows import Errors, check_labels, check_vectors, row_labels
from sce.embedding.store import embedding_column
from sce.labels import Label


def unit(rows: int, dimension: int = 8) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def no_errors(rows: int) -> Errors:
    return Errors.of(pa.chunked_array([pa.repeat("", rows)]))


def test_good_vectors_are_a_view_of_the_column():
    column = pa.chunked_array([embedding_column(unit(5)).slice(1, 3)])
    found = check_vectors(column, 8, no_errors(3))
    np.testing.assert_array_equal(found, unit(5)[1:4])
    start = column.chunk(0).values.buffers()[1].address
    assert start <= found.ctypes.data < start + 5 * 8 * 4


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("fixed", [True, False])
def test_every_type_of_number_is_read(kind, fixed):
    flat = pa.array(unit(4).astype(kind.to_pandas_dtype()).ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, 8)
    column = column if fixed else column.cast(pa.list_(kind))
    errors = no_errors(4)
    found = check_vectors(pa.chunked_array([column]), 8, errors)
    assert errors.good().all()
    np.testing.assert_allclose(found, unit(4), atol=1e-3)


def test_every_bad_vector_has_its_error_and_the_good_ones_stay():
    lists: list = unit(3).tolist()
    rows = [lists[0], None, lists[1][:7], [None, *lists[1][1:]], [float("inf")] * 8, [0.0] * 8]
    column = pa.chunked_array([pa.array([*rows, lists[2]], pa.list_(pa.float32()))])
    errors = no_errors(7)
    found = check_vectors(column, 8, errors)
    assert errors.codes_N.tolist() == [
        "",
        "embedding_missing",
        "embedding_wrong_size",
        "embedding_not_finite",
        "embedding_not_finite",
        "embedding_not_unit",
        "",
    ]
    np.testing.assert_array_equal(found, unit(3)[[0, 2]])


def test_label_lists_of_rows():
    rows = [["b", "a"], None, [], ["a", None], ["a ", "a"], ["a"]]
    column = pa.chunked_array([pa.array(rows, pa.list_(pa.string()))])
    errors = no_errors(6)
    check_labels(column, errors)
    assert errors.codes_N.tolist() == [
        "", "labels_missing", "labels_missing", "label_empty", "label_duplicate", ""
    ]  # fmt: skip
    known = {"a": Label("a", description="first")}
    labels, names = row_labels(column, errors.good(), known)
    assert names.to_pylist() == ["b", "a", "a"]
    assert labels.names_by_row(2) == [["b", "a"], ["a"]]
    assert labels.labels[labels.ids_M[2]].description == "first"
