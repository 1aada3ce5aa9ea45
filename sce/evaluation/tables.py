"""The tables of a comparison, in the paper's layout: plain cells, rendered by `write`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sce.evaluation import published
from sce.evaluation.measured import Accuracy, MeasuredMethod, SetAnswers, difference
from sce.evaluation.published import EPOCHS, LORA, SCE, SEEN, TABLE_1, TABLE_2, UNSEEN

SMALLEST_P = 1e-99


@dataclass(frozen=True)
class Table:
    """Cells as text; a row of one cell is a heading.

    Attributes:
        caption: what the cells mean.
        measured: what was run, and at what size.
    """

    name: str
    title: str
    caption: str
    measured: str
    columns: list[str]
    rows: list[list[str]]


def build_tables(methods: Sequence[MeasuredMethod]) -> list[Table]:
    """Every table of the report; those without a method to show are left out."""
    untuned = [m for m in methods if m.kind != "lora"]
    tuned = [m for m in methods if m.kind in ("sce", "lora")]
    table_1 = [SCE, published.LLAMA, published.F2LLM]
    tables = [accuracy_table("table1", "Table 1: accuracy", untuned, TABLE_1, table_1)]
    if any(m.kind == "lora" for m in methods):
        title = "Table 2: accuracy beside LoRA fine-tuning"
        tables.append(accuracy_table("table2", title, tuned, TABLE_2, [SCE, LORA]))
    further = [
        figures_table(methods),
        differences_table(methods),
        epochs_table(methods),
        bound_table(methods),
        cost_table(methods),
        label_count_table(methods),
    ]
    tables += [table for table in further if table is not None]
    return [table for table in tables if table.rows]


def accuracy_table(
    name: str,
    title: str,
    methods: Sequence[MeasuredMethod],
    printed: dict[str, dict[str, float]],
    columns: list[str],
) -> Table:
    """The paper's layout: its figures, and ours beside them; then datasets that it has not."""
    measured = dict.fromkeys(d for m in methods for d in m.datasets)
    groups = [("Unseen datasets", UNSEEN), ("Seen datasets", SEEN)]
    rest = [d for d in measured if d not in {**UNSEEN, **SEEN}]
    rows = []
    for heading, names in groups:
        rows.append([heading])
        for dataset, shown in names.items():
            cells = [shown, *(f"{printed[dataset][column]:.2f}" for column in columns)]
            rows.append(cells + [_accuracy(m.accuracy(dataset)) for m in methods])
    if rest:
        rows.append(["Other datasets"])
        for dataset in rest:
            sets = max((m.datasets.get(dataset, []) for m in methods), key=len)
            shown = dataset if len(sets) == 1 else f"{dataset}, mean of {len(sets)} sets"
            cells = [shown, *("" for _ in columns)]
            rows.append(cells + [_accuracy(m.accuracy(dataset)) for m in methods])
    caption = (
        "Per cent; [low, high]: 95 % interval, rows resampled, or label sets where a dataset has "
        "several. Labels by their bare names."
    )
    return Table(
        name,
        title,
        caption + _group_note(methods),
        _measured(methods),
        ["dataset", *(f"paper: {c}" for c in columns), *(m.name for m in methods)],
        rows,
    )


def figures_table(methods: Sequence[MeasuredMethod]) -> Table:
    """Quality beyond accuracy, speed, memory."""
    rows = []
    groups = dict.fromkeys(s.group for m in methods for s in m.sets.values())
    for group in groups:
        rows.append([group])
        for m in methods:
            if (accuracy := m.mean(group, "accuracy")) is None:
                continue
            cost = m.described["cost"]
            rows.append(
                [
                    m.name,
                    _percent(accuracy),
                    _number(m.mean(group, "macro_f1"), 3),
                    f"{_number(m.mean(group, 'nll_uncalibrated'), 2)} → "
                    f"{_number(m.mean(group, 'nll'), 2)}",
                    f"{_number(m.mean(group, 'ece_uncalibrated'), 3)} → "
                    f"{_number(m.mean(group, 'ece'), 3)}",
                    _percent(m.mean(group, "flip_rate")),
                    _number(cost["texts_per_second"], 1),
                    _number(cost["embedded_texts_per_second"], 1),
                    f"{cost['peak_memory_bytes'] / 1e6:,.0f}",
                ]
            )
    caption = (
        "Means over the datasets on which a method was measured (table 1). Accuracy and flips in "
        "per cent; flips: rows whose answer changes under any of five shuffles of the labels. NLL "
        "and ECE before → after a temperature fitted on validation rows. Texts a second from text "
        "to answer, and from a stored vector; peak memory in MB of the process that answers (of "
        "its GPU where it has one)."
    )
    return Table(
        "figures",
        "All figures",
        caption,
        _measured(methods),
        ["method", "accuracy", "macro-F1", "NLL", "ECE", "flips", "texts/s", "vectors/s", "memory"],
        rows,
    )


def differences_table(methods: Sequence[MeasuredMethod]) -> Table | None:
    """The first SCE, or the first method, against every other."""
    reference = next((m for m in methods if m.kind == "sce"), methods[0])
    rows = []
    for m in methods:
        if m is reference:
            continue
        for dataset in m.datasets:
            found = difference(reference, m, dataset)
            if found is not None:
                bounds = f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
                rows.append(
                    [
                        m.name,
                        dataset,
                        f"{100 * found.value:+.1f}{bounds}",
                        f"{found.p:.2g}" if found.p >= SMALLEST_P else f"< {SMALLEST_P:g}",
                        f"{found.rows:,}",
                        f"{found.left_out:,}",
                    ]
                )
    if not rows:
        return None
    return Table(
        "differences",
        f"{reference.name} less each other method",
        "Points of accuracy on the rows that both answered, with a paired bootstrap's 95 % "
        "interval and the p value of McNemar's exact test (of the lowest seeds). 'Only one': rows "
        "that one of them did not answer.",
        _measured(methods),
        ["against", "dataset", "difference", "McNemar p", "rows", "only one"],
        rows,
    )


