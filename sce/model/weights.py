"""Checkpoints of others: their weights are read from safetensors alone, and none of their code.

The other formats (`pytorch_model.bin`, `adapter_model.bin`) are pickles, which can be programs.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sce.errors import InputError

MODEL = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
_PICKLES = {"pytorch_model.bin": MODEL, "adapter_model.bin": ADAPTER}
_INDEX = ".index.json"
_CONVERT = (
    'Where you trust it, convert it once: python -c "import torch; from safetensors.torch import '
    "save_file; w = torch.load('{old}', weights_only=True); save_file({{k: v.clone().contiguous() "
    "for k, v in w.items()}}, '{new}', {{'format': 'pt'}})\""
)


def load_weights(loader: Any, place: str | Path, **options: Any) -> Any:
    """`loader.from_pretrained` of a folder or hub id.

    Raises:
        InputError: its weights are not in safetensors.
        OSError, ValueError: as `from_pretrained`.
    """
    refuse_pickles(place)
    try:
        with without_bars():
            return loader.from_pretrained(
                place, use_safetensors=True, trust_remote_code=False, **options
            )
    except OSError as error:
        if "use_safetensors" not in str(error):
            raise
        raise InputError(
            f"{place}: the hub has its weights in pytorch_model.bin alone, a pickle, which can be "
            "a program; only safetensors are read. Download it, and convert it where you trust it."
        ) from None


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers draws a bar for the second in which it loads or writes weights, into logs as
    well: none of them inside, and whatever was so before after it."""
    from transformers import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def save_weights(model: Any, folder: Path) -> None:
    """`save_pretrained`, with weights that may be read by whom the configuration beside them may:
    safetensors leaves them to their owner alone, whatever the umask."""
    with without_bars():
        model.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(stat.S_IMODE((folder / "config.json").stat().st_mode))


def refuse_pickles(place: str | Path, error: type[InputError] = InputError) -> None:
    """Raises `error`: a folder has weights in a pickle and not in safetensors, or a file of it
    names others as weights. What is no folder is left to who loads it."""
    folder = Path(place)
    if not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir()}
    for pickled, safe in _PICKLES.items():
        there = names & {pickled, pickled + _INDEX}
        if not there or names & {safe, safe + _INDEX}:
            continue
        if pickled not in there:
            how = "Where you trust it, load it with transformers once and save it again."
        else:
            how = _CONVERT.format(old=folder / pickled, new=folder / safe)
        raise error(
            f"{folder}: its weights are in {min(there)}, a pickle, which can be a program; only "
            f"{safe} is read. {how}"
        )
    for name in names & {"config.json", MODEL + _INDEX}:
        for weights in _named_weights(folder / name):
            if not str(weights).endswith((".safetensors", ".safetensors" + _INDEX)):
                raise error(f"{folder / name}: names {weights!r} as weights; no *.safetensors.")


def _named_weights(file: Path) -> list[Any]:
    """What a configuration or an index says where the weights are; a damaged one nothing."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(content, dict):
        return []
    shards = content.get("weight_map")
    named = list(shards.values()) if isinstance(shards, dict) else []
    explicit = content.get("transformers_weights")
    return named if explicit is None else [*named, explicit]
