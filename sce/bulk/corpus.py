"""The input of a bulk job: which files, which rows, and how they become Arrow tables.

A *shard* is what one task reads: a text file, or some row groups of a Parquet file. A row's
*place*, the number of its file times 2^40 plus its number within the file, is the same in every
run over the same files, so it is what a job that is resumed knows its rows by.
"""

from __future__ import annotations

import glob
import io
import json
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sce.bulk.output import RUN_FILE, read_run
from sce.datasets.readers import ALLOWED_FILES, file_format, records_of
from sce.errors import DataError
from sce.storage import RemotePath, filesystem_of, to_place
from sce.store import MANIFEST, EmbeddingStore

PLACE_BITS = 40
KEEP = "keep."
BLOCK_ROWS = 8192
BLOCK_CHARS = 8_000_000
PARQUET_BUFFER = 1 << 20
"""A column chunk is read by this many bytes rather than whole: vectors of a large row group would
be 100 MB."""
SHARD_ROWS = 65_536
"""Row groups of a Parquet file are read together up to this many rows."""


@dataclass(frozen=True)
class InputFile:
    """One file of the input.

    Attributes:
        uri: path or URI as `pyarrow.fs` reads it.
        name: below the folder that the user gave; stands in ids made from places.
        size: bytes.
        modified: nanoseconds since the epoch, 0 where the store does not say.
    """

    uri: str
    name: str
    size: int
    modified: int

    @property
    def kind(self) -> str:
        return file_format(PurePosixPath(self.uri)) or ""

    def open(self) -> BinaryIO:
        """The bytes of the file, gzip undone."""
        filesystem, path = filesystem_of(self.uri)
        compression = "gzip" if path.lower().endswith(".gz") else None
        return io.BufferedReader(  # type: ignore[return-value]
            filesystem.open_input_stream(path, compression=compression), 1 << 20
        )

    def open_parquet(self) -> pq.ParquetFile:
        filesystem, path = filesystem_of(self.uri)
        try:
            return pq.ParquetFile(
                filesystem.open_input_file(path),
                buffer_size=PARQUET_BUFFER,
                pre_buffer=False,  # it would hold a whole row group, 100 MB of vectors
            )
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.uri}: not readable as Parquet ({error}).") from None


@dataclass(frozen=True)
class Shard:
    """What one task reads.

    Attributes:
        file_number: place of the file in the input.
        first_row: number of its first row within the file.
        rows: how many.
        row_groups: of a Parquet file; empty for a text file, which is read whole.
    """

    file: InputFile
    file_number: int
    first_row: int
    rows: int
    row_groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class Corpus:
    """The files of an input, all of one kind.

    Attributes:
        kind: ".parquet", ".jsonl", ".csv" or ".tsv".
        store: the embedding store that the input is, if it is one.
    """

    files: tuple[InputFile, ...]
    kind: str
    store: EmbeddingStore | None = None

    def identity(self) -> list[dict[str, Any]]:
        """What a resumed run compares: each file's name, size and time of change."""
        return [{"file": f.uri, "size": f.size, "modified": f.modified} for f in self.files]


@dataclass(frozen=True)
class Columns:
    """Which columns of the input mean what.

    Attributes:
        text, embedding: one of them is None.
        id: None makes ids from places: `tickets.jsonl:17`.
        labels: a column with one label set a row.
        keep: columns to be carried into the output.
        raw_json: keep the fields of JSONL as JSON text rather than as the text they hold.
    """

    text: str | None = "text"
    embedding: str | None = None
    id: str | None = None
    labels: str | None = None
    keep: tuple[str, ...] = ()
    raw_json: bool = False

    @property
    def needed(self) -> list[str]:
        found = [self.text, self.embedding, self.id, self.labels, *self.keep]
        return list(dict.fromkeys(name for name in found if name is not None))


