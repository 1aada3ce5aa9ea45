"""Dataset files from the Hugging Face hub, and the files of a folder with their splits."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

from sce.datasets.columns import SPLIT_NAMES
from sce.datasets.readers import SUFFIXES, file_format
from sce.errors import DataError

CONNECT_SECONDS = 5.0
_WORD = re.compile(r"[a-z]+")


def download(hub_id: str, revision: str | None = None) -> Path:
    """The local folder of a hub dataset's table files, from the cache where they are there.

    Raises:
        DataError: the hub or the dataset cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    patterns = [f"*{suffix}{gz}" for suffix in SUFFIXES for gz in ("", ".gz")]
    try:
        folder = snapshot_download(
            hub_id,
            repo_type="dataset",
            revision=revision,
            allow_patterns=patterns,
            etag_timeout=CONNECT_SECONDS,
        )
    except (OSError, HfHubHTTPError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the dataset {hub_id!r} cannot be read from the Hugging Face hub ({reason}). Where "
            "there is no network, download its files elsewhere and set `path` for this source."
        ) from None
    return Path(folder)


def split_files(folder: Path, pattern: str = "*") -> list[tuple[Path, str | None]]:
    """The table files of a folder, each with the split that its name or its folder's name says.

    Where several formats hold the data, Parquet is taken before JSONL before CSV. Where some
    names say a split, files without one are left aside.

    Raises:
        DataError: there is no table file.
    """
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and file_format(path) and fnmatch.fnmatch(path.name, pattern)
    ]
    if not files:
        raise DataError(
            f"{folder}: no table file {'' if pattern == '*' else repr(pattern) + ' '}in this "
            f"folder. Allowed: {', '.join(SUFFIXES)}, the text forms also as .gz."
        )
    first = min(SUFFIXES.index(file_format(path) or "") for path in files)
    files = [path for path in files if file_format(path) == SUFFIXES[first]]
    found = [(path, _split_of(path.relative_to(folder))) for path in files]
    return [item for item in found if item[1]] or found


def _split_of(path: Path) -> str | None:
    """From the file's name, else from the folders above it, the nearest first."""
    for part in (path.name, *(parent.name for parent in path.parents)):
        for word in _WORD.findall(part.lower()):
            for name, split in SPLIT_NAMES.items():
                if word == name or (len(name) > 4 and word.endswith(name)):
                    return split
    return None
