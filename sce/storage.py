"""Where data lies: a path of this machine, or a URI that `pyarrow.fs` knows (`s3://bucket/prefix`).

A local place is a `pathlib.Path`. A remote one is a `RemotePath`, which has as much of a path's
interface as is used here, so that most code takes either. Endpoint and credentials of a store come
from where its own tools look for them (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, an instance's role).

Object stores show whole files only and cannot rename. So what belongs together is written first,
and the file that names it or makes it whole (a manifest, a `config.json`) last.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeAlias
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
from pydantic import BeforeValidator, InstanceOf, PlainSerializer

from sce.errors import DataError

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
_REFUSED = "?#%\\ \t\r\n"
_ATTEMPTS = 3
_HINTS = {
    "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE": (
        "are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY set, and allowed to?"
    ),
    "OAuth2": "is GOOGLE_APPLICATION_CREDENTIALS set?",
    "NETWORK_CONNECTION": "is AWS_ENDPOINT_URL right?",
}
"""Of what pyarrow says: what the user may look at."""
_MODEL_FILES = ("config.json", "modules.json", "adapter_config.json")


@dataclass(frozen=True, init=False)
class RemotePath:
    """A file or folder of a store, by its URI. Immutable, picklable, compares by URI.

    Raises:
        DataError: the URI is none that can be used; so do all methods where the store refuses or
            does not answer. A file that is not there is a `FileNotFoundError`, as of a `Path`.
    """

    uri: str

    def __init__(self, uri: str) -> None:
        scheme, _, rest = uri.partition("://")
        if scheme.lower() not in SCHEMES:
            raise DataError(
                f"{uri!r}: no URI that can be read or written. Allowed: a path, file:// and "
                f"{', '.join(f'{name}://' for name in SCHEMES)}."
            )
        path = PurePosixPath(f"/{rest}")
        if len(path.parts) < 2 or rest.startswith("/"):
            raise DataError(f"{uri!r}: names no bucket. Write {scheme}://BUCKET/FOLDER.")
        if found := [c for c in rest if c in _REFUSED or not c.isprintable()]:
            raise DataError(f"{uri!r}: {found[0]!r} cannot be in the URI of a place.")
        if ":" in rest.partition("/")[0].rpartition("@")[0]:
            raise DataError(
                f"{scheme}://***: no credentials in a URI, which ends up in logs. Set the "
                "environment of the store's own tools (AWS_ACCESS_KEY_ID, ...)."
            )
        if ".." in path.parts:
            raise DataError(f"{uri!r}: '..' cannot be in the URI of a place.")
        object.__setattr__(self, "uri", f"{scheme.lower()}:/{path}")

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.uri}/{name}")

    @property
    def _path(self) -> PurePosixPath:
        """The bucket and what is in it, as if the bucket lay at the root."""
        return PurePosixPath(self.uri.partition(":/")[2])

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def stem(self) -> str:
        return self._path.stem

    @property
    def suffix(self) -> str:
        return self._path.suffix

    @property
    def parent(self) -> RemotePath:
        """The folder above; the bucket is its own parent."""
        parent = self._path.parent
        return self if parent == parent.parent else self._of(parent)

    def absolute(self) -> RemotePath:
        return self

    expanduser = resolve = absolute

    def exists(self) -> bool:
        return self._info().type != pafs.FileType.NotFound

    def is_file(self) -> bool:
        return bool(self._info().type == pafs.FileType.File)

    def is_dir(self) -> bool:
        return bool(self._info().type == pafs.FileType.Directory)

    def iterdir(self) -> Iterator[RemotePath]:
        """What is directly in the folder; nothing where there is none."""
        for info in self._listed(recursive=False):
            yield self / info.base_name

    def read_text(self, encoding: str = "utf-8") -> str:
        with _reached(self, "read") as (store, path), store.open_input_stream(path) as file:
            content: bytes = file.read()
        return content.decode(encoding)

    @contextmanager
    def open_output(self) -> Iterator[pa.NativeFile]:
        """Readers see the file when the block has ended, by an error as well: what names it comes
        after it."""
        with _reached(self, "written") as (store, path), store.open_output_stream(path) as file:
            yield file

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Stores need no folders."""

    def unlink(self, missing_ok: bool = False) -> None:
        ignored = [FileNotFoundError] if missing_ok else []
        with suppress(*ignored), _reached(self, "deleted") as (filesystem, path):
            filesystem.delete_file(path)

    def check(self, setting: str | None = None) -> None:
        """See that the store answers and has the bucket, so that a mistake in `setting` is said
        before the work."""
        head = "" if setting is None else f"{setting}: "
        try:
            if self.exists():
                return
        except DataError as error:
            raise DataError(f"{head}{error}") from None
        root = self._of(PurePosixPath(*self._path.parts[:2]))
        try:
            there = root.exists()
        except DataError:
            return  # a key may be allowed a folder alone, of which nothing is there yet
        if not there:
            raise DataError(f"{head}{self.uri!r}: there is no bucket {root.name!r}.")

    def files(self) -> list[tuple[str, int, str]]:
        """Every file below: its path within this folder ("" for this file itself), its bytes, and
        what changes with its content."""
        info = self._info()
        infos = [info] if info.type == pafs.FileType.File else self._listed(recursive=True)
        found = []
        with _reached(self, "read") as (filesystem, path):
            for info in infos:
                if info.type == pafs.FileType.File:
                    with filesystem.open_input_stream(info.path) as file:
                        tag = file.metadata().get("ETag", b"").decode()
                    inside = info.path.removeprefix(path).lstrip("/")
                    found.append((inside, info.size, tag or str(info.mtime_ns)))
        return sorted(found)

    def _of(self, path: PurePosixPath) -> RemotePath:
        return RemotePath(f"{self.uri.partition('://')[0]}:/{path}")

    def _info(self) -> pafs.FileInfo:
        with _reached(self, "read") as (filesystem, path):
            return filesystem.get_file_info(path)

    def _listed(self, recursive: bool) -> list[pafs.FileInfo]:
        with _reached(self, "listed") as (filesystem, path):
            selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
            return list(filesystem.get_file_info(selector))


