"""Files of settings: YAML, with what they include, and the recipes that ship with this software.

In a checkout the folders `configs` and `jobs` lie beside `sce`; an installation has them within it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml

from sce.errors import ConfigError, DataError
from sce.storage.documents import parse_yaml, read_document
from sce.storage.places import Place, to_place

INCLUDE = "include"
"""Top-level key of a YAML file: a list of files that lie beside it, whose settings it takes."""
MAX_FILES = 100
"""That one configuration is made of; a file that is included twice counts twice."""
PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder(name: Literal["configs", "jobs"]) -> Path:
    """The folder of that name. Raises `FileNotFoundError`: this copy came without it."""
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{PACKAGE} came without {name}: install it again, from a checkout.")


def recipes() -> dict[str, Path]:
    """The recipes by name: `quickstart` is configs/quickstart/sce.yaml, `quickstart/inbox` the
    inbox.yaml beside it. What only others include (data.yaml) is none."""
    try:
        files = sorted(shipped_folder("configs").glob("*/*.yaml"))
    except FileNotFoundError:
        return {}
    named = {f"{file.parent.name}/{file.stem}": file for file in files if file.stem != "data"}
    return {name.removesuffix("/sce"): file for name, file in named.items()}


def read_settings(name: str) -> dict[str, Any]:
    """What the file of that path or URI, or else the recipe of that name, says, and those that it
    includes. Raises `ConfigError`."""
    count = 0

    def read(place: Place, name: str, above: tuple[Place, ...]) -> dict[str, Any]:
        nonlocal count
        count += 1
        if place.resolve() in above:
            raise ConfigError(f"--config: {name!r} includes itself, by way of {above[-1]}.")
        if count > MAX_FILES:
            raise ConfigError(f"--config: {INCLUDE}: more than {MAX_FILES} files are read.")
        own = _read_one(place, name)
        merged: dict[str, Any] = {}
        for item in own.pop(INCLUDE, []):
            merged = merged_settings(
                merged, read(place.parent / item, item, (*above, place.resolve()))
            )
        return merged_settings(merged, own)

    try:
        place = to_place(name)
    except DataError as error:
        raise ConfigError(f"--config: {error}") from None
    if name in (known := recipes()) and not Path(name).is_file():
        place = known[name]
    return read(place, name, ())


def _read_one(place: Place, name: str) -> dict[str, Any]:
    try:
        content = parse_yaml(read_document(place).decode("utf-8"), repr(name))
    except FileNotFoundError:
        known = ", ".join(sorted(recipes()))
        raise ConfigError(f"--config: no file {name!r}, and no recipe: {known}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config: cannot read {name!r}: {error}") from None
    except DataError as error:
        raise ConfigError(f"--config: {error}") from None
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"--config: {name!r} must hold a mapping of settings.")
    included = content.get(INCLUDE, [])
    if not isinstance(included, list) or not all(isinstance(item, str) for item in included):
        raise ConfigError(f"--config: {name!r}: {INCLUDE} must be a list of files beside it.")
    return content


def merged_settings(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Settings key by key, those `above` winning; a list is taken whole."""
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        found[key] = merged_settings(old, value) if both else value  # type: ignore[arg-type]
    return found
