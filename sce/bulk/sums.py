"""The rows of a store that a fit reads, and their sums: what its tasks do. No torch.

Rows are chosen by a hash of their ids, so that the choice depends on nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa

from sce.adaptation.passes import Block, Totals
from sce.bulk.corpus import Columns
from sce.bulk.reading import KEEP
from sce.bulk.rows import Errors, check_vectors
from sce.embedding.store import embedding_column, embedding_matrix
from sce.errors import ROW_ERRORS, DataError


def hash_limit(wanted: int, rows: int) -> int:
    """Hashes up to this are of about `wanted` of so many rows."""
    return 2**64 - 1 if wanted >= rows else int(2**64 * (wanted / rows))


def hashes(ids: pa.ChunkedArray) -> np.ndarray:
    """64 bits of each id, uint64 [N]."""
    return pd.util.hash_array(ids.to_numpy(zero_copy_only=False).astype(object))


def choose_rows(table: pa.Table, largest: int, dimension: int, columns: Columns) -> pa.Table:
    """The rows without an error whose ids hash low enough: `id`, `vector` and, where `columns`
    keeps it, `text`.

    Raises:
        DataError: a row that the store takes for good has no unit vector.
    """
    errors = Errors.of(table["error"])
    known_N = errors.good()
    vectors_GD = check_vectors(table["embedding"], dimension, errors)
    good_N = errors.good()
    if (known_N & ~good_N).any():
        row = int(np.flatnonzero(known_N & ~good_N)[0])
        raise DataError(
            f"the store's row {table['id'][row].as_py()!r}: "
            f"{ROW_ERRORS[str(errors.codes_N[row])]}. Embed the corpus again."
        )
    good = pa.array(good_N)
    found = {"id": table["id"].filter(good)}
    if columns.keep:
        found["text"] = table[f"{KEEP}{columns.keep[0]}"].filter(good).cast(pa.string())
    chosen_G = hashes(found["id"]) <= np.uint64(largest)
    found = {name: column.filter(pa.array(chosen_G)) for name, column in found.items()}
    vectors_GD = np.ascontiguousarray(vectors_GD[chosen_G], np.float32)
    return pa.table(found | {"vector": embedding_column(vectors_GD)})


def rows_below(table: pa.Table, largest: int) -> pa.Table:
    """The rows whose ids hash so low."""
    return table.filter(pa.array(hashes(table["id"]) <= np.uint64(largest)))


def add_up_rows(table: pa.Table, function: Callable[[Block], Totals]) -> pa.Table:
    """`function` of every block of the rows, added up and pickled, as the one row of `sums`."""
    if not len(table):
        return pa.table({"sums": pa.array([], pa.binary())})
    first, *rest = Block.split(embedding_matrix(table["vector"]))
    total = function(first)
    for block in rest:
        total = total + function(block)
    return pa.table({"sums": pa.array([pickle.dumps(total)], pa.binary())})
