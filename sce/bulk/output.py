"""The state of a bulk job's output folder: what was asked, what is done, and who is writing.

    OUTPUT/part-00000/*.parquet   the rows; a part is what was committed together
    OUTPUT/_run.json              the request, the finished parts, the summary
    OUTPUT/_checkpoint/           rows of the unfinished part; gone when it is done

Readers of folders of Parquet leave names with "_" out.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.json as paj
import pyarrow.parquet as pq

from sce.errors import ConfigError
from sce.storage import RemotePath, filesystem_of, remove, to_place, write_text

RUN_FILE = "_run.json"
LOCK_FILE = "_lock.json"
CHECKPOINT = "_checkpoint"
HEARTBEAT_SECONDS = 10
STALE_SECONDS = 60
_READ_LITTLE = {"batch_readahead": 1, "fragment_readahead": 1}
"""One file at a time, so that memory does not grow with their number."""
OutputFormat = Literal["parquet", "jsonl"]

log = logging.getLogger(__name__)


@dataclass
class PartCounts:
    """What stands in the rows of a finished part.

    Attributes:
        rows: number of rows.
        errors: rows by the word in `error`.
        truncated, null_labels: rows; a null label of a row with an error is not counted.
        labels: rows by label.
    """

    rows: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    null_labels: int = 0
    labels: dict[str, int] = field(default_factory=dict)

    @classmethod
    def total(cls, parts: Sequence[PartCounts]) -> PartCounts:
        errors: Counter[str] = Counter()
        labels: Counter[str] = Counter()
        for part in parts:
            errors.update(part.errors)
            labels.update(part.labels)
        return cls(
            sum(p.rows for p in parts),
            dict(errors.most_common()),
            sum(p.truncated for p in parts),
            sum(p.null_labels for p in parts),
            dict(labels.most_common()),
        )


@dataclass
class OutputRun:
    """The state of an output folder. Open one with `OutputRun.open`.

    Attributes:
        uri: the folder.
        request: everything that decides the output; a rerun must ask for the same.
        parts: finished parts by number.
        summary: of the finished job, else None.
        seconds: of work on it, over all attempts.
        first_part: folder number of the part 0; before it stands what an earlier request wrote.
        lock: to be held while anything is written.
    """

    uri: str
    request: dict[str, Any]
    parts: dict[int, PartCounts] = field(default_factory=dict)
    summary: dict[str, Any] | None = None
    seconds: float = 0.0
    first_part: int = 0
    lock: FolderLock = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.lock = FolderLock(self.uri)

    @classmethod
    def open(
        cls, uri: str, request: Mapping[str, Any], what: str = "output", update: bool = False
    ) -> OutputRun:
        """Begin in an empty or absent folder, or go on where a job with the same request was.
        Nothing is written yet, so a mistake that comes out later leaves no trace.

        Args:
            what: setting that names the folder, for messages.
            update: the folder is whole, and a request for another input begins anew in it.

        Raises:
            InputError: a URI that cannot be used; other files are there, or the job in it was
                asked for something else; names every difference.
        """
        plain = json.loads(json.dumps(request))
        place = to_place(uri)
        if isinstance(place, RemotePath):
            place.check(what)
        old = read_run(uri)
        if old is None:
            filesystem, path = filesystem_of(uri)
            found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
            files = sorted(f.base_name for f in found if f.base_name != LOCK_FILE)
            if files and not update:
                raise ConfigError(
                    f"{what}: {uri} holds files that no such job wrote ({files[0]!r}). "
                    "Give a new folder."
                )
            return cls(uri, plain)
        if update and old.request["input"] != plain["input"]:
            old = cls(uri, old.request | {"input": plain["input"]})
        differences = list(_differences(old.request, plain))
        if differences and (update or not old.is_empty):
            raise ConfigError(
                f"{what}: the job in {uri} was asked for something else:\n"
                + "\n".join(f"  {line}" for line in differences)
                + f"\nGive the same, or a new folder with --{what.replace('_', '-')}."
            )
        return cls(uri, plain) if differences else old

    @property
    def is_empty(self) -> bool:
        """No row was ever confirmed."""
        return rows_done(self) == 0

    @property
    def done(self) -> bool:
        return self.summary is not None

    def part_uri(self, number: int) -> str:
        """Folder of a part's rows."""
        return f"{self.uri.rstrip('/')}/part-{self.first_part + number:05d}"

    def checkpoint_uri(self, number: int) -> str:
        return f"{self.uri.rstrip('/')}/{CHECKPOINT}/part-{self.first_part + number:05d}"

    def save(self) -> None:
        """Write the state; never half of it."""
        write_json(
            f"{self.uri.rstrip('/')}/{RUN_FILE}",
            {
                "request": self.request,
                "seconds": round(self.seconds, 1),
                "parts": {number: part.__dict__ for number, part in self.parts.items()},
                "summary": self.summary,
            },
        )

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

    def remove_checkpoint(self) -> None:
        """Forget which rows of unfinished parts were written."""
        remove(to_place(f"{self.uri.rstrip('/')}/{CHECKPOINT}"))


