"""Works out what a store lacks of a source, and commits the new parts.

A row of the store stays if the source has the same (row_id, text_hash). Rows that the source
has lost, or whose text changed, are left out of the next manifest: a part that holds some of
them is written again without them. So a store holds exactly the rows of its source.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sce.embedding.store import (
    MANIFEST,
    EmbeddingStore,
    Manifest,
    text_hash,
    write_manifest,
    write_part,
)
from sce.errors import DataError
from sce.storage import Place, remove

TEXT = "_text"
"""Column of the text to embed, named so that a passthrough column may be called `text`."""
_STAGING = "_staging"


@dataclass(frozen=True)
class Source:
    """The rows that a store shall hold.

    Attributes:
        table: row_id, `TEXT`, text_hash and the passthrough columns.
        passthrough: names of those columns.
        fingerprint: SHA-256 over all (row_id, text_hash), the same for every order.
    """

    table: pa.Table
    passthrough: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True)
class Update:
    """What is to be done so that a store holds a source.

    Attributes:
        pending: rows of the source without a vector; longest text first, and rows that share
            a text one after another.
        kept: parts that stay as they are.
        dropped: rows of the store that the source no longer has, or with another text.
        stale: parts of which some rows stay; with the rows, and where the source has them.
    """

    pending: pa.Table
    kept: list[str]
    dropped: int
    stale: dict[str, tuple[np.ndarray, np.ndarray]]

    @property
    def is_empty(self) -> bool:
        return not self.pending.num_rows and not self.stale and not self.dropped


def read_source(
    source: pa.Table,
    id_column: str,
    text_column: str,
    passthrough: Sequence[str],
) -> Source:
    """Take ids, texts and passthrough columns of a table, and check them.

    Raises:
        DataError: no rows, a missing column, an empty text or id, or an id
            that stands twice; names the first.
    """
    taken = {"row_id", "text_hash", "embedding", "truncated"} & set(passthrough)
    if taken:
        raise DataError(f"passthrough: {min(taken)!r} is a column that every store has itself.")
    columns = [id_column, text_column, *passthrough]
    try:
        table = source.select(columns)
    except (KeyError, pa.ArrowException) as error:
        raise DataError(f"the rows to embed cannot be read: {error}") from None
    table = table.rename_columns(["row_id", TEXT, *passthrough]).combine_chunks()
    for i, name in enumerate(("row_id", TEXT)):
        table = table.set_column(i, name, table[name].cast(pa.string()))
    if not table.num_rows:
        raise DataError("there are no rows to embed.")
    _refuse(pc.is_null(table["row_id"]), table, f"has no {id_column}")
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(table[TEXT])), 0)
    _refuse(pc.fill_null(blank, True), table, f"has an empty {text_column}")
    counts = table["row_id"].value_counts()
    if len(counts) < table.num_rows:
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        raise DataError(f"the id {twice!r} ({id_column}) stands more than once; ids are unique.")
    hashes = pa.array([text_hash(text) for text in table[TEXT].to_pylist()], pa.string())
    table = table.append_column("text_hash", hashes)
    return Source(table, tuple(passthrough), _fingerprint(table))


def plan_update(store: EmbeddingStore | None, source: Source) -> Update:
    """Compare a store (None for a new one) with a source."""
    if store is None:
        return Update(_by_length(source.table), [], 0, {})
    rows = store.read(["row_id", "text_hash"]).combine_chunks()
    found = pc.index_in(source.table["row_id"].combine_chunks(), value_set=rows["row_id"])
    place_N = pc.fill_null(found, -1).to_numpy(zero_copy_only=False)
    hash_N = rows["text_hash"].take(pa.array(np.maximum(place_N, 0)))
    same_N = pc.equal(hash_N, source.table["text_hash"]).to_numpy() & (place_N >= 0)
    source_of_M = np.full(rows.num_rows, -1)
    source_of_M[place_N[same_N]] = np.flatnonzero(same_N)

    kept, stale, first = [], {}, 0
    columns = [name for name in store.column_names() if name != "embedding"]
    for part in store.manifest.parts:
        table = store.read_part(part, columns)
        source_of_P = source_of_M[first : first + table.num_rows]
        first += table.num_rows
        live_P = np.flatnonzero(source_of_P >= 0)
        if len(live_P) == table.num_rows and _same_columns(table, source, source_of_P):
            kept.append(part)
        elif len(live_P):
            stale[part] = (live_P, source_of_P[live_P])
    pending = source.table.filter(pa.array(~same_N))
    return Update(_by_length(pending), kept, int((source_of_M < 0).sum()), stale)


def open_staging(folder: Place) -> Place:
    """Where new parts go. What an earlier run left unfinished is removed.

    It is an empty folder, or where there is no renaming the store's own: a part is in the store
    only once the manifest names it.
    """
    discard_unnamed(folder)
    if not isinstance(folder, Path):
        return folder
    staging = folder / _STAGING
    staging.mkdir(parents=True)
    return staging


def part_name() -> str:
    """A name that no other part has."""
    return f"part-{uuid.uuid4().hex}.parquet"


def commit(
    folder: Place,
    store: EmbeddingStore | None,
    source: Source,
    update: Update,
    staged: Sequence[str],
    manifest: Manifest,
) -> EmbeddingStore:
    """Make the store hold the source: stale parts anew, staged parts in, then the manifest.

    Args:
        staged: parts where `open_staging` said, that hold `update.pending`.
        manifest: `parts`, `rows` and `truncated` are filled in here.

    Raises:
        RuntimeError: rows would be missing; the store stays as it was.
    """
    staging = folder / _STAGING if isinstance(folder, Path) else folder
    parts = list(staged)
    for part, (rows, source_rows) in update.stale.items():
        assert store is not None
        kept = store.read_part(part).select(["row_id", "text_hash", "embedding", "truncated"])
        table = kept.take(pa.array(rows))
        others = source.table.select(source.passthrough).take(pa.array(source_rows))
        for field, column in zip(others.schema, others.columns, strict=True):
            table = table.append_column(field, column)
        parts.append(part_name())
        write_part(staging / parts[-1], table)
    if isinstance(staging, Path) and isinstance(folder, Path):
        for part in parts:
            (staging / part).rename(folder / part)
    values = manifest.__dict__ | {"parts": sorted([*update.kept, *parts])}
    new = EmbeddingStore(folder, Manifest(**values))
    truncated = new.read(["truncated"])["truncated"]
    if len(truncated) != source.table.num_rows:
        raise RuntimeError(f"{len(truncated)} rows in the store, {source.table.num_rows} in source")
    values |= {"rows": len(truncated), "truncated": pc.sum(truncated).as_py()}
    write_manifest(folder, Manifest(**values))
    discard_unnamed(folder)
    return EmbeddingStore.open(folder)


def discard_unnamed(folder: Place) -> None:
    """Remove staged files and parts that the manifest does not name."""
    remove(folder / _STAGING)
    named = EmbeddingStore.open(folder).manifest.parts if (folder / MANIFEST).is_file() else []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith("part-") and path.suffix == ".parquet" and path.name not in named:
            path.unlink()


def _same_columns(part: pa.Table, source: Source, source_rows: np.ndarray) -> bool:
    if part.column_names[3:] != list(source.passthrough):
        return False
    if not source.passthrough:
        return True
    expected = source.table.select(source.passthrough).take(pa.array(source_rows))
    return part.select(source.passthrough).equals(expected)


def _by_length(table: pa.Table) -> pa.Table:
    """Longest text first; equal texts are neighbours."""
    keyed = table.append_column("_length", pc.utf8_length(table[TEXT]))
    order = pc.sort_indices(keyed, [("_length", "descending"), ("text_hash", "ascending")])
    return table.take(order).combine_chunks()


def _fingerprint(table: pa.Table) -> str:
    rows = table.select(["row_id", "text_hash"]).sort_by("row_id")
    lines = pc.binary_join_element_wise(rows["row_id"], rows["text_hash"], "\t")
    return hashlib.sha256("\n".join(lines.to_pylist()).encode()).hexdigest()


def _refuse(bad: pa.ChunkedArray, table: pa.Table, complaint: str) -> None:
    count = pc.sum(bad).as_py()
    if count:
        first = pc.index(bad, True).as_py()
        row_id = table["row_id"][first].as_py()
        raise DataError(f"row {first} ({row_id!r}) {complaint}; {count} row(s) in all.")
