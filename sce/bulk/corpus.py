"""The input of a bulk job: which files, how many rows, and how they are shared out.

A *shard* is what one task reads: a text file, or some row groups of a Parquet file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from sce.bulk.listing import InputFile, Listing, is_pattern, list_files
from sce.bulk.output import RUN_FILE, read_run
from sce.datasets.limits import LongLine, bounded_lines, check_packed
from sce.datasets.readers import refuse_repeated_columns
from sce.datasets.text_form import DAMAGED, FOUND_OUT, TextForm
from sce.embedding.store import CHUNK_SPANS, CHUNK_VECTORS, EmbeddingStore, manifest_of
from sce.errors import DataError
from sce.storage import readable, to_place

log = logging.getLogger(__name__)

SHARD_ROWS = 65_536
"""Row groups of a Parquet file are read together up to this many rows."""
READ_AS_SHOWN = 20
FILES_CHECKED = 8
HEAD_ROWS = 100
"""Rows of a JSONL file that are looked at to see which fields it has."""
_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)


@dataclass(frozen=True)
class Shard:
    """What one task reads.

    Attributes:
        file_number: place of the file in the input.
        first_row: number of its first row within the file.
        row_groups: of a Parquet file; empty for a text file, which is read whole.
        chosen: one bit for each row, where only some are to be read.
        types: of the kept columns, where the file's own are to become others.
    """

    file: InputFile
    file_number: int
    first_row: int
    rows: int
    row_groups: tuple[int, ...] = ()
    chosen: bytes = b""
    types: tuple[tuple[str, pa.DataType], ...] = ()

    def only(self, chosen_N: np.ndarray, file_number: int) -> Shard:
        """Some of the rows, with places as of the file `file_number`."""
        bits, rows = np.packbits(chosen_N).tobytes(), int(chosen_N.sum())
        return replace(self, file_number=file_number, rows=rows, chosen=bits)


@dataclass(frozen=True)
class Corpus:
    """The files of an input, all of one kind, and the embedding store that they are, if any.

    Attributes:
        passed_over: files below the folders that were named which are not read, and why.
        links: those there that were followed, and where they lead.
    """

    files: tuple[InputFile, ...]
    store: EmbeddingStore | None = None
    passed_over: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.files[0].kind if self.files else ".parquet"  # an empty store has none

    def reading(self, shards: Sequence[Shard]) -> dict[str, Any]:
        """What a summary says of how it was read: the files passed over, and those whose text is
        not UTF-8 with commas."""
        found: dict[str, Any] = {}
        if self.passed_over:
            found["passed_over"] = Listing(passed_over=self.passed_over).summary()
        if self.links:
            found["links_followed"] = dict(islice(self.links.items(), READ_AS_SHOWN))
        if read_as := {s.file.name: s.file.form.words for s in shards if s.file.form.words}:
            found["read_as"] = dict(islice(read_as.items(), READ_AS_SHOWN))
        return found


@dataclass(frozen=True)
class Columns:
    """Which columns of the input mean what.

    Attributes:
        text, embedding: one of them is None.
        id: None makes ids from places: `tickets.jsonl:17`.
        labels: a column with one label set a row.
        chunks: whether each row has the vectors of its chunks, in a store's columns for them.
        keep: columns to be carried into the output.
        some_lack: whether a file may lack columns that are kept; its rows have null there.
        id_name: what the column of ids is called in the output.
        raw_json: keep the fields of JSONL as JSON text rather than as the text they hold.
    """

    text: str | None = "text"
    embedding: str | None = None
    id: str | None = None
    labels: str | None = None
    chunks: bool = False
    keep: tuple[str, ...] = ()
    some_lack: bool = False
    raw_json: bool = False
    id_name: str = "id"

    @property
    def read(self) -> list[str]:
        """The columns that are read where a file has them."""
        return list(dict.fromkeys([*self.needed, *self.keep]))

    @property
    def needed(self) -> list[str]:
        """The columns that every file has to have."""
        found = [self.text, self.embedding, self.id, self.labels]
        found += [CHUNK_VECTORS, CHUNK_SPANS] if self.chunks else []
        found += [] if self.some_lack else self.keep
        return list(dict.fromkeys(name for name in found if name is not None))


def open_corpus(inputs: Sequence[str], form: TextForm = FOUND_OUT) -> Corpus:
    """Find the files of an input; the log says which are passed over, and which links are followed.

    Args:
        inputs: files, folders and globs, see `list_files`; URIs that `pyarrow.fs` knows (s3://,
            gs://, hdfs://, file://); or one folder that holds an embedding store.
        form: what is known of how text files are written.

    Raises:
        DataError: nothing there, a file of another kind, files of several kinds, a file that is
            named twice, or what an unfinished job has written so far.
    """
    if not inputs:
        raise DataError("input: give a file, a folder, a glob or a URI.")
    for item in inputs:
        _refuse_unfinished(item)
    store = EmbeddingStore.open(inputs[0]) if len(inputs) == 1 and _is_store(inputs[0]) else None
    items = store.paths if store else inputs
    listed = [list_files(item) for item in items]
    found = [file for listing in listed for file in listing.files]
    if store is not None:  # in the order of its manifest
        return Corpus(tuple(found), store)
    files = tuple(sorted((replace(f, form=form) for f in found), key=lambda file: file.uri))
    for one, other in pairwise(files):
        if one.uri == other.uri:
            raise DataError(f"input: {one.uri} is named twice.")
    if len({file.name for file in files}) < len(files):  # ids made from names have to differ
        files = tuple(replace(file, name=readable(file.uri)) for file in files)
    kinds = sorted({file.kind for file in files})
    if len(kinds) > 1:
        raise DataError(f"input: files of several kinds ({', '.join(kinds)}). One job reads one.")
    over = {name: why for listing in listed for name, why in listing.passed_over.items()}
    if over:
        log.warning("input: %d file(s) read; passed over: %s", len(files), Listing([], over))
    links = {name: where for listing in listed for name, where in listing.links.items()}
    if links:
        shown = ", ".join(f"{name} -> {where}" for name, where in islice(links.items(), 3))
        more = ", ..." if len(links) > 3 else ""
        log.info("input: %d link(s) followed (%s%s)", len(links), shown, more)
    return Corpus(files, None, over, links)


def column_names(corpus: Corpus) -> list[str]:
    """The columns of all files, in order. Of JSON lines every line is read for it."""
    names: dict[str, None] = {}
    for file in corpus.files:
        names |= dict.fromkeys(field_names(file, None if file.kind == ".jsonl" else HEAD_ROWS))
    return list(names)


def field_names(file: InputFile, rows: int | None = HEAD_ROWS) -> list[str]:
    """The columns of a file, and those that its folders name; of JSONL the fields of its first
    `rows`, so none where it has none."""
    if file.kind == ".parquet":
        with file.open_parquet() as parquet:
            own = list(parquet.schema_arrow.names)
    else:
        heads = islice(file.records(), rows)
        own = list(dict.fromkeys(name for head in heads for name in getattr(head, "fields", {})))
    return [*own, *(name for name in file.partitions if own and name not in own)]


def check_columns(corpus: Corpus, columns: Columns) -> None:
    """See that the first files have the columns that are needed, before any work. Raises as
    `plan_file`."""
    for file in corpus.files[:FILES_CHECKED]:
        if names := field_names(file):
            require_columns(file, names, columns.needed)


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
            check_packed(readable(file.uri), file.size, parquet.metadata, columns.read)
            sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        for name in file.partitions:
            if name not in schema.names:
                schema = schema.append(pa.field(name, pa.string()))
        require_columns(file, schema.names, columns.needed)
        _check_types(file, schema, columns)
        kept = [name for name in columns.keep if name in schema.names]
        types = {name: schema.field(name).type for name in kept}
        return FilePlan(tuple(_row_group_shards(file, number, sizes)), types)
    file = replace(file, form=file.found_form())
    if names := field_names(file):
        require_columns(file, names, columns.needed)
    rows = _count_rows(file)
    shards = (Shard(file, number, 0, rows),) if rows else ()
    return FilePlan(shards, dict.fromkeys(columns.keep, pa.string()))


def plan_files(files: Iterable[tuple[InputFile, int]], columns: Columns) -> list[FilePlan]:
    """`plan_file` of several. Raises as it does."""
    return [plan_file(file, number, columns) for file, number in files]


def join_plans(plans: Sequence[FilePlan]) -> list[Shard]:
    """The shards of all files. A kept column whose type changes from file to file gets the one that
    holds them all: nulls count for nothing, numbers become wider.

    Raises `DataError`: no rows at all, or types that no type holds."""
    plans = [plan for plan in plans if plan.shards]
    if not plans:
        raise DataError("input: there are no rows in it.")
    joined: dict[str, pa.DataType] = {}
    for name in dict.fromkeys(name for plan in plans for name in plan.types):
        having = [plan for plan in plans if name in plan.types]
        holder = having[0]
        for plan in having:
            known = joined.get(name, plan.types[name])
            if known != plan.types[name]:
                known = _joined(name, (known, holder), (plan.types[name], plan))
            if joined.get(name) != known:
                joined[name], holder = known, plan
    return [
        replace(shard, types=tuple(joined.items())) if plan.types != joined else shard
        for plan in plans
        for shard in plan.shards
    ]


def _joined(
    name: str, one: tuple[pa.DataType, FilePlan], other: tuple[pa.DataType, FilePlan]
) -> pa.DataType:
    schemas = [pa.schema([(name, _plain(kind))]) for kind, _ in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        (first, here), (second, there) = one, other
        raise DataError(
            f"keep_columns: {name!r} is of type {first} in {here.shards[0].file.uri}, and {second} "
            f"in {there.shards[0].file.uri}, which no type holds. Write one type."
        ) from None


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values of a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


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
            raise DataError(f"{file.uri}: has no column {name!r}.", f"It has: {known}.{hint}")


def _refuse_unfinished(item: str) -> None:
    """A part of an output would pass for the whole."""
    if is_pattern(item) or not (to_place(item) / RUN_FILE).is_file():
        return
    run = read_run(str(to_place(item)))
    if run is not None and not run.done:
        raise DataError(
            f"input: {item} is what an unfinished job has written so far. Run that job again, "
            "which goes on where it was."
        )


def _is_store(item: str) -> bool:
    return not is_pattern(item) and manifest_of(to_place(item)) is not None


def _count_rows(file: InputFile) -> int:
    if file.kind != ".jsonl" or file.form.encoding != "utf-8":
        return sum(1 for _ in file.records())
    try:
        with file.open() as lines:
            counted = bounded_lines(lines)
            first = next(counted, b"")
            first = first.removeprefix(b"\xef\xbb\xbf") if isinstance(first, bytes) else first
            rest = sum(1 for line in counted if not line.isspace())
            return (bool(first.strip()) or isinstance(first, LongLine)) + rest
    except (OSError, *DAMAGED) as error:
        raise DataError(f"{file.uri}: cannot be read ({error}).") from None


def _check_types(file: InputFile, schema: pa.Schema, columns: Columns) -> None:
    for name, is_right, needed in (
        (columns.id, _is_id, "text, numbers or UUIDs"),
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
    kind = _plain(kind)
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_temporal)
    return is_text(kind) or kind == pa.uuid() or any(test(kind) for test in tests)


def _is_vector(kind: pa.DataType) -> bool:
    return isinstance(kind, _LISTS) and bool(pa.types.is_floating(kind.value_type))


def _is_label_column(kind: pa.DataType) -> bool:
    return is_text(kind) or (isinstance(kind, _LISTS) and is_text(kind.value_type))
