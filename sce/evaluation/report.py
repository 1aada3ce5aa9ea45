"""Evaluation results for people: a table in the terminal, the same in Markdown.

A result is a dict for one label set:

    name                            the set, as the user calls it
    dataset                         the dataset that it belongs to
    group                           "own", "seen" or "unseen" in training; any other group is
                                    shown after these and named beside each of its sets
    own                             whether the rows are the user's: those come first
    rows, labels                    rows measured, size K of the set
    method                          key of the method that was measured; default "sce"
    sce, cosine, prompted           dicts: accuracy, accuracy_low, accuracy_high, macro_f1, nll,
                                    nll_uncalibrated, ece, ece_uncalibrated, flip_rate
    difference, difference_low,     accuracy of SCE minus cosine on the same rows with its
    difference_high, mcnemar_p      95 % interval, and the exact p value of McNemar's test
    adapted, adapted+1, ...         of sets whose labels were adapted, without examples and with
                                    some a label: the same figures; the difference and its like,
                                    against cosine; trust and fitted_rows of the fit; short_labels,
                                    how many labels have fewer examples than that
    tree                            of a tree of labels, for each method what
                                    `sce.evaluation.levels.tree_figures` gives

Every figure may be None or absent. More than eight sets of one dataset are one row, the mean
over sets, unless all are asked for; beside rows of the user's it is one for seen and unseen sets.
The interval of such a mean resamples sets, not rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from rich.text import Text

from sce.evaluation.metrics import bootstrap_interval, mean_of_known
from sce.evaluation.summaries import ADAPTED, Result, adapted_methods, by_dataset, is_own
from sce.evaluation.tables import Cell, Table, bounds, change, number, percent

MAX_SHOWN_SETS = 8
_COMPARED = ("SCE accuracy", "cosine", "difference", "verdict")
_NARROW = ("SCE", "cosine", "difference", "verdict")
WIDE_CHARS = 150
"""A terminal as wide as this shows all columns."""
VERDICTS = {1: "SCE better", -1: "cosine better", 0: "no clear difference"}
_COLOURS = {1: "green", -1: "red", 0: "yellow"}
_GROUPS = ("own", "seen", "unseen")
_TREE_LEVELS = (
    "method", "level", "nodes", "accuracy", "of best leaf", "ECE", "answered", "of these right"
)  # fmt: skip
_TREE_PATHS = ("method", "answers", "precision", "recall", "F1")
_TREE_ANSWERS = {"leaf": "best leaf", "stopped": "deepest sure node"}
_LEVELS_CAPTION = (
    "Percent. accuracy: of the likeliest node of a level, a node having the probability of its "
    "leaves; of best leaf: of the node above the likeliest leaf. answered: rows that are answered "
    "as deep if an answer stops where its probability falls below 0.5."
)
_PATHS_CAPTION = (
    "Percent. Precision and recall of the nodes on the answered paths, over those on the right "
    "ones (hierarchical F1). deepest sure node: answers that stop below 0.5."
)
_DIFFERENCE = ("difference", "difference_low", "difference_high")


def verdict(result: Mapping[str, Any]) -> int | None:
    """1 if the interval of the difference lies above 0 (SCE better), -1 below, 0 across it; None
    if the result, or the figures of adapted labels, have no comparison."""
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


def adapted_headline(results: Sequence[Result]) -> str:
    """The same of adapted labels without examples; "" where none were measured."""
    figures = [result[ADAPTED] for result in lines(results) if ADAPTED in result]
    verdicts = [v for v in map(verdict, figures) if v is not None]
    if not verdicts:
        return ""
    return (
        f"Adapted labels beat cosine on {verdicts.count(1)} of {len(verdicts)}, "
        f"lose on {verdicts.count(-1)}, no clear difference on {verdicts.count(0)}."
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
    # A mean over some of the sets alone would not stand beside the others.
    adapted = [m for m in adapted_methods(results[0]) if all(m in result for result in results)]
    for method in dict.fromkeys((mean["method"], "cosine", *adapted)):
        known = [result.get(method) or {} for result in results]
        figures = dict.fromkeys(name for one in known for name in one if name != "trust")
        mean[method] = {name: mean_of_known(one.get(name) for one in known) for name in figures}
        low, high = _interval([one.get("accuracy") for one in known])
        mean[method].update(accuracy_low=low, accuracy_high=high)
        if method in adapted:
            mean[method] |= _mean_difference(known)
    return mean | _mean_difference(results)


def lines(results: Sequence[Result], show_all: bool = False) -> list[Result]:
    """What a table shows, in order: the user's sets, seen, unseen; large groups as a mean."""
    ranks = {group: rank for rank, group in enumerate(_GROUPS)}
    ordered = sorted(
        results, key=lambda r: (not is_own(r), ranks.get(r["group"], len(ranks)), r["group"])
    )
    shown: list[Result] = []
    if not show_all and any(map(is_own, results)):
        shown = [result for result in ordered if is_own(result)]
        ordered = _in_brief([result for result in ordered if not is_own(result)])
    for (_, dataset), members in by_dataset(ordered).items():
        if show_all or len(members) <= MAX_SHOWN_SETS:
            shown.extend(members)
        if len(members) > MAX_SHOWN_SETS:
            shown.append(dataset_mean(dataset, members))
    return shown


