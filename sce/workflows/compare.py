"""The comparison of everything that was measured: `jobs/compare.py`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from sce.config import JobConfig, resolve_output
from sce.evaluation.comparison import build_tables
from sce.evaluation.pages import write_report
from sce.evaluation.plots import build_charts
from sce.storage import Place, put
from sce.workflows.measured_runs import read_methods
from sce.workflows.mlflow_store import reading
from sce.workflows.mlflow_view import share_view
from sce.workflows.tracking import Tracker, TrackingConfig, tracking_uri


class CompareConfig(JobConfig):
    """Settings of `jobs/compare.py`."""

    methods: list[str] = []
    """Names of what is compared (`name` of its configuration), in the order of the report; by
    default everything measured."""
    measured_on: str = "test"
    """The rows: "test" for the test sets, or the name of a file of your own rows, without its
    ending (`--evaluate.labelled mine.jsonl` of the jobs that measured them: "mine")."""
    output: Place = Path("runs/compare")
    """Folder or URI of the report: compare.md, compare.html, a CSV for each table, charts."""
    tracking: TrackingConfig = TrackingConfig()
    """Whose runs are compared."""


def compare(config: CompareConfig) -> dict[str, Any]:
    """Read the runs, print the tables, write the report and log it.

    Raises:
        InputError: as `read_methods`; MLflow's store cannot be read.
    """
    started = time.perf_counter()
    folder = resolve_output(config.output)
    uri = tracking_uri(config.tracking, folder.parent)
    with reading(uri) as client:
        experiment_id, methods = read_methods(
            client, config.tracking.experiment, config.methods, config.measured_on
        )
        groups = dict.fromkeys(s.group for m in methods for s in m.sets.values())
        view = share_view(client, experiment_id, groups, config.measured_on)
    tables, charts = build_tables(methods), build_charts(methods)
    with tempfile.TemporaryDirectory() as scratch:
        written = write_report("Comparison of methods", tables, charts, Path(scratch), "compare")
        for file in filter(Path.is_file, Path(scratch).rglob("*")):
            put(file, folder / str(file.relative_to(scratch)))
    console = Console(stderr=True)  # standard output is left to the closing line of JSON
    console.print(*tables, sep="\n")
    # What was measured stands once, at the end.
    for line in dict.fromkeys(line for table in tables for line in table.note.split("; ")):
        console.print(Text(line))
    tags = {"job": "compare", "method": "compare", "seed": "0"}
    with Tracker.resume(config.tracking, None, "compare", tags, folder.parent) as tracker:
        tracker.log_artifact(folder, "compare")
    server = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return {
        "methods": [m.name for m in methods],
        **{kind: str(folder / path.name) for kind, path in written.items()},
        "mlflow_view": server + view,
        "mlflow_run_id": tracker.run_id,
        "seconds": round(time.perf_counter() - started, 1),
    }