def open_corpus(inputs: Sequence[str]) -> Corpus:
    """Find the files of an input.

    Args:
        inputs: files, folders (searched to the bottom, without what begins with "_" or "."),
            globs, URIs that `pyarrow.fs` knows (s3://, gs://, hdfs://, file://), or one folder
            that holds an embedding store.

    Raises:
        DataError: nothing there, a file of another kind, files of several kinds, a file that is
            named twice, or what an unfinished job has written so far.
    """
    if not inputs:
        raise DataError("input: give a file, a folder, a glob or a URI.")
    for item in inputs:
        _refuse_unfinished(item)
    if len(inputs) == 1 and _is_store(inputs[0]):
        store = EmbeddingStore.open(inputs[0])
        return Corpus(tuple(_store_files(store)), ".parquet", store)
    found = [file for item in inputs for file in _find(item)]
    files = tuple(sorted(found, key=lambda file: file.uri))
    for one, other in pairwise(files):
        if one.uri == other.uri:
            raise DataError(f"input: {one.uri} is named twice.")
    if len({file.name for file in files}) < len(files):
        files = tuple(replace(file, name=file.uri) for file in files)
    kinds = sorted({_kind(file.kind) for file in files})
    if len(kinds) > 1:
        raise DataError(f"input: files of several kinds ({', '.join(kinds)}). One job reads one.")
    return Corpus(files, kinds[0])


def column_names(corpus: Corpus) -> list[str]:
    """The columns of the first file, in order.

    Raises:
        DataError: JSON lines, whose fields may differ from line to line.
    """
    first = corpus.files[0]
    if corpus.kind == ".jsonl":
        raise DataError("keep_columns: '*' needs a header, which JSONL has not: name the fields.")
    if corpus.kind == ".parquet":
        with first.open_parquet() as parquet:
            return list(parquet.schema_arrow.names)
    return list(getattr(next(_records(first), None), "fields", {}))


@dataclass(frozen=True)
class FilePlan:
    """What is to be read of one file, and the types of the columns to be kept."""

    shards: tuple[Shard, ...]
    types: dict[str, pa.DataType]


def plan_file(file: InputFile, number: int, columns: Columns) -> FilePlan:
    """Count the rows of a file, and see that it has the columns: footers are read of Parquet,
    and every line of a text file.

    Raises:
        DataError: the file cannot be read, or plainly lacks a column: a Parquet or CSV file
            without it, a JSONL file of whose first rows none has it; a Parquet column of a type
            that does not serve.
    """
    if file.kind == ".parquet":
        with file.open_parquet() as parquet:
            schema = parquet.schema_arrow
            sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        _require_columns(file, schema.names, columns)
        _check_types(file, schema, columns)
        types = {name: schema.field(name).type for name in columns.keep}
        return FilePlan(tuple(_row_group_shards(file, number, sizes)), types)
    names: dict[str, None] = {}
    for record, _ in zip(_records(file), range(100)):
        names |= dict.fromkeys(getattr(record, "fields", {}))
    if names:
        _require_columns(file, list(names), columns)
    rows = _count_rows(file)
    shards = (Shard(file, number, 0, rows),) if rows else ()
    return FilePlan(shards, dict.fromkeys(columns.keep, pa.string()))


def join_plans(plans: Sequence[FilePlan]) -> list[Shard]:
    """The shards of all files.

    Raises:
        DataError: no rows at all, or a kept column whose type changes from file to file.
    """
    types: dict[str, tuple[pa.DataType, str]] = {}
    for plan in plans:
        for name, kind in plan.types.items():
            uri = plan.shards[0].file.uri if plan.shards else "an empty file"
            known, where = types.setdefault(name, (kind, uri))
            if known != kind:
                raise DataError(
                    f"keep_columns: {name!r} is of type {known} in {where}, and {kind} in {uri}. "
                    "A column that is kept needs one type."
                )
    shards = [shard for plan in plans for shard in plan.shards]
    if not shards:
        raise DataError("input: there are no rows in it.")
    return shards


def _row_group_shards(file: InputFile, number: int, sizes: Sequence[int]) -> Iterator[Shard]:
    groups: list[int] = []
    first = rows = 0
    for group, size in enumerate(sizes):
        groups.append(group)
        rows += size
        if rows and (rows >= SHARD_ROWS or group == len(sizes) - 1):
            yield Shard(file, number, first, rows, tuple(groups))
            first, rows, groups = first + rows, 0, []


def _require_columns(file: InputFile, names: Sequence[str], columns: Columns) -> None:
    missing = [name for name in columns.needed if name not in names]
    if missing:
        raise DataError(f"{file.uri}: has no column {missing[0]!r}. It has: {', '.join(names)}.")


