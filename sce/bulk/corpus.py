"""The input of a bulk job: which files, how many rows, and how they are shared out.

A *shard* is what one task reads: a text file, or some row groups of a Parquet file.
"""

from __future__ import annotations

import glob
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sce.bulk.output import RUN_FILE, read_run
from sce.datasets.diagnosis import likely_cause
from sce.datasets.readers import (
    ALLOWED_FILES,
    file_format,
    records_of,
    refuse_repeated_columns,
)
from sce.embedding.store import MANIFEST, EmbeddingStore
from sce.errors import DataError
from sce.storage import filesystem_of, to_place

PARQUET_BUFFER = 1 << 20
"""A column chunk is read by this many bytes rather than whole: vectors of a large row group would
be 100 MB."""
SHARD_ROWS = 65_536
"""Row groups of a Parquet file are read together up to this many rows."""
HEAD_ROWS = 100
"""Rows of a JSONL file that are looked at to see which fields it has."""
_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)


@dataclass(frozen=True)
class InputFile:
    """One file of the input, of `size` bytes.

    Attributes:
        uri: path or URI as `pyarrow.fs` reads it.
        name: below the folder that the user gave; stands in ids made from places.
        modified: nanoseconds since the epoch, 0 where the store does not say.
    """

    uri: str
    name: str
    size: int
    modified: int

    @property
    def kind(self) -> str:
        """ ".parquet", ".jsonl", ".csv" or ".tsv"; "" for what is no table file."""
        kind = file_format(PurePosixPath(self.uri)) or ""
        return ".jsonl" if kind in (".json", ".ndjson") else kind

    def likely_cause(self) -> str:
        """Why hardly a row of it can be read, in a sentence, or ""."""
        return likely_cause(self.uri, self.kind, self.open)

    def open(self) -> BinaryIO:
        """The bytes of the file, gzip undone."""
        filesystem, path = filesystem_of(self.uri)
        compression = "gzip" if path.lower().endswith(".gz") else None
        return io.BufferedReader(  # type: ignore[return-value]
            filesystem.open_input_stream(path, compression=compression), 1 << 20
        )

    def records(self) -> Iterator[Any]:
        """The lines of a text file, as `records_of` reads them."""
        return records_of(PurePosixPath(self.uri), self.open)

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
        row_groups: of a Parquet file; empty for a text file, which is read whole.
        chosen: one bit for each row, where only some are to be read.
    """

    file: InputFile
    file_number: int
    first_row: int
    rows: int
    row_groups: tuple[int, ...] = ()
    chosen: bytes = b""

    def only(self, chosen_N: np.ndarray, file_number: int) -> Shard:
        """Some of the rows, with places as of the file `file_number`."""
        bits, rows = np.packbits(chosen_N).tobytes(), int(chosen_N.sum())
        return replace(self, file_number=file_number, rows=rows, chosen=bits)


@dataclass(frozen=True)
class Corpus:
    """The files of an input, all of one kind, and the embedding store that they are, if any."""

    files: tuple[InputFile, ...]
    store: EmbeddingStore | None = None

    @property
    def kind(self) -> str:
        return self.files[0].kind if self.files else ".parquet"  # an empty store has none


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
    store = EmbeddingStore.open(inputs[0]) if len(inputs) == 1 and _is_store(inputs[0]) else None
    found = [file for item in (store.paths if store else inputs) for file in find_files(item)]
    if store is not None:  # in the order of its manifest
        return Corpus(tuple(found), store)
    files = tuple(sorted(found, key=lambda file: file.uri))
    for one, other in pairwise(files):
        if one.uri == other.uri:
            raise DataError(f"input: {one.uri} is named twice.")
    if len({file.name for file in files}) < len(files):  # ids made from names have to differ
        files = tuple(replace(file, name=file.uri) for file in files)
    kinds = sorted({file.kind for file in files})
    if len(kinds) > 1:
        raise DataError(f"input: files of several kinds ({', '.join(kinds)}). One job reads one.")
    return Corpus(files)


def column_names(corpus: Corpus) -> list[str]:
    """The columns of the first file, in order. Raises `DataError`: JSON lines, whose fields may
    differ from line to line."""
    if corpus.kind == ".jsonl":
        raise DataError("keep_columns: '*' needs a header, which JSONL has not: name the fields.")
    return field_names(corpus.files[0])


def field_names(file: InputFile) -> list[str]:
    """The columns of a file; of a text file those of its first rows, so none where it has none."""
    if file.kind == ".parquet":
        with file.open_parquet() as parquet:
            return list(parquet.schema_arrow.names)
    names: dict[str, None] = {}
    for record, _ in zip(file.records(), range(HEAD_ROWS)):
        names |= dict.fromkeys(getattr(record, "fields", {}))
    return list(names)


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
        require_columns(file, schema.names, columns.needed)
        _check_types(file, schema, columns)
        types = {name: schema.field(name).type for name in columns.keep}
        return FilePlan(tuple(_row_group_shards(file, number, sizes)), types)
    if names := field_names(file):
        require_columns(file, names, columns.needed)
    rows = _count_rows(file)
    shards = (Shard(file, number, 0, rows),) if rows else ()
    return FilePlan(shards, dict.fromkeys(columns.keep, pa.string()))


def plan_files(files: Iterable[tuple[InputFile, int]], columns: Columns) -> list[FilePlan]:
    """`plan_file` of several. Raises as it does."""
    return [plan_file(file, number, columns) for file, number in files]


def join_plans(plans: Sequence[FilePlan]) -> list[Shard]:
    """The shards of all files. Raises `DataError`: no rows at all, or a kept column whose type
    changes from file to file."""
    types: dict[str, tuple[pa.DataType, str]] = {}
    for plan in plans:
        uri = plan.shards[0].file.uri if plan.shards else "an empty file"
        for name, kind in plan.types.items():
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


def require_columns(file: InputFile, names: Sequence[str], needed: Sequence[str]) -> None:
    """Raises `DataError` where one that is needed is not among the names of a file's columns."""
    refuse_repeated_columns(file.uri, names)
    for name in needed:
        if name not in names:
            known = ", ".join(names).encode(errors="replace").decode()
            hint = f" {cause}" if (cause := file.likely_cause()) else ""
            raise DataError(f"{file.uri}: has no column {name!r}. It has: {known}.{hint}")


