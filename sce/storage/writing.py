"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.fs as pafs

from sce.storage.places import Place, RemotePath, filesystem_of, reached

_LOCK = "lock"
"""Held by the process that fills a folder which is to take another's place."""


def write_text(place: Place, text: str) -> None:
    """Write a file and the folders above it; readers see the old one or the new one, whole."""
    if isinstance(place, RemotePath):
        with place.open_output() as stream:
            stream.write(text.encode())
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, place)


def remove(folder: Place) -> None:
    """Delete a folder with all in it, if it is there."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.is_dir():
        # Without files a folder may be gone by itself.
        with suppress(FileNotFoundError), reached(folder, "deleted") as (filesystem, path):
            filesystem.delete_dir(path)


@contextmanager
def replace_folder(target: Place, last: str) -> Iterator[Path]:
    """An empty local folder, whose content takes the place of `target`'s when the block ends; an
    error leaves `target` as it was. Where there is no renaming, the file `last`, without which no
    reader takes the folder for whole, is deleted first and written last."""
    if isinstance(target, RemotePath):
        with _scratch(None, "sce-") as scratch:
            folder = scratch / target.name
            folder.mkdir()
            yield folder
            (target / last).unlink(missing_ok=True)
            with reached(target, "written") as (filesystem, root):
                filesystem.delete_dir_contents(root, missing_dir_ok=True)
            files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
            for name in sorted(files, key=lambda name: (name == last, name)):
                put(folder / name, target / name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.new-"
    _clear_up(target, prefix)
    with _scratch(target.parent, prefix) as scratch, open(scratch / _LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        yield new
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(new, target)
        except BaseException:
            if old.exists():
                os.rename(old, target)
            raise


def _clear_up(target: Path, prefix: str) -> None:
    """Remove what processes left that were killed while they replaced this folder; one that was
    killed between its two renamings had the folder's old content, which is put back."""
    for left in target.parent.iterdir():
        if not left.name.startswith(prefix):
            continue
        # Without a lock it was made a moment ago, or by an earlier version.
        with suppress(OSError), open(left / _LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (left / "old").exists() and not target.exists():
                os.rename(left / "old", target)
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _scratch(parent: Path | None, prefix: str) -> Iterator[Path]:
    """A folder that is gone after the block, unless it was renamed."""
    with tempfile.TemporaryDirectory("", prefix, parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def put(file: Path, place: Place) -> None:
    """Copy a file of this machine to `place`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with reached(place, "written"):
        copy(file, place)


def copy(source: Place, target: Place) -> None:
    """Copy a file, or what is in a folder."""
    from_filesystem, from_path = filesystem_of(source)
    to_filesystem, to_path = filesystem_of(target)
    pafs.copy_files(
        from_path, to_path, source_filesystem=from_filesystem, destination_filesystem=to_filesystem
    )
