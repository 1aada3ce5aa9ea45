"""The engine of the bulk jobs: shards in, blocks through a pool of actors, rows out, once each.

Ray Data reads the shards as a stream, so memory does not grow with the input. Rows are known by
their place, and Ray Data's checkpoint writes down the places of the rows of each file that it
wrote: first what is about to be written, then the file, then the word that it stands. What was
not confirmed is deleted by the next run. Resuming, Ray holds the places of all finished rows in
memory, 8 bytes each in every filtering actor; so an input of more than `COMMIT_ROWS` rows is
worked off in parts of whole shards, and a finished part needs no places any more.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
import ray.data
from pydantic import AfterValidator, BeforeValidator
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.checkpoint import CheckpointConfig
from ray.data.datasource import BlockBasedFileDatasink
from ray.exceptions import RayError, RayTaskError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from sce.bulk.corpus import (
    BLOCK_ROWS,
    Columns,
    Corpus,
    FilePlan,
    Shard,
    join_plans,
    plan_file,
    read_shard,
)
from sce.bulk.output import OutputFormat, OutputRun, PartCounts, count_part
from sce.distributed.resources import ActorPlan, TorchThread
from sce.errors import DataError, InputError
from sce.storage import filesystem_of

COMMIT_ROWS = 10_000_000
"""A part has at most about this many rows: 80 MB of places in a filtering actor that resumes."""
ROWS_PER_FILE = 65_536
"""Of answers from vectors. A file is as much as a kill can undo."""
EMBED_ROWS_PER_FILE = {"cpu": BLOCK_ROWS, "cuda": 65_536}
"""Where texts are embedded, which takes longer."""
TEXT_BLOCK_BYTES = 2**20
ACTOR_CPUS = 0.5
"""That Ray sets aside for an actor on a CPU: beside it a filtering actor (1) has to fit into two
cores when a job resumes. Its threads use the cores all the same."""
FILTER_MEMORY_BYTES = 256 * 2**20
PROGRESS_SECONDS = 60
MIN_ROWS_FOR_SHARE = 1000
_IO_CPUS = 0.25

log = logging.getLogger(__name__)

BlockFunction = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Stage:
    """What is done to every block, and where it goes.

    Attributes:
        make: builds the function in the actor, model and all; pickled, so keep it small.
        output_format: of the files that are written.
        rows_per_file: at least; None for a file a block.
        block_bytes: target size of the blocks that are read.
        batch_rows: that the function gets at once.
        classified: the output has labels.
        write_options: of `pyarrow.parquet.write_table`.
        json_columns: that hold JSON text, which JSONL output takes as it is.
    """

    make: Callable[[], BlockFunction]
    columns: Columns
    output_format: OutputFormat
    rows_per_file: int | None
    block_bytes: int
    batch_rows: int = BLOCK_ROWS
    classified: bool = True
    write_options: dict[str, Any] | None = None
    json_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class ErrorLimit:
    """How many rows may have errors: a count, or a share of the rows seen (from 1,000 on)."""

    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, value: str) -> ErrorLimit:
        """`100` is a count, `1%` and `0.01` are shares. Raises `ValueError` on anything else."""
        text = value.strip()
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = -1.0
        if text.endswith("%") and 0 <= number <= 100:
            return cls(share=number / 100)
        if number >= 0 and number == int(number):
            return cls(count=int(number))
        if 0 < number < 1:
            return cls(share=number)
        raise ValueError(f"{value!r} is neither a count (100) nor a share (1%)")

    def exceeded(self, rows: int, errors: int) -> bool:
        if self.count is not None and errors > self.count:
            return True
        return self.share is not None and rows >= MIN_ROWS_FOR_SHARE and errors > self.share * rows


def _check_limit(value: str) -> str:
    ErrorLimit.parse(value)
    return value


MaxErrors = Annotated[str, BeforeValidator(str), AfterValidator(_check_limit)]
"""A setting that `ErrorLimit.parse` reads."""


def plan_corpus(corpus: Corpus, columns: Columns) -> list[Shard]:
    """Count the rows of every file and see to the columns, many files at a time.

    Raises:
        DataError: as `plan_file` and `join_plans`.
    """
    if len(corpus.files) <= 8:
        return join_plans([plan_file(f, i, columns) for i, f in enumerate(corpus.files)])
    task = ray.remote(num_cpus=_IO_CPUS)(_plan_files)
    jobs = list(enumerate(corpus.files))
    step = max(1, min(64, len(jobs) // 8))
    try:
        found = ray.get(
            [task.remote(jobs[i : i + step], columns) for i in range(0, len(jobs), step)]
        )
    except RayTaskError as error:
        raise cause_of(error) from None
    return join_plans([plan for plans in found for plan in plans])


def split_parts(shards: Sequence[Shard], rows: int = COMMIT_ROWS) -> list[list[Shard]]:
    """Consecutive shards of at least `rows` rows together, the last part what is left."""
    parts: list[list[Shard]] = [[]]
    size = 0
    for shard in shards:
        if size >= rows:
            parts.append([])
            size = 0
        parts[-1].append(shard)
        size += shard.rows
    return parts


def run_stage(
    run: OutputRun,
    shards: Sequence[Shard],
    stage: Stage,
    plan: ActorPlan,
    limit: ErrorLimit,
    what: str,
    commit_rows: int = COMMIT_ROWS,
) -> tuple[PartCounts, Tally]:
    """Work off what is missing of an output, part by part.

    Returns:
        The counts of all rows, read back from what was written; and what this run did itself.

    Raises:
        InputError: too many rows with errors (the rows done stay), or what a file raises.
        RuntimeError: rows out are not rows in.
    """
    parts = split_parts(shards, commit_rows)
    missing = [number for number in range(len(parts)) if number not in run.parts]
    total = sum(shard.rows for shard in shards)
    with run.lock() as lock:
        run.save()
        before = PartCounts.total(list(run.parts.values()))
        rows_before = before.rows + sum(_checkpointed_rows(run, number) for number in missing)
        meter: Any = ray.remote(_Meter).options(num_cpus=0, max_restarts=-1).remote(limit)
        watch = _Watch(meter, what, total, rows_before, lock.beat, run)
        try:
            for number in missing:
                _run_part(run, number, parts[number], stage, plan, meter)
                counts = _check_part(run, number, parts[number], stage)
                run.commit_part(number, counts)
            done: Tally = ray.get(meter.totals.remote())
        except RayTaskError as error:
            raise cause_of(error) from None
        finally:
            watch.stop()
            ray.kill(meter)
    counts = PartCounts.total(list(run.parts.values()))
    if limit.exceeded(counts.rows, sum(counts.errors.values())):
        raise _too_many_errors(counts.rows, counts.errors)
    return counts, done


def _run_part(
    run: OutputRun, number: int, shards: Sequence[Shard], stage: Stage, plan: ActorPlan, meter: Any
) -> None:
    checkpoint = CheckpointConfig(
        id_column="place",
        checkpoint_path=run.checkpoint_uri(number),
        override_filesystem=None if "://" in run.uri else pafs.LocalFileSystem(),
        delete_checkpoint_on_success=False,
    )
    checkpoint.checkpoint_actor_memory_bytes = FILTER_MEMORY_BYTES
    with _data_context(checkpoint, stage.block_bytes):
        dataset = ray.data.read_datasource(
            ShardSource(shards, stage.columns, stage.block_bytes),
            override_num_blocks=len(shards),
            num_cpus=_IO_CPUS,
        ).map_batches(
            BlockActor,
            fn_constructor_args=(stage.make, plan.threads, meter),
            batch_size=stage.batch_rows,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=plan.actors),
            **plan.ray_arguments(),
        )
        remote = {"num_cpus": _IO_CPUS}
        folder = run.part_uri(number)
        if stage.output_format == "parquet":
            dataset.write_parquet(
                folder,
                min_rows_per_file=stage.rows_per_file,
                ray_remote_args=remote,
                **(stage.write_options or {}),
            )
        else:
            dataset.write_datasink(
                JSONLinesSink(folder, stage.json_columns, min_rows_per_file=stage.rows_per_file),
                ray_remote_args=remote,
            )


def _check_part(run: OutputRun, number: int, shards: Sequence[Shard], stage: Stage) -> PartCounts:
    """Rows in = rows out, each once, by what lies in the folder."""
    _delete_unconfirmed(run, number)
    counts = count_part(run.part_uri(number), stage.output_format, stage.classified)
    expected = sum(shard.rows for shard in shards)
    if counts.rows != expected:
        raise RuntimeError(
            f"{run.part_uri(number)}: {counts.rows} rows were written of {expected} that were "
            "read. If the input changed meanwhile, begin again with a new output."
        )
    return counts


def _delete_unconfirmed(run: OutputRun, number: int) -> None:
    """Files that an earlier driver's last worker left behind when it was killed."""
    filesystem, checkpoint = filesystem_of(run.checkpoint_uri(number))
    _, folder = filesystem_of(run.part_uri(number))
    confirmed = tuple(
        info.base_name.removesuffix(".parquet")
        for info in filesystem.get_file_info(pafs.FileSelector(checkpoint, allow_not_found=True))
    )
    for info in filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True)):
        if info.type == pafs.FileType.File and not info.base_name.startswith(confirmed):
            log.warning("%s was never confirmed and is deleted", info.path)
            filesystem.delete_file(info.path)


