"""Which rows of a corpus an embedding store lacks, and which of its rows the corpus has lost.

A row is known by its *key*: 128 bits of its id, its text, its error and what is kept of it beside
the text. The keys of a store, sorted, take 16 bytes a row (1.6 GB for 100 million rows), once on
each node; workers look their rows up in them and answer with positions, 8 bytes a row. What runs
in Ray's workers stands here, so nothing of this loads torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sce.bulk.corpus import Columns, Shard
from sce.bulk.reading import KEEP, PLACE_BITS, kept_name, read_shard
from sce.bulk.rows import Errors, check_ids, check_texts
from sce.embedding.store import STORE_NAMES, EmbeddingStore, text_hash
from sce.errors import ROW_ERRORS, DataError

KEY = np.dtype("S16")


@dataclass(frozen=True)
class RowFacts:
    """What a store says of the rows of a block beside their vectors, in its own terms."""

    row_id: pa.ChunkedArray
    text_hash: pa.Array
    errors: Errors

    @classmethod
    def of(cls, block: pa.Table, columns: Columns) -> RowFacts:
        """The facts of a block that `read_shard` made."""
        errors = Errors.of(block["error"])
        if columns.id is not None:
            check_ids(block["id"], errors)
        check_texts(block["text"], errors)
        row_id = pc.coalesce(block["id"], pc.cast(block["place"], pa.string()))
        hashes = [text_hash(text or "") for text in block["text"].to_pylist()]
        return cls(row_id, pa.array(hashes, pa.string()), errors)

    def keys(self, block: pa.Table, columns: Columns) -> np.ndarray:
        """The keys of its rows, S16 [N]."""
        others = block.select([f"{KEEP}{name}" for name in _others(columns)])
        codes = pa.array(self.errors.codes_N, pa.string())
        return _keys(self.row_id, self.text_hash, codes, others)


@dataclass(frozen=True)
class StorePart:
    """The keys of a part's rows. Every file number in its places is below `next_file`, which is 0
    where it has no places, as the stores of prepared data once had none."""

    name: str
    keys_N: np.ndarray
    next_file: int


def read_part_keys(name: str, store: EmbeddingStore, columns: Columns) -> StorePart:
    """Raises `DataError` where the part cannot be read, or lacks a column to be kept."""
    others = [kept_name(column, STORE_NAMES) for column in _others(columns)]
    own = ["row_id", "text_hash"]
    has_places = "place" in store.column_names(name)
    table = store.read_part(name, [*own, *(["error", "place"] if has_places else []), *others])
    errors = pc.fill_null(table["error"], "") if has_places else pa.repeat("", table.num_rows)
    keys_N = _keys(table["row_id"], table["text_hash"], errors, table.select(others))
    next_file = (pc.max(table["place"]).as_py() >> PLACE_BITS) + 1 if has_places else 0
    return StorePart(name, keys_N, next_file)


def scan_shard(
    shard: Shard, columns: Columns, keys_K: np.ndarray, refuse_errors: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The place of each row's key among sorted keys, -1 where it is not there; and 64 bits of each
    id. Raises `DataError` as `read_shard`; with `refuse_errors` also for a row with an error."""
    found, id_hashes, row = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], shard.first_row
    for block in read_shard(shard, columns):
        facts = RowFacts.of(block, columns)
        codes_N, ids = facts.errors.codes_N, facts.row_id.to_pylist()
        bad = np.flatnonzero(codes_N != "")
        if refuse_errors and len(bad):
            first = bad[0]
            raise DataError(
                f"{shard.file.uri}: row {row + first} ({ids[first]!r}) cannot be embedded: "
                f"{ROW_ERRORS[codes_N[first]]}; {len(bad)} row(s) of {len(ids)} have errors."
            )
        keys_N = facts.keys(block, columns)
        place_N = np.searchsorted(keys_K, keys_N)
        known_N = place_N < len(keys_K)
        known_N[known_N] = keys_K[place_N[known_N]] == keys_N[known_N]
        found.append(np.where(known_N, place_N, -1))
        id_hashes.append(np.array([int(text_hash(one), 16) for one in ids], np.uint64))
        row += block.num_rows
    return np.concatenate(found), np.concatenate(id_hashes)


class KnownRows:
    """The rows of a store by their sorted keys, and which of them a corpus still has."""

    def __init__(self, parts: Sequence[StorePart]) -> None:
        self._parts = parts
        keys_K = np.concatenate([np.empty(0, KEY), *(part.keys_N for part in parts)])
        self._order_K = np.argsort(keys_K, kind="stable")
        self.keys_K = keys_K[self._order_K]
        self._live_K = np.zeros(len(keys_K), bool)

    def claim(self, found_N: np.ndarray) -> np.ndarray:
        """Which of the rows that `scan_shard` looked up the store lacks: bool [N]. A row of the
        store stands for one row: a second one that is the same in all is pending."""
        known = np.flatnonzero(found_N >= 0)
        places, rows = np.unique(found_N[known], return_index=True)
        new = ~self._live_K[places]
        self._live_K[places[new]] = True
        pending_N = np.ones(len(found_N), bool)
        pending_N[known[rows[new]]] = False
        return pending_N

    def live(self) -> Iterator[tuple[StorePart, np.ndarray]]:
        """Each part, and which of its rows were claimed: bool [N]."""
        live_K = np.empty_like(self._live_K)
        live_K[self._order_K] = self._live_K
        for part in self._parts:
            live_N, live_K = np.split(live_K, [len(part.keys_N)])
            yield part, live_N


def _others(columns: Columns) -> list[str]:
    """The columns that are kept beside the text."""
    return [name for name in columns.keep if name != columns.text]


def _keys(ids: Any, hashes: Any, errors: Any, others: pa.Table) -> np.ndarray:
    """S16 [N]. An id that is missing was made from a place, which may be another by now."""
    ids = pc.if_else(pc.equal(errors, "id_missing"), pa.scalar(None, pa.string()), ids)
    rows = zip(*(c.to_pylist() for c in (ids, hashes, errors, *others.columns)), strict=True)
    digests = (blake2b(repr(row).encode(errors="replace"), digest_size=16).digest() for row in rows)
    return np.fromiter(digests, KEY, len(hashes))
