"""Where runs are kept when nobody says where, and what a copy of it is good for."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from sce.workflows import mlflow_store
from sce.workflows.mlflow_store import connect, local_store, main
from sce.workflows.tracking import Tracker, TrackingConfig


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in [n for n in os.environ if n.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def test_the_store_is_the_checkouts_or_lies_in_the_users_data(monkeypatch, tmp_path):
    for name in ("checkout", "installed"):
        (tmp_path / name / "sce" / "workflows").mkdir(parents=True)
    (tmp_path / "checkout" / "Makefile").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    found = []
    for name in ("checkout", "installed", "installed"):
        file = tmp_path / name / "sce" / "workflows" / "mlflow_store.py"
        monkeypatch.setattr(mlflow_store, "__file__", str(file))
        found.append(local_store().relative_to(tmp_path))
        if len(found) == 2:
            monkeypatch.setenv("XDG_DATA_HOME", "relative, which counts for nothing")
    assert list(map(str, found)) == [
        "checkout/runs/mlflow.db", "data/sce/mlflow.db", "me/.local/share/sce/mlflow.db",
    ]  # fmt: skip


def test_a_copied_folder_is_whole_and_the_one_it_was_copied_from_too(monkeypatch, tmp_path, capsys):
    first, copy = tmp_path / "a folder", tmp_path / "elsewhere" / "copy"
    config = TrackingConfig(uri=f"sqlite:///{first}/mlflow.db", system_metrics=False)
    with Tracker.open(config, "bulk", None, "x") as tracker:
        tracker.log_text("hello", "note.txt")
        model = tracker.send("log a model", lambda client, run_id: client.create_logged_model(
            str(tracker.experiment_id), source_run_id=run_id
        ))  # fmt: skip
        elsewhere = "s3://bucket/mlflow_artifacts/deeper"
        tracker.send("use MLflow by hand", lambda client, _: client.create_experiment(
            "mine", elsewhere
        ))  # fmt: skip
    shutil.copytree(first, copy)
    monkeypatch.setattr(mlflow_store, "local_store", lambda: copy / "mlflow.db")
    started = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: started.extend(arguments))
    main("5001")  # what `make mlflow` calls
    assert f"sqlite:///{copy}/mlflow.db" in started
    assert started[-2:] == ["--port", "5001"]
    page = f"http://127.0.0.1:5001/#/experiments/{tracker.experiment_id}/runs?workflowType="
    assert f"sce-bulk        {page}machine_learning" in capsys.readouterr().out
    for folder in (copy, first):
        client = connect(f"sqlite:///{folder}/mlflow.db")
        (folder / "mlflow_artifacts" / tracker.run_id / "artifacts" / "note.txt").write_text(
            f"of {folder}"
        )
        found = client.download_artifacts(tracker.run_id, "note.txt")
        assert Path(found).read_text() == f"of {folder}"
        here = (folder / "mlflow_artifacts").as_uri()
        assert client.get_experiment_by_name("sce-bulk").artifact_location == here
        assert client.get_experiment_by_name("mine").artifact_location == elsewhere
        assert client.get_logged_model(model.model_id).artifact_location.startswith(f"{here}/")


def test_a_store_that_no_job_has_made_is_not_made_by_looking(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(mlflow_store, "local_store", lambda: tmp_path / "runs" / "mlflow.db")
    assert main() == 1
    assert "make quickstart" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


WRITER = """
import sys
from sce.workflows.tracking import Tracker, TrackingConfig

config = TrackingConfig(uri=sys.argv[1], system_metrics=False)
with Tracker.open(config, "bulk", None, sys.argv[2]) as tracker:
    for step in range(100):
        tracker.log_metrics({f"m{i}": step for i in range(20)}, step)
"""


@pytest.mark.system
def test_jobs_that_write_at_once_from_the_first_on_lose_nothing(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, uri, str(i)], stderr=subprocess.PIPE, text=True
        )
        for i in range(4)
    ]
    assert [job.communicate()[1] for job in jobs] == [""] * 4
    client = connect(uri)
    experiment = client.get_experiment_by_name("sce-bulk")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    for run in runs:
        assert len(client.get_metric_history(run.info.run_id, "m7")) == 100
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
