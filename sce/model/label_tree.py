"""Label trees: labels under others, each known by its path from the top.

A `LabelTree` is the `LabelSet` of its leaves, whose names are their paths ("billing/refund"), so
what handles label sets handles trees; beside them it has the inner nodes ("billing"), which an
answer may stop at. Canonical order is that of the paths part by part: the leaves below a node stand
next to each other in it, and the probability of a node is the sum of theirs.

Shapes: B rows, K leaves, M scored leaves of a row, V inner nodes, H levels.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from sce.errors import MAX_NAME_CHARS, LabelError, clipped, quoted
from sce.labels import (
    MAX_LABELS,
    Label,
    LabelSet,
    RaggedLabels,
    as_list,
    is_set_a_row,
    normalise_name,
    parse_labels,
)

SEPARATOR = "/"
MAX_DEPTH = 16
"""Levels of a tree."""
MAX_PATH_CHARS = 1000
_INFO = ("synonyms", "description", "examples")
_FIELDS = ("name", *_INFO, "children")
_TREE, _SEPARATOR = "tree", "separator"
FORMS = (
    "nested mappings and lists ({billing: [refund, invoice]}), objects with `children`, a list of "
    "objects with `parent`, or paths: {tree: [billing/refund, billing/invoice]}"
)

Path = tuple[str, ...]


@dataclass(frozen=True)
class _Node:
    """A node that the user named: its path, what is known of it, and where it stands."""

    path: Path
    info: Mapping[str, Any]
    where: str

    @property
    def key(self) -> Path:
        return tuple(map(normalise_name, self.path))


@dataclass(frozen=True)
class LabelTree(LabelSet):
    """A validated tree. `parse` makes one.

    Attributes:
        labels: the leaves in the user's order; a name is a path, its parts joined.
        paths: of the leaves, as the user wrote their parts.
        inner: the other nodes, each after its parent and siblings by name; also named by path.
        inner_paths: of these.
        separator: what joins a path; one that is read may have other white space around it.
    """

    paths: tuple[Path, ...] = ()
    inner: tuple[Label, ...] = ()
    inner_paths: tuple[Path, ...] = ()
    separator: str = SEPARATOR

    @classmethod
    def parse(cls, value: Any, where: str = "labels") -> LabelTree:
        """Read a tree from any of its `FORMS`. A node that is a mapping holds its children, or what
        is known of it (description, synonyms, examples) and `children`; a text is a leaf's
        description. In `{tree: ..., separator: "/"}` names are paths.

        Raises:
            LabelError: no tree, a cycle, an empty name, the same path twice (both places are
                named), an unknown parent; more than `MAX_DEPTH` levels or `MAX_LABELS` nodes; and
                as `LabelSet.parse`.
        """
        if isinstance(value, LabelTree):
            return value
        separator = SEPARATOR
        if _is_explicit(value):
            separator = value.get(_SEPARATOR, SEPARATOR)
            if not isinstance(separator, str) or not separator.strip():
                raise LabelError(f"{where}.separator: a text such as '/' or '>' is needed.")
            value, where = value[_TREE], f"{where}.tree"
            nodes = _Reader(separator.strip()).read(value, where)
        else:
            nodes = _Reader(None).read(value, where)
        return _assemble(nodes, separator, where)

    @cached_property
    def answer_names(self) -> list[str]:
        """What an answer may say: the leaves in the user's order, then the inner nodes."""
        return [*self.names, *(label.name for label in self.inner)]

    @cached_property
    def canonical_order(self) -> list[int]:
        keys = [tuple(map(normalise_name, path)) for path in self.paths]
        return sorted(range(len(keys)), key=keys.__getitem__)

    def canonical(self) -> LabelSet:
        """The leaves in canonical order as the model sees them: by their own name, and by their
        path as a synonym."""
        return LabelSet(tuple(self._seen(i) for i in self.canonical_order))

    def _seen(self, leaf: int) -> Label:
        label, path = self.labels[leaf], self.paths[leaf]
        names = tuple(map(normalise_name, path))
        above = (" ".join(names),) if len(names) > 1 else ()
        return replace(label, name=names[-1], synonyms=(*above, *label.synonyms))

    @cached_property
    def levels(self) -> np.ndarray:
        """For each level from the top and each leaf in canonical order, which node it stands under
        (the leaf itself at its own level) as a place in `answer_names`; -1 below it. int64 [H, K].
        """
        place_of = {path: len(self) + v for v, path in enumerate(self._inner_keys)}
        found_HK = np.full((max(map(len, self.paths)), len(self)), -1)
        for k, leaf in enumerate(self.canonical_order):
            key = tuple(map(normalise_name, self.paths[leaf]))
            for level in range(len(key) - 1):
                found_HK[level, k] = place_of[key[: level + 1]]
            found_HK[len(key) - 1, k] = leaf
        return found_HK

    @cached_property
    def _inner_keys(self) -> list[Path]:
        return [tuple(map(normalise_name, path)) for path in self.inner_paths]

    def nested(self) -> dict[str, Any]:
        """The tree in a form that `parse` reads to an equal one: objects with `children`."""
        children: dict[Path, list[Any]] = {(): []}
        nodes = sorted(
            [*zip(self.inner_paths, self.inner), *zip(self.paths, self.labels)],
            key=lambda one: len(one[0]),
        )
        for path, label in nodes:
            key = tuple(map(normalise_name, path))
            known = {name: v for name, v in label.to_dict().items() if v} | {"name": path[-1]}
            if key in self._inner_set:
                known["children"] = children[key] = []
            children[key[:-1]].append(known)
        return {_TREE: children[()], _SEPARATOR: self.separator}

    @cached_property
    def _inner_set(self) -> set[Path]:
        return set(self._inner_keys)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tree with all its information, the same for every order."""
        content = {
            "leaves": [[self.paths[i], self.labels[i].to_dict()] for i in self.canonical_order],
            "inner": [label.to_dict() for label in self.inner],
            _SEPARATOR: self.separator,
        }
        text = json.dumps(content, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def best_path(
        self, p_BM: np.ndarray, kept_BM: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The way down from the top to the most probable child at each level.

        Args:
            p_BM: probabilities of leaves in canonical order, float64.
            kept_BM: which leaves these are, ascending; None for all.

        Returns:
            The nodes on it as places in `answer_names`, -1 below the leaf, int64 [B, H]; and their
            probabilities, float32 [B, H], NaN beside -1. Of equal ones the first in canonical
            order is taken.
        """
        rows, count = p_BM.shape
        node_BH = np.full((rows, len(self.levels)), -1)
        p_BH = np.full(node_BH.shape, np.nan, np.float32)
        if not p_BM.size:
            return node_BH, p_BH
        flat_p = np.ascontiguousarray(p_BM, np.float64).reshape(-1)
        row_at = np.repeat(np.arange(rows), count)
        above = np.full(rows, -1)  # the node that was chosen last
        under = np.full(rows * count, -1)
        for level, of_leaf_K in enumerate(self.levels):
            node_BM = of_leaf_K if kept_BM is None else of_leaf_K[kept_BM]
            node_at = np.broadcast_to(node_BM, p_BM.shape).reshape(-1)
            # Leaves of a node are neighbours: a sum for each run of them within a row.
            begins = (np.diff(node_at, prepend=-2) != 0) | (np.diff(row_at, prepend=-1) != 0)
            first = np.flatnonzero(begins)
            sums = np.add.reduceat(flat_p, first)
            row_S, node_S = row_at[first], node_at[first]
            there_S = (node_S >= 0) & (under[first] == above[row_S])
            row_S, node_S, sums = row_S[there_S], node_S[there_S], sums[there_S]
            order = np.lexsort((np.arange(len(sums)), -sums, row_S))
            found, best = np.unique(row_S[order], return_index=True)
            chosen = order[best]
            node_BH[found, level], p_BH[found, level] = node_S[chosen], sums[chosen]
            above = node_BH[:, level].copy()
            above[above < 0] = -3  # nothing stands under it
            under = node_at
        return node_BH, p_BH