def find_files(item: str, what: str = "input") -> list[InputFile]:
    """The table files that a file, folder, glob or URI stands for, see `open_corpus`. Raises
    `DataError`, which names the setting `what`: nothing is there, or a file of another kind."""
    remote = "://" in item and not item.lower().startswith("file://")
    base = item if remote else str(Path(str(to_place(item))).expanduser().absolute())
    if _is_pattern(item):
        base = re.split(r"[*?[]", item)[0].rpartition("/")[0]
    filesystem, root = filesystem_of(base)
    prefix = base.removesuffix(root) if base.endswith(root) else f"{urlsplit(item).scheme}://"
    try:
        info = filesystem.get_file_info(root)
        if info.type == pafs.FileType.File:
            infos = [info]
        elif remote or info.type == pafs.FileType.Directory:
            infos = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
            infos = [one for one in infos if _is_data(one.path[len(root) :].strip("/"))]
        else:
            infos = filesystem.get_file_info(glob.glob(root, recursive=True))
            if not infos:
                raise DataError(
                    f"{what}: nothing at {item!r}. Give a file, a folder, a glob or a URI."
                )
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{what}: {item!r} cannot be listed ({error}).") from None
    files = []
    for info in sorted(infos, key=lambda one: one.path):
        inside, uri = info.path.removeprefix(f"{root}/"), prefix + info.path
        if info.type == pafs.FileType.File and (not _is_pattern(item) or fnmatch(uri, item)):
            name = info.base_name if inside == info.path else inside
            files.append(InputFile(uri, name, info.size, info.mtime_ns or 0))
    if not files:
        raise DataError(f"{what}: nothing to read at {item!r}. Allowed: {ALLOWED_FILES}.")
    for file in files:
        if not file.kind:
            raise DataError(
                f"{file.uri}: not a table file that can be read. Allowed: {ALLOWED_FILES}."
            )
    return files


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
    """Whether it is a URI with wildcards, which stand for "/" as well."""
    return "://" in item and any(c in item for c in "*?[")


def _is_store(item: str) -> bool:
    if _is_pattern(item) or not (to_place(item) / MANIFEST).is_file():
        return False
    try:
        return "embedder" in json.loads((to_place(item) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # let opening it say what is wrong


def _count_rows(file: InputFile) -> int:
    if file.kind != ".jsonl":
        return sum(1 for _ in file.records())
    try:
        with file.open() as lines:
            first = next(lines, b"").removeprefix(b"\xef\xbb\xbf")
            return bool(first.strip()) + sum(1 for line in lines if not line.isspace())
    except OSError as error:
        raise DataError(f"{file.uri}: cannot be read ({error}).") from None


def _check_types(file: InputFile, schema: pa.Schema, columns: Columns) -> None:
    for name, is_right, needed in (
        (columns.id, _is_id, "text or whole numbers"),
        (columns.text, is_text, "text"),
        (columns.embedding, _is_vector, "a list of floating-point numbers"),
        (columns.labels, _is_label_column, "a list of texts, or text that holds a JSON list,"),
    ):
        if name is not None and not is_right(kind := schema.field(name).type):
            raise DataError(
                f"{file.uri}: the column {name!r} is of type {kind}; {needed} is needed."
            )


def is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in (pa.string(), pa.large_string(), pa.string_view(), pa.null())


def _is_id(kind: pa.DataType) -> bool:
    return is_text(kind) or bool(pa.types.is_integer(kind))


def _is_vector(kind: pa.DataType) -> bool:
    return isinstance(kind, _LISTS) and bool(pa.types.is_floating(kind.value_type))


def _is_label_column(kind: pa.DataType) -> bool:
    return is_text(kind) or (isinstance(kind, _LISTS) and is_text(kind.value_type))
