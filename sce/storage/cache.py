"""Copies of remote files on this machine."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

from sce.errors import ConfigError, DataError
from sce.storage.places import Place, RemotePath, reached, to_place
from sce.storage.writing import copy

CACHE_BYTES = "SCE_CACHE_BYTES"
"""The variable that bounds the cache."""
_ATTEMPTS = 3
_MODEL_FILES = ("config.json", "modules.json", "adapter_config.json")
_HELD: dict[Path, IO[str]] = {}
"""Folders that this process uses, and the locks that say so."""

log = logging.getLogger(__name__)


def fetch(place: str | Place) -> Path:
    """A file or folder of this machine with the content of `place`: itself, or a copy in the cache.

    A copy is made once for a content and machine, in XDG_CACHE_HOME (~/.cache) `/sce`.

    Raises:
        DataError: nothing is there, or it does not stop changing.
    """
    place = to_place(place)
    if isinstance(place, Path):
        return place
    for _ in range(_ATTEMPTS):
        files = place.files()
        if not files:
            place.check()
            raise DataError(f"{place.uri!r}: there is nothing.")
        key = hashlib.sha256(json.dumps([place.name, files]).encode()).hexdigest()[:32]
        with suppress(FileNotFoundError, _Changed):
            return cached_folder(key, partial(_download, place, files)) / place.name
    raise DataError(f"{place.uri!r} changed each of {_ATTEMPTS} times while it was read.")


def cached_folder(key: str, fill: Callable[[Path], None]) -> Path:
    """The folder of that name in the cache of this machine, `fill`ed by the first process that asks
    for it, while others wait; whole or not at all.

    It stays for as long as a process lives that asked for it. When another is made, those that were
    not asked for longest go, until the rest is within `SCE_CACHE_BYTES` (50 GB).
    """
    target = _cache() / key
    with _locked(target, "lock", fcntl.LOCK_EX):
        if not target.exists():
            _fill(target, fill)
            _make_room(target)
        used = _locked(target, "used", fcntl.LOCK_SH)
        os.utime(used.fileno())
        _HELD.setdefault(target, used)  # until this process ends
    return target


def _fill(target: Path, fill: Callable[[Path], None]) -> None:
    new = target.with_name(f".{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
    new.mkdir()
    try:
        fill(new)
        os.rename(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _make_room(made: Path) -> None:
    """Remove folders that no process holds, the longest unused first, until the cache is within its
    bound; `made` is never removed, though it alone may be larger."""
    most = _most_bytes()
    found = [path for path in made.parent.iterdir() if path.is_dir() and path.name[0] != "."]
    sizes = {path: sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for path in found}
    total = sum(sizes.values())
    for path in sorted(set(found) - {made}, key=_last_use):
        if total <= most:
            break
        now = fcntl.LOCK_EX | fcntl.LOCK_NB
        with suppress(BlockingIOError), _locked(path, "lock", now), _locked(path, "used", now):
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]
            log.info("%s: %d MB of remote files are forgotten", path, sizes[path] // 10**6)


def _most_bytes() -> int:
    given = os.environ.get(CACHE_BYTES)
    if given is None:
        return 50 * 10**9
    if not given.isdecimal():
        raise ConfigError(f"{CACHE_BYTES}: {given!r} is no number of bytes.")
    return int(given)


def _last_use(folder: Path) -> float:
    with suppress(FileNotFoundError):
        return folder.with_name(f"{folder.name}.used").stat().st_mtime
    return 0.0


def _locked(folder: Path, what: str, how: int) -> IO[str]:
    """A file beside the folder, locked until it is closed: "lock" while the folder is made or
    removed, "used" by each process that uses it. Raises `BlockingIOError` where `how` says so."""
    file = open(folder.with_name(f"{folder.name}.{what}"), "a")  # noqa: SIM115 - it outlives this
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        file.close()
        raise
    return file


def fetch_model(place: str | Place) -> str:
    """`fetch` of a checkpoint's folder; a path or a hub id as it is.

    Raises:
        DataError: no checkpoint is there.
    """
    if "://" not in str(place):
        return str(place)
    remote = to_place(str(place))
    assert isinstance(remote, RemotePath)
    if not any((remote / name).is_file() for name in _MODEL_FILES):
        remote.check()
        raise DataError(f"{remote.uri!r} has no {' or '.join(_MODEL_FILES)}: it is no model.")
    return str(fetch(remote))


def absolute_model(name: str) -> str:
    """A folder of this machine by its absolute path, since workers run in other folders; a hub id
    or URI as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if "://" not in name and path.is_dir() else name


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sce"
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: copies of remote files cannot be kept here ({error.strerror}). Set "
            "XDG_CACHE_HOME to a folder that can be written."
        ) from None
    return folder


class _Changed(Exception):
    """The content of a place became another while it was read."""


def _download(place: RemotePath, files: list[tuple[str, int, str]], folder: Path) -> None:
    target = folder / place.name
    if files[0][0]:  # a folder: `copy_files` makes those below it, but not itself
        target.mkdir()
    with reached(place, "read"):
        copy(place, target)
    if place.files() != files:
        raise _Changed
