"""Subtrees that moved between two trees of labels: their labels are the same ones as before.

A label is a path, its parts joined by a separator: "delivery/late". A node that was renamed or hung
elsewhere gives every label below it another path; what stays is the part of the path below it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from sce.bulk.changes import Comparison, Subtree
from sce.labels import normalise_name

MOST_CANDIDATES = 100
"""Labels with the same last part that one is compared with. A part that stands under more parents
than this ("other") says nothing of where its label came from."""


def moved_subtrees(found: Comparison, separator: str) -> list[Subtree]:
    """Subtrees whose labels are gone and stand elsewhere, largest first; no label is in two.

    Most of the rows of a subtree's labels went to the same label at its new place; those that
    stopped above it, where a text is undecided, speak neither for nor against. One without rows
    needs at least two labels: one name alone may stand under two parents by chance.
    """
    pairs = _candidates(found, separator)
    rows_of = found.rows_of_before
    went = {(move.before, move.after): move.rows for move in found.moves}
    subtrees = []
    for (before, after), labels in pairs.items():
        rows = sum(rows_of[old] for old in labels)
        followed = sum(went.get(pair, 0) for pair in labels.items())
        stopped = sum(
            went.get((old, above), 0)
            for old, new in labels.items()
            for above in _above(new, separator)
        )
        decided = rows - stopped
        if 2 * followed > decided if decided else bool(stopped) or len(labels) > 1:
            joined = separator.join(before), separator.join(after)
            subtrees.append(Subtree(*joined, dict(sorted(labels.items())), rows, followed))
    # The larger subtree first, and of two with the same labels the one that keeps more rows.
    subtrees.sort(key=lambda one: (-len(one.labels), -one.rows_followed, one.before, one.after))
    taken_before: set[str] = set()
    taken_after: set[str] = set()
    kept = []
    for one in subtrees:
        if taken_before.isdisjoint(one.labels) and taken_after.isdisjoint(one.labels.values()):
            taken_before |= set(one.labels)
            taken_after |= set(one.labels.values())
            kept.append(one)
    return kept


def same_by_name(found: Comparison, separator: str, flat_before: bool) -> list[Subtree]:
    """Between a flat set and a tree: labels of the one that are the last part of a single path of
    the other, by their names alone, whatever their rows did.

    Args:
        flat_before: whether the previous run's labels are the flat ones.
    """
    flat, paths = (found.gone, found.new) if flat_before else (found.new, found.gone)
    under: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        under[normalise_name(path.split(separator)[-1])].append(path)
    rows_of = found.rows_of_before
    went = {(move.before, move.after): move.rows for move in found.moves}
    same = []
    for name in flat:
        if len(there := under[normalise_name(name)]) == 1:
            old, new = (name, there[0]) if flat_before else (there[0], name)
            same.append(Subtree(old, new, {old: new}, rows_of[old], went.get((old, new), 0)))
    return same


def _above(path: str, separator: str) -> list[str]:
    """The nodes above one, the topmost first."""
    parts = path.split(separator)
    return [separator.join(parts[:depth]) for depth in range(1, len(parts))]


def renamed_below(
    renamed: Mapping[str, str], old: Iterable[str], new: Iterable[str], separator: str
) -> dict[str, str]:
    """What was renamed, by label: a node that was renamed renames each label below it that stands
    at the new place too. The most specific rename of a label counts.

    Args:
        old, new: labels of the previous and the current run.
    """
    there = set(new)
    found: dict[str, str] = {}
    used: set[str] = set()
    for label in old:
        parts = label.split(separator)
        for depth in range(len(parts), 0, -1):
            node = separator.join(parts[:depth])
            if node in renamed:
                moved = separator.join([renamed[node], *parts[depth:]])
                if moved in there or node == label:
                    used.add(node)
                    found[label] = moved
                break
    # One that no label follows stays as it is, for what checks them to refuse.
    return found | {name: moved for name, moved in renamed.items() if name not in used}


def _candidates(
    found: Comparison, separator: str
) -> dict[tuple[tuple[str, ...], tuple[str, ...]], dict[str, str]]:
    """For each pair of nodes, before and now, the labels that would be the same."""
    by_last: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
    for name in found.new:
        parts = tuple(name.split(separator))
        by_last[parts[-1]].append(parts)
    before, after = (
        _nodes(found.previous.counts, separator),
        _nodes(found.current.counts, separator),
    )
    pairs: defaultdict[tuple[tuple[str, ...], tuple[str, ...]], dict[str, str]] = defaultdict(dict)
    for name in found.gone:
        parts = tuple(name.split(separator))
        others = by_last[parts[-1]]
        for other in others if len(others) <= MOST_CANDIDATES else ():
            pairs[_node_pair(parts, other, before, after)][name] = separator.join(other)
    gone, new = set(found.gone), set(found.new)
    for node, moved in list(pairs):  # answers that stopped at the node itself
        old_name, new_name = separator.join(node), separator.join(moved)
        if old_name in gone and new_name in new:
            pairs[node, moved][old_name] = new_name
    return pairs


def _node_pair(
    parts: tuple[str, ...],
    other: tuple[str, ...],
    before: set[tuple[str, ...]],
    after: set[tuple[str, ...]],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The node that moved, if one label became another: the node above what both paths end in
    where that was renamed as a whole, else the topmost node that they share."""
    same = 0
    while same < min(len(parts), len(other)) and parts[-1 - same] == other[-1 - same]:
        same += 1
    above, there = parts[: len(parts) - same], other[: len(other) - same]
    was_renamed = above and there and above not in after and there not in before
    keep = 0 if was_renamed else 1
    return parts[: len(above) + keep], other[: len(there) + keep]


def _nodes(labels: Iterable[str], separator: str) -> set[tuple[str, ...]]:
    """All nodes of a tree by its labels."""
    paths: list[Sequence[str]] = [label.split(separator) for label in labels]
    return {tuple(path[:depth]) for path in paths for depth in range(1, len(path) + 1)}
