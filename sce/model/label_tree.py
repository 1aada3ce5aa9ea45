"""Label trees: labels under others, each known by its path from the top.

A `LabelTree` is the `LabelSet` of its leaves, whose names are their paths ("billing/refund"), so
what handles label sets handles trees; beside them it has the inner nodes ("billing"), which an
answer may stop at. Canonical order is that of the paths part by part: the leaves below a node stand
next to each other in it, and the probability of a node is the sum of theirs.

Shapes: B rows, K leaves, M scored leaves of a row, V inner nodes, H levels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from sce.errors import MAX_NAME_CHARS, LabelError, quoted
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
from sce.model.tree_forms import SEPARATOR, NamedNode, Path, is_tree, read_nodes

MAX_PATH_CHARS = 1000
PARENT_WEIGHT = 0.25
"""Of 0.25, 0.5 and 1 the one that kept the right leaf most often among the nearest 100 (training
sets of the starter corpus as one tree, clinc150's training side, both together)."""


@dataclass(frozen=True)
class LabelTree(LabelSet):
    """A validated tree. `parse` makes one.

    Attributes:
        labels: the leaves in the user's order, those of a node together; a name is a path, its
            parts joined.
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
        return _assemble(*read_nodes(value, where), where)

    @cached_property
    def answer_names(self) -> list[str]:
        """What an answer may say: the leaves in the user's order, then the inner nodes."""
        return [*self.names, *(label.name for label in self.inner)]

    @cached_property
    def canonical_order(self) -> list[int]:
        keys = [tuple(map(normalise_name, path)) for path in self.paths]
        return sorted(range(len(keys)), key=keys.__getitem__)

    def canonical(self) -> LabelTree:
        """The same tree with its leaves in canonical order."""
        order = self.canonical_order
        labels = tuple(self.labels[i] for i in order)
        return replace(self, labels=labels, paths=tuple(self.paths[i] for i in order))

    def seen(self) -> LabelSet:
        """The leaves in canonical order as the model sees them: by their own name, and by their
        path as a synonym. Names may repeat."""
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
        inner = dict(zip(self._inner_keys, zip(self.inner_paths, self.inner)))

        def add(key: Path, path: Path, label: Label) -> None:
            known = {name: v for name, v in label.to_dict().items() if v} | {"name": path[-1]}
            if key in inner:
                known["children"] = children[key] = []
            children[key[:-1]].append(known)

        for path, label in zip(self.paths, self.labels):
            key = tuple(map(normalise_name, path))
            for end in range(1, len(key)):
                if key[:end] not in children:
                    add(key[:end], *inner[key[:end]])
            add(key, path, label)
        return {"tree": children[()], "separator": self.separator}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tree with all its information, the same for every order."""
        content = {
            "leaves": [[self.paths[i], self.labels[i].to_dict()] for i in self.canonical_order],
            "inner": [label.to_dict() for label in self.inner],
            "separator": self.separator,
        }
        text = json.dumps(content, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def shortlist_vectors(self, own_KD: np.ndarray) -> np.ndarray:
        """What a text's vector is compared with to choose the leaves that are contextualised: a
        leaf's own and `PARENT_WEIGHT` times the mean of the leaves under its parent.

        A beam that keeps only what stands under the best nodes of each level by that mean, and is
        wide enough to fill the shortlist, lost the right leaf more often.

        Args:
            own_KD: unit vectors of the leaves in canonical order, float32.
        """
        depth_K = (self.levels >= 0).sum(axis=0)
        parent_K = self.levels[np.maximum(depth_K - 2, 0), np.arange(len(self))]
        means_KD = own_KD.astype(np.float64)
        for level, node_K in enumerate(self.levels):
            begins = np.flatnonzero(np.diff(node_K, prepend=-2))
            sums_SD = np.add.reduceat(own_KD, begins, axis=0, dtype=np.float64)
            sums_SD /= np.maximum(np.linalg.norm(sums_SD, axis=1, keepdims=True), 1e-6)
            run_K = np.repeat(np.arange(len(begins)), np.diff(begins, append=len(self)))
            mine_K = (parent_K == node_K) & (depth_K == level + 2)
            means_KD[mine_K] = sums_SD[run_K[mine_K]]
        return (own_KD + PARENT_WEIGHT * means_KD).astype(np.float32)

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
    """What an answer with these labels may say, by the places of `Decisions.label_N`; nothing where
    each row has a set of its own."""
    if isinstance(labels, RaggedLabels):
        return []
    label_set = getattr(labels, "label_set", labels)
    found: list[str] = getattr(label_set, "answer_names", labels.names)
    return found


def level_count(labels: Any) -> int | None:
    """H of labels that are a tree."""
    tree = tree_of(labels)
    return None if tree is None else len(tree.levels)


def written(labels: LabelSet) -> Any:
    """As JSON, in a form that `parse_set` reads to an equal one."""
    return labels.nested() if isinstance(labels, LabelTree) else labels.to_list()


def tree_of(labels: Any) -> LabelTree | None:
    """The tree that labels are, also where they were fitted to a corpus."""
    label_set = getattr(labels, "label_set", labels)
    return label_set if isinstance(label_set, LabelTree) else None


def _assemble(nodes: Sequence[NamedNode], separator: str, where: str) -> LabelTree:
    if not nodes:
        raise LabelError(f"{where}: the tree is empty. Give at least one label.")
    if len(nodes) > MAX_LABELS:
        raise LabelError(f"{where}: more than {MAX_LABELS:,} nodes, which a tree may have.")
    named: dict[Path, NamedNode] = {}
    joined: dict[str, NamedNode] = {}
    above: dict[Path, Path] = {}  # inner nodes, with their parts as they were written first
    turn: dict[Path, int] = {}  # of every node, by its first appearance
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
        for end in range(1, len(node.key) + 1):
            turn.setdefault(node.key[:end], len(turn))
            if end < len(node.key):
                above.setdefault(node.key[:end], node.path[:end])
    leaves = [node for key, node in named.items() if key not in above]
    leaves.sort(key=lambda node: [turn[node.key[:end]] for end in range(1, len(node.key) + 1)])
    inner = [named.get(key) or NamedNode(path, {}, where) for key, path in sorted(above.items())]
    return LabelTree(
        tuple(_label(node, separator) for node in leaves),
        tuple(node.path for node in leaves),
        tuple(_label(node, separator) for node in inner),
        tuple(node.path for node in inner),
        separator,
    )


def _label(node: NamedNode, separator: str) -> Label:
    """With the path as its name, which may be longer than a label's own."""
    (label,) = LabelSet.parse([{**node.info, "name": node.path[-1]}], node.where).labels
    return replace(label, name=separator.join(part.strip() for part in node.path))
