"""Files of a checkpoint: read, hashed, or an error that says which one and why."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from sce.errors import EmbedderError

HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "README.md"]
HUB_IGNORED = ["onnx/*", "openvino/*"]
HUB_TIMEOUT_SECONDS = 5


def file_sha256(path: Path) -> str:
    """In hexadecimal; computed once in a process for a file that does not change."""
    stat = path.stat()
    return _cached_sha256(str(path.resolve()), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _cached_sha256(path: str, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def need(path: Path) -> Path:
    """The path, if there is a file. Raises `EmbedderError`."""
    if not path.is_file():
        raise EmbedderError(f"the embedder's file {str(path)!r} is missing.")
    return path


def stated(path: Path, key: str) -> Any:
    """What a file of JSON says under a key; None where there is no such file."""
    return read_json(path).get(key) if path.is_file() else None


def read_json(path: Path) -> Any:
    """The content of a file. Raises `EmbedderError`: missing, or not JSON."""
    try:
        return json.loads(need(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise EmbedderError(f"the embedder's file {str(path)!r} is not JSON: {error}") from None
