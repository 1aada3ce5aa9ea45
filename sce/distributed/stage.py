"""The engine of the bulk jobs: shards in, blocks through a pool of actors, rows out, once each.

Ray Data reads the shards as a stream, so memory does not grow with the input. Rows are known by
their place, and Ray Data's checkpoint writes down the places of the rows of each file that it
wrote: first what is about to be written, then the file, then the word that it stands. What was
not confirmed is deleted by the next run. Resuming, Ray holds the places of all finished rows in
memory, 8 bytes each in every filtering actor; so an input of more than `COMMIT_ROWS` rows is
worked off in parts of whole shards, and a finished part needs no places any more.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig
from ray.data.datasource import FilenameProvider
from ray.exceptions import RayError, RayTaskError

from sce.bulk.corpus import Columns, Corpus, Shard, join_plans, plan_file, plan_files
from sce.bulk.counts import ActorCounts, ErrorLimit, RowCounter, too_many_errors
from sce.bulk.output import COMMIT_ROWS, OutputFormat, OutputRun, PartCounts, count_part, rows_done
from sce.bulk.reading import BLOCK_ROWS
from sce.datasets.readers import BadRow
from sce.distributed.block_io import CSVSink, JSONLinesSink, ShardSource
from sce.distributed.resources import ActorPlan, TorchThread
from sce.distributed.session import ensure_ray
from sce.distributed.watch import watched
from sce.embedding.embedder import TextEmbedder
from sce.embedding.store import null_where_none
from sce.errors import SCEError, TooManyErrors
from sce.storage import ROOTED, filesystem_of, to_place

ROWS_PER_FILE = 65_536
"""Where answers come from vectors. A file is as much as a kill can undo."""
EMBED_ROWS_PER_FILE = {"cpu": BLOCK_ROWS, "cuda": 65_536}
"""Where texts are embedded, which takes longer."""
TEXT_BLOCK_BYTES = 2**20
ACTOR_CPUS = 0.5
"""That Ray sets aside for an actor on a CPU: beside it a filtering actor (1) has to fit into two
cores when a job resumes. Its threads use the cores all the same."""
FILTER_MEMORY_BYTES = 256 * 2**20
FOOTERS_AT_ONCE = 16
ITEMS_DONE_HERE = 8
"""Files or shards that the driver goes through itself, sooner than a worker has started."""
_IO_VARIABLES = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_MMAP_THRESHOLD_": str(2**22)}
IO_TASK: dict[str, Any] = {"num_cpus": 0.25, "runtime_env": {"env_vars": _IO_VARIABLES}}
"""The workers that read and write. One that has read many shards is to be no larger than one that
has read two: Arrow's own pool, and glibc's with a threshold that grows, keep freed blocks."""

log = logging.getLogger(__name__)

FILES_LOOKED_INTO = 20
"""Where a job fails for its bad rows."""
SHOWN_LINES = 3
REPORT_SECONDS = 2.0
T = TypeVar("T")
BlockFunction = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Stage:
    """What is done to every block, and where it goes.

    Attributes:
        make: builds the function in the actor, model and all; pickled, so keep it small.
        rows_per_file: at least; None for a file a block.
        block_bytes: target size of the blocks that are read.
        batch_rows: that the function gets at once.
        classified: the output has labels.
        write_options: of `pyarrow.parquet.write_table`.
        json_columns: that hold JSON text, which JSONL output takes as it is.
        labels: of which CSV has a column each with its score; None where the rows' differ.
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
    labels: tuple[str, ...] | None = None


