"""The tables of a comparison, in the paper's layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from sce.evaluation import paper
from sce.evaluation.paper import EPOCHS, LORA, SCE, SEEN, UNSEEN
from sce.evaluation.runs import (
    Accuracy,
    Difference,
    MethodRuns,
    SetAnswers,
    common_note,
    common_sets,
    difference,
    groups_of,
    own_datasets,
)
from sce.evaluation.tables import Cell, Table, bounds, change, number, one_line, percent

SMALLEST_P = 1e-99
SCREEN_ROWS, METHOD_CHARS = 30, 40
"""Of a table on a screen."""


def brief_tables(methods: Sequence[MethodRuns]) -> list[Table]:
    """What a screen shows, 80 characters wide: what was measured, the user's datasets first, and
    what it took; the paper's figures and all else are in the report (`build_tables`)."""
    reference, own = _reference(methods), own_datasets(methods)
    others = list(dict.fromkeys(d for m in methods for d in m.datasets if d not in own))
    rows: list[list[Cell]] = []
    for dataset in own:
        rows += _dataset_rows(methods, reference, dataset, ", your rows")
    if len(rows) + len(others) * (len(methods) + 1) <= SCREEN_ROWS:
        for dataset in others:
            rows += _dataset_rows(methods, reference, dataset)
    else:
        for group in groups_of(methods):
            rows += _group_rows(methods, reference, group, own)
    accuracy = Table(
        ["method", "accuracy", "difference"],
        [[one_line(str(row[0]), METHOD_CHARS), *row[1:]] for row in rows],
        "What was measured",
        "Percent right, [low, high]: 95 % interval. difference: from "
        f"{reference.name}, on the rows that both answered.",
    )
    taken = []
    for m in methods:
        cost = m.described["cost"]
        rates = [
            number(cost[name], 0) for name in ("texts_per_second", "embedded_texts_per_second")
        ]
        flops = m.training_flops
        operations = "none" if flops is None else f"{flops:.2g}"
        memory = number(cost["peak_memory_bytes"] / 1e6, 0)
        taken.append([one_line(m.name, METHOD_CHARS), *rates, memory, operations])
    cost_columns = ["method", "texts/s", "vectors/s", "MB", "training"]
    caption = "Answers a second from texts, and from vectors; training: operations in all."
    return [accuracy, Table(cost_columns, taken, "What it took", caption)]


def _dataset_rows(
    methods: Sequence[MethodRuns], reference: MethodRuns, dataset: str, said: str = ""
) -> list[list[Cell]]:
    """A heading, and a row for each method that was measured on the dataset."""
    common = common_sets(methods, dataset, "dataset")
    heading = dataset + (f", mean of {len(common)} sets" if len(common) > 1 else "") + said
    rows: list[list[Cell]] = [[heading]]
    for m in methods:
        if (found := m.accuracy(dataset, common)) is None:
            continue
        less = "" if m is reference else _difference_cell(difference(m, reference, dataset))
        rows.append([m.name, _accuracy(found), less])
    return rows


def _group_rows(
    methods: Sequence[MethodRuns], reference: MethodRuns, group: str, own: Sequence[str]
) -> list[list[Cell]]:
    """A heading, and a row for each method: its mean over the datasets of the group."""
    common = common_sets(methods, group) - {
        s.name for m in methods for s in m.sets.values() if s.dataset in own
    }
    rows: list[list[Cell]] = [[f"{group} datasets, mean of {len(common)} set(s)"]]
    base = reference.mean(group, "accuracy", common)
    for m in methods:
        if (mean := m.mean(group, "accuracy", common)) is not None:
            less = "" if m is reference or base is None else percent(mean - base, "+")
            rows.append([m.name, percent(mean), less])
    return rows if len(rows) > 1 else []


def _difference_cell(found: Difference | None) -> str:
    if found is None:
        return ""
    return percent(found.value, "+") + bounds(found.low, found.high, "+")


