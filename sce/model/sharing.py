"""A model's folder, as `from_pretrained` reads it: written to a place, or uploaded to a hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import HfApi
from transformers.utils import cached_file

from sce.errors import InputError
from sce.model.background import BACKGROUND_FILE, Background
from sce.model.weights import save_weights
from sce.storage import Place, put, to_place

BESIDE = ("README.md", "training.json", BACKGROUND_FILE)
"""What `jobs/train_sce.py` writes beside a model: its card, what its training cost, and what texts
are like in general."""


def save_model(model: Any, tokenizer: Any, place: str | Place, beside: Path | None) -> None:
    """Write config.json, model.safetensors, the tokenizer's files where there is one, and what lies
    `beside` the model that was loaded, into a folder or URI. Other files there stay.

    Raises:
        InputError: the model is not in float32; `place` is a file.
    """
    target = to_place(place)
    if isinstance(target, Path):
        target = target.expanduser()
        if target.exists() and not target.is_dir():
            raise InputError(f"{str(place)!r} is a file; a model is a folder.")
        target.mkdir(parents=True, exist_ok=True)
    with _written(model, tokenizer, beside, target if isinstance(target, Path) else None) as new:
        # What makes a folder a model comes last.
        for file in sorted(new.iterdir(), key=lambda file: file.name == "config.json"):
            if isinstance(target, Path):
                os.replace(file, target / file.name)
            else:
                put(file, target / file.name)


def load_background(model: str, dimension: int) -> Background:
    """Of a model's folder or hub id; `Background.isotropic` where it has none. Raises as
    `Background.load`."""
    if Path(model).is_dir():
        return Background.load(Path(model), dimension)
    missing_is_none = {"_raise_exceptions_for_missing_entries": False}
    file = cached_file(model, BACKGROUND_FILE, **missing_is_none)
    return (
        Background.isotropic(dimension)
        if file is None
        else Background.load(Path(file).parent, dimension)
    )


def upload_model(
    model: Any,
    tokenizer: Any,
    repo_id: str,
    beside: Path | None,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a Soft Contextualized Encoder",
) -> str:
    """Make the repository where it is missing, upload the folder in one commit, and return the
    commit's URL. The hub is that of HF_ENDPOINT.

    Args:
        repo_id: "name" of your own account, or "organisation/name".
        private: of a repository that is made; None for the account's default.
        token: None for the one of `hf auth login` or HF_TOKEN.
        revision: a branch; None for the main one.

    Raises:
        InputError: the model is not in float32.
        huggingface_hub.errors.HfHubHTTPError: the hub refuses.
    """
    hub = HfApi(token=token)
    with _written(model, tokenizer, beside, None) as folder:
        repository = hub.create_repo(repo_id, private=private, exist_ok=True)
        return hub.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
        ).commit_url


@contextmanager
def _written(
    model: Any, tokenizer: Any, beside: Path | None, parent: Path | None
) -> Iterator[Path]:
    """A folder with the model, on the disk of `parent`, that is gone after the block."""
    narrow = {str(p.dtype) for p in _floats(model)} - {"torch.float32"}
    if narrow:
        raise InputError(
            f"this model was loaded in {min(narrow)}; what is saved of it would be rounded. Load "
            "it with dtype='float32'."
        )
    with TemporaryDirectory(prefix=".new-", dir=parent) as scratch:
        folder = Path(scratch)
        save_weights(model, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        for name in BESIDE:
            if beside is not None and (beside / name).is_file():
                shutil.copyfile(beside / name, folder / name)
        yield folder


def _floats(model: torch.nn.Module) -> Iterable[torch.nn.Parameter]:
    return (p for p in model.parameters() if p.is_floating_point())
