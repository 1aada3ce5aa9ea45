"""The rows of a shard as Arrow tables.

A row's *place*, the number of its file times 2^40 plus its number within the file, is the same in
every run over the same files, so it is what a job that is resumed knows its rows by.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sce.bulk.corpus import Columns, Shard, is_text
from sce.datasets.readers import LONG_LINE
from sce.embedding.row_checks import is_unicode
from sce.embedding.store import CHUNK_SPANS, CHUNK_VECTORS
from sce.errors import DataError

PLACE_BITS = 40
KEEP = "keep."
OWN_COLUMNS = ("label", "score", "top", "scores", "where", "truncated", "error", "place")
"""Of an output beside the ids, whose column may have any name."""
BLOCK_ROWS = 8192
READ_ROWS = 512
"""Decoded at once, of which a block is put together without a copy. Decoding takes five times the
memory of its rows for a while; so little at a time is allocated again where it was freed."""
BLOCK_CHARS = 8_000_000
READ_BYTES = 32 * 2**20
BLOCK_BYTES = 256 * 2**20
_OWN = {"place": pa.int64(), "truncated": pa.bool_(), "error": pa.string()}
_LINE_ERRORS = {
    "not UTF-8": "line_not_utf8",
    "unreadable line": "line_unreadable",
    LONG_LINE: "line_too_long",
}


def read_shard(shard: Shard, columns: Columns) -> Iterator[pa.Table]:
    """The rows of a shard that are to be read, in tables of at most `BLOCK_ROWS`.

    Columns: `place` int64; `id` string; `text` string or `embedding` (as it is in the file);
    `labels` list of strings or string, where asked for; `truncated` bool; `error` string ("" for
    none; a line that cannot be read is a row with an error); `keep.<name>` for each column kept.
    Raises `DataError` where the file as a whole cannot be read.
    """
    tables = (_read_parquet if shard.row_groups else _read_text)(shard, columns)
    if not shard.chosen:
        yield from tables
        return
    chosen = np.unpackbits(np.frombuffer(shard.chosen, np.uint8)).astype(bool)
    for table in tables:
        chosen_N, chosen = np.split(chosen, [table.num_rows])
        if chosen_N.any():
            yield table.filter(pa.array(chosen_N))


def read_texts(shards: Iterable[Shard], columns: Columns, ids: Sequence[str]) -> dict[str, str]:
    """The texts of some rows, for showing them. Reads until all are found; others are left out."""
    wanted = pa.array(sorted(set(ids)), pa.string())
    found: dict[str, str] = {}
    for shard in shards:
        for table in read_shard(shard, columns):
            rows = table.filter(pc.is_in(table["id"], value_set=wanted))
            pairs = zip(rows["id"].to_pylist(), rows["text"].to_pylist())
            found |= {row_id: text for row_id, text in pairs if text is not None}
            if len(found) == len(wanted):
                return found
    return found


def kept_columns(block: pa.Table, taken: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    """The columns that the user keeps; one that has the name of a column of ours gets a prefix."""
    names = [name for name in block.column_names if name.startswith(KEEP)]
    return {kept_name(name.removeprefix(KEEP), taken): block[name] for name in names}


def kept_name(name: str, taken: Sequence[str]) -> str:
    """What a kept column is called in the output."""
    return f"input_{name}" if name in taken else name


def _read_parquet(shard: Shard, columns: Columns) -> Iterator[pa.Table]:
    row = shard.first_row
    with shard.file.open_parquet() as parquet:
        carried = [name for name in _OWN if name in parquet.schema_arrow.names]
        asked = dict.fromkeys([*columns.needed, *columns.keep, *carried])
        by_folder = {n: v for n, v in shard.file.partitions.items() if n in asked}
        by_folder = {n: v for n, v in by_folder.items() if n not in parquet.schema_arrow.names}
        wanted = [name for name in asked if name in parquet.schema_arrow.names]
        groups = list(shard.row_groups)
        rows_read = _rows_at_once(parquet.metadata, groups, wanted)
        batches = parquet.iter_batches(rows_read, row_groups=groups, columns=wanted)
        try:
            while held := _block(batches):
                table = pa.Table.from_batches(held)
                del held  # before the next are read
                for name, value in by_folder.items():
                    table = table.append_column(name, _repeated(value, len(table)))
                yield _from_parquet(shard, row, table, columns)
                row += table.num_rows
                del table
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{shard.file.uri}: not readable as Parquet.", str(error)) from None


def _rows_at_once(metadata: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str]) -> int:
    """`READ_ROWS`, or fewer of large rows."""
    size = sum(
        chunk.total_uncompressed_size
        for group in map(metadata.row_group, groups)
        for chunk in map(group.column, range(group.num_columns))
        if chunk.path_in_schema.split(".")[0] in columns
    )
    rows = sum(metadata.row_group(group).num_rows for group in groups)
    return max(1, min(READ_ROWS, READ_BYTES * rows // max(1, size)))


def _block(batches: Iterator[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """The next ones, of `BLOCK_ROWS` rows together or of `BLOCK_BYTES`."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    while rows < BLOCK_ROWS and size < BLOCK_BYTES and (batch := next(batches, None)) is not None:
        held.append(batch)
        rows, size = rows + batch.num_rows, size + batch.get_total_buffer_size()
    return held