def parse_set(value: Any, where: str = "labels") -> LabelSet:
    """A tree where it is written as one, else a flat label set; raises as their `parse`."""
    if isinstance(value, LabelSet):
        return value
    value = as_list(value, where)
    return LabelTree.parse(value, where) if is_tree(value) else LabelSet.parse(value, where)


def parse_sets(value: Any, where: str = "labels") -> LabelSet | RaggedLabels:
    """A tree or a set for all rows, or one set a row; raises as `parse_set` and `parse_labels`."""
    if isinstance(value, RaggedLabels):
        return value
    value = as_list(value, where)
    if not is_set_a_row(value):
        return parse_set(value, where)
    for row, item in enumerate(value):
        if isinstance(item, LabelTree):
            raise LabelError(f"{where}[{row}]: a tree is one set for all rows.")
    return parse_labels(value, where)


def answer_names(labels: Any) -> list[str]:
    """What an answer with these labels, one set for all rows, may say, by the places of
    `Decisions.label_N`."""
    label_set = getattr(labels, "label_set", labels)
    found: list[str] = getattr(label_set, "answer_names", labels.names)
    return found


def tree_of(labels: Any) -> LabelTree | None:
    """The tree that labels are, also where they were fitted to a corpus."""
    label_set = getattr(labels, "label_set", labels)
    return label_set if isinstance(label_set, LabelTree) else None


