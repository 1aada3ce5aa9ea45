"""Real MLflow on SQLite in a temporary folder, real dead servers, no stand-ins."""

import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from sce.errors import ConfigError, DataError
from sce.workflows.mlflow_data import DataUsed
from sce.workflows.tracking import (
    Tracker,
    TrackingConfig,
    flatten,
    git_tags,
    metric_name,
    tracking_uri,
)

LABELS = DataUsed("mine", "/data/mine.jsonl", "0123abcd", "evaluation", {"rows": 3})


def quiet(folder):
    """Recorded in a store in this folder."""
    return TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", system_metrics=False)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Folder of one migrated SQLite store for the whole file."""
    return tmp_path_factory.mktemp("store")


def client_of(tracker):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracker.uri)


def artifacts(tracker, folder=None):
    return sorted(item.path for item in client_of(tracker).list_artifacts(tracker.run_id, folder))


def test_a_run_is_found_again_with_all_that_was_logged(store, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("hello")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")
    config = {"train": {"epochs": 3, "rates": [1e-5, 1e-6]}, "long": "x" * 9000, "none": None}
    config |= {"empty": [], "nothing": {}}
    config["many"] = {f"k{i}": i for i in range(230)}
    with Tracker.open(quiet(store), "bulk", None, "first", {"recipe": "tiny"}) as tracker:
        tracker.log_params(config)
        tracker.log_params({"train_rows": 12})
        tracker.log_metrics({"train/loss": 0.5, "validation/accuracy": None}, step=1)
        tracker.log_metrics({"train/loss": 0.25, "test/é+ü (a)/accuracy": 1}, step=2)
        tracker.log_artifact(note, "notes")
        tracker.log_artifact(tmp_path / "folder", "copied")
        tracker.log_figure(Figure(), "plots/empty.png")
        tracker.log_text("text", "text.txt")
        tracker.log_dict({"a": float("nan")}, "some.json")
        tracker.set_tags({"done": True})

    (run,) = client_of(tracker).search_runs(
        [tracker.experiment_id], "attributes.run_name = 'first'"
    )
    assert run.info.run_id == tracker.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "3"
    assert run.data.params["train.rates"] == "[1e-05, 1e-06]"
    assert len(run.data.params["long"]) == 6000
    assert not {"none", "empty", "nothing"} & run.data.params.keys(), "they say nothing"
    assert sum(key.startswith("many.") for key in run.data.params) == 230
    assert run.data.metrics == {"train/loss": 0.25, "test/é_ü _a_/accuracy": 1.0}
    history = client_of(tracker).get_metric_history(tracker.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.25)]
    assert run.data.tags["recipe"] == "tiny"
    assert run.data.tags["done"] == "True"
    assert artifacts(tracker) == [
        "config.yaml", "copied", "notes", "plots", "some.json", "text.txt",
    ]  # fmt: skip
    assert artifacts(tracker, "copied") == ["copied/a.txt"]
    kept = client_of(tracker).download_artifacts(tracker.run_id, "config.yaml", str(tmp_path))
    with open(kept, encoding="utf-8") as file:
        assert yaml.safe_load(file) == {**config, "train_rows": 12}
    assert f"mlflow ui --backend-store-uri sqlite:///{store}/mlflow.db" == tracker.hint
    assert {path.name for path in store.iterdir()} == {"mlflow.db", "mlflow_artifacts"}
    assert os.listdir(".") == []


def test_a_pickled_handle_logs_from_another_process(store):
    tracker = Tracker.open(quiet(store), "bulk", None, "handle")
    code = (
        "import pickle, sys; t = pickle.loads(sys.stdin.buffer.read()); "
        "t.log_metrics({'train/loss': 7.0}, step=3)"
    )
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(tracker), check=True)
    run = client_of(tracker).get_run(tracker.run_id)
    assert run.data.metrics == {"train/loss": 7.0}
    assert run.info.status == "RUNNING"
    tracker.finish()
    assert client_of(tracker).get_run(tracker.run_id).info.status == "FINISHED"


