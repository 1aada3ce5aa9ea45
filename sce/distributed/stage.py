"""The engine of the bulk jobs: shards in, blocks through whoever holds the model, rows out, once
each. A small input is worked off by one process beside this one (`one_process`), everything else by
Ray's actors (`actors`), which take seconds to import and to start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from sce.bulk.blocks import Stage, split_parts
from sce.bulk.corpus import Columns, Corpus, Shard, join_plans, plan_file, plan_files
from sce.bulk.counts import ActorCounts, ErrorLimit, too_many_errors
from sce.bulk.output import COMMIT_ROWS, OutputRun, PartCounts, count_part, rows_done
from sce.datasets.readers import BadRow
from sce.distributed.one_process import OneProcess
from sce.distributed.resources import ActorPlan
from sce.distributed.watch import watched
from sce.errors import TooManyErrors
from sce.storage import to_place

ACTOR_CPUS = 0.5
"""That Ray sets aside for an actor on a CPU: beside it a filtering actor (1) has to fit into two
cores when a job resumes. Its threads use the cores all the same."""
FOOTERS_AT_ONCE = 16
ITEMS_DONE_HERE = 8
"""Files or shards that the driver goes through itself, sooner than a worker has started."""

log = logging.getLogger(__name__)

FILES_LOOKED_INTO = 20
"""Where a job fails for its bad rows."""
SHOWN_LINES = 3

Workers = ActorPlan | OneProcess
T = TypeVar("T")


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
    """`function(*item, *shared)` of each item, in order; of more than a few items in Ray's tasks.

    Raises:
        InputError: the function did.
    """
    if len(items) <= ITEMS_DONE_HERE:
        yield from (function(*item, *shared) for item in items)
        return
    from sce.distributed import actors

    yield from actors.in_tasks(function, items, *shared)


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
    workers: Workers,
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
    with run.lock, _begun(workers, stage, limit) as pool:
        run.seconds += pool.load_seconds
        run.save()
        rows_before = rows_done(run)
        try:
            with watched(pool.totals, what, total, rows_before, run):
                for number in missing:
                    pool.run_part(run, number, parts[number], stage)
                    _commit_part(run, number, parts[number], stage, pool)
                work = pool.totals() or ActorCounts()
        except TooManyErrors:
            so_far = pool.totals() or ActorCounts()
            raise _too_many(so_far.rows, so_far.errors, shards) from None
        except KeyboardInterrupt as stopped:
            stopped.add_note(
                f"{what}: {rows_done(run):,} of {total:,} rows are kept in {run.uri}; the same "
                "command goes on with the others."
            )
            raise
    counts = PartCounts.total(list(run.parts.values()))
    if limit.exceeded(counts.rows, sum(counts.errors.values()), finished=True):
        raise _too_many(counts.rows, counts.errors, shards)
    return StageResult(counts, counts.rows - rows_before, work)


def _begun(workers: Workers, stage: Stage, limit: ErrorLimit) -> Any:
    if isinstance(workers, OneProcess):
        return workers.begun(stage, limit)
    from sce.distributed.actors import ActorPool

    return ActorPool.begun(workers, limit)


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


def _commit_part(
    run: OutputRun, number: int, shards: Sequence[Shard], stage: Stage, pool: Any
) -> None:
    """Commit the part if rows in = rows out, each once, by what lies in the folder."""
    _delete_unconfirmed(run, number, pool.confirmed(run, number))
    counts = count_part(run.part_files(number), stage.output_format, stage.counted)
    expected = sum(shard.rows for shard in shards)
    if counts.rows != expected:
        raise RuntimeError(
            f"{run.part_uri(number)}: {counts.rows} rows were written of {expected} that were "
            "read. If the input changed meanwhile, begin again with a new output."
        )
    run.commit_part(number, counts)


def _delete_unconfirmed(run: OutputRun, number: int, confirmed: tuple[str, ...]) -> None:
    """Files that an earlier driver's last worker left behind when it was killed."""
    for file in map(to_place, run.part_files(number)):
        if not file.name.startswith(confirmed):
            log.warning("%s was never confirmed and is deleted", file)
            file.unlink()