def _reference(methods: Sequence[MethodRuns]) -> MethodRuns:
    """What the others are compared with: the first SCE, or the first method."""
    return next((m for m in methods if m.kind == "sce"), methods[0])


def build_tables(methods: Sequence[MethodRuns]) -> list[Table]:
    """Every table of the report; those without a method to show are left out."""
    untuned = [m for m in methods if m.kind != "lora"]
    tuned = [m for m in methods if m.kind in ("sce", "lora")]
    table_1 = [SCE, paper.LLAMA, paper.F2LLM]
    tables = [accuracy_table("table1", "Table 1: accuracy", untuned, table_1)]
    if any(m.kind == "lora" for m in methods):
        title = "Table 2: accuracy beside LoRA fine-tuning"
        tables.append(accuracy_table("table2", title, tuned, [SCE, LORA]))
    beside = (figures_table, differences_table, epochs_table, bound_table, fit_table, cost_table)
    tables += [table(methods) for table in (*beside, label_count_table)]
    return [replace(t, note=t.note or _measured(methods)) for t in tables if t.rows]


def accuracy_table(
    name: str, title: str, methods: Sequence[MethodRuns], columns: list[str]
) -> Table:
    """The paper's layout: its figures, and ours beside them; then datasets that it has not."""
    own = own_datasets(methods)
    others = {d: d for m in methods for d in m.datasets if d not in paper.ACCURACY}
    for dataset in others:
        sets = len(common_sets(methods, dataset, "dataset"))
        others[dataset] += f", mean of {sets} sets" if sets > 1 else ""
    rows: list[list[Cell]] = []
    for heading, names in (
        ("Your datasets", {d: d for d in own} | {d: n for d, n in others.items() if d in own}),
        ("Unseen datasets", UNSEEN),
        ("Seen datasets", SEEN),
        ("Other datasets", {d: n for d, n in others.items() if d not in own}),
    ):
        if not names:
            continue
        rows.append([heading])
        for dataset, shown in names.items():
            printed = paper.ACCURACY.get(dataset)
            cells = [f"{printed[column]:.2f}" if printed else "" for column in columns]
            common = common_sets(methods, dataset, "dataset")
            ours = (_accuracy(m.accuracy(dataset, common)) for m in methods)
            rows.append([shown, *cells, *ours])
    caption = (
        "Per cent; [low, high]: 95 % interval, rows resampled, or label sets where a dataset has "
        "several: those on which every method was measured that was on any. Labels by their bare "
        "names."
    )
    return Table(
        ["dataset", *(f"paper: {c}" for c in columns), *(m.name for m in methods)],
        rows,
        title,
        caption + _group_note(methods),
        name=name,
        note=_measured(methods),
    )


def figures_table(methods: Sequence[MethodRuns]) -> Table:
    """Quality beyond accuracy, speed, memory."""
    rows = []
    for group in groups_of(methods):
        rows.append([group])
        common = common_sets(methods, group)
        for m in methods:
            if (accuracy := m.mean(group, "accuracy", common)) is None:
                continue
            mean = partial(m.mean, group, sets=common)
            cost = m.described["cost"]
            cells = [
                number(mean("macro_f1"), 3),
                change(mean("nll_uncalibrated"), mean("nll"), 2),
                change(mean("ece_uncalibrated"), mean("ece"), 3),
                percent(mean("flip_rate")),
                number(cost["texts_per_second"], 1),
                number(cost["embedded_texts_per_second"], 1),
                number(cost["peak_memory_bytes"] / 1e6, 0),
            ]
            rows.append([m.name, percent(accuracy), *cells])
    caption = (
        f"Means over datasets; {common_note(methods)}. Accuracy and flips in "
        "per cent; flips: rows whose answer changes under any of five shuffles of the labels. NLL "
        "and ECE before → after a temperature fitted on validation rows. Texts a second from text "
        "to answer, and from a stored vector; peak memory in MB of the process that answers (of "
        "its GPU where it has one)."
    )
    return Table(
        ["method", "accuracy", "macro-F1", "NLL", "ECE", "flips", "texts/s", "vectors/s", "memory"],
        rows,
        "All figures",
        caption,
        name="figures",
    )


