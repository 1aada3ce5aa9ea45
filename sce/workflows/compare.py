"""The comparison of everything that was measured, read from MLflow: `jobs/compare.py`."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.text import Text

from sce.config import resolve_output
from sce.errors import InputError, without_secrets
from sce.evaluation.comparison import brief_tables, build_tables
from sce.evaluation.pages import write_report
from sce.evaluation.plots import build_charts
from sce.evaluation.runs import MethodRuns, Run, groups_of
from sce.evaluation.summaries import adapted_methods
from sce.storage import Place, put, relative
from sce.workflows.evaluate import METHODS_FILE, PREDICTIONS_FILE, RESULTS_FILE
from sce.workflows.experiment import CompareConfig
from sce.workflows.mlflow_store import reading
from sce.workflows.mlflow_view import share_view
from sce.workflows.tracking import Tracker, experiment_of, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

STEM = "compare"
PAGE = f"{STEM}.html"
"""Of the report's files: what their names begin with, and the one to look at."""


def compare(config: CompareConfig) -> dict[str, Any]:
    """Read the runs, print what was measured, write the report and log it.

    Raises:
        InputError: as `read_methods`; MLflow's store cannot be read.
    """
    started = time.perf_counter()
    folder = unused(resolve_output(config.output))
    uri = tracking_uri(config.tracking)
    with reading(uri) as client:
        experiment_id, methods = read_methods(client, config)
        groups, shown = groups_of(methods), search_filter(config.measured_on)
        view = share_view(client, experiment_id, groups, shown)
    tables, charts = build_tables(methods), build_charts(methods)
    with tempfile.TemporaryDirectory() as scratch:
        written = write_report("Comparison of methods", tables, charts, Path(scratch), STEM)
        for file in filter(Path.is_file, Path(scratch).rglob("*")):
            put(file, folder / str(file.relative_to(scratch)))
    console = Console(stderr=True)  # standard output is left to the closing line of JSON
    console.print(*brief_tables(methods), sep="\n")
    said = f"Charts, the paper's tables, what each method is: {relative(folder / PAGE)}"
    console.print(Text(said), soft_wrap=True)
    tags = {"job": "compare", "method": "compare", "seed": "0"}
    with Tracker.open(config.tracking, "evaluation", None, "compare", tags) as tracker:
        tracker.log_artifact(folder, "compare")
    server = without_secrets(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return {
        "methods": [m.name for m in methods],
        **{kind: str(folder / path.name) for kind, path in written.items()},
        "mlflow_view": server + view,
        "mlflow_run_id": tracker.run_id,
        "seconds": round(time.perf_counter() - started, 1),
    }


def unused(folder: Place) -> Place:
    """The folder, or where an earlier comparison lies in it the next one that has none: FOLDER-2,
    FOLDER-3, ..."""
    found, number = folder, 1
    while (found / PAGE).exists():
        number += 1
        found = folder.parent / f"{folder.name}-{number}"
    return found


def search_filter(measured_on: str) -> str:
    """MLflow's search for runs that can be compared, as its search box takes it too."""
    quoted = measured_on.replace("\\", "\\\\").replace("'", "\\'")
    return f"tags.measured = '{quoted}' and attributes.status = 'FINISHED'"


def read_methods(client: MlflowClient, config: CompareConfig) -> tuple[str, list[MethodRuns]]:
    """The experiment's id, and of each method and seed the latest measured run.

    Raises:
        InputError: no such experiment, no measured run, or a name that none has.
    """
    experiment = config.tracking.experiment or experiment_of("evaluation")
    measured_on = config.measured_on
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise InputError(f"tracking.experiment: MLflow has no experiment {experiment!r}.")
    runs: dict[tuple[str, str], Any] = {}
    where, order, token = search_filter(measured_on), ["attributes.start_time DESC"], None
    while True:
        page = client.search_runs([found.experiment_id], where, order_by=order, page_token=token)
        for run in page:
            runs.setdefault((run.data.tags["method"], run.data.tags["seed"]), run)
        if not (token := page.token):
            break
    known = list(dict.fromkeys(name for name, _ in reversed(runs)))
    if not known:
        raise InputError(
            f"tracking.experiment: {experiment!r} has no run measured on {measured_on!r}. "
            "jobs/train_sce.py, jobs/train_llama.py and jobs/evaluate.py make some."
        )
    if unknown := [name for name in config.methods if name not in known]:
        raise InputError(
            f"methods: no measured run is named {unknown[0]!r}. There are: {', '.join(known)}."
        )
    methods = []
    for name in config.methods or known:
        of_name = [run for (method, _), run in runs.items() if method == name]
        measured = [_read(client, run.info.run_id) for run in of_name]
        for key in dict.fromkeys(key for run in measured for key in run):
            methods.append(MethodRuns([run[key] for run in measured if key in run]))
    return found.experiment_id, methods


def _read(client: MlflowClient, run_id: str) -> dict[str, Run]:
    """What a run measured: its method as "", and labels adapted by its vectors by their keys."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(client.download_artifacts(run_id, "results", folder))
        described = json.loads((path / METHODS_FILE).read_text(encoding="utf-8"))
        results = json.loads((path / RESULTS_FILE).read_text(encoding="utf-8"))
        predictions = pq.read_table(path / PREDICTIONS_FILE)
    found = {"": (results[0]["method"], results)}
    for key in dict.fromkeys(key for result in results for key in adapted_methods(result)):
        found[key] = (key, [result | {"method": key} for result in results if key in result])
    return {
        name: Run(
            described[key] | {"name": f"{described[key]['name']} {name}".strip()},
            of_key,
            predictions.filter(pc.equal(predictions["method"], key)),
        )
        for name, (key, of_key) in found.items()
    }