def _checkpointed_rows(run: OutputRun, number: int) -> int:
    filesystem, path = filesystem_of(run.checkpoint_uri(number))
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sum(
        pq.read_metadata(info.path, filesystem=filesystem).num_rows
        for info in infos
        if info.type == pafs.FileType.File and not info.base_name.endswith(".pending.parquet")
    )


@dataclass(frozen=True)
class Tally:
    """Rows answered, rows by error, and when the first block began and the last one ended."""

    rows: int
    errors: dict[str, int]
    started: float
    finished: float


class BlockActor:
    """One model; works off blocks and tells the meter of it."""

    def __init__(self, make: Callable[[], BlockFunction], threads: int, meter: Any) -> None:
        self._torch = TorchThread(threads)
        self._apply = self._torch.run(make)
        self._meter = meter
        self._name = uuid.uuid4().hex
        self._rows = 0
        self._errors: Counter[str] = Counter()
        self._started: float | None = None

    def __call__(self, block: pa.Table) -> pa.Table:
        self._started = self._started or time.time()
        answered = self._torch.run(self._apply, block)
        self._rows += answered.num_rows
        found = answered["error"].value_counts()
        for code, count in zip(
            found.field("values").to_pylist(), found.field("counts").to_pylist()
        ):
            if code:
                self._errors[code] += count
        try:
            tally = Tally(self._rows, dict(self._errors), self._started, time.time())
            over = ray.get(self._meter.report.remote(self._name, tally), timeout=30)
        except RayError:  # the meter is being restarted: it hears of everything next time
            over = None
        if over is not None:
            raise _too_many_errors(over.rows, over.errors)
        return answered


