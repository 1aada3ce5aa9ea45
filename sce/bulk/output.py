"""The state of a bulk job's output folder: what was asked, what is done, and who is writing.

    OUTPUT/part-00000_*.parquet   the rows; a part is what was committed together
    OUTPUT/_run.json              the request, the finished parts, the summary
    OUTPUT/_checkpoint/           rows of the unfinished part; gone when it is done

Readers of folders of Parquet leave names with "_" out. Earlier versions wrote each part into a
folder of its own, `OUTPUT/part-00000/`.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.json as paj
import pyarrow.parquet as pq

from sce.bulk import table_csv
from sce.bulk.counts import add_counts
from sce.config import check_writable
from sce.errors import ConfigError, DataError
from sce.model.options import SEVERAL_COLUMN
from sce.storage import (
    Place,
    RemotePath,
    filesystem_of,
    remove,
    to_place,
    write_text,
)

RUN_FILE = "_run.json"
LOCK_FILE = "_lock.json"
CHECKPOINT = "_checkpoint"
HEARTBEAT_SECONDS = 10
STALE_SECONDS = 60
COMMIT_ROWS = 10_000_000
"""A part has at most about this many rows: 80 MB of places in a filtering actor that resumes."""
OutputFormat = Literal["parquet", "jsonl", "csv"]
TOP = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))
"""Labels of a row, best first."""


@dataclass
class PartCounts:
    """How many rows a part has, with which errors and labels; `null_labels` are rows without a
    label and without an error."""

    rows: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    null_labels: int = 0
    labels: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: pa.RecordBatch | pa.Table) -> PartCounts:
        """What stands in some rows; those of a store have no labels, of an old one no errors. Rows
        of each label: of the column `labels` where it is among them, else of `label`."""
        errors = _counted(rows["error"]) if "error" in rows.schema.names else {}
        errors.pop("", None)  # as earlier versions wrote it for none
        truncated = pc.sum(rows["truncated"]).as_py() or 0
        if "label" not in rows.schema.names:
            return cls(rows.num_rows, errors, truncated)
        null = pc.and_(pc.is_null(rows["label"]), pc.equal(pc.fill_null(rows["error"], ""), ""))
        nulls = pc.sum(null).as_py() or 0
        labels = rows["label"]
        if SEVERAL_COLUMN in rows.schema.names:
            labels = list_of_names(rows[SEVERAL_COLUMN]).flatten()
        return cls(rows.num_rows, errors, truncated, nulls, _counted(labels))

    @classmethod
    def total(cls, parts: Sequence[PartCounts]) -> PartCounts:
        return cls(
            sum(p.rows for p in parts),
            add_counts(p.errors for p in parts),
            sum(p.truncated for p in parts),
            sum(p.null_labels for p in parts),
            add_counts(p.labels for p in parts),
        )


@dataclass
class OutputRun:
    """The state of an output folder. Open one with `OutputRun.open`.

    Attributes:
        request: everything that decides the output; a rerun must ask for the same.
        parts: finished parts by number.
        summary: of the finished job, else None.
        seconds: of work on it, over all attempts.
        first_part: number of the part 0 in names; before it stands what an earlier request wrote.
        flat: the files lie in the folder itself, and not in one for each part as they once did.
    """

    uri: str
    request: dict[str, Any]
    parts: dict[int, PartCounts] = field(default_factory=dict)
    summary: dict[str, Any] | None = None
    seconds: float = 0.0
    first_part: int = 0
    flat: bool = True

    @cached_property
    def lock(self) -> FolderLock:
        """To be held while anything is written."""
        return FolderLock(self.uri)

    @classmethod
    def open(
        cls, uri: str, request: Mapping[str, Any], what: str = "output", update: bool = False
    ) -> OutputRun:
        """Begin in an empty or absent folder, or go on where a job with the same request was.
        Nothing is written yet, so a mistake that comes out later leaves no trace.

        Args:
            what: setting that names the folder, for messages.
            update: the folder is whole, and a request for another input begins anew in it.

        Raises `InputError`: a URI that cannot be used; other files are there, or the job in it was
        asked for something else, with every difference.
        """
        plain = json.loads(json.dumps(request))
        place = to_place(uri)
        if isinstance(place, RemotePath):
            place.check(what)
        check_writable(place, what)
        old = read_run(uri)
        if old is None:
            found = place.iterdir() if place.exists() else ()
            files = sorted(file.name for file in found if file.name != LOCK_FILE)
            if files and not update:
                raise ConfigError(
                    f"{what}: {uri} holds files that no such job wrote ({files[0]!r}). "
                    "Give a new folder."
                )
            return cls(uri, plain)
        if update and any(_differences(old.request["input"], plain["input"], "input")):
            old = cls(uri, old.request | {"input": plain["input"]})
        differences = list(_differences(old.request, plain))
        if differences and (update or rows_done(old)):
            raise ConfigError(
                f"{what}: the job in {uri} was asked for something else:\n"
                + "\n".join(f"  {line}" for line in differences)
                + f"\nGive the same, or a new folder with --{what.replace('_', '-')}."
            )
        return cls(uri, plain) if differences else old

    @property
    def done(self) -> bool:
        return self.summary is not None

    def part_name(self, number: int) -> str:
        return f"part-{self.first_part + number:05d}"

    def part_uri(self, number: int) -> str:
        """Folder in which a part's files lie, whose names begin with `part_name` where it is
        `flat`."""
        return self.uri if self.flat else str(to_place(self.uri) / self.part_name(number))

    def part_files(self, number: int) -> list[str]:
        """The files that a part has so far."""
        filesystem, folder = filesystem_of(self.part_uri(number))
        prefix = f"{self.part_name(number)}_" if self.flat else ""
        found = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
        is_file = [one for one in found if one.type == pafs.FileType.File]
        names = sorted(one.base_name for one in is_file if one.base_name.startswith(prefix))
        return [str(to_place(self.part_uri(number)) / name) for name in names]

    def checkpoint_uri(self, number: int) -> str:
        return str(to_place(self.uri) / CHECKPOINT / self.part_name(number))

    def save(self) -> None:
        """Write the state; never half of it."""
        state = {
            "request": self.request,
            "seconds": round(self.seconds, 1),
            "parts": {number: part.__dict__ for number, part in self.parts.items()},
            "summary": self.summary,
            "flat": self.flat,
        }
        _write_json(to_place(self.uri) / RUN_FILE, state)

    def commit_part(self, number: int, counts: PartCounts) -> None:
        """Mark a part as finished; its checkpoint is of no more use."""
        self.parts[number] = counts
        self.save()
        remove(to_place(self.checkpoint_uri(number)))

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the whole as done."""
        self.summary = summary
        self.save()
        self.remove_checkpoint()

    @property
    def has_checkpoint(self) -> bool:
        """Whether some rows of an unfinished part may be kept."""
        return (to_place(self.uri) / CHECKPOINT).exists()

    def remove_checkpoint(self) -> None:
        """Forget which rows of unfinished parts were written."""
        remove(to_place(self.uri) / CHECKPOINT)