def test_a_retry_goes_on_in_the_same_run(store, caplog):
    first = Tracker.open(quiet(store), "bulk", None, "retried")
    first.log_params({"epochs": 3, "seed": 1})
    first.finish("FAILED")
    again = Tracker.open(quiet(store), "bulk", first.run_id)
    assert (again.run_id, again.experiment_id) == (first.run_id, first.experiment_id)
    assert client_of(again).get_run(again.run_id).info.status == "RUNNING"
    again.log_params({"epochs": 5, "seed": 1, "new": 2})
    again.log_metrics({"train/loss": 1.0}, step=9)
    assert "params changed on resume: epochs" in caplog.text
    again.finish()
    run = client_of(again).get_run(again.run_id)
    assert run.data.params == {"epochs": "3", "seed": "1", "new": "2"}
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize(("address", "warned"), [("10.0.0.1:6379", True), ("auto", False)])
def test_a_job_on_a_cluster_is_told_that_its_run_is_recorded_here_alone(
    store, monkeypatch, caplog, address, warned
):
    monkeypatch.setenv("RAY_ADDRESS", address)
    Tracker.open(quiet(store), "bulk", None, "on a cluster").finish()
    assert ("on this machine alone" in caplog.text) == warned


def test_a_run_that_is_gone_is_replaced(store, caplog):
    tracker = Tracker.open(quiet(store), "bulk", "0" * 32, "replaced")
    assert tracker.run_id not in (None, "0" * 32)
    assert "no run 000" in caplog.text
    tracker.finish()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("boom"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(1), "FAILED"),
        (SystemExit(0), "FINISHED"),
    ],
)
def test_the_way_out_is_the_status(store, error, status):
    with (
        pytest.raises(type(error)),
        Tracker.open(quiet(store), "bulk", None, "exits") as tracker,
    ):
        raise error
    assert client_of(tracker).get_run(tracker.run_id).info.status == status


@pytest.mark.parametrize("measured", [False, True])
def test_wrong_input_takes_a_run_back_that_has_come_to_nothing(store, measured):
    tracker = Tracker.open(quiet(store), "bulk", None, "wrong")
    run_id = tracker.run_id
    if measured:
        tracker.log_metrics({"train/loss": 1.0})
    with pytest.raises(DataError), tracker:
        raise DataError("row 3 has no text")
    run = client_of(tracker).get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.info.lifecycle_stage == ("active" if measured else "deleted")