def read_run(uri: str) -> OutputRun | None:
    """The state of an output folder; None where there is none.

    Raises:
        ConfigError: it is damaged.
    """
    filesystem, path = filesystem_of(f"{uri.rstrip('/')}/{RUN_FILE}")
    if filesystem.get_file_info(path).type == pafs.FileType.NotFound:
        return None
    try:
        with filesystem.open_input_stream(path) as file:
            content = json.loads(file.read())
        parts = {int(n): PartCounts(**part) for n, part in content["parts"].items()}
        return OutputRun(uri, content["request"], parts, content["summary"], content["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{uri}: its {RUN_FILE} is damaged ({error}). Give a new folder."
        ) from None


def rows_done(run: OutputRun) -> int:
    """Rows of finished parts, and of the unfinished part those that a kill would not undo."""
    filesystem, path = filesystem_of(f"{run.uri.rstrip('/')}/{CHECKPOINT}")
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=True)
    rows = sum(part.rows for part in run.parts.values())
    # Of a part that was finished just before a kill the checkpoint may still lie there.
    finished = {run.checkpoint_uri(number).rpartition("/")[2] for number in run.parts}
    for info in filesystem.get_file_info(selector):
        pending = info.path.endswith(".pending.parquet")
        part = info.path.split("/")[-2]
        if info.path.endswith(".parquet") and not pending and part not in finished:
            try:
                with filesystem.open_input_file(info.path) as file:
                    rows += pq.read_metadata(file).num_rows
            except FileNotFoundError:  # its part was finished in the meantime
                continue
    return rows


def count_part(uri: str, output_format: OutputFormat, classified: bool) -> PartCounts:
    """Read back what a part holds.

    Args:
        classified: the rows have labels; an embedding store's have not.

    Raises:
        RuntimeError: a row is there twice.
    """
    counts = PartCounts()
    errors: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    places: list[np.ndarray] = []
    columns = ["place", "error", "truncated", *(["label"] if classified else [])]
    for batch in read_rows(uri, output_format, columns):
        places.append(batch["place"].to_numpy(zero_copy_only=False))
        counts.rows += batch.num_rows
        counts.truncated += pc.sum(batch["truncated"]).as_py() or 0
        errors.update(_counted(batch["error"]))
        if classified:
            labels.update(_counted(batch["label"]))
            null = pc.and_(pc.is_null(batch["label"]), pc.equal(batch["error"], ""))
            counts.null_labels += pc.sum(null).as_py() or 0
    errors.pop("", None)
    counts.errors, counts.labels = dict(errors.most_common()), dict(labels.most_common())
    if places and _has_twice(places):
        raise RuntimeError(f"{uri}: a row stands there twice; this is a bug. Use a new output.")
    return counts


