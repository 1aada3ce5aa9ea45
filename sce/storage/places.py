"""Places by path or URI, and the filesystem that each lies in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeAlias
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
from pydantic import BeforeValidator, InstanceOf, PlainSerializer

from sce.errors import DataError
from sce.storage.regular_files import open_regular
from sce.storage.rooted import RootedFiles

ROOTED = "rooted"
"""The scheme of places below a root: `rooted://ROOT/inside`, the root's path quoted."""
SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
_REFUSED = "?#%\\ \t\r\n"
_HINTS = {
    "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE": (
        "are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY set, and allowed to?"
    ),
    "OAuth2": "is GOOGLE_APPLICATION_CREDENTIALS set?",
    "NETWORK_CONNECTION": "is AWS_ENDPOINT_URL right?",
}
"""Of what pyarrow says: what the user may look at."""


@dataclass(frozen=True, init=False)
class RemotePath:
    """A file or folder of a store or below a root, by its URI. Immutable, picklable, compares by
    URI.

    Raises:
        DataError: the URI is none that can be used; so do all methods where the store refuses or
            does not answer. A file that is not there is a `FileNotFoundError`, as of a `Path`.
    """

    uri: str

    def __init__(self, uri: str) -> None:
        scheme, _, rest = uri.partition("://")
        path = PurePosixPath(f"/{rest}")
        if ".." in path.parts:
            raise DataError(f"{readable(uri)!r}: '..' cannot be in the URI of a place.")
        if scheme == ROOTED and not rest.startswith("/"):
            object.__setattr__(self, "uri", f"{scheme}:/{path}")
            return
        if scheme.lower() not in SCHEMES:
            raise DataError(
                f"{uri!r}: no URI that can be read or written. Allowed: a path, file:// and "
                f"{', '.join(f'{name}://' for name in SCHEMES)}."
            )
        if len(path.parts) < 2 or rest.startswith("/"):
            raise DataError(f"{uri!r}: names no bucket. Write {scheme}://BUCKET/FOLDER.")
        if found := [c for c in rest if c in _REFUSED or not c.isprintable()]:
            raise DataError(f"{uri!r}: {found[0]!r} cannot be in the URI of a place.")
        if ":" in rest.partition("/")[0].rpartition("@")[0]:
            raise DataError(
                f"{scheme}://***: no credentials in a URI, which ends up in logs. Set the "
                "environment of the store's own tools (AWS_ACCESS_KEY_ID, ...)."
            )
        object.__setattr__(self, "uri", f"{scheme.lower()}:/{path}")

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.uri}/{name}")

    @property
    def _is_rooted(self) -> bool:
        return self.uri.startswith(f"{ROOTED}://")

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
        with reached(self, "read") as (store, path), store.open_input_stream(path) as file:
            content: bytes = file.read()
        return content.decode(encoding)

    @contextmanager
    def open_output(self) -> Iterator[pa.NativeFile]:
        """Readers see the file when the block has ended, of a store by an error as well: what
        names it comes after it."""
        if self._is_rooted:
            new = self.parent / f".{self.name}.{os.getpid()}.tmp"
            with reached(self, "written") as (files, path), reached(new, "written") as (_, before):
                with files.open_output_stream(before) as file:
                    yield file
                files.move(before, path)
            return
        with reached(self, "written") as (store, path), store.open_output_stream(path) as file:
            yield file

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Stores need no folders."""

    def unlink(self, missing_ok: bool = False) -> None:
        ignored = [FileNotFoundError] if missing_ok else []
        with suppress(*ignored), reached(self, "deleted") as (filesystem, path):
            filesystem.delete_file(path)

    def check(self, setting: str | None = None) -> None:
        """See that the store answers and has the bucket, so that a mistake in `setting` is said
        before the work."""
        head = "" if setting is None else f"{setting}: "
        try:
            if self.exists() or self._is_rooted:
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
        with reached(self, "read") as (filesystem, path):
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
        with reached(self, "read") as (filesystem, path):
            return filesystem.get_file_info(path)

    def _listed(self, recursive: bool) -> list[pafs.FileInfo]:
        with reached(self, "listed") as (filesystem, path):
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


def rooted_place(place: str | Place, roots: Sequence[str]) -> str:
    """A path or URI as one that is reached below the first of `roots` in which it lies, and through
    no link; of a store, whose paths know none, as it is.

    Raises:
        DataError: it lies below none of them.
    """
    uri = str(place)
    uri = uri if "://" in uri and not uri.startswith("file://") else str(to_place(uri))
    for root in (str(to_place(root)).rstrip("/") for root in roots):
        inside = uri.removeprefix(root)
        if (inside == uri and root) or inside[:1] not in ("", "/"):
            continue
        if ".." in PurePosixPath(inside).parts:
            break
        return uri if "://" in root else f"{ROOTED}://{quote(root or '/', safe='')}{inside}"
    raise DataError(f"{readable(uri)!r} does not lie below {' or '.join(map(repr, roots))}.")


def readable(text: str) -> str:
    """A text with rooted places as the paths that they are."""
    return re.sub(
        rf"{ROOTED}://([^/\s'\"]+)", lambda found: unquote(found[1]).removesuffix("/"), text
    )


def relative(place: Place) -> Place:
    """A place as seen from the working directory, where it lies below it: for who reads it."""
    if isinstance(place, Path) and place.is_relative_to(Path.cwd()):
        return place.relative_to(Path.cwd())
    return place


def open_input(place: str | Place) -> pa.NativeFile:
    """A file to read, with random access.

    Raises:
        DataError: it is a device, a pipe or a folder, or leads out of its root.
        OSError: it is not there, or may not be read.
    """
    filesystem, path = filesystem_of(place)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return open_regular(path)
    return filesystem.open_input_file(path)


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
    if scheme == ROOTED:
        return pafs.PyFileSystem(RootedFiles(unquote(bucket))), inside
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
    with reached(place, "read") as (filesystem, path):
        return filesystem.open_input_file(path)


@contextmanager
def reached(place: Place, what: str) -> Iterator[tuple[pafs.FileSystem, str]]:
    """`filesystem_of` a place, for a block that it is `what` in ("read", "written"). What a store
    answers to the block is raised as the user's mistake that it most likely is."""
    try:
        yield filesystem_of(place)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        shown = readable(str(place))
        raise DataError(f"{shown!r} cannot be {what} ({_reason(error)}).") from None


def _reason(error: Exception) -> str:
    """What a message of pyarrow says, without ids of requests and the like."""
    text = re.split(r"; Details:| \(Request ID| Learn more", " ".join(str(error).split()))[0]
    hints = [hint for words, hint in _HINTS.items() if re.search(words, text)]
    return "; ".join([text.rstrip(". ")[:300], *hints[:1]])
