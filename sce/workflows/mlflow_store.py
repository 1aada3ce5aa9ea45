"""The MLflow store that a URI names, reached at once or not at all.

MLflow itself would retry a server that is down for minutes, and start an empty database where the
file is not there.
"""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sce.errors import ConfigError, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE_NAME = "mlflow.db"
ARTIFACTS_NAME = "mlflow_artifacts"
SQLITE = "sqlite:///"
# MLflow's own defaults wait 120 s a request, 7 times over, report usage to its makers, and draw
# progress bars.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_NOISY = ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor")


def connect(uri: str, create: bool = False) -> MlflowClient:
    """A client of the store; with `create` the folder of a SQLite database is made.

    Raises:
        OSError: nothing answers at once; a server may fail later.
    """
    prepare()
    if uri.startswith(SQLITE):
        _check_sqlite(Path(uri.removeprefix(SQLITE)), create)
    elif not uri.startswith("http"):
        parts = urlsplit(uri)
        port = parts.port or _PORTS.get(parts.scheme.split("+")[0])
        if parts.hostname and port:
            socket.create_connection((parts.hostname, port), timeout=5.0).close()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@contextmanager
def reading(uri: str) -> Iterator[MlflowClient]:
    """A client for who reads runs, and cannot do without them.

    Raises:
        ConfigError: the store cannot be reached or read; nothing is made in its place.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield connect(uri)
    except (OSError, MlflowException) as error:
        raise ConfigError(
            f"tracking.uri: {without_secrets(uri)} cannot be read ({cause(error, uri)})."
        ) from None


def experiment_id(client: MlflowClient, name: str, uri: str, default_dir: Path) -> str:
    """Id of the experiment, made if it is missing; local stores keep artifacts beside them."""
    from mlflow.exceptions import MlflowException

    location = None
    if uri.startswith(SQLITE):
        location = (Path(uri.removeprefix(SQLITE)).parent / ARTIFACTS_NAME).as_uri()
    elif not uri.startswith(("http", "databricks")):
        location = (default_dir / ARTIFACTS_NAME).as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:  # another job may just have made it
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def prepare() -> None:
    """Short waits, no usage reports and no migration chatter, unless the user set otherwise."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.WARNING)


def _check_sqlite(path: Path, create: bool) -> None:
    """Fail at once where MLflow would retry for minutes, or start an empty store elsewhere."""
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.exists():
        raise OSError(
            f"{path} is not on this machine; runs on several machines need an MLflow server"
        )
    with closing(sqlite3.connect(path, timeout=5.0)) as connection:
        connection.execute("PRAGMA schema_version").fetchone()


def cause(error: Exception, uri: str) -> str:
    """What went wrong, on one line of at most 300 characters, without the URI's password."""
    text = " ".join(str(error).split()) or type(error).__name__
    return without_secrets(text, uri)[:300]
