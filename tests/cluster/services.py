"""The servers that a cluster works with, real ones, of one test alone: an S3 store (moto's),
PostgreSQL, and MLflow's server as cluster/ starts it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import psycopg2
import pytest
import requests

from sce.storage import RemotePath, places
from tests.cluster.manifests import ROOT
from tests.serve.load import free_ports

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def until(condition: Callable[[], Any], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (requests.RequestException, psycopg2.Error, FileNotFoundError):
            pass
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.3)


def end(server: subprocess.Popen, number: int) -> None:
    """By a signal to its group, or where that does not help by force."""
    os.killpg(server.pid, number)
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)


@contextmanager
def s3_server(folder: Path, bucket: str, host: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """An S3 server with an empty bucket; the variables that lead to it, set here too."""
    (port,) = free_ports(1)
    log = (folder / "moto.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)],
        stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            places._bucket.cache_clear()  # it may know another test's server
            until(lambda: requests.get(variables["AWS_ENDPOINT_URL"], timeout=5).ok, 60, "moto")
            boto3.client("s3").create_bucket(Bucket=bucket)
            yield variables
    finally:
        end(server, signal.SIGTERM)
        log.close()


class Postgres:
    """PostgreSQL as a user without privileges, in a folder of its own. It can be ended and begun
    again with its data.

    Attributes:
        place: host, port and database.
        password: of the user mlflow.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
        root = os.getuid() == 0
        assert root or pwd.getpwuid(os.getuid()).pw_name != "root"
        self._user = {"user": "postgres", "group": "postgres"} if root else {}
        (self._port,), self.password = free_ports(1), "of-this-test-alone"
        self.place = f"127.0.0.1:{self._port}/postgres"
        password = self._folder / "password"
        password.write_text(self.password)
        if root:
            for path in (self._folder, password):
                shutil.chown(path, "postgres")
        subprocess.run(
            [POSTGRES[-1] / "initdb", "-D", self._folder / "data", "-U", "mlflow", "--auth",
             "scram-sha-256", "--pwfile", password, "--no-sync", "-E", "UTF8", "--locale", "C"],
            check=True, capture_output=True, cwd=self._folder, **self._user,
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        with (self._folder / "log").open("a") as log:
            self._server = subprocess.Popen(
                [POSTGRES[-1] / "postgres", "-D", self._folder / "data", "-p", str(self._port),
                 "-k", self._folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"],
                stdout=log, stderr=subprocess.STDOUT, cwd=self._folder, start_new_session=True,
                **self._user,
            )  # fmt: skip
        until(lambda: self.ask("select 1"), 60, "PostgreSQL")

    def stop(self) -> None:
        """At once, whoever is connected."""
        if self._server.poll() is None:
            end(self._server, signal.SIGINT)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(f"postgresql://mlflow:{self.password}@{self.place}")
        try:
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall()
        finally:
            connection.close()


@contextmanager
def postgres() -> Iterator[Postgres]:
    made = Postgres()
    try:
        yield made
    finally:
        made.remove()


@contextmanager
def redis(host: str) -> Iterator[tuple[str, str]]:
    """Debian's redis-server, in memory alone: its address and password."""
    (port,), password = free_ports(1), "of-this-test-alone"
    server = subprocess.Popen(
        ["redis-server", "--bind", host, "--port", str(port), "--requirepass", password,
         "--save", "", "--appendonly", "no", "--daemonize", "no"],
        stdout=subprocess.DEVNULL, start_new_session=True, cwd="/tmp",
    )  # fmt: skip
    try:
        yield f"{host}:{port}", password
    finally:
        end(server, signal.SIGTERM)


@contextmanager
def mlflow_server(
    folder: Path,
    database: Postgres,
    artifacts: RemotePath,
    host: str = "127.0.0.1",
    port: int | None = None,
) -> Iterator[dict[str, str]]:
    """MLflow's server as cluster/ starts it; the variables of its users, set here too."""
    port = port or free_ports(1)[0]
    log = (folder / "mlflow.log").open("w")
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "cluster" / "mlflow" / "server.py")],
        env=os.environ | {
            "MLFLOW_DATABASE": database.place,
            "MLFLOW_DATABASE_PASSWORD": database.password,
            "MLFLOW_AUTH_ADMIN_PASSWORD": "admin-of-this-test",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-this-test-alone",
            "MLFLOW_ARTIFACTS": str(artifacts),
            "MLFLOW_PORT": str(port),
            "MLFLOW_HOST": host,
            "MLFLOW_ALLOWED_HOSTS": f"{host}:{port}",
        },
        stdout=log, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True,
    )  # fmt: skip
    variables = {
        "MLFLOW_TRACKING_URI": f"http://{host}:{port}",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": "admin-of-this-test",
    }
    try:
        url = f"{variables['MLFLOW_TRACKING_URI']}/health"
        until(lambda: requests.get(url, timeout=5).ok, 300, f"MLflow ({folder}/mlflow.log)")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            yield variables
    finally:
        end(server, signal.SIGTERM)
        log.close()
