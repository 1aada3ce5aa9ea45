"""Evaluation results for people: a table in the terminal, the same in Markdown.

A result is a dict for one label set:

    name                            the set, as the user calls it
    dataset                         the dataset that it belongs to
    group                           "own", "seen" or "unseen" in training; any other group is
                                    shown after these and named beside each of its sets
    rows, labels                    rows measured, size K of the set
    method                          key of the method that was measured; default "sce"
    sce, cosine, prompted           dicts: accuracy, accuracy_low, accuracy_high, macro_f1, nll,
                                    nll_uncalibrated, ece, ece_uncalibrated, flip_rate
    difference, difference_low,     accuracy of SCE minus cosine on the same rows with its
    difference_high, mcnemar_p      95 % interval, and the exact p value of McNemar's test

Every figure may be None or absent. More than eight sets of one dataset are one row, the mean
over sets, unless all are asked for. The interval of such a mean resamples sets, not rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sce.evaluation.metrics import bootstrap_interval

MAX_SHOWN_SETS = 8
COLUMNS = (
    "set",
    "rows",
    "labels",
    "SCE accuracy",
    "cosine",
    "difference",
    "verdict",
    "macro-F1",
    "NLL",
    "ECE",
    "flips",
)
NARROW_COLUMNS = ("set", "labels", "SCE accuracy", "cosine", "difference", "verdict")
ALONE_COLUMNS = ("set", "rows", "labels", "accuracy", "macro-F1", "NLL", "ECE", "flips")
NARROW_ALONE_COLUMNS = ("set", "labels", "accuracy", "NLL", "flips")
"""Of a method that is measured beside no other."""
WIDE_CHARS = 150
VERDICTS = {1: "SCE better", -1: "cosine better", 0: "no clear difference"}
_COLOURS = {1: "green", -1: "red", 0: "yellow"}
_GROUPS = ("own", "seen", "unseen")
_METHOD_KEYS = (
    "accuracy",
    "macro_f1",
    "nll",
    "nll_uncalibrated",
    "ece",
    "ece_uncalibrated",
    "flip_rate",
)

Result = Mapping[str, Any]


def verdict(result: Result) -> int | None:
    """1 if the interval of the difference lies above 0 (SCE better), -1 below, 0 across it.

    None if the result has no comparison.
    """
    low, high = result.get("difference_low"), result.get("difference_high")
    if low is None or high is None:
        return None
    return 1 if low > 0 else -1 if high < 0 else 0


def headline(results: Sequence[Result]) -> str:
    """One sentence: on how many lines of the table SCE beats cosine similarity. A line is a
    label set, or the mean over the many sets of one dataset."""
    verdicts = [v for v in map(verdict, lines(results)) if v is not None]
    if not verdicts:
        return f"{len(results)} label set(s), not compared with cosine similarity."
    return (
        f"SCE beats cosine similarity on {verdicts.count(1)} of {len(verdicts)} line(s), "
        f"loses on {verdicts.count(-1)}, no clear difference on {verdicts.count(0)}."
    )


def dataset_mean(dataset: str, results: Sequence[Result]) -> dict[str, Any]:
    """One result for the sets of a dataset in a group: rows added up, every other figure the
    plain mean over the sets."""
    mean: dict[str, Any] = {
        "name": f"{dataset}: mean of {len(results)} sets",
        "group": results[0]["group"],
        "rows": sum(result["rows"] for result in results),
        "labels": _range([result["labels"] for result in results]),
    }
    mean["method"] = _main(results[0])
    for method in dict.fromkeys((mean["method"], "cosine")):
        mean[method] = {
            key: _mean([(result.get(method) or {}).get(key) for result in results])
            for key in _METHOD_KEYS
        }
        low, high = _interval([(r.get(method) or {}).get("accuracy") for r in results])
        mean[method].update(accuracy_low=low, accuracy_high=high)
    differences = [result.get("difference") for result in results]
    mean["difference"] = _mean(differences)
    mean["difference_low"], mean["difference_high"] = _interval(differences)
    return mean


def lines(results: Sequence[Result], show_all: bool = False) -> list[Result]:
    """The results that a table shows, in order: own, seen, unseen; large groups as a mean."""
    names = [*_GROUPS, *sorted({r["group"] for r in results} - set(_GROUPS))]
    shown: list[Result] = []
    for group in names:
        of_group = [result for result in results if result["group"] == group]
        for dataset in dict.fromkeys(result.get("dataset", group) for result in of_group):
            members = [r for r in of_group if r.get("dataset", group) == dataset]
            if show_all or len(members) <= MAX_SHOWN_SETS:
                shown.extend(members)
            if len(members) > MAX_SHOWN_SETS:
                shown.append(dataset_mean(dataset, members))
    return shown


def to_table(results: Sequence[Result], show_all: bool = False, wide: bool = True) -> Table:
    """A rich table; its title says whether SCE beats cosine, colour says it for each set.

    Args:
        wide: all columns (150 characters and more); else what fits 80, without calibration.
    """
    alone = _alone(results)
    all_columns = ALONE_COLUMNS if alone else COLUMNS
    columns = all_columns if wide else NARROW_ALONE_COLUMNS if alone else NARROW_COLUMNS
    caption = "[low, high]: 95 % interval. SCE accuracy, cosine and difference in percent."
    if alone:
        caption = "[low, high]: 95 % interval. Accuracy in percent."
    if wide:
        caption += (
            " NLL and ECE: before → after calibration."
            " flips: percent of rows whose answer changes with the order of the labels."
        )
    table = Table(
        title=headline(results), caption=Text(caption), title_style="bold", padding=(0, 1, 0, 0)
    )
    for column in columns:
        left = column in ("set", "verdict")
        table.add_column(
            column, justify="left" if left else "right", no_wrap=not left, overflow="fold"
        )
    previous = None
    for result in lines(results, show_all):
        if previous not in (None, result["group"]):
            table.add_section()
        previous = result["group"]
        cells = {name: escape(cell) for name, cell in _cells(result).items()}
        won = verdict(result)
        if won is not None:
            for name in ("difference", "verdict"):
                cells[name] = f"[{_COLOURS[won]}]{cells[name]}[/]"
        table.add_row(*(cells[name] for name in columns))
    return table


def print_results(
    results: Sequence[Result], show_all: bool = False, console: Console | None = None
) -> None:
    """Print the table that fits the terminal; by default on standard error.

    Standard output is left to a job's closing line of JSON.
    """
    console = console or Console(stderr=True)
    console.print(to_table(results, show_all, wide=console.width >= WIDE_CHARS))


def to_markdown(results: Sequence[Result], show_all: bool = False) -> str:
    """The headline and the same table in GitHub Markdown, ending in a line break."""
    columns = ALONE_COLUMNS if _alone(results) else COLUMNS
    rows = [
        list(columns),
        ["---" if c in ("set", "verdict") else "---:" for c in columns],
        *([_cells(r)[c].replace("|", "\\|") for c in columns] for r in lines(results, show_all)),
    ]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{headline(results)}\n\n{table}\n"


def _main(result: Result) -> str:
    return str(result.get("method", "sce"))


def _alone(results: Sequence[Result]) -> bool:
    return any(_main(r) != "sce" and not ("cosine" in r and "difference" in r) for r in results)


def _cells(result: Result) -> dict[str, str]:
    main, cosine = result.get(_main(result)) or {}, result.get("cosine") or {}
    won = verdict(result)
    low, high = result.get("difference_low"), result.get("difference_high")
    accuracy = _percent(main.get("accuracy"))
    accuracy += _bounds(main.get("accuracy_low"), main.get("accuracy_high"))
    return {
        "set": _title(result),
        "rows": f"{result['rows']:,}",
        "labels": str(result["labels"]),
        "SCE accuracy": accuracy,
        "accuracy": accuracy,
        "cosine": _percent(cosine.get("accuracy")),
        "difference": _percent(result.get("difference"), "+") + _bounds(low, high, "+"),
        "verdict": "–" if won is None else VERDICTS[won],
        "macro-F1": _number(main.get("macro_f1"), 3),
        "NLL": _change(main.get("nll_uncalibrated"), main.get("nll"), 2),
        "ECE": _change(main.get("ece_uncalibrated"), main.get("ece"), 3),
        "flips": _percent(main.get("flip_rate")),
    }


def _title(result: Result) -> str:
    name, group = " ".join(str(result["name"]).split()), result["group"]
    return name if group == "own" else f"{name} ({group})"


def _percent(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{100 * value:{sign}.1f}"


def _bounds(low: float | None, high: float | None, sign: str = "") -> str:
    if low is None or high is None:
        return ""
    return f" [{_percent(low, sign)}, {_percent(high, sign)}]"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _change(before: float | None, after: float | None, digits: int) -> str:
    if before is None:
        return _number(after, digits)
    return f"{_number(before, digits)} → {_number(after, digits)}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _interval(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    return bootstrap_interval(known) if known else (None, None)


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"