class _Meter:
    """Adds up what the actors say of themselves, each its own totals: nothing is counted twice
    when one dies or this one does."""

    def __init__(self, limit: ErrorLimit) -> None:
        self._limit = limit
        self._of: dict[str, Tally] = {}

    def report(self, name: str, tally: Tally) -> Tally | None:
        """The totals if they are too many errors, else None."""
        self._of[name] = tally
        total = self.totals()
        return total if self._limit.exceeded(total.rows, sum(total.errors.values())) else None

    def totals(self) -> Tally:
        errors: Counter[str] = Counter()
        for tally in self._of.values():
            errors.update(tally.errors)
        return Tally(
            sum(tally.rows for tally in self._of.values()),
            dict(errors),
            min((tally.started for tally in self._of.values()), default=0.0),
            max((tally.finished for tally in self._of.values()), default=0.0),
        )


class _Watch:
    """Shows how far a stage is: a bar on a terminal, else one line a minute in the log; and
    keeps the output's lock and clock going."""

    def __init__(
        self,
        meter: Any,
        what: str,
        total: int,
        rows_before: int,
        beat: Callable[[], None],
        run: OutputRun,
    ) -> None:
        self._meter, self._what, self._total, self._before = meter, what, total, rows_before
        self._beat, self._run = beat, run
        self._stop = threading.Event()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]} rows/s"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(what, total=total, completed=rows_before, rate="-")
            self._bar.start()
        if rows_before:
            log.info("%s: %d of %d rows were done before", what, rows_before, total)
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        if self._bar is not None:
            self._bar.stop()

    def _loop(self) -> None:
        logged = ticked = time.monotonic()
        while not self._stop.wait(1.0 if self._bar else 2.0):
            now = time.monotonic()
            self._run.seconds, ticked = self._run.seconds + now - ticked, now
            try:
                self._beat()
                tally = ray.get(self._meter.totals.remote(), timeout=10)
            except (RayError, OSError):
                continue
            if not tally.rows:
                continue
            done = min(self._before + tally.rows, self._total)  # a killed actor's rows count twice
            rate = tally.rows / max(tally.finished - tally.started, 1e-3)
            if self._bar is not None:
                self._bar.update(self._task, completed=done, rate=f"{rate:,.0f}")
            elif now - logged >= PROGRESS_SECONDS:
                logged = now
                log.info(
                    "%s: %d of %d rows, %.0f a second, %.0f s left, %d with errors",
                    self._what,
                    done,
                    self._total,
                    rate,
                    max(0, self._total - done) / rate,
                    sum(tally.errors.values()),
                )