def _from_parquet(shard: Shard, first: int, table: pa.Table, columns: Columns) -> pa.Table:
    rows = range(first, first + table.num_rows)
    found: dict[str, Any] = {"place": _places(shard, rows)}
    if columns.id is None:
        numbers = pa.array(np.arange(rows.start + 1, rows.stop + 1)).cast(pa.string())
        found["id"] = pc.binary_join_element_wise(shard.file.name, numbers, ":")
    else:
        found["id"] = _id_texts(table[columns.id])
    errors = [""] * len(rows)
    if columns.text is not None:
        found["text"] = _valid_text(table[columns.text].cast(pa.string()), errors)
    if columns.embedding is not None:
        found["embedding"] = table[columns.embedding]
    if columns.chunks:
        found |= {name: table[name] for name in (CHUNK_VECTORS, CHUNK_SPANS)}
    if columns.labels is not None:
        labels = table[columns.labels]
        found["labels"] = (
            _label_lists(labels.to_pylist(), errors) if is_text(labels.type) else labels
        )
    found["truncated"] = pa.repeat(False, len(rows))
    found["error"] = pa.array(errors, pa.string())
    # A store of ours says itself where its rows stood, and what was wrong with them.
    own = set(_OWN if columns.embedding is not None else ()) & set(table.column_names)
    if "place" not in own:
        own.discard("error")
    found |= {name: table[name].cast(_OWN[name]) for name in own}
    found["error"] = pc.fill_null(found["error"], "")
    types = dict(shard.types)
    for name in columns.keep:
        if name in table.column_names:
            kept = table[name].cast(types.get(name, table[name].type))
        else:
            kept = pa.nulls(len(table), types[name])
        found[f"{KEEP}{name}"] = kept
    return pa.table(found)


def _read_text(shard: Shard, columns: Columns) -> Iterator[pa.Table]:
    records: list[Any] = []
    first = chars = 0
    for record in shard.file.records():
        text = getattr(record, "fields", {}).get(columns.text)
        chars += len(text) if isinstance(text, str) else 0
        records.append(record)
        if len(records) == BLOCK_ROWS or chars >= BLOCK_CHARS:
            yield _from_records(shard, first, records, columns)
            first, chars, records = first + len(records), 0, []
    if records:
        yield _from_records(shard, first, records, columns)


