"""Files of this machine that are files: what stands in for one (a device, a pipe) may never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

import pyarrow as pa

from sce.errors import DataError

FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
"""To open with: a pipe that nobody writes would be waited for."""


def open_regular(path: str | Path) -> pa.NativeFile:
    """A file to read, with random access.

    Raises:
        DataError: it is a device, a pipe or a folder.
        OSError: it is not there, or may not be read.
    """
    return native_file(os.open(path, os.O_RDONLY | FLAGS), str(path), "rb")


def native_file(descriptor: int, path: str, mode: Literal["rb", "wb"]) -> pa.NativeFile:
    """The open file as one of Arrow's; `descriptor` is closed. Raises as `open_regular`."""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DataError(f"{path}: not a regular file.")
        return pa.OSFile(f"/dev/fd/{descriptor}", mode)  # the same file, whatever the path is now
    finally:
        os.close(descriptor)
