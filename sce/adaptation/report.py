"""What a fit says of itself, in sentences and in figures for MLflow.

The pages around it (`sce.workflows.adaptation_report`) stand further right, because adaptation may
not import the tables and pages of `sce.evaluation`, which stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Report = Mapping[str, Any]
"""`AdaptedLabels.report`: figures of a fit as `sce.adaptation.adapt` describes them."""

MAX_NAMES = 12


def headline(report: Report) -> str:
    """What was fitted, to how many rows, in one sentence."""
    labels, rows = _count(report["label_count"], "label"), _count(report["rows"], "text")
    if report["fitted_rows"] < report["rows"]:
        rows = f"{report['fitted_rows']:,} of {rows}"
    if not report["adapted"]:
        return f"{labels}, not adapted to {rows}: every label keeps its own vector."
    return f"{labels} adapted to {rows} ({report['rows_a_label']:,.0f} a label)."


def sentences(report: Report) -> list[str]:
    """Trust, how accurate it is or what was assumed, what changed, and which labels seem to have
    no text. Plain text with names of labels as the user wrote them."""
    found = [f"Trust: {report['trust']}. {report['why']}", _accuracy(report)]
    if report["agreement"] is not None:
        found.append(
            "Two halves of the corpus, each fitted alone, agree on "
            f"{_percent(report['agreement'])} of the rows."
        )
    found.append(
        f"{_percent(report['changed'])} of the answers differ from those by the labels' own "
        "vectors."
    )
    found.append(_calibration(report["calibration"]))
    absent = [label["name"] for label in report["labels"] if label["seems_absent"]]
    kept = [label["name"] for label in report["labels"] if not label["adapted"]]
    kept = [name for name in kept if name not in absent]
    if absent:
        found.append(f"Labels that seem to have no text: {_names(absent)}.")
    if kept and report["adapted"]:
        found.append(f"Labels with too few texts, which keep their own vector: {_names(kept)}.")
    return found


def _accuracy(report: Report) -> str:
    choice = report["choice"]
    if choice is None:
        return "Its accuracy is not known: no labelled rows were given."
    fits = {fit["trust"]: fit for fit in choice["fits"]}
    chosen, own = fits[choice["chosen"]], fits.get("none")
    said = (
        f"On {_count(choice['rows'], 'labelled row')} {_percent(chosen['accuracy'])} are right "
        f"(95 % interval {_percent(chosen['low'])} to {_percent(chosen['high'])})"
    )
    if own is None or own is chosen:
        return f"{said}, by the labels' own vectors, which no fit was found to beat."
    return (
        f"{said}, {_percent(own['accuracy'])} by the labels' own vectors: "
        f"{_points(chosen['gain'])} points "
        f"({_points(chosen['gain_low'])} to {_points(chosen['gain_high'])})."
    )


def _calibration(found: Mapping[str, Any]) -> str:
    sources = {
        "labelled rows": f"fitted to {_count(found['rows'], 'labelled row')}",
        "halves": f"from how far two halves agree on {_count(found['rows'], 'row')}",
        "assumed": "assumed, since nothing was there to fit it to",
    }
    source = sources.get(found["from"], str(found["from"]))
    said = f"Probabilities: temperature {found['temperature']:.2f}, {source}"
    if found["ece_before"] is None or found["ece_after"] is None:
        return f"{said}."
    return (
        f"{said}; expected calibration error {found['ece_before']:.3f} before, "
        f"{found['ece_after']:.3f} after."
    )


def metrics(report: Report) -> dict[str, float]:
    """The figures of a fit for an experiment tracker, shares from 0 to 1; those that are not known
    are left out."""
    labels, calibration, choice = report["labels"], report["calibration"], report["choice"]
    found: dict[str, Any] = {
        **{name: report[name] for name in ("rows", "fitted_rows", "label_count", "rows_a_label")},
        **{name: report[name] for name in ("agreement", "changed")},
        "adapted": int(report["adapted"]),
        "adapted_labels": sum(label["adapted"] for label in labels),
        "labels_without_text": sum(label["seems_absent"] for label in labels),
        "temperature": calibration["temperature"],
        "ece_before": calibration["ece_before"],
        "ece_after": calibration["ece_after"],
    }
    if choice is not None:
        found["labelled_rows"] = choice["rows"]
        for fit in choice["fits"]:
            for name in ("accuracy", "gain"):
                found[f"{name}_{fit['trust']}"] = fit[name]
            if fit["trust"] == choice["chosen"]:
                names = ("accuracy", "gain", "gain_low", "gain_high")
                found |= {name: fit[name] for name in names}
    return {name: float(value) for name, value in found.items() if value is not None}


def _names(names: list[str]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:MAX_NAMES])
    more = len(names) - MAX_NAMES
    return f"{shown} and {more:,} more" if more > 0 else shown


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
