"""MLflow's server on PostgreSQL, behind user names and passwords, artifacts through the server.

    python cluster/mlflow/server.py
    python cluster/mlflow/server.py upgrade    # the database, after an upgrade of MLflow

Settings are environment variables. A password may be given as NAME itself or as NAME_FILE, a file.

    MLFLOW_DATABASE                host:port/name of PostgreSQL (runs and users)
    MLFLOW_DATABASE_USER           default: mlflow
    MLFLOW_DATABASE_PASSWORD       or ..._FILE
    MLFLOW_AUTH_ADMIN_USERNAME     default: admin
    MLFLOW_AUTH_ADMIN_PASSWORD     or ..._FILE; the admin's at the first start
    MLFLOW_FLASK_SERVER_SECRET_KEY or ..._FILE; signs the forms of the user pages
    MLFLOW_ARTIFACTS               folder or URI (s3://..., gs://...) of the artifacts
    MLFLOW_HOST, MLFLOW_PORT       default: 127.0.0.1, 5000
    MLFLOW_ALLOWED_HOSTS           names that it is called by, beside those MLflow allows itself
                                   (localhost and private addresses), by commas

Exit code 2: a setting is missing; else MLflow's own.
"""

from __future__ import annotations

import configparser
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

# What MLflow allows by itself: naming one host more replaces them.
PRIVATE_HOSTS = ["localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*", "10.*", "192.168.*"]
PRIVATE_HOSTS += [f"172.{block}.*" for block in range(16, 32)]


def setting(name: str, default: str | None = None) -> str:
    """A setting of the environment, or of the file that NAME_FILE names.

    Raises:
        SystemExit: it is missing, or its file cannot be read.
    """
    value, file = os.environ.get(name), os.environ.get(f"{name}_FILE")
    if not value and file:
        try:
            value = Path(file).read_text(encoding="utf-8").strip()
        except OSError as error:
            _refuse(f"{name}_FILE: cannot be read: {error}")
    if not value:
        value = default
    if not value:
        _refuse(f"{name} is missing (or {name}_FILE, a file that holds it).")
    return value  # type: ignore[return-value]


def _refuse(message: str) -> None:
    print(f"server.py: {message}", file=sys.stderr)
    raise SystemExit(2)


def database_uri() -> str:
    user, password = setting("MLFLOW_DATABASE_USER", "mlflow"), setting("MLFLOW_DATABASE_PASSWORD")
    place = setting("MLFLOW_DATABASE")
    return f"postgresql+psycopg2://{quote(user, safe='')}:{quote(password, safe='')}@{place}"


def write_auth_config(folder: Path, uri: str) -> Path:
    """MLflow reads the place of its users from a file alone; this one is readable by us alone."""
    config = configparser.ConfigParser(interpolation=None)
    config["mlflow"] = {
        # Who has a name may write to every experiment: jobs of several people share them.
        "default_permission": "EDIT",
        "database_uri": uri.replace("%", "%%"),  # MLflow's parser interpolates
    }
    path = folder / "basic_auth.ini"
    with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        config.write(file)
    return path


def main(arguments: Sequence[str]) -> None:
    if arguments not in ([], ["upgrade"]):
        _refuse(f"{' '.join(arguments)!r}: there is `upgrade`, and nothing to start the server.")
    uri = database_uri()
    os.umask(0o077)  # artifacts are read through the server
    if arguments:
        from mlflow.db import commands

        commands.main(["upgrade", uri])  # ends the process
    folder = Path(tempfile.mkdtemp(prefix="mlflow-"))
    os.environ |= {
        "MLFLOW_BACKEND_STORE_URI": uri,  # not on the command line, which `ps` shows
        "MLFLOW_AUTH_CONFIG_PATH": str(write_auth_config(folder, uri)),
        "MLFLOW_AUTH_ADMIN_USERNAME": setting("MLFLOW_AUTH_ADMIN_USERNAME", "admin"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": setting("MLFLOW_AUTH_ADMIN_PASSWORD"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": setting("MLFLOW_FLASK_SERVER_SECRET_KEY"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
    command += ["--workers", "2"]
    command += ["--host", setting("MLFLOW_HOST", "127.0.0.1")]
    command += ["--port", setting("MLFLOW_PORT", "5000")]
    command += ["--serve-artifacts", "--artifacts-destination", setting("MLFLOW_ARTIFACTS")]
    names = os.environ.get("MLFLOW_ALLOWED_HOSTS", "")
    if names:
        command += ["--allowed-hosts", ",".join([*PRIVATE_HOSTS, names])]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main(sys.argv[1:])
