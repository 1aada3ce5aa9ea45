"""Compares a store with a corpus: what is to be embedded, what stays, and what goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sce.bulk.corpus import Columns, Shard
from sce.bulk.pending import KnownRows, read_part_keys, scan_shard
from sce.bulk.reading import PLACE_BITS, read_shard
from sce.distributed.stage import in_tasks
from sce.embedding.store import EmbeddingStore, text_hash
from sce.errors import DataError


@dataclass(frozen=True)
class Change:
    """What is to be done so that a store holds a corpus.

    Attributes:
        pending: rows that are to be embedded.
        reused, removed: rows of the store that the corpus still has, and no longer has.
        kept: parts that stay as they are.
        rewritten: parts of which some rows stay: which, and the place of the first row in a part
            that has no places yet.
    """

    pending: Sequence[Shard]
    reused: int = 0
    removed: int = 0
    kept: Sequence[str] = ()
    rewritten: Sequence[tuple[str, np.ndarray, int]] = ()


def compare(
    old: EmbeddingStore | None, shards: Sequence[Shard], columns: Columns, prepared: bool
) -> Change:
    """Look every row of a corpus up in a store; where there is none yet, a `prepared` corpus is
    only checked. Raises `DataError` where a part or a file cannot be read, and of a prepared corpus
    for rows with errors and ids that stand twice."""
    if old is None and not prepared:
        return Change(shards)
    names = [] if old is None else old.manifest.parts
    parts = list(in_tasks(read_part_keys, [(name,) for name in names], old, columns))
    known = KnownRows(parts)
    # Rows that are new get places behind those that the store has, as if of files after its own.
    next_file = max((part.next_file for part in parts), default=0)
    unplaced = [part.name for part in parts if not part.next_file]
    first_places = {name: (next_file + i) << PLACE_BITS for i, name in enumerate(unplaced)}
    next_file += len(unplaced)
    file_numbers: dict[int, int] = {}
    pending: list[Shard] = []
    id_hashes = []
    scans = in_tasks(scan_shard, [(one,) for one in shards], columns, known.keys_K, prepared)
    for shard, (found_N, id_hashes_N) in zip(shards, scans, strict=True):
        pending_N = known.claim(found_N)
        if old is None:
            pending.append(shard)
        elif pending_N.any():
            number = file_numbers.setdefault(shard.file_number, next_file + len(file_numbers))
            pending.append(shard.only(pending_N, number))
        if prepared:
            id_hashes.append(id_hashes_N)
    if prepared:
        _refuse_equal_ids(np.concatenate(id_hashes), shards, columns)
    kept, rewritten, reused, removed = [], [], 0, 0
    for part, live_N in known.live():
        live = int(live_N.sum())
        reused, removed = reused + live, removed + len(live_N) - live
        if live == len(live_N) and part.next_file:
            kept.append(part.name)
        elif live:
            rewritten.append((part.name, live_N, first_places.get(part.name, 0)))
    return Change(pending, reused, removed, kept, rewritten)


def _refuse_equal_ids(hashes: np.ndarray, shards: Sequence[Shard], columns: Columns) -> None:
    """Raises `DataError` with an id that stands twice, which is looked for where a hash does."""
    hashes.sort()
    twice = hashes[1:][hashes[1:] == hashes[:-1]]
    for shard in shards if len(twice) else ():
        for block in read_shard(shard, columns):
            for one in block["id"].to_pylist():
                if int(text_hash(one), 16) == twice[0]:
                    raise DataError(f"the id {one!r} stands more than once; ids are unique.")
