"""Read labelled texts from every source of an experiment into one folder of Parquet.

    python jobs/prepare_data.py --config configs/quickstart/sce.yaml
    python jobs/prepare_data.py --run-dir runs/mine \\
        --data.sources '[{"dataset": "custom", "name": "mine", "path": "mine.jsonl"}]'

Writes rows.parquet, label_sets.parquet and manifest.json to <run_dir>/data: whole, or not at
all. Run again with the same configuration and data, it says that nothing has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from sce.datasets.prepare import prepare_data
from sce.datasets.schema import SPLITS
from sce.workflows.cli import run_job
from sce.workflows.experiment import Experiment

MAX_LABELS_SHOWN = 20


def prepare(experiment: Experiment) -> dict[str, Any]:
    """Prepare the data, show the counts, and return the summary."""
    out = experiment.data_dir
    manifest = prepare_data(experiment.data, out, experiment.data.seed)
    console = Console(stderr=True)
    console.print(_dataset_table(manifest))
    console.print(_label_table(manifest))
    return {
        "rows": manifest["rows"],
        "counts": manifest["counts"],
        "label_sets": len(manifest["label_counts"]),
        "dropped": {name: sum(d.values()) for name, d in manifest["dropped"].items() if d},
        "unchanged": manifest["unchanged"],
        "fingerprint": manifest["fingerprint"],
        "path": str(out),
    }


def _dataset_table(manifest: dict[str, Any]) -> Table:
    table = Table("dataset", *SPLITS, "left out", "licence", title="Rows by dataset")
    for column in table.columns[1:5]:
        column.justify = "right"
    for name, counts in manifest["counts"].items():
        left_out = sum(manifest["dropped"][name].values())
        cells = [counts.get(split, 0) for split in SPLITS]
        table.add_row(name, *map(_number, [*cells, left_out]), manifest["licences"][name])
    return table


def _label_table(manifest: dict[str, Any]) -> Table:
    """Each label of the small label sets; one line for a large one or a family of them."""
    table = Table("label set", "label", *SPLITS, title="Rows by label (all of them: manifest.json)")
    for column in table.columns[2:]:
        column.justify = "right"
    families: dict[str, list[dict[str, dict[str, int]]]] = {}
    for label_set, by_split in manifest["label_counts"].items():
        families.setdefault(label_set.split("/")[0], []).append(by_split)
    for family, members in families.items():
        labels = [sorted({label for c in m.values() for label in c}) for m in members]
        n_labels = sum(map(len, labels))
        if len(members) == 1 and n_labels <= MAX_LABELS_SHOWN:
            for label in labels[0]:
                counts = [members[0].get(split, {}).get(label, 0) for split in SPLITS]
                table.add_row(family, label, *map(_number, counts))
        else:
            totals = [sum(sum(m.get(split, {}).values()) for m in members) for split in SPLITS]
            sets = f" in {len(members)} label sets" if len(members) > 1 else ""
            table.add_row(family, f"({n_labels:,} labels{sets})", *map(_number, totals))
    return table


def _number(count: int) -> str:
    return f"{count:,}" if count else "-"


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(Experiment, prepare, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
