"""How far a bulk job is, for the person who watches it or reads its log."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any

import ray
from ray.exceptions import RayError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from sce.bulk.output import OutputRun

PROGRESS_SECONDS = 60

log = logging.getLogger(__name__)


class Watch:
    """Shows how far a stage is: a bar on a terminal, else one line a minute in the log; and
    keeps the output's lock and clock going."""

    def __init__(
        self, counter: Any, what: str, total: int, rows_before: int, run: OutputRun
    ) -> None:
        self._counter, self._what, self._total, self._before = counter, what, total, rows_before
        self._run = run
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
                self._run.lock.beat()
                work = ray.get(self._counter.totals.remote(), timeout=10)
            except (RayError, OSError):
                continue
            if not work.rows:
                continue
            done = min(self._before + work.rows, self._total)  # a killed actor's rows count twice
            rate = work.rows / max(work.finished - work.started, 1e-3)
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
                    sum(work.errors.values()),
                )