def _from_records(shard: Shard, first: int, records: list[Any], columns: Columns) -> pa.Table:
    """A table of parsed lines; the parsing of a line is a loop over rows already."""
    rows = [getattr(record, "fields", {}) for record in records]
    if by_folder := shard.file.partitions:
        rows = [by_folder | row for row in rows]
    errors = [_LINE_ERRORS.get(getattr(record, "reason", ""), "") for record in records]
    found: dict[str, Any] = {"place": _places(shard, range(first, first + len(rows)))}
    ids: list[str | None]
    if columns.id is None:
        ids = [f"{shard.file.name}:{record.line}" for record in records]
    else:
        ids = [_as_text(row.get(columns.id)) for row in rows]
    found["id"] = pa.array(ids, pa.string())
    if columns.text is not None:
        found["text"] = _texts([row.get(columns.text) for row in rows], errors)
    if columns.embedding is not None:
        found["embedding"] = _vectors([row.get(columns.embedding) for row in rows], errors)
    if columns.labels is not None:
        found["labels"] = _label_lists([row.get(columns.labels) for row in rows], errors)
    found["truncated"] = pa.repeat(False, len(rows))
    found["error"] = pa.array(errors, pa.string())
    raw_json = columns.raw_json and shard.file.kind == ".jsonl"
    for name in columns.keep:
        kept = [_kept(row, name, raw_json) for row in rows]
        found[f"{KEEP}{name}"] = pa.array(kept, pa.string())
    return pa.table(found)


def _repeated(value: str | None, count: int) -> pa.Array:
    return pa.nulls(count, pa.string()) if value is None else pa.repeat(value, count)


def _id_texts(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Ids as text: a UUID in its usual form, a whole number without a point, null for NaN."""
    if column.type == pa.uuid():
        storage = column.combine_chunks().storage if column.num_chunks else pa.array([])
        return pa.array(
            [None if one is None else str(UUID(bytes=one)) for one in storage.to_pylist()],
            pa.string(),
        )
    texts = column.cast(pa.string())
    if not pa.types.is_floating(column.type):
        return texts
    numbers = column.cast(pa.float64())
    whole = pc.and_(pc.equal(numbers, pc.trunc(numbers)), pc.less(pc.abs(numbers), 2**53))
    ints = pc.if_else(whole, numbers, 0).cast(pa.int64()).cast(pa.string())
    found = pc.if_else(whole, ints, texts)
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.string()), found)


def _places(shard: Shard, rows: range) -> pa.Array:
    base = shard.file_number << PLACE_BITS
    return pa.array(np.arange(base + rows.start, base + rows.stop, dtype=np.int64))


def _texts(values: list[Any], errors: list[str]) -> pa.Array:
    """Texts as Arrow has them; what is none is null, with an error."""
    for i, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            values[i], errors[i] = None, errors[i] or "text_not_string"
        elif value is not None and not is_unicode(value):
            values[i], errors[i] = None, errors[i] or "text_not_unicode"
    return pa.array(values, pa.string())


def _valid_text(column: pa.ChunkedArray, errors: list[str]) -> pa.ChunkedArray | pa.Array:
    """Parquet files may hold bytes under the name of text."""
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        raw = column.cast(pa.binary()).to_pylist()
        decoded = [one if one is None else one.decode(errors="surrogateescape") for one in raw]
        return _texts(decoded, errors)


def _vectors(values: list[Any], errors: list[str]) -> pa.Array:
    for i, value in enumerate(values):
        if value is None:
            continue
        try:
            if not isinstance(value, list) or any(type(x) not in (int, float) for x in value):
                raise ValueError
            values[i] = np.asarray(value, np.float64).astype(np.float32)
        except (ValueError, OverflowError):
            values[i], errors[i] = None, errors[i] or "embedding_not_numbers"
    return pa.array(values, pa.list_(pa.float32()))


def _label_lists(values: list[Any], errors: list[str]) -> pa.Array:
    """One list of names a row; CSV has it as a JSON list in a field."""
    for i, value in enumerate(values):
        if isinstance(value, str):
            try:
                value = json.loads(value) if value.strip() else None
            except (ValueError, RecursionError):
                value = False
        if value is not None and not (
            isinstance(value, list)
            and all(isinstance(name, str) and is_unicode(name) for name in value)
        ):
            value, errors[i] = None, errors[i] or "labels_not_a_list"
        values[i] = value
    return pa.array(values, pa.list_(pa.string()))


def _kept(row: Any, name: str, raw_json: bool) -> str | None:
    """A field as it goes into the output: texts as they are, else JSON."""
    if name not in row:
        return None
    value = row[name]
    if raw_json:
        return json.dumps(value)
    if value is not None and not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
    return _as_text(value)


def _as_text(value: Any) -> str | None:
    """An id or a field as text that Arrow can hold: a lone surrogate is written as in JSON."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "backslashreplace").decode()
