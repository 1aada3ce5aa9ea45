"""What a job writes, prints and records has none of the passwords in its settings."""

import logging
import os
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from sce.client.connection import _why
from sce.config import JobConfig
from sce.errors import ConfigError
from sce.workflows import mlflow_store
from sce.workflows.bulk_settings import ClassifyConfig
from sce.workflows.cli import run_job
from sce.workflows.compare import compare
from sce.workflows.experiment import CompareConfig
from sce.workflows.tracking import Tracker, TrackingConfig, tracking_uri

PW = "hunter2-of-this-test"
DOWN = f"postgresql://me:{PW}@127.0.0.1:1/db?sslpassword={PW}"
"""Nobody listens at port 1."""


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith(("MLFLOW_", "SCE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(mlflow_store, "local_store", lambda: tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)


def run(*args) -> int:
    """`run_job` as in a process that has set up no log yet."""
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    try:
        return run_job(*args)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    finally:
        root.handlers = before


def written(folder: Path) -> bytes:
    """All that lies below, the names too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return b"".join(str(path).encode() + path.read_bytes() for path in files)


def record(config: ClassifyConfig) -> dict:
    """What the jobs do with their settings."""
    tags = {"from": f"https://me:{PW}@git/x"}
    with Tracker.open(config.tracking, "bulk", None, f"x https://me:{PW}@h", tags) as tracker:
        tracker.log_params(config.model_dump(mode="json"))
        tracker.log_text(f"see https://h/?token={PW}", "note.md")
        tracker.log_dict({"uri": DOWN}, "x.json")
        tracker.set_tags({"again": f"https://me:{PW}@h"})
        logging.getLogger("some.library").warning("connecting to %s", DOWN)
        try:
            raise RuntimeError(DOWN)
        except RuntimeError:
            logging.getLogger("some.library").exception("failed")
    return {"run": tracker.run_id, "at": DOWN, "hint": tracker.hint}


def test_what_is_recorded_logged_and_printed_has_no_passwords(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SCE_ENDPOINT_TOKEN", PW)
    (tmp_path / "config").mkdir()
    given = tmp_path / "config" / "x.yaml"
    given.write_text(
        f"endpoint: 'https://me:{PW}@host/?sig={PW}'\n"
        f"tracking: {{run_name: 'https://me:{PW}@h', system_metrics: false}}\n"
        f"labels: ['https://me:{PW}@h']\n"
    )
    assert run(ClassifyConfig, record, "", ["--config", str(given)]) == 0
    said = capsys.readouterr()
    assert "connecting to postgresql://me:***@127.0.0.1:1" in said.err
    given.unlink()
    assert (tmp_path / "mlflow.db").exists()
    assert PW.encode() not in written(tmp_path)
    assert PW not in said.out + said.err
    (found,) = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["1"])
    assert found.data.params["endpoint"] == "https://me:***@host/?sig=***"
    assert found.data.params["endpoint_token"] == "**********"
    assert found.data.tags["from"] == "https://me:***@git/x"


def test_a_store_that_is_down_is_named_without_its_password_and_asked_with_it(
    tmp_path, capsys, monkeypatch
):
    asked, real = [], mlflow_store.connect

    def connect(uri, create=False):
        asked.append(uri)
        return real(uri, create)

    monkeypatch.setattr(mlflow_store, "connect", connect)
    assert run(ClassifyConfig, record, "", ["--tracking.uri", DOWN]) == 0
    assert set(asked) == {DOWN}
    assert run(CompareConfig, compare, "", ["--tracking.uri", DOWN]) == 2
    said = capsys.readouterr()
    assert "tracking.uri: postgresql://me:***@127.0.0.1:1" in said.err
    assert PW not in said.out + said.err
    assert PW.encode() not in written(tmp_path)
    assert PW not in repr(Tracker(DOWN))


@pytest.mark.parametrize(
    "argv",
    [
        ["--tracking.uri", f"file://me:{PW}@host/x"],
        ["--tracking.uri", f"postgresql://me:a/{PW}@host/x"],
        ["--tracking.uri", f"ftp://me:{PW}@host/x"],
        ["--tracking", f"postgresql://{'x' * 90}:{PW}@host/x"],
        ["--top-k", f"https://{'x' * 80}:{PW}@host/{'y' * 80}"],
        ["--trcking.uri", f"postgresql://me:{PW}@host/x"],
        ["--endpoint-tokn", PW],
        [f"--endpoint-tokn={PW}"],
        ["--labels-file", f"https://me:{PW}@host/x"],
        ["--config", f"https://me:{PW}@host/x.yaml"],
    ],
)
def test_a_wrong_setting_is_refused_without_its_password(capsys, argv):
    assert run(ClassifyConfig, record, "", argv) == 2
    said = capsys.readouterr()
    assert argv[0].partition("=")[0].lstrip("-") in said.err.replace("_", "-")
    assert PW[:5] not in said.out + said.err


def test_a_secret_setting_of_a_wrong_kind_is_not_quoted(tmp_path, capsys, monkeypatch):
    from serve.settings import ServeConfig

    (tmp_path / "x.yaml").write_text("endpoint_token: 481516\ntracking: [1]\n")
    assert run(ClassifyConfig, record, "", ["--config", "x.yaml"]) == 2
    said = capsys.readouterr().err
    assert "endpoint_token: Input should be a valid string\n" in said
    assert "481516" not in said
    monkeypatch.setenv("SCE_TOKENS", PW)
    (tmp_path / "y.yaml").write_text("tokens: [hunter2]\nlimits: {max_texts: 0}\n")
    monkeypatch.delenv("SCE_TOKENS")
    assert run(ServeConfig, lambda config: {}, "", ["--config", "y.yaml"]) == 2
    said = capsys.readouterr().err
    assert "limits.max_texts" in said
    assert "hunter2" not in said


def test_an_error_of_the_network_hides_the_password_that_it_quotes():
    reason = f"cannot connect to proxy http://me:{PW}@proxy:3128, {'x' * 300}"
    said = _why(requests.exceptions.ProxyError(reason))
    assert "http://me:***@proxy:3128" in said
    assert PW[:5] not in said


def test_an_unforeseen_error_has_no_password_in_its_traceback(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["job"])

    def job(config: JobConfig) -> dict:
        raise ValueError(f"no connection to {DOWN}")

    assert run(JobConfig, job, "") == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "ValueError: no connection to postgresql://me:***@127.0.0.1:1" in said
    assert PW not in said


def test_a_uri_that_was_written_down_without_its_password_is_not_taken_for_whole(monkeypatch):
    for uri in ("postgresql://me:***@host/db", "postgresql://host/db?password=***"):
        with pytest.raises(ConfigError, match="a password that was not written down"):
            tracking_uri(TrackingConfig(uri=uri))
    with pytest.raises(ConfigError, match="In a password @ is written as %40"):
        tracking_uri(TrackingConfig(uri="postgresql://me:a/b@host/db"))
