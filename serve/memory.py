"""Memory that is no longer needed goes back to the system.

An error holds the frames that it came through, and so a large request, in a circle that only
Python's collector finds: it runs after so many new objects, of which a server at rest makes none.
And glibc keeps what was freed once.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from pathlib import Path

GROWTH_BYTES = 64 * 2**20
"""Of the process above the least that it had, below which it is left alone."""
PAUSE_SECONDS = 60.0
"""After which it is tried again where there was nothing to give back."""
EVERY_SECONDS = 15.0
"""Between two looks of `watch`."""
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = 4096


class UnusedMemory:
    """Gives back what is no longer needed, from time to time."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._trim = getattr(library, "malloc_trim", None) if _STATM.exists() else None
        self._least = 0
        self._not_before = 0.0

    def give_back(self) -> None:
        """Some 0.1 s where there is much, nothing where the process has hardly grown."""
        now = time.monotonic()
        if self._trim is None or now < self._not_before:
            return
        before = _resident()
        if before < self._least + GROWTH_BYTES:
            return
        gc.collect()
        self._trim(0)
        after = _resident()
        self._least = min(self._least or after, after)
        if after > before - GROWTH_BYTES // 4:
            self._not_before = now + PAUSE_SECONDS

    def watch(self, every_seconds: float = EVERY_SECONDS) -> None:
        """Do so for as long as the process lives, in a thread: where nobody calls."""
        threading.Thread(target=self._watch, args=(every_seconds,), daemon=True).start()

    def _watch(self, every_seconds: float) -> None:
        while True:
            time.sleep(every_seconds)
            self.give_back()


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