def read_run(uri: str) -> OutputRun | None:
    """The state of an output folder; None where there is none. Raises `ConfigError`: it is
    damaged."""
    file = to_place(uri) / RUN_FILE
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        parts = {int(n): PartCounts(**part) for n, part in content["parts"].items()}
        flat = content.get("flat", False)
        summary, seconds = content["summary"], content["seconds"]
        return OutputRun(uri, content["request"], parts, summary, seconds, flat=flat)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{uri}: its {RUN_FILE} is damaged ({error}). Give a new folder."
        ) from None


def rows_done(run: OutputRun) -> int:
    """Rows of finished parts, and of the unfinished part those that a kill would not undo."""
    filesystem, path = filesystem_of(to_place(run.uri) / CHECKPOINT)
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=True)
    rows = sum(part.rows for part in run.parts.values())
    # Of a part that was finished just before a kill the checkpoint may still lie there.
    finished = {run.checkpoint_uri(number).rpartition("/")[2] for number in run.parts}
    for info in filesystem.get_file_info(selector):
        pending = info.path.endswith(".pending.parquet")
        part = info.path.split("/")[-2]
        if info.path.endswith(".parquet") and not pending and part not in finished:
            with suppress(FileNotFoundError):  # its part was finished in the meantime
                rows += pq.read_metadata(info.path, filesystem=filesystem).num_rows
    return rows


def list_of_names(column: pa.Array, several: bool = True) -> pa.ListArray:
    """The names in a column `labels` as Parquet and JSONL have it, lists of `{label, score}`, or as
    CSV has it, between "; "; or with `several` False in one of one label a row. Of a null none."""
    if pa.types.is_list(column.type):
        names = pc.struct_field(column.flatten(), "label")
        count_N = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    else:
        names, count_N = pc.fill_null(column.cast(pa.string()), ""), np.ones(len(column), np.int64)
        if several:
            parts = pc.split_pattern(names, table_csv.SEPARATOR)
            names, count_N = parts.flatten(), pc.list_value_length(parts).to_numpy()
        kept_M = pc.not_equal(names, "")
        row_M = np.repeat(np.arange(len(column)), count_N)[kept_M.to_numpy(zero_copy_only=False)]
        names, count_N = names.filter(kept_M), np.bincount(row_M, minlength=len(column))
    offsets = np.concatenate([[0], np.cumsum(count_N)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), names)


def count_part(
    files: Sequence[str], output_format: OutputFormat, counted: str | None = "label"
) -> PartCounts:
    """Read back what the files of a part hold: rows that have labels, those of the column `counted`
    (`label` or `labels`), or with None those of an embedding store. Raises `RuntimeError`: a row is
    there twice."""
    counts, places = [], [np.empty(0, np.int64)]
    columns = ["place", "error", "truncated", *(["label"] if counted else [])]
    columns += [SEVERAL_COLUMN] if counted == SEVERAL_COLUMN else []
    for file in files:
        for batch in read_rows(file, output_format, columns):
            counts.append(PartCounts.of(batch))
            places.append(batch["place"].to_numpy(zero_copy_only=False))
    place_N = np.concatenate(places)
    del places  # 80 MB of a large part
    place_N.sort()
    if (place_N[1:] == place_N[:-1]).any():
        raise RuntimeError(f"{files[0]}: a row stands there or in a file beside it twice; a bug.")
    return PartCounts.total(counts)