class JSONLinesSink(BlockBasedFileDatasink):
    """One JSON object a line."""

    def __init__(self, path: str, json_columns: Sequence[str], **settings: Any) -> None:
        super().__init__(path, file_format="jsonl", **settings)
        self._json_columns = json_columns

    def write_block_to_file(self, block: BlockAccessor, file: Any) -> None:
        table = block.to_arrow()
        is_map = {f.name for f in table.schema if pa.types.is_map(f.type)}
        for batch in table.to_batches(max_chunksize=1024):
            lines = []
            for row in batch.to_pylist():
                for name in is_map:
                    row[name] = None if row[name] is None else dict(row[name])
                for name in self._json_columns:
                    row[name] = None if row[name] is None else json.loads(row[name])
                lines.append(json.dumps(row, ensure_ascii=False, default=str))
            file.write(("\n".join(lines) + "\n").encode())


@contextmanager
def _data_context(checkpoint: CheckpointConfig, block_bytes: int) -> Iterator[None]:
    """Ray Data's settings of one execution; a dataset takes a copy when it is built."""
    context = DataContext.get_current()
    changed = {
        "checkpoint_config": checkpoint,
        "target_max_block_size": block_bytes,
        "enable_progress_bars": False,
        "raise_original_map_exception": True,  # a user's mistake is told from a bug by its type
    }
    before = {name: getattr(context, name) for name in changed}
    for name, value in changed.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _too_many_errors(rows: int, errors: dict[str, int]) -> DataError:
    listed = ", ".join(f"{code} {count:,}" for code, count in Counter(errors).most_common())
    return DataError(
        f"max_errors: {sum(errors.values()):,} of {rows:,} rows have errors ({listed}). If that is "
        "as it should be, run again with a higher --max_errors; the rows done are kept."
    )


def cause_of(error: RayTaskError) -> Exception:
    """What to raise for it: the user's mistake as such, anything else as it is."""
    return error.cause if isinstance(error.cause, InputError) else error


def _plan_files(jobs: Iterable[tuple[int, Any]], columns: Columns) -> list[FilePlan]:
    return [plan_file(file, number, columns) for number, file in jobs]


class ShardSource(Datasource):
    """Reads shards, one task each."""

    def __init__(self, shards: Sequence[Shard], columns: Columns, block_bytes: int) -> None:
        super().__init__()
        self._shards = list(shards)
        self._columns = columns
        self._row_bytes = max(1, block_bytes // BLOCK_ROWS)

    def get_name(self) -> str:
        return "ReadShards"

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(shard.rows for shard in self._shards) * self._row_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                partial(read_shard, shard, self._columns),
                BlockMetadata(
                    num_rows=shard.rows,
                    size_bytes=shard.rows * self._row_bytes,
                    input_files=(shard.file.uri,),
                    exec_stats=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for shard in self._shards
        ]
