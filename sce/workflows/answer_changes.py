"""What has changed since an earlier output: shown, written beside the rows, and recorded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from sce.bulk.changes import Comparison, MatchedOutputs, Subtree, likely_renames
from sce.bulk.display import comparison_markdown, print_comparison
from sce.bulk.output import read_run
from sce.bulk.subtrees import moved_subtrees, renamed_below, same_by_name
from sce.evaluation.tables import escape_markdown
from sce.storage import to_place, write_text

FOLDER = "_comparison"
"""Of an output; its name keeps readers of the rows out."""
REPORT, MOVED, SETS = "report.md", "moved.parquet", "labels.parquet"

log = logging.getLogger(__name__)


def report_changes(
    previous: tuple[str, list[str] | None, Mapping[str, str]],
    current: tuple[str, list[str] | None],
    texts_of: Callable[[list[str]], Mapping[str, str]],
    vectors_of: Callable[[list[str]], np.ndarray] | None,
    separator: str | None = None,
) -> tuple[Comparison, str, dict[str, Any]]:
    """Compare two outputs; print it, and write `REPORT` and `MOVED` into `FOLDER` of the current
    one; where rows may have several labels `SETS` too.

    Args:
        previous: folder, labels where they are known, and which of them were renamed to what.
        current: folder, and labels where they are known.
        vectors_of: names of labels, to find renames; None finds those of case alone.
        separator: of the labels' paths, where the current ones are a tree. None where they are no
            tree. Where either run's are one, a subtree that moved is followed, and a renamed node
            renames what is below it; between a tree and a flat set also a label by its name.

    Returns:
        The comparison, its report, and what the job's summary says of it.
    """
    (folder, old, renamed), (uri, new) = previous, current
    before, is_tree = _separator_of(folder), separator is not None
    separator = separator or before or None  # "" where it is known to be flat
    if separator is not None and old and new:
        renamed = renamed_below(renamed, old, new, separator)
    matched = MatchedOutputs.read(folder, uri, renamed)
    label_sets = (old, new) if old and new else None
    if separator is None:
        found = matched.compared(label_sets, texts_of)
    else:
        subtrees: list[Subtree] = []
        if before is not None and bool(before) != is_tree:
            subtrees = same_by_name(matched.compared(label_sets), separator, not before)
            matched = matched.with_renamed(_same(subtrees))
        moved = moved_subtrees(matched.compared(label_sets), separator)
        matched, subtrees = matched.with_renamed(_same(moved)), [*subtrees, *moved]
        found = matched.compared(label_sets, texts_of)
        found = replace(found, subtrees=tuple(subtrees), separator=separator)
    sets = matched.sets()
    if sets is not None:
        found = replace(found, sets=sets.compared())
    print_comparison(found, Console(stderr=True))
    report = comparison_markdown(found)
    if likely := likely_renames(found, lambda *names: _similarity(vectors_of, *names)):
        hint = "Most likely renamed: " + ", ".join(f'--renamed "{a}={b}"' for a, b in likely)
        log.warning("%s", hint)
        report += f"\n{escape_markdown(hint)}\n"
    place = to_place(uri) / FOLDER
    write_text(place / REPORT, report)
    matched.write_moved(place / MOVED)
    said = {"moved": str(place / MOVED), "likely_renamed": dict(likely)}
    if sets is not None:
        sets.write_changed(place / SETS, matched.after)
        said["changed_labels"] = str(place / SETS)
    if separator is not None:
        said["moved_subtrees"] = {one.before: one.after for one in found.subtrees}
    return found, report, found.to_metrics() | said


def _separator_of(folder: str) -> str | None:
    """Of the paths of an output's labels; "" where they are no tree, None where nobody knows."""
    run = read_run(folder) if to_place(folder).is_dir() else None
    if run is None or run.summary is None:
        return None
    return str(run.summary.get("separator", ""))


def _same(subtrees: Sequence[Subtree]) -> dict[str, str]:
    return {name: now for one in subtrees for name, now in one.labels.items()}


def _similarity(
    vectors_of: Callable[[list[str]], np.ndarray] | None,
    names: Sequence[str],
    others: Sequence[str],
) -> np.ndarray:
    """Cosines of names [N, M]; without vectors, 1 for those that differ in case alone, else 0."""
    if vectors_of is None:
        return np.array([[float(a.casefold() == b.casefold()) for b in others] for a in names])
    vectors_ND = vectors_of([*names, *others])
    return vectors_ND[: len(names)] @ vectors_ND[len(names) :].T
