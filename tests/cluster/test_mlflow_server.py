"""The start of MLflow's server: where its secrets come from, and what is refused."""

import importlib.util
import os
import stat

import pytest
from mlflow.server.auth.config import read_auth_config

from tests.cluster.manifests import CLUSTER

PATH = CLUSTER / "mlflow" / "server.py"
SPEC = importlib.util.spec_from_file_location("mlflow_server", PATH)
server = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(server)


def test_a_password_comes_from_the_environment_or_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_DATABASE", "db:5432/mlflow")
    (tmp_path / "password").write_text("a b/c%d@e\n")
    monkeypatch.setenv("MLFLOW_DATABASE_PASSWORD_FILE", str(tmp_path / "password"))
    expected = "postgresql+psycopg2://mlflow:a%20b%2Fc%25d%40e@db:5432/mlflow"
    assert server.database_uri() == expected
    monkeypatch.setenv("MLFLOW_DATABASE_PASSWORD", "other")
    assert ":other@" in server.database_uri()


def test_what_is_missing_is_named(monkeypatch, capsys, tmp_path):
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    for arguments, words in (([], "MLFLOW_DATABASE_PASSWORD is missing"), (["start"], "upgrade")):
        with pytest.raises(SystemExit) as end:
            server.main(arguments)
        assert end.value.code == 2
        assert words in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_DATABASE_PASSWORD_FILE", str(tmp_path / "none"))
    with pytest.raises(SystemExit):
        server.main([])
    assert "cannot be read" in capsys.readouterr().err


def test_mlflow_reads_the_users_place_and_nobody_else(monkeypatch, tmp_path):
    uri = "postgresql+psycopg2://mlflow:a%20b@db:5432/mlflow"
    path = server.write_auth_config(tmp_path, uri)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(path))
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "x")
    config = read_auth_config()
    assert config.database_uri == uri
    assert config.default_permission == "EDIT"
    assert config.authorization_function.endswith("authenticate_request_basic_auth")


def test_artifacts_are_the_servers_users_own(monkeypatch, tmp_path):
    monkeypatch.setattr(server.os, "environ", dict(os.environ))
    for name in ("DATABASE_PASSWORD", "AUTH_ADMIN_PASSWORD", "FLASK_SERVER_SECRET_KEY"):
        os.environ[f"MLFLOW_{name}"] = "x"
    os.environ |= {"MLFLOW_DATABASE": "db:5432/mlflow", "MLFLOW_ARTIFACTS": str(tmp_path)}
    monkeypatch.setattr(server.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    seen = []
    before = os.umask(0o022)
    try:
        monkeypatch.setattr(server.os, "execv", lambda *_: seen.append(os.umask(0)))
        server.main([])
    finally:
        os.umask(before)
    assert seen == [0o077]