def read_rows(
    uri: str, output_format: OutputFormat, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Columns of an output or a part of one, batch by batch, in no particular order."""
    filesystem, path = filesystem_of(uri)
    if filesystem.get_file_info(path).type == pafs.FileType.NotFound:
        return
    if output_format == "parquet":
        dataset = pads.dataset(path, filesystem=filesystem, format="parquet")
        yield from dataset.to_batches(columns=list(columns), **_READ_LITTLE)
        return
    types = {"place": pa.int64(), "truncated": pa.bool_(), "score": pa.float32()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in columns])
    # Only the columns that are asked for are parsed.
    options = paj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    read = paj.ReadOptions(block_size=32 << 20)  # at least the longest line
    json_format = pads.JsonFileFormat(parse_options=options, read_options=read)
    dataset = pads.dataset(path, filesystem=filesystem, format=json_format, schema=schema)
    yield from dataset.to_batches(columns=list(columns), **_READ_LITTLE)


class FolderLock:
    """Keeps two jobs from writing to one folder; the lock of a job that died is taken over.

    `beat` says that the job is alive. On the machine of the holder its process decides, else
    the age of its last beat. The holder may enter again: only the last exit gives the lock back.
    """

    def __init__(self, uri: str) -> None:
        self._uri = f"{uri.rstrip('/')}/{LOCK_FILE}"
        self._last = 0.0
        self._depth = 0
        started = psutil.Process().create_time()
        self._me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": started,
            "nonce": uuid.uuid4().hex,
        }

    def __enter__(self) -> FolderLock:
        """Raises `ConfigError` where another job is at work."""
        holder = None if self._depth else self._read()
        if holder and self._is_alive(holder):
            raise ConfigError(
                f"output: another job writes to {self._uri.rpartition('/')[0]} (process "
                f"{holder['pid']} on {holder['host']}, alive {time.time() - holder['time']:.0f} s "
                "ago). Wait for it, stop it, or give a new folder."
            )
        if not self._depth:
            self._last = 0.0
        self._depth += 1
        self.beat()
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth and (self._read() or {}).get("nonce") == self._me["nonce"]:
            filesystem, path = filesystem_of(self._uri)
            filesystem.delete_file(path)

    def beat(self) -> None:
        if time.monotonic() - self._last >= HEARTBEAT_SECONDS or not self._last:
            write_json(self._uri, self._me | {"time": time.time()})
            self._last = time.monotonic()

    def _read(self) -> dict[str, Any] | None:
        filesystem, path = filesystem_of(self._uri)
        try:
            with filesystem.open_input_stream(path) as file:
                found: dict[str, Any] = json.loads(file.read())
                return found
        except (OSError, ValueError):
            return None

    def _is_alive(self, holder: Mapping[str, Any]) -> bool:
        if holder["host"] != self._me["host"]:
            return bool(time.time() - holder["time"] < STALE_SECONDS)
        try:
            return bool(psutil.Process(holder["pid"]).create_time() == holder["started"])
        except psutil.Error:
            return False


def write_json(uri: str, content: Mapping[str, Any]) -> None:
    """Write a file of JSON; readers see the old one or the new one, never half of it."""
    write_text(to_place(uri), json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _has_twice(places: list[np.ndarray]) -> bool:
    together = np.concatenate(places)
    places.clear()
    together.sort()
    return bool((together[1:] == together[:-1]).any())


def _counted(column: pa.Array) -> dict[str, int]:
    found = column.value_counts()
    pairs = zip(found.field("values").to_pylist(), found.field("counts").to_pylist())
    return {value: count for value, count in pairs if value is not None}


def _differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    if where == "labels" and "known" not in {*old, *new}:
        for word, names in (
            ("gone", old.keys() - new.keys()),
            ("new", new.keys() - old.keys()),
            ("described otherwise", {k for k in old.keys() & new.keys() if old[k] != new[k]}),
        ):
            if names:
                yield f"labels {word}: {', '.join(map(repr, sorted(names)[:10]))}" + (
                    f" and {len(names) - 10} more" if len(names) > 10 else ""
                )
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif isinstance(old, list) and isinstance(new, list) and where.startswith("input"):
        yield from _file_differences(old, new)
    elif old != new:
        yield f"{where}: {_shown(old)} then, {_shown(new)} now"


def _file_differences(old: list[Any], new: list[Any]) -> Iterator[str]:
    by_name = [{file["file"]: file for file in files} for files in (old, new)]
    changes = [
        ("gone", sorted(set(by_name[0]) - set(by_name[1]))),
        ("new", sorted(set(by_name[1]) - set(by_name[0]))),
        (
            "changed",
            sorted(n for n in set(by_name[0]) & set(by_name[1]) if by_name[0][n] != by_name[1][n]),
        ),
    ]
    for word, names in changes:
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield f"input: {word}: {names[0]}{more}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + " ..."