def _in_brief(results: Sequence[Result]) -> list[Result]:
    """The same, but the many sets of a dataset as one group, with all that is known of the labels:
    what stands beside rows of the user's is no more than a line."""
    found: list[Result] = []
    for dataset in dict.fromkeys(result.get("dataset") for result in results):
        members = [result for result in results if result.get("dataset") == dataset]
        rich = [r for r in members if r.get("information", "all") == "all"] or members
        if dataset is not None and len(rich) > MAX_SHOWN_SETS:
            counts = Counter(result["group"] for result in rich)
            group = ", ".join(f"{count} {name}" for name, count in counts.items())
            members = [result | {"group": group} for result in rich]
        found += members
    return found


def to_table(
    results: Sequence[Result], show_all: bool = False, wide: bool = True, caption: str = ""
) -> Table:
    """What a terminal shows: `beside_adapted` where labels were adapted, else `beside_cosine`.

    Args:
        wide: all columns (`WIDE_CHARS`); else what fits 80 characters.
        caption: what else is to be said of the rows.
    """
    layout = beside_adapted if any(map(adapted_methods, results)) else beside_cosine
    table = layout(results, show_all, wide)
    return replace(table, caption=" ".join(filter(None, (table.caption, caption))))


def beside_cosine(results: Sequence[Result], show_all: bool = False, wide: bool = True) -> Table:
    """Title and colours say for each set whether SCE beats cosine.

    Args:
        wide: all columns; else what fits 80 characters, without calibration.
    """
    alone = any(_main(r) != "sce" and not ("cosine" in r and "difference" in r) for r in results)
    columns = ["set", "rows", "labels", *(["accuracy"] if alone else _COMPARED)]
    columns += ["macro-F1", "NLL", "ECE", "flips"]
    if not wide:
        columns = ["set", *(("labels", "accuracy", "NLL", "flips") if alone else _NARROW)]
    shown = "Accuracy" if alone else "SCE accuracy, cosine and difference"
    interval = "[low, high]" if wide else "low–high and [low, high]"
    caption = f"{interval}: 95 % interval. {shown} in percent."
    if wide:
        caption += (
            " NLL and ECE: before → after calibration."
            " flips: percent of rows whose answer changes with the order of the labels."
        )
    rows: list[list[Cell]] = []
    for _, of_group in groupby(lines(results, show_all), key=lambda result: result["group"]):
        rows += [[], *([_cells(result, wide)[name] for name in columns] for result in of_group)]
    return Table(columns, rows[1:], headline(results), caption, left=("set", "verdict"), wrap=False)


