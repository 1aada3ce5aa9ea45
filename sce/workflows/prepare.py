"""The preparation of data: every source of an experiment read, split and counted."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from sce.datasets.prepare import prepare_data
from sce.datasets.schema import SPLITS
from sce.evaluation.tables import Table
from sce.workflows.experiment import Experiment

MAX_LABELS_SHOWN = 20


def prepare(experiment: Experiment) -> dict[str, Any]:
    """Prepare the data, show the counts, and return the summary.

    Raises:
        InputError: as `prepare_data`; nothing was half-written.
    """
    manifest = prepare_data(experiment.data, experiment.data_dir, experiment.data.seed)
    Console(stderr=True).print(_dataset_table(manifest), _label_table(manifest), sep="\n")
    return {
        "rows": manifest["rows"],
        "counts": manifest["counts"],
        "label_sets": len(manifest["label_counts"]),
        "dropped": {name: sum(d.values()) for name, d in manifest["dropped"].items() if d},
        "unchanged": manifest["unchanged"],
        "fingerprint": manifest["fingerprint"],
        "path": str(experiment.data_dir),
    }


def _dataset_table(manifest: dict[str, Any]) -> Table:
    rows = []
    for name, counts in manifest["counts"].items():
        cells = [counts.get(split, 0) for split in SPLITS]
        cells.append(sum(manifest["dropped"][name].values()))
        rows.append([name, *map(_number, cells), manifest["licences"][name]])
    columns = ["dataset", *SPLITS, "left out", "licence"]
    return Table(columns, rows, "Rows by dataset", left=("dataset", "licence"))


def _label_table(manifest: dict[str, Any]) -> Table:
    """Each label of the small label sets; one line for a large one or a family of them."""
    families: dict[str, list[dict[str, dict[str, int]]]] = {}
    for label_set, by_split in manifest["label_counts"].items():
        families.setdefault(label_set.split("/")[0], []).append(by_split)
    rows = []
    for family, members in families.items():
        labels = [sorted({label for c in m.values() for label in c}) for m in members]
        n_labels = sum(map(len, labels))
        if len(members) == 1 and n_labels <= MAX_LABELS_SHOWN:
            for label in labels[0]:
                counts = [members[0].get(split, {}).get(label, 0) for split in SPLITS]
                rows.append([family, label, *map(_number, counts)])
        else:
            totals = [sum(sum(m.get(split, {}).values()) for m in members) for split in SPLITS]
            sets = f" in {len(members)} label sets" if len(members) > 1 else ""
            rows.append([family, f"({n_labels:,} labels{sets})", *map(_number, totals)])
    title = "Rows by label (all of them: manifest.json)"
    return Table(["label set", "label", *SPLITS], rows, title, left=("label set", "label"))


def _number(count: int) -> str:
    return f"{count:,}" if count else "-"