def epochs_table(methods: Sequence[MeasuredMethod]) -> Table:
    """Appendices R and S beside what was measured: an epoch's seconds and operations."""
    rows = [
        [f"paper: {name}", "16,000", f"{cost.seconds:,.0f}", "", f"{cost.flops:.3g}", "", ""]
        for name, cost in EPOCHS.items()
    ]
    rows[0][3] = f"{published.TIME_RATIO:g}"
    rows[0][5] = f"{published.FLOPS_RATIO:g}"
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
        "epochs",
        "Appendices R and S: one epoch",
        "Seconds and operations (one multiplication and addition counted once, as the paper does) "
        "of one epoch; ratios are SCE's over LoRA's for as many samples. The paper's are of one "
        "RTX A6000.",
        _measured(methods),
        ["training", "samples", "seconds", "ratio of time", "operations", "ratio of operations",
         "what ran"],
        rows,
    )  # fmt: skip


def bound_table(methods: Sequence[MeasuredMethod]) -> Table | None:
    """Section 3.3's upper bound: the embedding of the texts counted in, by number of epochs."""
    bound = published.FLOPS_BOUND
    rows = [["paper", *map(str, bound.values()), str(published.FLOPS_RATIO)]]
    lora = _lora_epoch(methods)
    for m in methods:
        epoch = _epoch(m)
        if lora is None or m.kind != "sce" or epoch is None:
            continue
        mine, theirs = epoch.flops / epoch.samples, lora.flops / lora.samples
        once = m.described["training"]["embedding_flops"] / epoch.samples
        cells = [f"{(n * mine + once) / (n * theirs):.3g}" for n in bound]
        rows.append([m.name, *cells, f"{mine / theirs:.3g}"])
    return Table(
        "bound",
        "Section 3.3: SCE's training operations over LoRA's, the embedding counted in",
        "The texts are embedded once, whatever the number of epochs.",
        _measured(methods),
        ["", *(f"{n} epoch{'s' if n > 1 else ''}" for n in bound), "without embedding"],
        rows,
    )


def cost_table(methods: Sequence[MeasuredMethod]) -> Table:
    """Accuracy against what training and answering take."""
    groups = dict.fromkeys(s.group for m in methods for s in m.sets.values())
    rows = []
    for m in methods:
        training, cost = m.described.get("training"), m.described["cost"]
        flops = training and training["flops"] + training["embedding_flops"]
        rows.append(
            [
                m.name,
                *(_percent(m.mean(group, "accuracy")) for group in groups),
                "none" if not training else f"{flops:.3g}",
                f"{cost['flops_per_text']:.3g}",
                "" if cost["embedded_flops_per_text"] is None
                else f"{cost['embedded_flops_per_text']:.3g}",
            ]
        )  # fmt: skip
    return Table(
        "costs",
        "Accuracy against compute",
        "Accuracy in per cent, mean over the datasets on which a method was measured; operations "
        "of the whole training (all epochs and the embedding), of an answer from text, and of one "
        "from a stored vector, counted as the paper does.",
        _measured(methods),
        ["method", *(f"{g} accuracy" for g in groups), "training", "a text", "a stored vector"],
        rows,
    )


def label_count_table(methods: Sequence[MeasuredMethod]) -> Table:
    """Accuracy of every label set, by its number of labels K."""
    largest: dict[str, SetAnswers] = {}
    for one in (s for m in methods for s in m.sets.values()):
        if one.name not in largest or len(largest[one.name].row_ids) < len(one.row_ids):
            largest[one.name] = one
    rows = []
    for name, one in sorted(largest.items(), key=lambda item: (item[1].labels, item[0])):
        cells = [_accuracy(Accuracy.of([m.sets[name]])) if name in m.sets else "" for m in methods]
        rows.append([str(one.labels), name, one.group, f"{len(one.row_ids):,}", *cells])
    return Table(
        "label_counts",
        "Accuracy by dataset and number of labels K",
        "Per cent with 95 % intervals; rows: of the method with the most.",
        _measured(methods),
        ["K", "label set", "group", "rows", *(m.name for m in methods)],
        rows,
    )


@dataclass(frozen=True)
class _Epoch:
    seconds: float
    flops: float
    samples: int


def _epoch(m: MeasuredMethod) -> _Epoch | None:
    """One epoch of a method that was trained."""
    training = m.described.get("training")
    if not training or not training["epochs"]:
        return None
    epochs = training["epochs"]
    return _Epoch(training["seconds"] / epochs, training["flops"] / epochs, training["rows"])


def _lora_epoch(methods: Sequence[MeasuredMethod]) -> _Epoch | None:
    return next((epoch for m in methods if m.kind == "lora" and (epoch := _epoch(m))), None)


def _measured(methods: Sequence[MeasuredMethod]) -> str:
    return "Measured: " + "; ".join(m.caption for m in methods) + "."


def _group_note(methods: Sequence[MeasuredMethod]) -> str:
    """A dataset that stands under the paper's heading but was not seen, or was, here."""
    found = {s.dataset: s.group for m in methods for s in m.sets.values()}
    moved = [f"{SEEN[d]} was not trained on" for d in SEEN if found.get(d) == "unseen"]
    moved += [f"{UNSEEN[d]} was trained on" for d in UNSEEN if found.get(d) == "seen"]
    return f" Unlike in the paper, {', '.join(moved)}." if moved else ""


def _accuracy(found: Accuracy | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