def read_shard(shard: Shard, columns: Columns) -> Iterator[pa.Table]:
    """The rows of a shard in tables of at most `BLOCK_ROWS`.

    Columns: `place` int64; `id` string; `text` string or `embedding` (as it is in the file);
    `labels` list of strings or string, where asked for; `truncated` bool; `error` string ("" for
    none; a line that cannot be read is a row with an error); `keep.<name>` for each column kept.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    if shard.row_groups:
        yield from _read_parquet(shard, columns)
    else:
        yield from _read_text(shard, columns)


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
    found = {}
    for name in block.column_names:
        if name.startswith(KEEP):
            own = name.removeprefix(KEEP)
            found[kept_name(own, taken)] = block[name]
    return found


def kept_name(name: str, taken: Sequence[str]) -> str:
    """What a kept column is called in the output."""
    return f"input_{name}" if name in taken else name


def _find(item: str) -> list[InputFile]:
    if "://" in item and urlsplit(item).scheme != "file":
        return _find_remote(item)
    path = Path(item.removeprefix("file://")).expanduser().absolute()
    if path.is_file():
        return [_local_file(str(path), path.name)]
    if path.is_dir():
        names = sorted(
            posixpath.join(os.path.relpath(folder, path), name).removeprefix("./")
            for folder, _, files in os.walk(path)
            for name in files
        )
        names = [name for name in names if _is_data(name)]
        if not names:
            raise DataError(
                f"input: the folder {item!r} has no file to read. Allowed: {ALLOWED_FILES}."
            )
        return [_local_file(str(path / name), name) for name in names]
    paths = sorted(p for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not paths:
        raise DataError(f"input: nothing at {item!r}. Give a file, a folder, a glob or a URI.")
    return [_local_file(p, Path(p).name) for p in paths]


def _find_remote(uri: str) -> list[InputFile]:
    pattern = any(c in uri for c in "*?[")
    base = uri[: min(uri.find(c) for c in "*?[" if c in uri)].rpartition("/")[0] if pattern else uri
    filesystem, root = filesystem_of(base)
    prefix = base[: len(base) - len(root)] if base.endswith(root) else f"{urlsplit(uri).scheme}://"
    try:
        info = filesystem.get_file_info(root)
        if info.type == pafs.FileType.File:
            infos = [info]
        else:
            infos = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"input: {uri!r} cannot be listed ({error}).") from None
    files = []
    for info in infos:
        name = info.path[len(root) :].strip("/") or info.base_name
        if info.type != pafs.FileType.File or (len(infos) > 1 and not _is_data(name)):
            continue
        full = prefix + info.path
        if not pattern or fnmatch(full, uri):
            files.append(InputFile(full, name, info.size, info.mtime_ns or 0))
    if not files:
        raise DataError(f"input: nothing to read at {uri!r}. Allowed: {ALLOWED_FILES}.")
    for file in files:
        _require_kind(file)
    return files


def _local_file(path: str, name: str) -> InputFile:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    file = InputFile(path, name, status.st_size, status.st_mtime_ns)
    _require_kind(file)
    return file


def _require_kind(file: InputFile) -> None:
    if not file.kind:
        raise DataError(f"{file.uri}: not a table file that can be read. Allowed: {ALLOWED_FILES}.")


def _is_data(name: str) -> bool:
    hidden = any(part[0] in "_." for part in PurePosixPath(name).parts)
    return not hidden and file_format(PurePosixPath(name)) is not None


def _refuse_unfinished(item: str) -> None:
    """A part of an output would pass for the whole."""
    if _is_pattern(item) or not (to_place(item) / RUN_FILE).is_file():
        return
    run = read_run(str(to_place(item)))
    if run is not None and not run.done:
        raise DataError(
            f"input: {item} is what an unfinished job has written so far. Run that job again, "
            "which goes on where it was."
        )


def _is_pattern(item: str) -> bool:
    return "://" in item and any(c in item for c in "*?[")


def _is_store(item: str) -> bool:
    if _is_pattern(item):
        return False
    manifest = to_place(item) / MANIFEST
    if not manifest.is_file():
        return False
    try:
        return "embedder" in json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # let opening it say what is wrong


def _store_files(store: EmbeddingStore) -> Iterator[InputFile]:
    if not isinstance(store.folder, RemotePath):
        yield from (_local_file(path, Path(path).name) for path in store.paths)
        return
    for uri in store.paths:
        filesystem, path = filesystem_of(uri)
        info = filesystem.get_file_info(path)
        if info.type != pafs.FileType.File:
            raise DataError(f"{uri}: cannot be read (no such file).")
        yield InputFile(uri, info.base_name, info.size, info.mtime_ns or 0)


def _kind(kind: str) -> str:
    return ".jsonl" if kind in (".json", ".ndjson") else kind


def _records(file: InputFile) -> Iterator[Any]:
    return records_of(PurePosixPath(file.uri), file.open)


def _count_rows(file: InputFile) -> int:
    if _kind(file.kind) != ".jsonl":
        return sum(1 for _ in _records(file))
    try:
        with file.open() as lines:
            first = next(lines, b"").removeprefix(b"\xef\xbb\xbf")
            return bool(first.strip()) + sum(1 for line in lines if not line.isspace())
    except OSError as error:
        raise DataError(f"{file.uri}: cannot be read ({error}).") from None


def _check_types(file: InputFile, schema: pa.Schema, columns: Columns) -> None:
    def refuse(name: str, what: str) -> None:
        raise DataError(
            f"{file.uri}: the column {name!r} is of type {schema.field(name).type}; {what} is "
            "needed."
        )

    for name, is_right, what in (
        (columns.id, _is_id, "text or whole numbers"),
        (columns.text, _is_text, "text"),
        (columns.embedding, _is_vector, "a list of floating-point numbers"),
        (columns.labels, _is_label_column, "a list of texts, or text that holds a JSON list,"),
    ):
        if name in schema.names and not is_right(schema.field(name).type):
            refuse(str(name), what)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _is_id(kind: pa.DataType) -> bool:
    return _is_text(kind) or bool(pa.types.is_integer(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_vector(kind: pa.DataType) -> bool:
    return _is_list(kind) and bool(pa.types.is_floating(kind.value_type))


def _is_label_column(kind: pa.DataType) -> bool:
    return _is_text(kind) or (_is_list(kind) and _is_text(kind.value_type))


def _read_parquet(shard: Shard, columns: Columns) -> Iterator[pa.Table]:
    row = shard.first_row
    with shard.file.open_parquet() as parquet:
        in_file = parquet.schema_arrow.names
        carried = [name for name in ("place", "truncated", "error") if name in in_file]
        wanted = list(dict.fromkeys([*columns.needed, *carried]))
        try:
            for batch in parquet.iter_batches(
                BLOCK_ROWS, row_groups=list(shard.row_groups), columns=wanted
            ):
                table = pa.table(batch)
                yield _from_parquet(shard, row, table, columns)
                row += table.num_rows
                # What Arrow keeps of a block for the next would stay with the worker for good.
                del batch, table
                pa.default_memory_pool().release_unused()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{shard.file.uri}: not readable as Parquet ({error}).") from None


def _from_parquet(shard: Shard, first: int, table: pa.Table, columns: Columns) -> pa.Table:
    rows = table.num_rows
    # A store of ours says itself where its rows stood, and what was wrong with them.
    own = columns.embedding is not None and "place" in table.column_names
    places = table["place"] if own else _places(shard, range(first, first + rows))
    found: dict[str, Any] = {"place": places}
    if columns.id is None:
        found["id"] = _ids(shard, range(first, first + rows))
    else:
        found["id"] = table[columns.id].cast(pa.string())
    errors = [""] * rows
    if columns.text is not None:
        found["text"] = _valid_text(table[columns.text].cast(pa.string()), errors)
    if columns.embedding is not None:
        found["embedding"] = table[columns.embedding]
    if columns.labels is not None:
        found["labels"] = table[columns.labels]
    if columns.labels is not None and _is_text(table[columns.labels].type):
        found["labels"] = _label_lists(table[columns.labels].to_pylist(), errors)
    found["truncated"] = (
        table["truncated"]
        if columns.embedding is not None and "truncated" in table.column_names
        else pa.repeat(pa.scalar(False), rows)
    )
    found["error"] = (
        table["error"].cast(pa.string())
        if own and "error" in table.column_names
        else pa.array(errors, pa.string())
    )
    return pa.table(found | {f"{KEEP}{name}": table[name] for name in columns.keep})


def _read_text(shard: Shard, columns: Columns) -> Iterator[pa.Table]:
    records: list[Any] = []
    first = chars = 0
    for record in _records(shard.file):
        fields = getattr(record, "fields", None)
        text = fields.get(columns.text) if fields is not None else None
        chars += len(text) if isinstance(text, str) else 0
        records.append(record)
        if len(records) == BLOCK_ROWS or chars >= BLOCK_CHARS:
            yield _from_records(shard, first, records, columns)
            first, chars, records = first + len(records), 0, []
    if records:
        yield _from_records(shard, first, records, columns)


def _from_records(shard: Shard, first: int, records: list[Any], columns: Columns) -> pa.Table:
    """A table of parsed lines; the parsing of a line is a loop over rows already."""
    rows = [getattr(record, "fields", None) or {} for record in records]
    errors = [_LINE_ERRORS.get(getattr(record, "reason", ""), "") for record in records]
    found: dict[str, Any] = {"place": _places(shard, range(first, first + len(rows)))}
    if columns.id is None:
        found["id"] = pa.array(
            [f"{shard.file.name}:{record.line}" for record in records], pa.string()
        )
    else:
        found["id"] = pa.array([_as_text(row.get(columns.id)) for row in rows], pa.string())
    if columns.text is not None:
        texts = [row.get(columns.text) for row in rows]
        for i, text in enumerate(texts):
            if text is not None and not errors[i]:
                errors[i] = "" if isinstance(text, str) else "text_not_string"
        found["text"] = _strings(texts, errors)
    if columns.embedding is not None:
        found["embedding"] = _vectors([row.get(columns.embedding) for row in rows], errors)
    if columns.labels is not None:
        found["labels"] = _label_lists([row.get(columns.labels) for row in rows], errors)
    found["truncated"] = pa.repeat(pa.scalar(False), len(rows))
    keep = {
        f"{KEEP}{name}": pa.array(
            [_kept(row, name, shard.file.kind, columns.raw_json) for row in rows], pa.string()
        )
        for name in columns.keep
    }
    return pa.table(found | {"error": pa.array(errors, pa.string())} | keep)


_LINE_ERRORS = {"not UTF-8": "line_not_utf8", "unreadable line": "line_unreadable"}


def _places(shard: Shard, rows: range) -> pa.Array:
    base = shard.file_number << PLACE_BITS
    return pa.array(range(base + rows.start, base + rows.stop), pa.int64())


def _ids(shard: Shard, rows: range) -> pa.Array:
    return pa.array([f"{shard.file.name}:{row + 1}" for row in rows], pa.string())


def _strings(values: list[Any], errors: list[str]) -> pa.Array:
    """Texts as Arrow has them; what is not a text is null, with an error."""
    try:
        return pa.array([v if isinstance(v, str) else None for v in values], pa.string())
    except UnicodeEncodeError:
        for i, value in enumerate(values):
            if isinstance(value, str) and not _is_unicode(value):
                values[i], errors[i] = None, errors[i] or "text_not_unicode"
        return pa.array([v if isinstance(v, str) else None for v in values], pa.string())


def _valid_text(column: pa.ChunkedArray, errors: list[str]) -> pa.ChunkedArray | pa.Array:
    """Parquet files may hold bytes under the name of text."""
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        texts: list[str | None] = []
        for i, raw in enumerate(column.cast(pa.binary()).to_pylist()):
            try:
                texts.append(None if raw is None else raw.decode())
            except UnicodeDecodeError:
                texts.append(None)
                errors[i] = "text_not_unicode"
        return pa.array(texts, pa.string())


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
            except ValueError:
                value = False
        if value is not None and not (
            isinstance(value, list)
            and all(isinstance(name, str) and _is_unicode(name) for name in value)
        ):
            value, errors[i] = None, errors[i] or "labels_not_a_list"
        values[i] = value
    return pa.array(values, pa.list_(pa.string()))


def _kept(row: Any, name: str, kind: str, raw_json: bool) -> str | None:
    """A field as it goes into the output: texts as they are, else JSON."""
    if name not in row:
        return None
    value = row[name]
    if raw_json and kind not in (".csv", ".tsv"):
        return json.dumps(value)
    if value is None:
        return None
    return _as_text(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _as_text(value: Any) -> str | None:
    """An id or a field as text that Arrow can hold: a lone surrogate is written as in JSON."""
    if value is None or isinstance(value, str):
        if value is None or _is_unicode(value):
            return value
        return value.encode("utf-8", "backslashreplace").decode()
    return json.dumps(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
