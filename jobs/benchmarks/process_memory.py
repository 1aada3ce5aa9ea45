"""Peak memory of the processes of a job, by what they are."""

from __future__ import annotations

import threading
from contextlib import suppress

import psutil

INTERVAL_SECONDS = 0.2  # a look takes some milliseconds; a block is read in less than a second


class PeakMemory:
    """Watches a process and its descendants while its block runs. Linux.

    `peaks` gives the most bytes that one process of each kind ever had of its own (resident less
    shared: files and the object store are not counted). Kinds are "driver", "actor" (the model's)
    and "worker" (other Ray workers).

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
                title = "".join(process.cmdline()[:1])
                kind = "actor" if "BlockActor" in title else "worker"
                if process == self._driver:
                    kind = "driver"
                elif not title.startswith("ray::"):
                    continue
                memory = process.memory_info()
                self._peaks[kind] = max(self._peaks.get(kind, 0), memory.rss - memory.shared)