def read_rows(
    uri: str, output_format: OutputFormat, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Columns of a file of an output, batch by batch."""
    filesystem, path = filesystem_of(uri)
    types = {"place": pa.int64(), "truncated": pa.bool_(), "score": pa.float32()}
    types |= {} if output_format == "csv" else {SEVERAL_COLUMN: TOP}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in columns])
    kind = pads.ParquetFileFormat()
    if output_format == "jsonl":
        # Only the columns that are asked for are parsed.
        options = paj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        read = paj.ReadOptions(block_size=32 << 20)  # at least the longest line
        kind = pads.JsonFileFormat(parse_options=options, read_options=read)
    elif output_format == "csv":
        kind = table_csv.dataset_format(schema)
    dataset = pads.dataset(
        path,
        filesystem=filesystem,
        format=kind,
        schema=None if output_format == "parquet" else schema,
    )
    batches = dataset.to_batches(columns=list(columns), batch_readahead=1, fragment_readahead=1)
    yield from map(table_csv.without_guards, batches) if output_format == "csv" else batches


class FolderLock:
    """Keeps two jobs from writing to one folder; the lock of a job that died is taken over.

    While it is held a thread says that the job is alive, whatever the job is at. On the machine of
    the holder its process decides, else the age of its last word. The holder may enter again: only
    the last exit gives the lock back.
    """

    def __init__(self, uri: str) -> None:
        self._file = to_place(uri) / LOCK_FILE
        self._depth = 0
        self._me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
        }

    def __enter__(self) -> FolderLock:
        """Raises `ConfigError` where another job is at work."""
        if not self._depth:
            holder = self._read()
            if holder and self._is_alive(holder):
                raise ConfigError(
                    f"output: another job writes to {self._file.parent} (process {holder['pid']} "
                    f"on {holder['host']}, alive {time.time() - holder['time']:.0f} s ago). Wait "
                    "for it, stop it, or give a new folder."
                )
            self._write()
            self._over = threading.Event()
            self._thread = threading.Thread(target=self._stay, daemon=True)
            self._thread.start()
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._over.set()
            self._thread.join()
            if self._me.items() <= self._read().items():
                self._file.unlink()

    def _stay(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            with suppress(OSError, DataError):  # a store that is away: the next word may reach it
                self._write()

    def _write(self) -> None:
        _write_json(self._file, self._me | {"time": time.time()})

    def _read(self) -> dict[str, Any]:
        """What the holder says of itself; nothing where there is none."""
        try:
            found: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError, DataError):
            return {}
        return found

    def _is_alive(self, holder: Mapping[str, Any]) -> bool:
        if holder["host"] != self._me["host"]:
            return bool(time.time() - holder["time"] < STALE_SECONDS)
        try:
            return bool(psutil.Process(holder["pid"]).create_time() == holder["started"])
        except psutil.Error:
            return False


def _write_json(place: Place, content: Mapping[str, Any]) -> None:
    write_text(place, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _counted(column: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    found = column.value_counts().to_pylist()
    return {one["values"]: one["counts"] for one in found if one["values"] is not None}


def _differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    if where == "labels" and "known" not in {*old, *new}:
        named = ({repr(name): known for name, known in one.items()} for one in (old, new))
        yield from _changes("labels", "described otherwise", *named)
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif isinstance(old, list) and isinstance(new, list) and where.startswith("input"):
        before, after = ({file["file"]: file for file in one} for one in (old, new))
        for name in before.keys() & after.keys():
            if _is_unchanged(before[name], after[name]):
                after[name] = before[name]
        yield from _changes("input:", "changed", before, after)
    elif old != new:
        texts = [json.dumps(value, ensure_ascii=False) for value in (old, new)]
        then, now = (text if len(text) <= 200 else text[:200] + " ..." for text in texts)
        yield f"{where}: {then} then, {now} now"


def _is_unchanged(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a file is as it was, though it may have been touched or copied."""
    content = old.get("content")
    same = (content is not None and content == new.get("content")) or (
        old["modified"] == new["modified"]
    )
    return same and old["size"] == new["size"]


def _changes(what: str, changed: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """A line for each kind of change that there is, with some of the names."""
    for word, names in (
        ("gone", old.keys() - new.keys()),
        ("new", new.keys() - old.keys()),
        (changed, {name for name in old.keys() & new.keys() if old[name] != new[name]}),
    ):
        if names:
            more = f" and {len(names) - 10} more" if len(names) > 10 else ""
            yield f"{what} {word}: {', '.join(sorted(names)[:10])}{more}"