def beside_adapted(results: Sequence[Result], show_all: bool = False, wide: bool = True) -> Table:
    """Every method in a column: cosine, the one that was measured, adapted labels. A cell has the
    accuracy, its interval, and the difference from cosine, in green or red where that is clear.

    Args:
        wide: differences with their intervals; else what fits 80 characters.
    """
    shown = lines(results, show_all)
    methods = _all_methods(shown)
    rows: list[list[Cell]] = []
    for group, of_group in groupby(shown, key=lambda result: result["group"]):
        rows.append([group])
        for result in of_group:
            name = " ".join(str(result["name"]).split())
            size = f"{result['labels']} labels" + f", {result['rows']:,} rows" * wide
            cells = [_accuracy_cell(_figures(result, method), wide) for method in methods]
            rows.append([f"{name}\n{size}", *cells])
    caption = (
        "Percent right with its 95 % interval; + or -: less cosine, green or red where the "
        "interval of that leaves 0 out. adapted: labels fitted to the texts, without their "
        "answers; +n: also to n labelled rows a label, each half of the rows being answered with "
        "those of the other half."
    )
    for result in shown:
        for method in adapted_methods(result):
            if short := result[method].get("short_labels"):
                of = f"{short:g} of {result['labels']} labels of {result['name']}"
                caption += f" {method}: {of} ({result['group']}) have fewer rows than that."
    main = headline(results) if methods[1:2] == ["sce"] else ""
    title = " ".join(filter(None, (main, adapted_headline(results))))
    return Table(["set", *map(_heading, methods)], rows, title, caption, wrap=False)


def to_markdown(results: Sequence[Result], show_all: bool = False) -> str:
    """The headline and `beside_cosine` in GitHub Markdown, ending in a line break; where labels
    were adapted, also `beside_adapted` and how well all methods are calibrated."""
    parts = [headline(results), beside_cosine(results, show_all).to_markdown()]
    if any(map(adapted_methods, results)):
        beside = beside_adapted(results, show_all)
        parts += [adapted_headline(results), beside.to_markdown(), beside.caption]
        parts += ["ECE before → after calibration:", _calibration(results, show_all).to_markdown()]
    for table in tree_tables(results):
        parts += [table.title, table.to_markdown(), table.caption]
    return "\n\n".join(filter(None, parts)) + "\n"


def tree_tables(results: Sequence[Result]) -> list[Table]:
    """Of each set whose labels are a tree: how right every method is level by level, and by the
    nodes on the paths."""
    tables = []
    for result in results:
        trees: Mapping[str, Any] = result.get("tree") or {}
        by_level: list[list[Cell]] = []
        by_path: list[list[Cell]] = []
        for method, found in trees.items():
            stopped = {level["level"]: level for level in found["stopped"]["levels"]}
            for level in found["levels"]:
                at = stopped.get(level["level"]) or {}
                cells = [str(level["level"]), f"{level['nodes']:,}", percent(level["accuracy"])]
                cells += [percent(level["accuracy_of_best_leaf"]), number(level["ece"], 3)]
                cells += [percent(at.get("answered")), percent(at.get("precision"))]
                by_level.append([_heading(method), *cells])
            for name, said in _TREE_ANSWERS.items():
                parts = [percent(found[name][part]) for part in ("precision", "recall", "f1")]
                by_path.append([_heading(method), said, *parts])
        if trees:
            title = f"{result['name']} ({result['group']}), a tree"
            tables.append(Table(_TREE_LEVELS, by_level, title, _LEVELS_CAPTION, wrap=False))
            left = ("method", "answers")
            paths = Table(_TREE_PATHS, by_path, f"{title}, by path", _PATHS_CAPTION, left, False)
            tables.append(paths)
    return tables


