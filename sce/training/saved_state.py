"""The state of a training that was interrupted, as a file that is only ever data.

Who can write into a run's folder must not come to run code in the trainer: the file holds tensors
and plain numbers, texts, lists and dictionaries, and torch reads nothing else from it.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sce.errors import ConfigError

_UNREADABLE = (pickle.UnpicklingError, EOFError, LookupError, RuntimeError, TypeError, ValueError)
"""What torch raises for a file that is none of its own."""


def write_state(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors and numbers, in lists and dictionaries.

    Raises:
        TypeError: something else is in it, which could not be read again.
    """
    torch.save(_plain(state), path)


def read_state(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """What `write_state` wrote, tensors on the CPU.

    Raises:
        ConfigError: it is damaged, lacks one of the keys, or holds anything but data, as files of
            earlier versions do.
    """
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
        lacks = set(keys) - set(found)
        if not lacks:
            return dict(found)
        reason = f"it has no {min(lacks)!r}"
    except _UNREADABLE as error:
        # torch's own words are long, and advise to trust the file.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it wants to call {code[1]}" if code else f"a {type(error).__name__}"
    raise ConfigError(
        f"{path.name} of the last checkpoint cannot be read as plain data: {reason}. It is damaged "
        "or was written by an earlier version, whose files could run code. Begin the training "
        "again: --restart."
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be part of a training's state")