def differences_table(methods: Sequence[MethodRuns]) -> Table:
    """The first SCE, or the first method, against every other."""
    reference = _reference(methods)
    rows = [
        [
            m.name,
            dataset,
            _difference_cell(found),
            f"{found.p:.2g}" if found.p >= SMALLEST_P else f"< {SMALLEST_P:g}",
            f"{found.rows:,}",
            f"{found.left_out:,}",
        ]
        for m in methods
        if m is not reference
        for dataset in m.datasets
        if (found := difference(reference, m, dataset)) is not None
    ]
    return Table(
        ["against", "dataset", "difference", "McNemar p", "rows", "only one"],
        rows,
        f"{reference.name} less each other method",
        "Points of accuracy on the rows that both answered, with a paired bootstrap's 95 % "
        "interval and the p value of McNemar's exact test (of the lowest seeds). 'Only one': rows "
        "that one of them did not answer.",
        name="differences",
    )


def epochs_table(methods: Sequence[MethodRuns]) -> Table:
    """Appendices R and S beside what was measured: an epoch's seconds and operations."""
    rows = [
        [f"paper: {name}", "16,000", f"{cost.seconds:,.0f}", "", f"{cost.flops:.3g}", "", ""]
        for name, cost in EPOCHS.items()
    ]
    rows[0][3] = f"{paper.TIME_RATIO:g}"
    rows[0][5] = f"{paper.FLOPS_RATIO:g}"
    lora = _lora_epoch(methods)
    for m in methods:
        if (epoch := _epoch(m)) is None:
            continue
        time_ratio = flops_ratio = ""
        if lora is not None and m.kind == "sce":
            as_many = lora.samples / epoch.samples
            time_ratio = f"{epoch.seconds / lora.seconds * as_many:.3g}"
            flops_ratio = f"{epoch.flops / lora.flops * as_many:.3g}"
        training = m.described["training"]
        rows.append(
            [
                m.name,
                f"{epoch.samples:,}",
                f"{epoch.seconds:,.1f}",
                time_ratio,
                f"{epoch.flops:.3g}",
                flops_ratio,
                f"{training['workers']}, {training['epochs']} epochs, "
                f"{training['trainable_parameters'] / 1e6:,.1f} M trained",
            ]
        )
    return Table(
        ["training", "samples", "seconds", "ratio of time", "operations", "ratio of operations",
         "what ran"],
        rows,
        "Appendices R and S: one epoch",
        "Seconds and operations (one multiplication and addition counted once, as the paper does) "
        "of one epoch; ratios are SCE's over LoRA's for as many samples. The paper's are of one "
        "RTX A6000.",
        name="epochs",
    )  # fmt: skip


def bound_table(methods: Sequence[MethodRuns]) -> Table:
    """Section 3.3's upper bound: the embedding of the texts counted in, by number of epochs."""
    bound = paper.FLOPS_BOUND
    rows = [["paper", *map(str, bound.values()), str(paper.FLOPS_RATIO)]]
    lora = _lora_epoch(methods)
    for m in methods:
        if lora is None or m.kind != "sce" or (epoch := _epoch(m)) is None:
            continue
        mine, theirs = epoch.flops / epoch.samples, lora.flops / lora.samples
        once = m.described["training"]["embedding_flops"] / epoch.samples
        cells = [f"{(n * mine + once) / (n * theirs):.3g}" for n in bound]
        rows.append([m.name, *cells, f"{mine / theirs:.3g}"])
    return Table(
        ["", *(f"{n} epoch{'s' if n > 1 else ''}" for n in bound), "without embedding"],
        rows,
        "Section 3.3: SCE's training operations over LoRA's, the embedding counted in",
        "The texts are embedded once, whatever the number of epochs.",
        name="bound",
    )


