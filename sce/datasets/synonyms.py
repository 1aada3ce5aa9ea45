"""Synonyms and descriptions of the training datasets' labels, for the paper's augmentation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import yaml

from sce.labels import LabelSet


@functools.cache
def synonym_tables() -> dict[str, dict[str, dict[str, Any]]]:
    """Table name -> label -> {synonyms, description}, from `synonyms.yaml`."""
    text = resources.files("sce.datasets").joinpath("synonyms.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def label_set_for(
    names: Sequence[str], table: str = "", write: Callable[[str], str] = str
) -> LabelSet:
    """A label set of these names, each with what the table knows about it.

    Args:
        table: a table of `synonyms.yaml`, or "" for bare names.
        write: how a name is written in the set; the table has it in lower case.
    """
    known = synonym_tables()[table] if table else {}
    return LabelSet.parse([{"name": write(name), **known.get(name, {})} for name in names])
