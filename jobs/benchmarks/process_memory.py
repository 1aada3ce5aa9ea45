"""Peak memory of the processes of a job, by what they are; a job run as its users run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

JOBS = Path(__file__).parents[1]

INTERVAL_SECONDS = 0.2  # a look takes some milliseconds; a block is read in less than a second


class PeakMemory:
    """Watches a process and its descendants while its block runs. Linux.

    `peaks` gives the most bytes that one process of each kind ever had of its own (resident less
    shared: files and the object store are not counted). Kinds are "driver", "actor" (the model's,
    without Ray the process beside the job) and "worker" (other Ray workers).

    Args:
        pid: of the driver; default this process.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._driver = psutil.Process(pid)
        self._peaks: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def peaks(self) -> dict[str, int]:
        return dict(sorted(self._peaks.items()))

    def _loop(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self._look()

    def _look(self) -> None:
        try:
            processes = [self._driver, *self._driver.children(recursive=True)]
        except psutil.Error:
            return
        for process in processes:
            with suppress(psutil.Error):
                command = process.cmdline()
                title = "".join(command[:1])
                beside = any("one_process" in word for word in command)  # no Ray then
                kind = "actor" if beside or "BlockActor" in title else "worker"
                if process == self._driver:
                    kind = "driver"
                elif not (beside or title.startswith("ray::")):
                    continue
                memory = process.memory_info()
                self._peaks[kind] = max(self._peaks.get(kind, 0), memory.rss - memory.shared)


@dataclass(frozen=True)
class WatchedJob:
    """A job that ran as a process of its own: seconds from command to end, its last line, and
    bytes at the peak by kind of process."""

    seconds: float
    summary: dict[str, Any]
    peaks: dict[str, int]

    @property
    def peak_megabytes(self) -> float:
        """Of all processes together."""
        return sum(self.peaks.values()) / 1e6


def run_job_watched(
    job: str, flags: Sequence[str], kill_when: Callable[[], bool] | None = None
) -> WatchedJob:
    """Run a file of `jobs/` and watch it.

    Args:
        kill_when: asked five times a second; the job is killed, with all its processes, once this
            is true, and has no summary then.

    Raises:
        RuntimeError: the job failed.
    """
    command = [sys.executable, str(JOBS / job), *flags, "--no-tracking.enabled"]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, start_new_session=True, text=True, cwd=JOBS.parent
    )
    with PeakMemory(process.pid) as memory:
        if kill_when is not None:
            while process.poll() is None and not kill_when():
                time.sleep(INTERVAL_SECONDS)
            os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
    seconds = time.perf_counter() - started
    if kill_when is not None:
        return WatchedJob(seconds, {}, memory.peaks())
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
    return WatchedJob(seconds, json.loads(out.splitlines()[-1]), memory.peaks())
