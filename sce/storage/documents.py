"""YAML and JSON that users wrote, configurations and labels: read whole and within bounds.

Some hundred bytes of YAML can stand for gigabytes (aliases of aliases), and what is nested deep
ends every function that calls itself. So depth and number of nodes are bounded before anything is
made of them; each refusal says where, how much it was and what is allowed.
"""

from __future__ import annotations

import json
import os
import re
import stat
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from sce.errors import DataError, LabelError, quoted
from sce.storage.cache import fetch
from sce.storage.places import Place, RemotePath

MAX_FILE_BYTES = 64 * 2**20
MAX_DEPTH = 40
"""Levels of lists and mappings within each other, the innermost value included."""
MAX_NODES = 1_000_000
"""Lists, mappings, keys and values, each alias as many as what it stands for."""
MAX_NUMBER_CHARS = 400
"""Of a number in YAML: some of its forms take time by the square of their length."""
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_JSON_TEXT = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
"""One that has no end is taken to the text's end: to look for another beginning would take time by
the square of its length."""
_NOT_STEPS = re.compile(r"[^\[\]{}]+")
_JSON_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}


def read_document(place: Place) -> bytes:
    """The content of a file of settings or labels, of this machine or at a URI.

    Raises:
        FileNotFoundError, OSError: as `open`.
        DataError: larger than `MAX_FILE_BYTES`; no regular file: a device or a pipe may never end.
            A pipe that the shell made (`<(command)`, `/dev/stdin`) is read.
    """
    check_document(place)
    local = fetch(place)
    # Not to wait for somebody who writes into a pipe: what it is is known once it is open.
    number = os.open(local, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(number, "rb") as file:
        _check_kind(os.fstat(number), place)
        os.set_blocking(number, True)
        content = file.read(MAX_FILE_BYTES + 1)
    _check_size(len(content), place)
    return content


def check_document(place: Place) -> None:
    """Raises as `read_document`, without reading."""
    if isinstance(place, RemotePath):
        _check_size(sum(size for _, size, _ in place.files()), place)
    else:
        found = os.stat(place)
        _check_kind(found, place)
        _check_size(found.st_size, place)


def _check_kind(found: os.stat_result, place: Place) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    by_shell = isinstance(place, Path) and place.absolute().parts[1:2] in (("dev",), ("proc",))
    if not (stat.S_ISFIFO(found.st_mode) and by_shell):
        kind = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device"}
        what = kind.get(stat.S_IFMT(found.st_mode), "no regular file")
        raise DataError(f"{place}: {what}; a regular file is needed.")


def _check_size(size: int, place: Place) -> None:
    if size > MAX_FILE_BYTES:
        raise DataError(
            f"{place}: larger than {MAX_FILE_BYTES >> 20} MiB, which a file of settings or labels "
            "may have."
        )


def parse_json(text: str, where: str) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: it is not JSON.
        LabelError: an object has a key twice.
        DataError: over a bound of this module.
    """
    _check_json(text, where, 0)
    return _load_json(text, where)


def parse_json_lines(text: str, where: str) -> list[Any]:
    """What each line that is not blank says. Raises as `parse_json`; the bounds are those of one
    document, for all lines together."""
    found, count = [], 0
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{where}:{number}"
            count = _check_json(line, place, count)
            found.append(_load_json(line, place))
    return found


def _load_json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except LabelError as error:
        raise LabelError(f"{where}: {error}") from None


def _check_json(text: str, where: str, before: int) -> int:
    """The values in a text and those `before`. Raises `DataError`."""
    marks = _JSON_TEXT.sub('"', text)
    count = before + 1 + sum(map(marks.count, ",:[{"))
    if count > MAX_NODES:
        raise DataError(f"{where}: {_too_many(f'about {count:,} values')}")
    steps = map(_JSON_STEPS.__getitem__, _NOT_STEPS.sub("", marks))
    if max(accumulate(steps), default=0) >= MAX_DEPTH:
        raise DataError(f"{where}: {_too_deep()}")
    return count


def parse_yaml(text: str, where: str) -> Any:
    """What a text of YAML says. Anchors and aliases are followed, tags of Python refused.

    Raises:
        yaml.YAMLError: it is not YAML; a mapping has a key twice (`RepeatedKey`).
        DataError: over a bound of this module, or a number or date that is none.
    """
    try:
        return yaml.load(text, _Loader)
    except _OverBound as error:
        raise DataError(f"{where}, line {error.line}: {error}") from None
    except (ValueError, ArithmeticError, LookupError, AttributeError) as error:
        # As PyYAML's own for a date such as 2024-13-45, or a wrong `!!int`.
        raise DataError(f"{where}: a value that cannot be read ({error}).") from None


def _too_deep() -> str:
    return f"nested more than {MAX_DEPTH} deep. At most {MAX_DEPTH} levels are allowed."


def _too_many(count: str) -> str:
    return f"{count}. At most {MAX_NODES:,} are allowed."


class RepeatedKey(yaml.YAMLError):
    """A mapping has a key twice."""


class _OverBound(Exception):
    def __init__(self, message: str, mark: yaml.Mark) -> None:
        super().__init__(message)
        self.line = mark.line + 1


class _Loader(yaml.SafeLoader):
    """Counts while it composes, so that what is over a bound is never built; and refuses a key that
    stands twice, of which YAML's own loader takes the last value."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = self._deepest = 0
        self._anchored: dict[str, tuple[int, int]] = {}  # nodes and levels of what is whole

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        mark, anchor = event.start_mark, event.anchor
        before, deepest_before = self._nodes, self._deepest
        nodes, levels = 1, 1
        is_alias = isinstance(event, yaml.AliasEvent)
        if is_alias and anchor in self.anchors:
            if anchor not in self._anchored:
                raise _OverBound(f"{anchor!r} contains itself. Values must end.", mark)
            nodes, levels = self._anchored[anchor]
        self._depth += 1
        self._nodes += nodes
        self._deepest = self._depth + levels - 1
        if self._deepest > MAX_DEPTH:
            raise _OverBound(_too_deep(), mark)
        if self._nodes > MAX_NODES:
            count = f"more than {MAX_NODES:,} values, aliases written out"
            raise _OverBound(_too_many(count), mark)
        node = super().compose_node(parent, index)
        if node is not None and node.tag in _NUMBERS and len(node.value) > MAX_NUMBER_CHARS:
            raise _OverBound(
                f"a number of {len(node.value):,} characters. At most {MAX_NUMBER_CHARS} are "
                "allowed; in quotes it is a text.",
                mark,
            )
        if anchor is not None and not is_alias:
            self._anchored[anchor] = self._nodes - before, self._deepest - self._depth + 1
        self._deepest = max(self._deepest, deepest_before)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise RepeatedKey(
                    f"the key {key.value!r:.200} stands twice, in lines {lines[key.value]} and "
                    f"{line}. Keys must be distinct."
                )
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(..., object_pairs_hook=unique_keys)`. Raises `LabelError`: an object has a
    key twice, of which otherwise the last value alone would be seen."""
    found = dict(pairs)
    if len(found) < len(pairs):
        places: dict[str, int] = {}
        for place, (key, _) in enumerate(pairs):
            if key in places:
                raise LabelError(
                    f"the key {quoted(key)} stands twice in an object, at positions {places[key]} "
                    f"and {place}. Keys must be distinct."
                )
            places[key] = place
    return found
