"""Memory that was freed goes back to the system: glibc keeps what large requests needed once."""

from __future__ import annotations

import ctypes
from pathlib import Path

GROWTH_BYTES = 64 * 2**20
"""Of the process since it last gave memory back, below which it is left alone."""
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = 4096


class FreedMemory:
    """Gives freed memory back, from time to time."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._trim = getattr(library, "malloc_trim", None) if _STATM.exists() else None
        self._least = 0

    def give_back(self) -> None:
        """Milliseconds where there is much, nothing where the process has hardly grown."""
        if self._trim is None or _resident() < self._least + GROWTH_BYTES:
            return
        self._trim(0)
        self._least = _resident()


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