def to_place(place: str | Path | RemotePath) -> Path | RemotePath:
    """A path for a path or a file:// URI, else a `RemotePath`.

    Raises:
        DataError: a URI that cannot be used.
    """
    if not isinstance(place, str):
        return place
    if "://" not in place:
        return Path(place)
    if place.lower().startswith("file://"):
        return Path(unquote(urlsplit(place).path))
    return RemotePath(place)


def _setting(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return to_place(value)
    except DataError as error:
        raise ValueError(str(error)) from None


Place: TypeAlias = Annotated[
    Path | InstanceOf[RemotePath], BeforeValidator(_setting), PlainSerializer(str, return_type=str)
]
"""A place; as the type of a setting it reads paths and URIs."""


def filesystem_of(place: str | Place) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a path or URI, and the path within it.

    Raises:
        DataError: a scheme that is not known here.
    """
    uri = str(place)
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return pafs.LocalFileSystem(), uri
    if scheme.lower() == "file":
        return pafs.LocalFileSystem(), str(to_place(uri))
    bucket, _, inside = rest.rstrip("/").partition("/")
    try:
        filesystem, root = _bucket(scheme.lower(), bucket)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{uri!r}: {_reason(error)}") from None
    return filesystem, f"{root.rstrip('/')}/{inside}" if inside else root


@lru_cache(maxsize=32)
def _bucket(scheme: str, bucket: str) -> tuple[pafs.FileSystem, str]:
    """Once a process: a store may be asked for the bucket's region."""
    # By default it tries for a quarter of an hour, also without credentials.
    patience = "?retry_limit_seconds=60" if scheme in ("gs", "gcs") else ""
    return pafs.FileSystem.from_uri(f"{scheme}://{bucket}/{patience}")


def parquet_source(place: Place) -> Path | pa.NativeFile:
    """What `pyarrow.parquet` reads a file from, with random access."""
    if isinstance(place, Path):
        return place
    with _reached(place, "read") as (filesystem, path):
        return filesystem.open_input_file(path)


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
        with suppress(FileNotFoundError), _reached(folder, "deleted") as (filesystem, path):
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
            with _reached(target, "written") as (filesystem, root):
                filesystem.delete_dir_contents(root, missing_dir_ok=True)
            files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
            for name in sorted(files, key=lambda name: (name == last, name)):
                put(folder / name, target / name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(target.parent, f".{target.name}.new-") as scratch:
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


@contextmanager
def _scratch(parent: Path | None, prefix: str) -> Iterator[Path]:
    """A folder that is gone after the block, unless it was renamed."""
    with tempfile.TemporaryDirectory("", prefix, parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def put(file: Path, place: Place) -> None:
    """Copy a file of this machine to `place`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with _reached(place, "written"):
        _copy(file, place)


def _copy(source: Place, target: Place) -> None:
    """Copy a file, or what is in a folder."""
    from_filesystem, from_path = filesystem_of(source)
    to_filesystem, to_path = filesystem_of(target)
    pafs.copy_files(
        from_path, to_path, source_filesystem=from_filesystem, destination_filesystem=to_filesystem
    )


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
    for it, while others wait; whole or not at all."""
    target = _cache() / key
    with open(_cache() / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            new = target.with_name(f".{key}.new")
            shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
            new.mkdir()
            try:
                fill(new)
                os.rename(new, target)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    return target


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


@contextmanager
def _reached(place: Place, what: str) -> Iterator[tuple[pafs.FileSystem, str]]:
    """`filesystem_of` a place, for a block that it is `what` in ("read", "written"). What a store
    answers to the block is raised as the user's mistake that it most likely is."""
    try:
        yield filesystem_of(place)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{str(place)!r} cannot be {what} ({_reason(error)}).") from None


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sce"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: copies of remote files cannot be kept here ({error.strerror}). Set "
            "XDG_CACHE_HOME to a folder that can be written."
        ) from None
    return folder


class _Changed(Exception):
    """The content of a place became another while it was read."""


def _download(place: RemotePath, files: list[tuple[str, int, str]], folder: Path) -> None:
    copy = folder / place.name
    if files[0][0]:  # a folder: `copy_files` makes those below it, but not itself
        copy.mkdir()
    with _reached(place, "read"):
        _copy(place, copy)
    if place.files() != files:
        raise _Changed


def _reason(error: Exception) -> str:
    """What a message of pyarrow says, without ids of requests and the like."""
    text = re.split(r"; Details:| \(Request ID| Learn more", " ".join(str(error).split()))[0]
    hints = [hint for words, hint in _HINTS.items() if re.search(words, text)]
    return "; ".join([text.rstrip(". ")[:300], *hints[:1]])