def is_tree(value: Any) -> bool:
    """Whether labels are written as a tree. What `LabelSet.parse` reads is none."""
    if isinstance(value, LabelTree) or _is_explicit(value):
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


class _Reader:
    """Flattens the forms of a tree to nodes with their paths.

    Args:
        separator: of names that are paths; None where a name is one part.
    """

    def __init__(self, separator: str | None) -> None:
        self._separator = separator
        self._nodes: list[_Node] = []
        self._open: set[int] = set()  # the lists and mappings that we stand in

    def read(self, value: Any, where: str) -> list[_Node]:
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
        self._nodes.append(_Node(path, info, where))
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


def _from_parents(items: Sequence[Any], where: str) -> Iterator[_Node]:
    """Nodes of a table in which each names its parent, null or "" at the top."""
    rows: list[tuple[str, str | None, Mapping[str, Any], str]] = []
    by_name: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        place = f"{where}[{i}]"
        known = item if isinstance(item, Mapping) else {"name": item}
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
        yield _Node(tuple(path), info, place)


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


def _assemble(nodes: Sequence[_Node], separator: str, where: str) -> LabelTree:
    if not nodes:
        raise LabelError(f"{where}: the tree is empty. Give at least one label.")
    if len(nodes) > MAX_LABELS:
        raise LabelError(f"{where}: more than {MAX_LABELS:,} nodes, which a tree may have.")
    named: dict[Path, _Node] = {}
    joined: dict[str, _Node] = {}
    above: dict[Path, Path] = {}  # inner nodes, with their parts as they were written first
    for node in nodes:
        name = separator.join(node.key)
        twice = named.get(node.key) or joined.get(name)
        if twice is not None:
            raise LabelError(
                f"{where}: the path {quoted(name)} stands twice, at {twice.where} and "
                f"{node.where}. Paths must be distinct."
            )
        if len(name) > MAX_PATH_CHARS:
            raise LabelError(
                f"{node.where}: a path of {len(name)} characters, at most {MAX_PATH_CHARS} are "
                f"allowed (and {MAX_NAME_CHARS} for each name)."
            )
        named[node.key] = joined[name] = node
        for end in range(1, len(node.key)):
            above.setdefault(node.key[:end], node.path[:end])
    leaves = [node for key, node in named.items() if key not in above]
    inner = [named.get(key) or _Node(path, {}, where) for key, path in sorted(above.items())]
    return LabelTree(
        tuple(_label(node, separator) for node in leaves),
        tuple(node.path for node in leaves),
        tuple(_label(node, separator) for node in inner),
        tuple(node.path for node in inner),
        separator,
    )


def _label(node: _Node, separator: str) -> Label:
    """With the path as its name, which may be longer than a label's own."""
    (label,) = LabelSet.parse([{**node.info, "name": node.path[-1]}], node.where).labels
    return replace(label, name=separator.join(part.strip() for part in node.path))
