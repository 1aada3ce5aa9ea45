"""The files below a folder, its root, as a filesystem of Arrow: through no link, and so never out
of it, whatever others do to the folders in the meantime.

Each operation opens the root and from there one folder after another by its descriptor. What was
looked at is therefore what is used: a folder that is swapped for a link in between is refused.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from sce.errors import DataError
from sce.storage.regular_files import FLAGS, native_file

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINK = FLAGS | os.O_NOFOLLOW


class RootedFiles(pafs.FileSystemHandler):
    """Paths are relative to `root`, "" the root itself. A link, a device and a pipe are of the type
    `Unknown` where they are listed.

    Raises:
        DataError: of every method, where a path leads through a link or out of the root.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RootedFiles) and self.root == other.root

    def __ne__(self, other: object) -> bool:
        return not self == other

    def get_type_name(self) -> str:
        return "rooted"

    def normalize_path(self, path: str) -> str:
        return path.strip("/")

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        found = []
        try:
            with self._folder(selector.base_dir) as top:
                for folder, folders, files, fd in os.fwalk(".", dir_fd=top, onerror=_raise):
                    base = PurePosixPath(selector.base_dir, folder)
                    for name in sorted([*folders, *files]):
                        with suppress(FileNotFoundError):  # gone since it was listed
                            about = os.stat(name, dir_fd=fd, follow_symlinks=False)
                            found.append(_file_info(str(base / name), about))
                    if not selector.recursive:
                        break
        except FileNotFoundError:
            if not selector.allow_not_found:
                raise
        return found

    def create_dir(self, path: str, recursive: bool) -> None:
        with self._folder(path, create=True):
            pass

    def delete_dir(self, path: str) -> None:
        with self._above(path) as (folder, name):
            shutil.rmtree(name, dir_fd=folder)  # it follows no link

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        try:
            with self._folder(path) as folder:
                for name in os.listdir(folder):
                    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                        shutil.rmtree(name, dir_fd=folder)
                    else:
                        os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            if not missing_dir_ok:
                raise

    def delete_root_dir_contents(self) -> None:
        raise DataError(f"{self.root}: a root is not emptied.")

    def delete_file(self, path: str) -> None:
        with self._above(path) as (folder, name):
            os.unlink(name, dir_fd=folder)

    def move(self, src: str, dest: str) -> None:
        with self._above(src) as (source, old), self._above(dest) as (target, new):
            os.replace(old, new, src_dir_fd=source, dst_dir_fd=target)

    def copy_file(self, src: str, dest: str) -> None:
        with self.open_input_file(src) as source, self.open_output_stream(dest, {}) as target:
            shutil.copyfileobj(source, target)

    def open_input_file(self, path: str) -> pa.NativeFile:
        with self._above(path) as (folder, name):
            descriptor = self._opened(path, name, os.O_RDONLY | _NO_LINK, folder)
            return native_file(descriptor, f"{self.root}/{path}", "rb")

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        """With the folders above it."""
        with self._above(path, create=True) as (folder, name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _NO_LINK
            descriptor = self._opened(path, name, flags, folder)
            return native_file(descriptor, f"{self.root}/{path}", "wb")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError

    @contextmanager
    def _above(self, path: str, create: bool = False) -> Iterator[tuple[int, str]]:
        """The open folder in which a path's last part is, and that part."""
        pure = PurePosixPath(path)
        if not pure.name:
            raise DataError(f"{self.root}: the root itself is left as it is.")
        with self._folder(str(pure.parent), create) as folder:
            yield folder, pure.name

    @contextmanager
    def _folder(self, path: str, create: bool = False) -> Iterator[int]:
        """A folder below the root, open."""
        if create:
            os.makedirs(self.root, exist_ok=True)
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in PurePosixPath(path).parts:
                if create:
                    with suppress(FileExistsError):
                        os.mkdir(part, dir_fd=descriptor)
                inner = self._opened(path, part, _FOLDER, descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def _opened(self, path: str, part: str, flags: int, folder: int) -> int:
        """One part of a path. Raises `DataError` where it is a link."""
        if part in ("..", "/"):
            raise DataError(f"{self.root}/{path}: leads out of {self.root}.")
        try:
            return os.open(part, flags, 0o666, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
                about = os.stat(part, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISLNK(about.st_mode):
                    raise DataError(
                        f"{self.root}/{path}: {part!r} is a link, and links below {self.root} are "
                        "not followed."
                    ) from None
            raise

    def _info(self, path: str) -> pafs.FileInfo:
        try:
            if not PurePosixPath(path).parts:
                return _file_info(path, os.stat(self.root))
            with self._above(path) as (folder, name):
                return _file_info(path, os.stat(name, dir_fd=folder, follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return pafs.FileInfo(path, pafs.FileType.NotFound)


def _file_info(path: str, about: os.stat_result) -> pafs.FileInfo:
    kind = pafs.FileType.Unknown
    if stat.S_ISDIR(about.st_mode):
        kind = pafs.FileType.Directory
    elif stat.S_ISREG(about.st_mode):
        kind = pafs.FileType.File
    size = about.st_size if kind == pafs.FileType.File else None
    return pafs.FileInfo(path, kind, size=size, mtime_ns=about.st_mtime_ns)


def _raise(error: OSError) -> None:
    raise error
