"""How far a bulk job is, for the person who watches it or reads its log."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from sce.bulk.counts import ActorCounts
from sce.bulk.output import OutputRun

PROGRESS_SECONDS = 10

log = logging.getLogger(__name__)


@contextmanager
def watched(
    totals: Callable[[float], ActorCounts | None],
    what: str,
    total: int,
    rows_before: int,
    run: OutputRun,
) -> Iterator[None]:
    """Show how far a stage is while its rows are worked off, by what `totals` says within so many
    seconds: as a bar on a terminal or as a line every ten seconds in the log; and keep the output's
    clock going."""
    if rows_before:
        log.info("%s: %d of %d rows were done before", what, rows_before, total)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} rows/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    task = bar.add_task(what, total=total, completed=rows_before, rate="-")
    over = threading.Event()
    begun, before = time.monotonic(), run.seconds

    def follow() -> None:
        logged = begun
        while not over.wait(2.0 if bar.disable else 1.0):
            now = time.monotonic()
            run.seconds = before + now - begun
            work = totals(10)
            if work is None or not work.rows:
                continue
            done = min(rows_before + work.rows, total)  # a killed actor's rows count twice
            rate = work.rows / max(work.finished - work.started, 1e-3)
            bar.update(task, completed=done, rate=f"{rate:,.0f}")
            if bar.disable and now - logged >= PROGRESS_SECONDS:
                logged = now
                log.info(
                    "%s: %d of %d rows, %.0f a second, %.0f s left, %d with errors",
                    what,
                    done,
                    total,
                    rate,
                    max(0, total - done) / rate,
                    sum(work.errors.values()),
                )

    thread = threading.Thread(target=follow, daemon=True)
    with bar:
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=10)
            run.seconds = before + time.monotonic() - begun
