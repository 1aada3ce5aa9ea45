"""The forms in which users write label trees, read to nodes with their paths.

A node that is a mapping holds its children, or what is known of it and `children`. Each node keeps
the place where it stands, for what is said of mistakes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sce.errors import LabelError, clipped, quoted
from sce.labels import MAX_LABELS, Label, LabelSet, as_list, normalise_name

SEPARATOR = "/"
MAX_DEPTH = 16
"""Levels of a tree."""
_INFO = ("synonyms", "description", "examples")
_FIELDS = ("name", *_INFO, "children")
_TREE, _SEPARATOR = "tree", "separator"
FORMS = (
    "nested mappings and lists ({billing: [refund, invoice]}), objects with `children`, a list of "
    "objects with `parent`, or paths: {tree: [billing/refund, billing/invoice]}"
)

Path = tuple[str, ...]


@dataclass(frozen=True)
class NamedNode:
    """A node that the user named: its path, what is known of it, and where it stands."""

    path: Path
    info: Mapping[str, Any]
    where: str

    @property
    def key(self) -> Path:
        return tuple(map(normalise_name, self.path))


def is_tree(value: Any) -> bool:
    """Whether labels are written as a tree. What `LabelSet.parse` reads is none."""
    if _is_explicit(value):
        return True
    if isinstance(value, Mapping):
        if set(value) <= set(_FIELDS):  # one label, which stands alone by mistake
            return False
        return any(_has_children(known) for known in value.values())
    if not isinstance(value, (list, tuple)):
        return False
    objects = [item for item in value if isinstance(item, Mapping)]
    return any(
        "children" in item
        or "parent" in item
        or (not _fields_of(item) and any(_has_children(known) for known in item.values()))
        for item in objects
    )


def _is_explicit(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) <= {_TREE, _SEPARATOR}
        and isinstance(value.get(_TREE), (list, tuple, Mapping))
    )


def _has_children(known: Any) -> bool:
    if isinstance(known, Mapping):
        return "children" in known or (bool(known) and not _fields_of(known))
    return isinstance(known, (list, tuple))


def _fields_of(known: Mapping[Any, Any]) -> list[Any]:
    """Keys that are fields of a label, or are most likely meant for one."""
    return [key for key in known if key in _FIELDS or _like_field(key)]


def _like_field(key: Any) -> bool:
    if not isinstance(key, str):
        return False
    key = key.casefold()
    begins = len(key) > 2 and any(field.startswith(key) for field in _FIELDS)
    return begins or bool(difflib.get_close_matches(key, _FIELDS, 1, 0.85))


def read_nodes(value: Any, where: str) -> tuple[list[NamedNode], str]:
    """The nodes of a tree in the order in which they stand, and what joins their paths; raises as
    `LabelTree.parse`."""
    separator = SEPARATOR
    if not _is_explicit(value):
        return _Reader(None).read(value, where), separator
    separator = value.get(_SEPARATOR, SEPARATOR)
    if not isinstance(separator, str) or not separator.strip():
        raise LabelError(f"{where}.separator: a text such as '/' or '>' is needed.")
    return _Reader(separator.strip()).read(value[_TREE], f"{where}.tree"), separator


class _Reader:
    """Flattens the forms of a tree to nodes with their paths.

    Args:
        separator: of names that are paths; None where a name is one part.
    """

    def __init__(self, separator: str | None) -> None:
        self._separator = separator
        self._nodes: list[NamedNode] = []
        self._open: set[int] = set()  # the lists and mappings that we stand in

    def read(self, value: Any, where: str) -> list[NamedNode]:
        value = as_list(value, where)
        if isinstance(value, (list, tuple)) and any(
            isinstance(item, Mapping) and "parent" in item for item in value
        ):
            return list(_from_parents(value, where))
        self._children(value, (), where)
        return self._nodes

    def _children(self, value: Any, above: Path, where: str) -> None:
        if len(above) >= MAX_DEPTH:
            self._refuse_cycle(value, where)
            raise LabelError(f"{where}: more than {MAX_DEPTH} levels, which a tree may have.")
        self._refuse_cycle(value, where)
        self._open.add(id(value))
        if isinstance(value, Mapping):
            for name, known in value.items():
                self._node(name, known, above, f"{where}.{clipped(str(name))}")
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                self._item(item, above, f"{where}[{i}]")
        else:
            raise LabelError(f"{where}: a {type(value).__name__} is no tree. Give {FORMS}.")
        if not value and above:
            raise LabelError(f"{where}: an empty list of children. Leave it out for a leaf.")
        self._open.discard(id(value))

    def _refuse_cycle(self, value: Any, where: str) -> None:
        if id(value) in self._open:
            raise LabelError(f"{where}: it contains itself. A tree must end.")

    def _item(self, item: Any, above: Path, where: str) -> None:
        if isinstance(item, Label):
            item = item.to_dict()
        if isinstance(item, Mapping):
            if "name" in item:
                self._node(
                    item["name"], {k: v for k, v in item.items() if k != "name"}, above, where
                )
            elif fields := _fields_of(item):
                raise LabelError(f"{where}: a node with {quoted(fields[0])} needs a name.")
            else:
                for name, known in item.items():
                    self._node(name, known, above, f"{where}.{clipped(str(name))}")
        elif isinstance(item, (list, tuple)):
            raise LabelError(f"{where}: a list without a name; a tree is {FORMS}.")
        else:
            self._node(item, None, above, where)

    def _node(self, name: Any, known: Any, above: Path, where: str) -> None:
        path = (*above, *self._parts(name, where))
        info: Mapping[str, Any] = {}
        children: Any = None
        if isinstance(known, Mapping):
            if fields := _fields_of(known):
                for field in known:
                    if field not in _FIELDS:
                        raise LabelError(
                            f"{where}: unknown field {quoted(field)} beside {quoted(fields[0])}. A "
                            f"node has {', '.join(_FIELDS)}; labels below it stand in `children`."
                        )
                self._refuse_other_name(name, known, where)
                info = {field: known[field] for field in _INFO if field in known}
                children = known.get("children")
            elif known:
                children = known
        elif isinstance(known, (list, tuple)):
            children = known
        elif known is not None:
            info = {"description": known}
        if len(path) > MAX_DEPTH:
            raise LabelError(f"{where}: more than {MAX_DEPTH} levels, which a tree may have.")
        self._nodes.append(NamedNode(path, info, where))
        if len(self._nodes) > MAX_LABELS:
            raise LabelError(f"{where}: more than {MAX_LABELS:,} nodes, which a tree may have.")
        if children is not None:
            self._children(children, path, where)

    def _refuse_other_name(self, name: Any, known: Mapping[str, Any], where: str) -> None:
        if known.get("name", name) != name:
            other = quoted(known["name"])
            raise LabelError(f"{where}: {quoted(name)} has another name inside, {other}.")

    def _parts(self, name: Any, where: str) -> Path:
        if not isinstance(name, str) or self._separator is None:
            return (_checked_part(name, where),)
        parts = [part.strip() for part in name.split(self._separator)]
        if len(parts) > 1 and "" in parts:
            raise LabelError(f"{where}: the path {quoted(name)} has an empty part.")
        return tuple(_checked_part(part, where) for part in parts)


def _checked_part(name: Any, where: str) -> str:
    """A name that `LabelSet.parse` takes, which says what is wrong with others."""
    return LabelSet.parse([{"name": name}], where).labels[0].name


def _from_parents(items: Sequence[Any], where: str) -> Iterator[NamedNode]:
    """Nodes of a table in which each names its parent, null or "" at the top."""
    rows: list[tuple[str, str | None, Mapping[str, Any], str]] = []
    by_name: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        place = f"{where}[{i}]"
        known: Mapping[str, Any] = item if isinstance(item, Mapping) else {"name": item}
        for field in known:
            if field not in ("name", "parent", *_INFO):
                raise LabelError(
                    f"{place}: unknown field {quoted(field)} in a table of parents. A row has "
                    f"name, parent, {', '.join(_INFO)}."
                )
        name = _checked_part(known.get("name"), f"{place}.name")
        parent = known.get("parent")
        if parent is not None and not isinstance(parent, str):
            raise LabelError(f"{place}.parent: a name is needed, not {quoted(parent)}.")
        about = {field: known[field] for field in _INFO if field in known}
        rows.append((name, normalise_name(parent or "") or None, about, place))
        by_name.setdefault(normalise_name(name), []).append(i)
    for start, (_, _, info, place) in enumerate(rows):
        path: list[str] = []
        seen: list[int] = []
        at: int | None = start
        while at is not None:
            name, parent, _, here = rows[at]
            if at in seen:
                round_ = " < ".join(quoted(rows[i][0]) for i in [*seen[seen.index(at) :], at])
                raise LabelError(f"{place}: a cycle of parents, {round_}. A tree must end.")
            seen.append(at)
            path.insert(0, name)
            if len(path) > MAX_DEPTH and len(path) > len(rows):
                break
            at = None if parent is None else _parent_row(parent, by_name, here)
        if len(path) > MAX_DEPTH:
            raise LabelError(f"{place}: more than {MAX_DEPTH} levels, which a tree may have.")
        yield NamedNode(tuple(path), info, place)


def _parent_row(parent: str, by_name: Mapping[str, list[int]], where: str) -> int:
    rows = by_name.get(parent, [])
    if not rows:
        raise LabelError(f"{where}.parent: no label is named {quoted(parent)}.")
    if len(rows) > 1:
        raise LabelError(
            f"{where}.parent: {len(rows)} labels are named {quoted(parent)} (rows {rows[0]} and "
            f"{rows[1]}), so it does not say which; give the tree nested or as paths."
        )
    return rows[0]
