"""Blocks through a pool of Ray's actors: how Ray Data works off a part of a bulk job.

Ray Data reads the shards as a stream, so memory does not grow with the input. Rows are known by
their place, and Ray Data's checkpoint writes down the places of the rows of each file that it
wrote: first what is about to be written, then the file, then the word that it stands. What was
not confirmed is deleted by the next run. Resuming, Ray holds the places of all finished rows in
memory, 8 bytes each in every filtering actor; so an input of more than `COMMIT_ROWS` rows is
worked off in parts of whole shards, and a finished part needs no places any more.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import ray
import ray.data
from ray import cloudpickle
from ray.data import ActorPoolStrategy, DataContext
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data.checkpoint import CheckpointConfig
from ray.data.datasource import FilenameProvider
from ray.exceptions import RayError, RayTaskError

from sce.bulk.blocks import BlockFunction, Stage
from sce.bulk.corpus import Shard
from sce.bulk.counts import ActorCounts, ErrorLimit, RowCounter, too_many_errors
from sce.bulk.output import OutputRun
from sce.distributed.block_io import CSVSink, JSONLinesSink, ShardSource
from sce.distributed.resources import IO_CPUS, ActorPlan, TorchThread
from sce.distributed.session import ensure_ray
from sce.embedding.store import null_where_none
from sce.errors import SCEError
from sce.storage import ROOTED, filesystem_of

FILTER_MEMORY_BYTES = 256 * 2**20
_IO_VARIABLES = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_MMAP_THRESHOLD_": str(2**22)}
IO_TASK: dict[str, Any] = {"num_cpus": IO_CPUS, "runtime_env": {"env_vars": _IO_VARIABLES}}
"""The workers that read and write. One that has read many shards is to be no larger than one that
has read two: Arrow's own pool, and glibc's with a threshold that grows, keep freed blocks."""
REPORT_SECONDS = 2.0
INLINE_BYTES = 90_000
"""Ray passes a value of up to 100 KiB with a call; a larger one through the object store."""

T = TypeVar("T")


class ActorPool:
    """What works off the parts of a stage: actors with a model each, for every part anew, which
    load it while the part is worked off."""

    load_seconds = 0.0

    def __init__(self, plan: ActorPlan, limit: ErrorLimit) -> None:
        self._plan = plan
        # It has no arguments that Ray would have to keep for a restart; nor have those who ask for
        # it by its name: a handle would be one.
        self._counter_name = f"rows-{uuid.uuid4().hex}"
        self._counter: Any = (
            ray.remote(RowCounter)
            .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, name=self._counter_name)
            .remote(limit)
        )

    @classmethod
    @contextmanager
    def begun(cls, plan: ActorPlan, limit: ErrorLimit) -> Iterator[ActorPool]:
        pool = cls(plan, limit)
        try:
            yield pool
        finally:
            ray.kill(pool._counter)

    def totals(self, timeout: float | None = None) -> ActorCounts | None:
        """What the actors did; None where that is not known in time."""
        try:
            found: ActorCounts = ray.get(self._counter.totals.remote(), timeout=timeout)
        except RayError:
            if timeout is None:
                raise
            return None
        return found

    def run_part(self, run: OutputRun, number: int, shards: Sequence[Shard], stage: Stage) -> None:
        """Raises what a block's function raised on purpose as such."""
        try:
            _run_part(run, number, shards, stage, self._plan, self._counter_name)
        except RayTaskError as error:
            raise cause_of(error) from None

    def confirmed(self, run: OutputRun, number: int) -> tuple[str, ...]:
        """What the names of a part's files begin with that stand whole."""
        filesystem, checkpoint = filesystem_of(run.checkpoint_uri(number))
        return tuple(
            info.base_name.removesuffix(".parquet")
            for info in filesystem.get_file_info(
                pafs.FileSelector(checkpoint, allow_not_found=True)
            )
        )


def in_tasks(
    function: Callable[..., T], items: Sequence[tuple[Any, ...]], *shared: Any
) -> Iterator[T]:
    """`function(*item, *shared)` of each item, in order, in tasks for which `shared` is stored
    once.

    Raises:
        InputError: the function did.
    """
    ensure_ray()
    task = ray.remote(**IO_TASK)(function)
    held = [ray.put(one) for one in shared]
    try:
        yield from map(ray.get, [task.remote(*item, *held) for item in items])
    except RayTaskError as error:
        raise cause_of(error) from None


def _run_part(
    run: OutputRun,
    number: int,
    shards: Sequence[Shard],
    stage: Stage,
    plan: ActorPlan,
    counter: str,
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
    source = ShardSource(shards, stage.columns, stage.block_bytes)
    stage = stage.spread(sum(shard.rows for shard in shards), plan.actors)
    context = DataContext.get_current().copy()
    context.checkpoint_config = checkpoint
    context.target_max_block_size = stage.block_bytes
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # a user's mistake is told from a bug by its type
    with DataContext.current(context), arguments_by_value():
        dataset = ray.data.read_datasource(
            source, override_num_blocks=len(shards), **IO_TASK
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


@contextmanager
def arguments_by_value() -> Iterator[None]:
    """Let Ray Data pass what its actors are built of with the call that builds them, where it is
    small, and not by references into the object store.

    An actor that is begun anew after its death needs its arguments again, and Ray does not keep
    what they refer to for that (ray issue 53727): it says so, as an error in C++, of every pool
    whose arguments are references or hold some, handles of actors too.
    """
    start = ActorPoolMapOperator._start_actor

    def start_by_value(self: Any, *arguments: Any, **named: Any) -> Any:
        values = {
            "_data_context_ref": self.data_context,
            "_map_transformer_ref": self._map_transformer,
        }
        if any(len(cloudpickle.dumps(value)) > INLINE_BYTES for value in values.values()):
            return start(self, *arguments, **named)
        before = {name: vars(self)[name] for name in values if name in vars(self)}
        vars(self).update(values)  # over what Ray Data works out once and caches there
        try:
            return start(self, *arguments, **named)
        finally:
            for name in values:
                del vars(self)[name]
            vars(self).update(before)

    ActorPoolMapOperator._start_actor = start_by_value  # type: ignore[method-assign]
    try:
        yield
    finally:
        ActorPoolMapOperator._start_actor = start  # type: ignore[method-assign]


def _for_ray(uri: str) -> tuple[pafs.FileSystem | None, str]:
    """What Ray Data reaches a place by; of a store it finds that itself, on each node."""
    is_local = "://" not in uri or uri.startswith(f"{ROOTED}://")
    return filesystem_of(uri) if is_local else (None, uri)


class BlockActor:
    """One model; works off blocks, and reports them to the actor of the name `counter`."""

    def __init__(self, make: Callable[[], BlockFunction], threads: int, counter: str) -> None:
        started = time.time()
        self._torch = TorchThread(threads)
        self._apply = self._torch.run(make)
        self._load_seconds = time.time() - started
        self._counter: Any = ray.get_actor(counter)
        self._name = uuid.uuid4().hex
        self._rows = 0
        self._errors: Counter[str] = Counter()
        self._started: float | None = None
        self._ahead, self._block_rows, self._said = 0, 0, 0.0
        from sce.embedding.embedder import TextEmbedder

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