def _calibration(results: Sequence[Result], show_all: bool) -> Table:
    shown = [result for result in lines(results, show_all) if adapted_methods(result)]
    methods = _all_methods(shown)
    rows: list[list[Cell]] = []
    for result in shown:
        found = [result.get(method) or {} for method in methods]
        cells = [change(one.get("ece_uncalibrated"), one.get("ece"), 3) for one in found]
        rows.append([f"{result['name']} ({result['group']})", *cells])
    return Table(["set", *map(_heading, methods)], rows)


def _all_methods(results: Sequence[Result]) -> list[str]:
    """Keys in the order of columns; the measured method may be cosine itself."""
    adapted = [method for result in results for method in adapted_methods(result)]
    return list(dict.fromkeys(["cosine", *map(_main, results), *adapted]))


def _heading(method: str) -> str:
    return "SCE" if method == "sce" else method


def _figures(result: Result, method: str) -> Mapping[str, Any]:
    """A method's figures with its difference from cosine; none where it was not measured."""
    figures = result.get(method) or {}
    if figures and method == _main(result) != "cosine":
        return figures | {name: result.get(name) for name in _DIFFERENCE}
    return figures


def _accuracy_cell(figures: Mapping[str, Any], wide: bool) -> Text:
    """Two lines: narrow "56.0 +8.1" and "53.5–58.4", wide "56.0 [53.5, 58.4]" and the same of the
    difference."""
    accuracy, gain, won = percent(figures.get("accuracy")), "", verdict(figures)
    if figures.get("difference") is not None:
        gain = percent(figures["difference"], "+")
    if wide:
        gain += bounds(figures.get("difference_low"), figures.get("difference_high"), "+")
        low, high = figures.get("accuracy_low"), figures.get("accuracy_high")
        parts = [f"{accuracy}{bounds(low, high)}\n", gain, ""]
    else:
        parts = [f"{accuracy} " if gain else accuracy, gain, _below(figures)]
    return Text(parts[0]) + Text(parts[1], "" if won is None else _COLOURS[won]) + Text(parts[2])


def _below(figures: Mapping[str, Any]) -> str:
    """The interval of an accuracy, to stand below it."""
    low, high = figures.get("accuracy_low"), figures.get("accuracy_high")
    return "" if low is None else f"\n{percent(low)}–{percent(high)}"


def _main(result: Result) -> str:
    return str(result.get("method", "sce"))


def _cells(result: Result, wide: bool) -> dict[str, Cell]:
    main, cosine = result.get(_main(result)) or {}, result.get("cosine") or {}
    name, group, won = " ".join(str(result["name"]).split()), result["group"], verdict(result)
    colour = "" if won is None else _COLOURS[won]
    difference = percent(result.get("difference"), "+")
    difference += bounds(result.get("difference_low"), result.get("difference_high"), "+")
    said = "" if won is None else VERDICTS[won]
    said = said if wide else said.replace(" d", "\nd")  # no wider than it must be
    size = "" if wide else f"\n{result['labels']} labels, {result['rows']:,} rows"
    accuracy = percent(main.get("accuracy"))
    accuracy += bounds(main.get("accuracy_low"), main.get("accuracy_high"))
    return {
        "set": (name if group == "own" else f"{name} ({group})") + size,
        "SCE": percent(main.get("accuracy")) + _below(main),
        "rows": f"{result['rows']:,}",
        "labels": str(result["labels"]),
        "SCE accuracy": accuracy,
        "accuracy": accuracy,
        "cosine": percent(cosine.get("accuracy")),
        "difference": Text(difference, colour),
        "verdict": Text("–" if won is None else said, colour),
        "macro-F1": number(main.get("macro_f1"), 3),
        "NLL": change(main.get("nll_uncalibrated"), main.get("nll"), 2),
        "ECE": change(main.get("ece_uncalibrated"), main.get("ece"), 3),
        "flips": percent(main.get("flip_rate")),
    }


def _mean_difference(figures: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    differences = [one.get("difference") for one in figures]
    return dict(zip(_DIFFERENCE, (mean_of_known(differences), *_interval(differences))))


def _interval(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    return bootstrap_interval(known) if known else (None, None)
