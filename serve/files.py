"""Files that were uploaded, and those that batches write, in one folder that all gateways reach.

Each belongs to the token that sent it; other tokens are told that there is none of the name. What
is known of a file stands beside it, so a gateway that is started later knows it too. Everything is
its user's own (0600, folders 0700).
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from email.message import Message
from email.parser import BytesParser
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, Any, NamedTuple

from sce.errors import ConfigError, clipped, quoted
from serve.file_forms import UploadedFile
from serve.refusals import ApiError
from serve.settings import BatchSettings

MAX_NAME_CHARS = 200
MAX_FIELD_BYTES = 1024
BLOCK_BYTES = 4096
"""A small file takes as much, so that their number is bounded too."""
OLD_SECONDS = 3600.0
"""An upload that nothing was added to for so long has ended."""
_NAME = re.compile(r"(file-|batch_file_)[0-9a-f]{32}")


class FileStore:
    """The folder; every method blocks, for disks may be slow."""

    def __init__(self) -> None:
        self.settings = BatchSettings()  # by which no files are taken

    def folder(self, owner: str) -> Path:
        """Of an owner's files and batches.

        Raises:
            ApiError: 403, this server takes no files.
        """
        if not self.settings.files_root:
            message = (
                "this server takes no files: its setting batches.files_root is empty. Batches of "
                "files that the server reads itself, {input, output, labels}, are another form: "
                "see /docs."
            )
            raise ApiError(403, "files_disabled", message)
        root = Path(self.settings.files_root).expanduser()
        found = root / owner
        if not found.is_dir():
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            found.mkdir(mode=0o700, exist_ok=True)
        return found

    def add(self, owner: str, purpose: str, filename: str, name: str) -> UploadedFile:
        """Make a content that is written (`content_path`) a file."""
        path = self.content_path(owner, name)
        about = UploadedFile(
            id=name,
            bytes=path.stat().st_size,
            created_at=int(time.time()),
            filename=clipped(filename, MAX_NAME_CHARS),
            purpose=purpose,  # type: ignore[arg-type]
        )
        write_json(self.folder(owner) / f"{name}.json", about.model_dump())
        return about

    def get(self, owner: str, name: str) -> UploadedFile:
        """Raises `ApiError` 404 where the owner has no such file."""
        folder = self.folder(owner)
        found = read_json(folder / f"{name}.json") if is_name(name) else None
        if found is None or found["object"] != "file":
            raise ApiError(404, "file_not_found", f"no file {quoted(name)}.", "file_id")
        return UploadedFile.model_validate(found)

    def every(self, owner: str) -> list[UploadedFile]:
        """The newest first."""
        found = filter(None, map(read_json, self.folder(owner).glob("file-*.json")))
        files = [UploadedFile.model_validate(about) for about in found]
        return sorted(files, key=lambda file: (-file.created_at, file.id))

    def delete(self, owner: str, name: str) -> None:
        """Raises `ApiError`: 404, the owner has no such file."""
        self.get(owner, name)
        for path in (self.folder(owner) / f"{name}.json", self.content_path(owner, name)):
            path.unlink(missing_ok=True)

    def content_path(self, owner: str, name: str) -> Path:
        return self.folder(owner) / f"{name}.data"

    def check_room(self, owner: str, more: int = 0) -> None:
        """Raises `ApiError` 413: the owner's files take more than they may, with `more` bytes."""
        used = more
        for path in self.folder(owner).iterdir():
            with suppress(FileNotFoundError):  # one that is removed meanwhile
                used += max(BLOCK_BYTES, path.stat().st_size)
        most = self.settings.max_files_bytes
        if used > most:
            message = (
                f"files of this token take {used} bytes, but max_files_bytes is {most}; delete "
                "some."
            )
            raise ApiError(413, "limit_exceeded", message, "max_files_bytes")

    def sweep(self, owner: str) -> None:
        """Remove what is left of uploads that broke off."""
        for path in self.folder(owner).glob("*.part"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > OLD_SECONDS:
                    path.unlink()


def check_files_root(settings: BatchSettings) -> None:
    """Make the folder where it is missing.

    Raises:
        ConfigError: it cannot be made or written, or others may write into it.
    """
    if not settings.files_root:
        return
    root = Path(settings.files_root).expanduser()
    where = f"batches.files_root: {str(root)!r}"
    if not root.is_absolute():
        raise ConfigError(f"{where} is no absolute path.")
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = root.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{where} cannot be used: {error.strerror}.") from None
    if mode & 0o022:
        raise ConfigError(f"{where} may be written by others (mode {mode & 0o777:04o}): chmod 700.")
    if not os.access(root, os.W_OK | os.X_OK):
        raise ConfigError(f"{where} cannot be written.")


def is_name(name: str) -> bool:
    """Whether it has the form of an id, which may stand in a path."""
    return _NAME.fullmatch(name) is not None


def new_name(prefix: str) -> str:
    return f"{prefix}{uuid.uuid4().hex}"


def open_new(path: Path, mode: str = "wb") -> IO[Any]:
    """For its user alone, whatever the umask; what is there is replaced or, by "ab", continued."""
    kind = os.O_APPEND if "a" in mode else os.O_TRUNC
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | kind, 0o600), mode)


