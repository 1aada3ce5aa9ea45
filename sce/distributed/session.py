"""Which Ray a process works in: the one that the environment names, or its own; never a stranger's
that happens to run on the machine."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from pathlib import Path

import ray
import ray.data
from ray._private import ray_constants
from ray._private.utils import internal_kv_get_with_retry
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from sce.errors import ConfigError

PROBE_SECONDS = 3
PROBES = 3
MAX_SOCKET_CHARS = 107
"""Linux's limit of a socket's path."""
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"

log = logging.getLogger(__name__)


def ensure_ray() -> None:
    """Join the cluster that the environment names, or start a local one; no-op if that is done.

    `ray job submit` and `RAY_ADDRESS` name one; `RAY_ADDRESS=auto` is the one that `ray start` runs
    on this machine. Ray's own progress messages are switched off: the jobs say where they are
    themselves.

    Raises:
        ConfigError: no cluster answers there, or none can be started here.
    """
    for name in ("ray.data", "ray._private.authentication"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Ray Train would print every line of a worker twice: as it comes, and as a log record.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        _check_temp()
        if found := _started_here():
            log.info("another Ray runs at %s; RAY_ADDRESS=auto would join it", found)
    else:
        _probe(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        where = "start on this machine" if address == "local" else f"be joined at {address}"
        raise ConfigError(f"Ray cannot {where}: {' '.join(str(error).split())[:500]}") from None
    ray.data.DataContext.get_current().print_on_execution_start = False


def dashboard_url() -> str:
    """Where the cluster that this process is in has its job server.

    Ray's job client takes an address from the environment or looks for any cluster on the machine;
    this one asks the cluster itself.
    """
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    found = internal_kv_get_with_retry(
        client,
        ray_constants.DASHBOARD_ADDRESS,
        namespace=ray_constants.KV_NAMESPACE_DASHBOARD,
        num_retries=20,
    )
    if not found:
        raise ConnectionError("this Ray runs without its dashboard, which takes jobs")
    return f"http://{found.decode()}"


def _started_here() -> str | None:
    """The address that `ray start` wrote down on this machine, if a cluster answers there."""
    for folder in dict.fromkeys([os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp"]):
        try:
            file = Path(folder or "/tmp", "ray", "ray_current_cluster")
            found = file.read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if _answers(found):
            return found
    return None


def _probe(address: str) -> None:
    """Raises `ConfigError` where nothing answers: Ray itself would wait for five minutes."""
    if address == "auto":
        if not _started_here():
            raise ConfigError(
                "RAY_ADDRESS=auto: no Ray runs on this machine. Start one (ray start --head), or "
                "unset RAY_ADDRESS: the job then starts its own."
            )
        return
    place = address.removeprefix("ray://")
    if "://" in place or place.count(":") < 1:
        raise ConfigError(
            f"RAY_ADDRESS: {address!r} is no address of a Ray cluster. Write HOST:PORT (6379 by "
            "default), auto or local; an http:// address is for `ray job submit`."
        )
    if not any(_answers(place) for _ in range(PROBES)):
        raise ConfigError(
            f"RAY_ADDRESS: no Ray cluster answers at {address}. Is it running, and reached from "
            "here? Without RAY_ADDRESS the job starts a Ray of its own."
        )


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def _check_temp() -> None:
    """Raises `ConfigError` where Ray could not make its sockets, which it says with a traceback."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(folder) + len(_SOCKET) > MAX_SOCKET_CHARS:
        most = MAX_SOCKET_CHARS - len(_SOCKET)
        raise ConfigError(
            f"TMPDIR: {folder} has {len(folder)} characters; Ray keeps its sockets below it, for "
            f"which at most {most} are left. Set RAY_TMPDIR to a shorter folder: RAY_TMPDIR=/tmp."
        )
