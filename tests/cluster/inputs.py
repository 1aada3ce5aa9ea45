"""What the jobs of a cluster read, at a URI: tiny models, labelled rows, a recipe of theirs; and
the answers that they write."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import yaml

from sce.storage import RemotePath, filesystem_of, put, write_text
from tests.cluster.manifests import ROOT

LABELS = ["flood", "engine trouble", "praise"]
WORDS = {"flood": "river water rain", "engine trouble": "car motor smoke", "praise": "thank you"}


def write_experiment(
    home: RemotePath, scratch: Path, builders: Mapping[str, Callable[[Path], Path]]
) -> None:
    """`models/NAME` of each builder (jina and roberta among them), `in/own.jsonl` with 72 labelled
    rows, and `in/tiny.yaml`, which trains on them into `run`."""
    for name, build in builders.items():
        folder = build(scratch / name)
        for file in folder.rglob("*"):
            if file.is_file():
                put(file, home / "models" / name / str(file.relative_to(folder)))
    rows = [
        {"text": f"{WORDS[label]} {i}", "label": label, "split": split}
        for i, split in enumerate(["train"] * 16 + ["validation"] * 4 + ["test"] * 4)
        for label in LABELS
    ]
    write_lines(home / "in" / "own.jsonl", rows)
    config = yaml.safe_load((ROOT / "configs" / "tiny" / "sce.yaml").read_text())
    config["run_dir"] = str(home / "run")
    source = {"dataset": "custom", "name": "own", "path": str(home / "in" / "own.jsonl")}
    config["data"]["sources"] = [source]
    config["embedder"]["model"] = str(home / "models" / "jina")
    config["model"]["encoder"] = str(home / "models" / "roberta")
    config["train"] = {"epochs": 2, "batch_size": 16}
    config["evaluate"] = {"pictures": False, "bootstrap_samples": 100, "flip_shuffles": 1}
    write_text(home / "in" / "tiny.yaml", yaml.safe_dump(config))


def write_lines(place: RemotePath, rows: list[dict[str, Any]]) -> None:
    write_text(place, "".join(json.dumps(row) + "\n" for row in rows))


def answers(output: RemotePath) -> dict[str, dict[str, Any]]:
    """The rows of a bulk job by their ids, each of which is there once."""
    filesystem, path = filesystem_of(output)
    rows = ds.dataset(path, filesystem=filesystem).to_table().to_pylist()
    assert len(rows) == len({row["id"] for row in rows})
    return {row["id"]: row for row in rows}
