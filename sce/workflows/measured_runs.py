"""Reads measured runs from MLflow."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from sce.errors import InputError
from sce.evaluation.runs import MethodRuns, Run
from sce.workflows.evaluate import METHODS_FILE, PREDICTIONS_FILE, RESULTS_FILE

if TYPE_CHECKING:
    from mlflow import MlflowClient


def search_filter(measured_on: str) -> str:
    """Of runs that can be compared; the same in MLflow's search box."""
    quoted = measured_on.replace("\\", "\\\\").replace("'", "\\'")
    return f"tags.measured = '{quoted}' and attributes.status = 'FINISHED'"


def read_methods(
    client: MlflowClient, experiment: str, names: Sequence[str], measured_on: str = "test"
) -> tuple[str, list[MethodRuns]]:
    """The experiment's id, and of each method and seed the latest measured run.

    Args:
        experiment: of MLflow.
        measured_on: "test" for the test sets, or the file of the user's own rows (its stem).
        names: of methods (the experiments' `name`), in the order of the report; none means all.

    Raises:
        InputError: no such experiment, no measured run, or a name that none has.
    """
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise InputError(f"tracking.experiment: MLflow has no experiment {experiment!r}.")
    runs: dict[tuple[str, str], Any] = {}
    token = None
    while True:
        page = client.search_runs(
            [found.experiment_id],
            search_filter(measured_on),
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        for run in page:
            runs.setdefault((run.data.tags["method"], run.data.tags["seed"]), run)
        token = page.token
        if not token:
            break
    known = list(dict.fromkeys(name for name, _ in reversed(runs)))
    if not known:
        raise InputError(
            f"tracking.experiment: {experiment!r} has no run measured on {measured_on!r}. "
            "jobs/train_sce.py, jobs/train_llama.py and jobs/evaluate.py make some."
        )
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"methods: no measured run is named {unknown[0]!r}. There are: {', '.join(known)}."
        )
    methods = []
    for name in names or known:
        of_name = [run for (method, _), run in runs.items() if method == name]
        methods.append(MethodRuns([_read(client, run.info.run_id) for run in of_name]))
    return found.experiment_id, methods


def _read(client: MlflowClient, run_id: str) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(client.download_artifacts(run_id, "results", folder))
        described = json.loads((path / METHODS_FILE).read_text(encoding="utf-8"))
        results = json.loads((path / RESULTS_FILE).read_text(encoding="utf-8"))
        predictions = pq.read_table(path / PREDICTIONS_FILE)
    main = results[0]["method"]
    mine = predictions.filter(pc.equal(predictions["method"], main))
    return Run(run_id, described[main], results, mine)
