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

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.text import Text

from sce.evaluation.evaluate import Result, by_dataset
from sce.evaluation.metrics import bootstrap_interval, mean_of_known
from sce.evaluation.tables import Cell, Table, bounds, change, number, percent

MAX_SHOWN_SETS = 8
_COMPARED = ("SCE accuracy", "cosine", "difference", "verdict")
WIDE_CHARS = 150
"""A terminal as wide as this shows all columns."""
VERDICTS = {1: "SCE better", -1: "cosine better", 0: "no clear difference"}
_COLOURS = {1: "green", -1: "red", 0: "yellow"}
_GROUPS = ("own", "seen", "unseen")


def verdict(result: Result) -> int | None:
    """1 if the interval of the difference lies above 0 (SCE better), -1 below, 0 across it; None
    if the result has no comparison."""
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
    sizes = [result["labels"] for result in results]
    fewest, most = min(sizes), max(sizes)
    mean: dict[str, Any] = {
        "name": f"{dataset}: mean of {len(results)} sets",
        "group": results[0]["group"],
        "rows": sum(result["rows"] for result in results),
        "labels": str(fewest) if fewest == most else f"{fewest}–{most}",
        "method": _main(results[0]),
    }
    for method in dict.fromkeys((mean["method"], "cosine")):
        known = [result.get(method) or {} for result in results]
        figures = dict.fromkeys(name for one in known for name in one)
        mean[method] = {name: mean_of_known(one.get(name) for one in known) for name in figures}
        low, high = _interval([one.get("accuracy") for one in known])
        mean[method].update(accuracy_low=low, accuracy_high=high)
    differences = [result.get("difference") for result in results]
    low, high = _interval(differences)
    difference = mean_of_known(differences)
    return mean | {"difference": difference, "difference_low": low, "difference_high": high}


def lines(results: Sequence[Result], show_all: bool = False) -> list[Result]:
    """The results that a table shows, in order: own, seen, unseen; large groups as a mean."""
    ranks = {group: rank for rank, group in enumerate(_GROUPS)}
    ordered = sorted(results, key=lambda r: (ranks.get(r["group"], len(ranks)), r["group"]))
    shown: list[Result] = []
    for (_, dataset), members in by_dataset(ordered).items():
        if show_all or len(members) <= MAX_SHOWN_SETS:
            shown.extend(members)
        if len(members) > MAX_SHOWN_SETS:
            shown.append(dataset_mean(dataset, members))
    return shown


def to_table(results: Sequence[Result], show_all: bool = False, wide: bool = True) -> Table:
    """Title and colours say for each set whether SCE beats cosine.

    Args:
        wide: all columns (`WIDE_CHARS`); else what fits 80 characters, without calibration.
    """
    alone = any(_main(r) != "sce" and not ("cosine" in r and "difference" in r) for r in results)
    columns = ["set", "rows", "labels", *(["accuracy"] if alone else _COMPARED)]
    columns += ["macro-F1", "NLL", "ECE", "flips"]
    if not wide:
        columns = ["set", "labels", *(("accuracy", "NLL", "flips") if alone else _COMPARED)]
    shown = "Accuracy" if alone else "SCE accuracy, cosine and difference"
    caption = f"[low, high]: 95 % interval. {shown} in percent."
    if wide:
        caption += (
            " NLL and ECE: before → after calibration."
            " flips: percent of rows whose answer changes with the order of the labels."
        )
    rows: list[list[Cell]] = []
    for _, of_group in groupby(lines(results, show_all), key=lambda result: result["group"]):
        rows += [[], *([_cells(result)[name] for name in columns] for result in of_group)]
    return Table(columns, rows[1:], headline(results), caption, left=("set", "verdict"), wrap=False)


def to_markdown(results: Sequence[Result], show_all: bool = False) -> str:
    """The headline and the same table in GitHub Markdown, ending in a line break."""
    return f"{headline(results)}\n\n{to_table(results, show_all).to_markdown()}\n"


def _main(result: Result) -> str:
    return str(result.get("method", "sce"))


def _cells(result: Result) -> dict[str, Cell]:
    main, cosine = result.get(_main(result)) or {}, result.get("cosine") or {}
    name, group, won = " ".join(str(result["name"]).split()), result["group"], verdict(result)
    colour = "" if won is None else _COLOURS[won]
    difference = percent(result.get("difference"), "+")
    difference += bounds(result.get("difference_low"), result.get("difference_high"), "+")
    accuracy = percent(main.get("accuracy"))
    accuracy += bounds(main.get("accuracy_low"), main.get("accuracy_high"))
    return {
        "set": name if group == "own" else f"{name} ({group})",
        "rows": f"{result['rows']:,}",
        "labels": str(result["labels"]),
        "SCE accuracy": accuracy,
        "accuracy": accuracy,
        "cosine": percent(cosine.get("accuracy")),
        "difference": Text(difference, colour),
        "verdict": Text("–" if won is None else VERDICTS[won], colour),
        "macro-F1": number(main.get("macro_f1"), 3),
        "NLL": change(main.get("nll_uncalibrated"), main.get("nll"), 2),
        "ECE": change(main.get("ece_uncalibrated"), main.get("ece"), 3),
        "flips": percent(main.get("flip_rate")),
    }


def _interval(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    return bootstrap_interval(known) if known else (None, None)