def test_datasets_are_inputs_and_a_models_figures_say_what_they_were_measured_on(store):
    with Tracker.open(quiet(store), "evaluation", None, "data") as tracker:
        model = tracker.send("log a model", lambda client, run_id: client.create_logged_model(
            str(tracker.experiment_id), source_run_id=run_id
        ))  # fmt: skip
        tracker.log_inputs([LABELS], model.model_id)
        figures = {"accuracy/own": 0.5}
        tracker.log_metrics(
            figures, model_id=model.model_id, datasets=dict.fromkeys(figures, LABELS)
        )
    run = client_of(tracker).get_run(tracker.run_id)
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("mine", "0123abcd")
    assert json.loads(used.dataset.source) == {"uri": "/data/mine.jsonl"}
    assert json.loads(used.dataset.profile) == {"rows": 3}
    assert [one.model_id for one in run.inputs.model_inputs] == [model.model_id]
    (figure,) = client_of(tracker).get_logged_model(model.model_id).metrics
    assert (figure.key, figure.value) == ("accuracy/own", 0.5)
    assert (figure.dataset_name, figure.dataset_digest) == ("mine", "0123abcd")
    experiment = client_of(tracker).get_experiment(tracker.experiment_id)
    assert experiment.name == "sce-evaluation"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_system_metrics_are_recorded_by_run_id(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    watched = TrackingConfig(uri=quiet(store).uri)
    with Tracker.open(watched, "bulk", None, "watched") as tracker:
        deadline = time.monotonic() + 15
        found: dict = {}
        while not found and time.monotonic() < deadline:
            time.sleep(0.2)
            found = client_of(tracker).get_run(tracker.run_id).data.metrics
    assert "system/cpu_utilization_percentage" in found
    assert "system/system_memory_usage_percentage" in found


def test_disabled_tracker_has_the_same_shape_and_leaves_nothing(tmp_path):
    off = TrackingConfig(enabled=False, uri=quiet(tmp_path / "d").uri)
    with Tracker.open(off, "bulk", None, "x") as tracker:
        tracker.log_params({"a": 1})
        tracker.log_metrics({"a": 1.0}, step=1)
        tracker.log_figure(Figure(), "a.png")
        tracker.set_tags({"a": "b"})
    assert (tracker.run_id, tracker.hint) == (None, "")
    assert not (tmp_path / "d").exists()


def closed_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_dead_server_costs_seconds_and_one_warning(scheme, caplog):
    config = TrackingConfig(uri=f"{scheme}://me:secret@127.0.0.1:{closed_port()}/db")
    begin = time.monotonic()
    with Tracker.open(config, "bulk", None, "dead") as tracker:
        for step in range(100):
            tracker.log_metrics({"train/loss": 1.0}, step=step)
    assert time.monotonic() - begin < 15
    assert tracker.run_id is None
    warnings = [r.getMessage() for r in caplog.records if r.name == "sce.workflows.tracking"]
    assert len(warnings) == 1
    assert "could not start a run" in warnings[0]
    assert "secret" not in warnings[0]


def test_a_server_that_dies_on_the_way_is_left_alone(caplog):
    config = TrackingConfig(uri=f"http://127.0.0.1:{closed_port()}", system_metrics=False)
    tracker = Tracker.open(config, "bulk", "a" * 32)
    begin = time.monotonic()
    for step in range(1000):
        tracker.log_metrics({"train/loss": 1.0}, step=step)
    assert time.monotonic() - begin < 1
    assert tracker.run_id == "a" * 32
    assert [r.name for r in caplog.records].count("sce.workflows.tracking") == 1


def test_a_store_that_cannot_be_written_stops_nothing(caplog, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"not a database" * 100)
    for uri in (f"sqlite:///{tmp_path}/file/mlflow.db", f"sqlite:///{broken}"):
        begin = time.monotonic()
        with Tracker.open(TrackingConfig(uri=uri), "bulk", None, "x") as tracker:
            tracker.log_metrics({"a": 1.0})
        assert tracker.run_id is None
        assert time.monotonic() - begin < 5
    assert [r.name for r in caplog.records].count("sce.workflows.tracking") == 2


def test_a_handle_on_a_machine_without_the_file_makes_no_empty_store(caplog, tmp_path):
    elsewhere = tmp_path / "other" / "mlflow.db"
    Tracker(f"sqlite:///{elsewhere}", "1", "a" * 32).log_metrics({"a": 1.0})
    assert "not on this machine" in caplog.text
    assert not elsewhere.parent.exists()


def test_a_bad_value_is_refused_alone(store, caplog):
    tracker = Tracker.open(quiet(store), "bulk", None, "values")
    tracker.log_metrics({"a": "not a number"})
    tracker.log_artifact("no/such/file.txt")
    tracker.log_metrics({"b": 2.0})
    tracker.finish()
    assert client_of(tracker).get_run(tracker.run_id).data.metrics == {"b": 2.0}
    assert [r.name for r in caplog.records].count("sce.workflows.tracking") == 2


@pytest.mark.parametrize(
    "uri", ["file:///runs", "mlruns", "/data/mlruns", "ftp://x/y", "sqlite://"]
)
def test_a_uri_that_cannot_work_is_a_config_error(uri, monkeypatch):
    with pytest.raises(ConfigError, match=r"tracking\.uri.*(sqlite)"):
        Tracker.open(TrackingConfig(uri=uri), "bulk")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        Tracker.open(TrackingConfig(), "bulk")


def test_configuration_wins_over_environment_over_default(monkeypatch, tmp_path, own_store):
    assert tracking_uri(TrackingConfig()) == f"sqlite:///{own_store}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env:5000")
    assert tracking_uri(TrackingConfig()) == "http://env:5000"
    assert tracking_uri(TrackingConfig(uri="sqlite:///m.db")) == f"sqlite:///{tmp_path}/cwd/m.db"


@given(st.text(max_size=300))
def test_every_name_becomes_one_that_mlflow_takes(name):
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(metric_name(name))
    assert len(metric_name(name)) <= 250


def test_good_names_stay_as_they_are():
    for name in ("train/loss", "test/AG News: a.b/cosine_accuracy", "epoch_seconds"):
        assert metric_name(name) == name
    assert metric_name("/a//../b+c/") == "a/b_c"
    assert dict(flatten({"a": {"b": 1, "c": {}}, "d": [1]})) == {
        "a.b": 1,
        "a.c": {},
        "d": [1],
    }


def test_git_revision_of_the_checkout():
    here = os.path.dirname(os.path.abspath(__file__))
    head = subprocess.run(
        ["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if head.returncode:
        pytest.skip("not a git checkout")
    assert git_tags()["mlflow.source.git.commit"] == head.stdout.strip()


def test_import_is_light_and_first_use_is_quiet(tmp_path):
    code = (
        "import sys, logging; logging.basicConfig(level=logging.INFO)\n"
        "import sce.workflows.tracking as t\n"
        "assert 'mlflow' not in sys.modules\n"
        "config = t.TrackingConfig(uri=f'sqlite:///{sys.argv[1]}/mlflow.db')\n"
        "t.Tracker.open(config, 'bulk', None, 'x').finish()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert (tmp_path / "mlflow.db").exists()
    assert done.stdout + done.stderr == ""
    assert logging.getLogger("sce.workflows.tracking").disabled is False