def plan_corpus(corpus: Corpus, columns: Columns) -> list[Shard]:
    """Count the rows of every file and see to the columns, many files at a time.

    Raises:
        DataError: as `plan_file` and `join_plans`.
    """
    files = [(file, number) for number, file in enumerate(corpus.files)]
    if corpus.kind == ".parquet":  # footers: the driver has them sooner than a worker starts
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            return join_plans(list(pool.map(lambda one: plan_file(one[0], one[1], columns), files)))
    step = max(1, min(64, len(files) // ITEMS_DONE_HERE))
    chunks = [files[i : i + step] for i in range(0, len(files), step)]
    plans = in_tasks(plan_files, [(chunk,) for chunk in chunks], columns)
    return join_plans([plan for found in plans for plan in found])


def in_tasks(
    function: Callable[..., T], items: Sequence[tuple[Any, ...]], *shared: Any
) -> Iterator[T]:
    """`function(*item, *shared)` of each item, in order; of more than a few items in tasks, for
    which `shared` is stored once.

    Raises:
        InputError: the function did.
    """
    if len(items) <= ITEMS_DONE_HERE:
        yield from (function(*item, *shared) for item in items)
        return
    ensure_ray()
    task = ray.remote(**IO_TASK)(function)
    held = [ray.put(one) for one in shared]
    try:
        yield from map(ray.get, [task.remote(*item, *held) for item in items])
    except RayTaskError as error:
        raise cause_of(error) from None


def split_parts(shards: Sequence[Shard], rows: int) -> list[list[Shard]]:
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


@dataclass(frozen=True)
class StageResult:
    """What a stage has done: all rows as read back from what was written, how many of them this run
    wrote and not an earlier one, and what its actors did, with what a kill undid counted again."""

    counts: PartCounts
    new_rows: int
    work: ActorCounts


def run_stage(
    run: OutputRun,
    shards: Sequence[Shard],
    stage: Stage,
    plan: ActorPlan,
    limit: ErrorLimit,
    what: str,
    commit_rows: int = COMMIT_ROWS,
) -> StageResult:
    """Work off what is missing of an output, part by part.

    Raises:
        InputError: too many rows with errors (the rows done stay), or what a file raises.
        RuntimeError: rows out are not rows in.
    """
    parts = split_parts(shards, commit_rows)
    missing = [number for number in range(len(parts)) if number not in run.parts]
    total = sum(shard.rows for shard in shards)
    with run.lock:
        run.save()
        rows_before = rows_done(run)
        counter: Any = ray.remote(RowCounter).options(num_cpus=0, max_restarts=-1).remote(limit)
        try:
            with watched(counter, what, total, rows_before, run):
                for number in missing:
                    _run_part(run, number, parts[number], stage, plan, counter)
                    _commit_part(run, number, parts[number], stage)
                work: ActorCounts = ray.get(counter.totals.remote())
        except RayTaskError as error:
            cause = cause_of(error)
            if isinstance(cause, TooManyErrors):
                so_far: ActorCounts = ray.get(counter.totals.remote())
                cause = _too_many(so_far.rows, so_far.errors, shards)
            raise cause from None
        finally:
            ray.kill(counter)
    counts = PartCounts.total(list(run.parts.values()))
    if limit.exceeded(counts.rows, sum(counts.errors.values()), finished=True):
        raise _too_many(counts.rows, counts.errors, shards)
    return StageResult(counts, counts.rows - rows_before, work)


def _too_many(rows: int, errors: Mapping[str, int], shards: Sequence[Shard]) -> TooManyErrors:
    """Says what is wrong with the first bad lines of text files, and what it most likely is."""
    files = list(dict.fromkeys(shard.file for shard in shards))[:FILES_LOOKED_INTO]
    lines: list[str] = []
    for file in files:
        if file.kind != ".parquet":
            bad = (record.message for record in file.records() if isinstance(record, BadRow))
            lines += islice(bad, SHOWN_LINES - len(lines))
    return too_many_errors(
        rows, errors, lines, next(filter(None, (f.likely_cause() for f in files)), "")
    )


def _run_part(
    run: OutputRun,
    number: int,
    shards: Sequence[Shard],
    stage: Stage,
    plan: ActorPlan,
    counter: Any,
) -> None:
    files, checkpoint_path = _for_ray(run.checkpoint_uri(number))
    _, folder = _for_ray(run.part_uri(number))
    checkpoint = CheckpointConfig(
        id_column="place",
        checkpoint_path=checkpoint_path,
        override_filesystem=files,
        delete_checkpoint_on_success=False,
    )
    checkpoint.checkpoint_actor_memory_bytes = FILTER_MEMORY_BYTES
    context = DataContext.get_current().copy()
    context.checkpoint_config = checkpoint
    context.target_max_block_size = stage.block_bytes
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # a user's mistake is told from a bug by its type
    with DataContext.current(context):
        dataset = ray.data.read_datasource(
            ShardSource(shards, stage.columns, stage.block_bytes),
            override_num_blocks=len(shards),
            **IO_TASK,
        ).map_batches(
            BlockActor,
            fn_constructor_args=(stage.make, plan.threads, counter),
            batch_size=stage.batch_rows,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=plan.actors),
            **plan.ray_arguments(),
        )
        kind = stage.output_format
        write: dict[str, Any] = {
            "filesystem": files,
            "min_rows_per_file": stage.rows_per_file,
            "filename_provider": FilenameProvider(run.part_name(number), kind),
        }
        if kind == "parquet":
            options = write | (stage.write_options or {})
            dataset.write_parquet(folder, ray_remote_args=IO_TASK, **options)
        else:
            sink = (
                CSVSink(folder, stage.labels, **write)
                if kind == "csv"
                else JSONLinesSink(folder, stage.json_columns, **write)
            )
            dataset.write_datasink(sink, ray_remote_args=IO_TASK)


def _for_ray(uri: str) -> tuple[pafs.FileSystem | None, str]:
    """What Ray Data reaches a place by; of a store it finds that itself, on each node."""
    is_local = "://" not in uri or uri.startswith(f"{ROOTED}://")
    return filesystem_of(uri) if is_local else (None, uri)


def _commit_part(run: OutputRun, number: int, shards: Sequence[Shard], stage: Stage) -> None:
    """Commit the part if rows in = rows out, each once, by what lies in the folder."""
    _delete_unconfirmed(run, number)
    counts = count_part(run.part_files(number), stage.output_format, stage.classified)
    expected = sum(shard.rows for shard in shards)
    if counts.rows != expected:
        raise RuntimeError(
            f"{run.part_uri(number)}: {counts.rows} rows were written of {expected} that were "
            "read. If the input changed meanwhile, begin again with a new output."
        )
    run.commit_part(number, counts)


def _delete_unconfirmed(run: OutputRun, number: int) -> None:
    """Files that an earlier driver's last worker left behind when it was killed."""
    filesystem, checkpoint = filesystem_of(run.checkpoint_uri(number))
    confirmed = tuple(
        info.base_name.removesuffix(".parquet")
        for info in filesystem.get_file_info(pafs.FileSelector(checkpoint, allow_not_found=True))
    )
    for file in map(to_place, run.part_files(number)):
        if not file.name.startswith(confirmed):
            log.warning("%s was never confirmed and is deleted", file)
            file.unlink()


class BlockActor:
    """One model; works off blocks, and reports them to the counter."""

    def __init__(self, make: Callable[[], BlockFunction], threads: int, counter: Any) -> None:
        started = time.time()
        self._torch = TorchThread(threads)
        self._apply = self._torch.run(make)
        self._load_seconds = time.time() - started
        self._counter = counter
        self._name = uuid.uuid4().hex
        self._rows = 0
        self._errors: Counter[str] = Counter()
        self._started: float | None = None
        self._ahead, self._block_rows, self._said = 0, 0, 0.0
        TextEmbedder.on_batch = staticmethod(self._embedded)

    def __call__(self, block: pa.Table) -> pa.Table:
        self._started = self._started or time.time()
        self._ahead, self._block_rows = 0, block.num_rows
        answered = self._torch.run(self._apply, block)
        self._rows += answered.num_rows
        codes = answered["error"]
        self._errors.update(codes.filter(pc.not_equal(codes, "")).to_pylist())
        errors, now = dict(self._errors), time.time()
        work = ActorCounts(self._rows, errors, self._started, now, self._load_seconds)
        try:
            over = ray.get(self._counter.report.remote(self._name, work), timeout=30)
        except RayError:  # the counter is being restarted: it hears of everything next time
            over = None
        if over is not None:
            raise too_many_errors(over.rows, over.errors)
        place = answered.column_names.index("error")
        return answered.set_column(place, "error", null_where_none(codes))

    def _embedded(self, texts: int) -> None:
        """Lets the counter know of a part of a block, which may take minutes."""
        self._ahead = min(self._ahead + texts, self._block_rows)
        now = time.time()
        if now - self._said >= REPORT_SECONDS:
            self._said, rows = now, self._rows + self._ahead
            started = self._started or now
            work = ActorCounts(rows, dict(self._errors), started, now, self._load_seconds)
            self._counter.report.remote(self._name, work)


def cause_of(error: RayTaskError) -> Exception:
    """What to raise for it: an error that was raised on purpose as such, a bug as Ray tells it."""
    return error.cause if isinstance(error.cause, SCEError) else error