def write_json(path: Path, content: Any) -> None:
    """As a whole or not at all."""
    scratch = path.with_suffix(f".{uuid.uuid4().hex}.part")
    with open_new(scratch) as file:
        file.write(json.dumps(content).encode())
    scratch.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return found


class Part(NamedTuple):
    """One of a form's fields; its content lies in the form from `start` to `end`."""

    name: str
    filename: str | None
    start: int
    end: int


def form_parts(form: mmap, boundary: bytes) -> Iterator[Part]:
    """The fields of a form as browsers and clients send it (multipart/form-data, RFC 7578).

    Raises:
        ValueError: it is none.
    """
    mark = b"--" + boundary
    if form[: len(mark)] != mark:
        raise ValueError("it does not begin with its boundary")
    at = len(mark)
    while form[at : at + 2] != b"--":
        start = form.find(b"\r\n\r\n", at, at + 16_384) + 4
        end = form.find(b"\r\n" + mark, start)
        if start < 4 or end < 0:
            raise ValueError("a field of it does not end")
        head: Message = BytesParser().parsebytes(form[at + 2 : start])
        name = head.get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise ValueError("a field of it has no name")
        yield Part(name, head.get_filename(), start, end)
        at = end + 2 + len(mark)


def take_form(raw: Path, content: Path, content_type: str, max_bytes: int) -> str:
    """Of a form with the fields `purpose` and `file`: write the file's content, give its name.

    Raises:
        ApiError: 413, the file is too large; 422, the form is wrong.
    """
    head = Message()
    head["content-type"] = content_type
    boundary = head.get_boundary("")
    fields: dict[str, str] = {}
    filename = None
    try:
        with raw.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as form:
            for part in form_parts(form, boundary.encode()):
                size = part.end - part.start
                if part.name != "file":
                    fields[part.name] = form[part.start : part.end][:MAX_FIELD_BYTES].decode()
                    continue
                if size > max_bytes:
                    message = f"the file has {size} bytes, but max_file_bytes is {max_bytes}."
                    raise ApiError(413, "limit_exceeded", message, "max_file_bytes")
                filename = part.filename or "file.jsonl"
                with (
                    open_new(content) as target,
                    memoryview(form) as view,
                    view[part.start : part.end] as found,
                ):
                    target.write(found)
    except ValueError as error:
        message = f"the body is no form with the fields purpose and file: {error}."
        raise ApiError(422, "invalid_form", message, "file") from None
    if fields.get("purpose") != "batch":
        message = (
            f"purpose: {quoted(fields.get('purpose', ''))}; files are taken for 'batch' alone."
        )
        raise ApiError(422, "invalid_value", message, "purpose")
    if filename is None:
        raise ApiError(422, "invalid_form", "the form has no field file.", "file")
    return filename