def fit_table(methods: Sequence[MethodRuns]) -> Table:
    """What it takes to adapt a label set to a corpus."""
    rows = []
    for m in methods:
        if (fit := m.described.get("fit")) is not None:
            cost = m.described["cost"]
            cells = [f"{fit['rows']:,.0f}", f"{fit['seconds']:.3g}", f"{fit['flops']:.3g}"]
            rows.append([m.name, *cells, f"{cost['embedded_flops_per_text']:.3g}"])
    return Table(
        ["method", "texts", "seconds", "operations", "a stored vector"],
        rows,
        "Adapting labels to a corpus",
        "Means over the fits: texts whose vectors a label set was fitted to, seconds and "
        "operations; and operations of an answer from a stored vector, which is multiplied with "
        "one vector a label.",
        name="fits",
    )


def cost_table(methods: Sequence[MethodRuns]) -> Table:
    """Accuracy against what training and answering take."""
    groups = groups_of(methods)
    rows = []
    for m in methods:
        flops, cost = m.training_flops, m.described["cost"]
        embedded = cost["embedded_flops_per_text"]
        cells = [
            "none" if flops is None else f"{flops:.3g}",
            f"{cost['flops_per_text']:.3g}",
            "" if embedded is None else f"{embedded:.3g}",
        ]
        means = (m.mean(g, "accuracy", common_sets(methods, g)) for g in groups)
        rows.append([m.name, *map(percent, means), *cells])
    return Table(
        ["method", *(f"{g} accuracy" for g in groups), "training", "a text", "a stored vector"],
        rows,
        "Accuracy against compute",
        f"Accuracy in per cent, mean over datasets; {common_note(methods)}. Operations "
        "of the whole training (all epochs and the embedding; of adapted labels, the mean fit to "
        "the vectors that they then answer), of an answer from text, and of one from a stored "
        "vector, counted as the paper does.",
        name="costs",
    )


def label_count_table(methods: Sequence[MethodRuns]) -> Table:
    """Accuracy of every label set, by its number of labels K."""
    sets = [s for m in methods for s in m.sets.values()]
    largest: dict[str, SetAnswers] = {}
    for one in sorted(sets, key=lambda s: -len(s.row_ids)):
        largest.setdefault(one.name, one)
    rows = []
    for name, one in sorted(largest.items(), key=lambda item: (item[1].labels, item[0])):
        cells = [_accuracy(Accuracy.of([m.sets[name]])) if name in m.sets else "" for m in methods]
        rows.append([str(one.labels), name, one.group, f"{len(one.row_ids):,}", *cells])
    return Table(
        ["K", "label set", "group", "rows", *(m.name for m in methods)],
        rows,
        "Accuracy by dataset and number of labels K",
        "Per cent with 95 % intervals; rows: of the method with the most.",
        name="label_counts",
    )


class _Epoch(NamedTuple):
    seconds: float
    flops: float
    samples: int


def _epoch(m: MethodRuns) -> _Epoch | None:
    """One epoch of a method that was trained."""
    training = m.described.get("training")
    if not training or not training["epochs"]:
        return None
    epochs = training["epochs"]
    return _Epoch(training["seconds"] / epochs, training["flops"] / epochs, training["rows"])


def _lora_epoch(methods: Sequence[MethodRuns]) -> _Epoch | None:
    return next((epoch for m in methods if m.kind == "lora" and (epoch := _epoch(m))), None)


def _measured(methods: Sequence[MethodRuns]) -> str:
    return "Measured: " + "; ".join(m.caption for m in methods) + "."


def _group_note(methods: Sequence[MethodRuns]) -> str:
    """A dataset that stands under the paper's heading but was not seen, or was, here."""
    found = {s.dataset: s.group for m in methods for s in m.sets.values()}
    moved = [f"{SEEN[d]} was not trained on" for d in SEEN if found.get(d) == "unseen"]
    moved += [f"{UNSEEN[d]} was trained on" for d in UNSEEN if found.get(d) == "seen"]
    return f" Unlike in the paper, {', '.join(moved)}." if moved else ""


def _accuracy(found: Accuracy | None) -> str:
    return "" if found is None else percent(found.value) + bounds(found.low, found.high)
