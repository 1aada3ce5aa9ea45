"""The MLflow store that a URI names, reached at once or not at all.

MLflow itself would retry a server that is down for minutes, and start an empty database where the
file is not there. It also writes down where artifacts lie as absolute paths: those of a store of
this machine are put right where its folder was moved or copied.

    python -m sce.workflows.mlflow_store 5000    # its pages, at this port
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from sce.errors import ConfigError, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

Kind = Literal["training", "evaluation", "bulk", "benchmarks"]
"""What a run is of. Each has an experiment of its own, `sce-training` and so on."""
DATABASE_NAME = "mlflow.db"
ARTIFACTS_NAME = "mlflow_artifacts"
SQLITE = "sqlite:///"
BUSY_SECONDS = 20.0
"""How long one job waits for another that is writing; MLflow itself waits as long."""
# MLflow's own defaults wait 120 s a request, 7 times over, report usage to its makers, and draw
# progress bars.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
MODE = "workflowType=machine_learning"
"""In an address of MLflow's pages: those for trained models, not for agents and prompts, which
MLflow 3.17 opens whatever the kind of the experiment."""
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_LOCATIONS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
}
"""Where MLflow's tables hold absolute paths."""
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
log = logging.getLogger(__name__)

_NOISY = (
    "alembic",
    "mlflow.pyfunc",
    "mlflow.store.db.utils",
    "mlflow.system_metrics.system_metrics_monitor",
)


def local_store() -> Path:
    """The database of all jobs that are told of no other: `runs/mlflow.db` of the checkout that
    this code lies in, else, where it is installed, `sce/mlflow.db` in the user's data folder
    (XDG_DATA_HOME, by default ~/.local/share)."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "Makefile").is_file() and os.access(checkout, os.W_OK):
        return checkout / "runs" / DATABASE_NAME
    given = Path(os.environ.get("XDG_DATA_HOME") or "")
    data = given if given.is_absolute() else Path.home() / ".local" / "share"
    return data / "sce" / DATABASE_NAME


def connect(uri: str, create: bool = False) -> MlflowClient:
    """A client of the store; with `create` the folder of a SQLite database is made.

    Raises:
        OSError: nothing answers at once; a server may fail later.
    """
    prepare()
    if uri.startswith(SQLITE):
        path = Path(uri.removeprefix(SQLITE))
        _check_sqlite(path, create)
        with _alone(path.parent) if create else nullcontext():
            return _client(uri)
    if not uri.startswith("http"):
        parts = urlsplit(uri)
        port = parts.port or _PORTS.get(parts.scheme.split("+")[0])
        if parts.hostname and port:
            socket.create_connection((parts.hostname, port), timeout=5.0).close()
    return _client(uri)


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)  # makes the tables of an empty database


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Of the jobs that find no store in a folder, one makes it at a time: MLflow's own would make
    its tables twice, and all but the first fail."""
    held = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(int(10 * BUSY_SECONDS)):
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(held)


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


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """Id of the experiment, made if it is missing; local stores keep artifacts beside them, and a
    database that is no file beside the local store."""
    from mlflow.exceptions import MlflowException

    location = None
    if uri.startswith(SQLITE):
        location = _artifacts_beside(Path(uri.removeprefix(SQLITE)))
    elif not uri.startswith(("http", "databricks")):
        location = _artifacts_beside(local_store())
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, location, _EXPERIMENT_TAGS)
        except MlflowException:  # another job may just have made it
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    for key, value in _EXPERIMENT_TAGS.items():
        if key not in found.tags:
            client.set_experiment_tag(found.experiment_id, key, value)
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
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
        connection.execute("PRAGMA schema_version").fetchone()
        _follow(connection, path)


def _follow(connection: sqlite3.Connection, path: Path) -> None:
    """Artifacts that lay beside the database lie beside it still: where it was moved or copied
    with them, what it says of their place is made to say so."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if not tables >= _LOCATIONS.keys():
        return  # MLflow has not made them yet
    here = _artifacts_beside(path)
    known = [
        row[0] or "" for row in connection.execute("SELECT artifact_location FROM experiments")
    ]
    moved = {one for one in known if one.endswith(f"/{ARTIFACTS_NAME}") and one != here}
    if not moved or not (path.parent / ARTIFACTS_NAME).is_dir():
        return
    try:
        with connection:
            for there in moved:
                for table, column in _LOCATIONS.items():
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (here, len(there) + 1, there, len(there) + 1, f"{there}/"),
                    )
    except sqlite3.OperationalError as error:
        log.warning("tracking: %s is a copy, and its artifacts are not found (%s).", path, error)


def _artifacts_beside(database: Path) -> str:
    return (database.parent / ARTIFACTS_NAME).as_uri()


def cause(error: Exception, uri: str) -> str:
    """What went wrong, on one line of at most 300 characters, without the URI's password."""
    text = " ".join(str(error).split()) or type(error).__name__
    return without_secrets(text, uri)[:300]


def pages(path: Path, address: str) -> dict[str, str]:
    """Where MLflow's server at `address` shows each experiment of a local store, by name."""
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
        found = connection.execute(
            "SELECT name, experiment_id FROM experiments "
            "WHERE lifecycle_stage = 'active' AND experiment_id != 0 ORDER BY experiment_id"
        ).fetchall()
    return {name: f"{address}/#/experiments/{one}/runs?{MODE}" for name, one in found}


def main(port: str = "5000") -> int:
    """Become MLflow's server of the local store, whose artifacts are found from then on. Exit code
    1: no job has made it yet."""
    path = local_store()
    try:
        _check_sqlite(path, create=False)
        shown = pages(path, f"http://127.0.0.1:{port}")
    except (OSError, sqlite3.Error):
        print(f"No run yet in {path}: make quickstart makes one.", file=sys.stderr)
        return 1
    print("MLflow (Ctrl+C ends it):")
    for name, page in shown.items():
        print(f"  {name:15} {page}", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", f"{SQLITE}{path}"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", port])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
