"""Which Ray a process works in: the one that the environment names, or its own; never a stranger's
that happens to run on the machine, and none that other users of the machine can enter."""

from __future__ import annotations

import inspect
import logging
import os
import socket
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray._private import ray_constants, ray_logging
from ray._private.parameter import RayParams
from ray._private.utils import internal_kv_get_with_retry
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from sce.config import DASHBOARD, forget_secrets
from sce.errors import ConfigError

PROBE_SECONDS = 3
PROBES = 3
MAX_SOCKET_CHARS = 107
"""Linux's limit of a socket's path."""
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"

log = logging.getLogger(__name__)


def ensure_ray(dashboard: bool | None = None) -> None:
    """Join the cluster that the environment names, or start a local one; no-op if that is done.

    `ray job submit` and `RAY_ADDRESS` name one; `RAY_ADDRESS=auto` is the one that `ray start` runs
    on this machine. A local one listens on the loopback address alone, and keeps its files, code to
    run among them, in a folder of RAY_TMPDIR (or TMPDIR) that only this user can enter. Secrets in
    the environment (`sce.config.SECRETS`) are dropped from it before, so settings must have been
    read. Ray's own progress messages are switched off: the jobs say where they are themselves.

    Args:
        dashboard: of a local one, which also takes jobs; some ten processes more. None for whether
            the job was asked for it (`--dashboard`).

    Raises:
        ConfigError: no cluster answers there, or none can be started here.
    """
    forget_secrets()
    for name in ("ray.data", "ray._private.authentication"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Ray Train would print every line of a worker twice: as it comes, and as a log record.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # It would tell workers that their node will be taken away, for which none of ours asks.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # before each line of a worker
        # Behind a line that several wrote; no setting names it.
        ray_logging._color = str  # type: ignore[assignment]
    if ray.is_initialized():
        return
    address = _address()
    options: dict[str, Any] = {}
    if address == "local":
        asked = os.environ.get(DASHBOARD) == "true" if dashboard is None else dashboard
        options["include_dashboard"] = asked
        options["_temp_dir"] = str(_private_folder() / "ray")  # that one Ray opens to all
        _listen_on_loopback()
        _listen_anywhere()
        if found := _started_here():
            log.info("another Ray runs at %s; RAY_ADDRESS=auto would join it", found)
    else:
        _probe(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray raises bare ones too, as where a busy machine starts it slowly
        where = "start on this machine" if address == "local" else f"be joined at {address}"
        raise ConfigError(f"Ray cannot {where}: {' '.join(str(error).split())[:500]}") from None
    ray.data.DataContext.get_current().print_on_execution_start = False


def starts_own() -> bool:
    """Whether `ensure_ray` would start a Ray, rather than join one."""
    return not ray.is_initialized() and _address() == "local"


def _address() -> str:
    return os.environ.get("RAY_ADDRESS") or "local"


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


def shared_session() -> str | None:
    """The folder of this process' Ray, if other users of the machine can enter it; None if one of
    the folders above it lets only its owner in.

    Whoever writes there runs code as this user: Ray makes it writable for all, and takes the code
    of jobs from it.
    """
    node = ray._private.worker._global_node
    assert node is not None
    folder = Path(node.get_session_dir_path())
    above = (one.stat() for one in (folder, *folder.parents))
    kept = any(one.st_uid in (os.getuid(), 0) and not one.st_mode & 0o011 for one in above)
    return None if kept else str(folder)


def _private_folder() -> Path:
    """A folder for Ray's files that only this user can enter.

    Raises:
        ConfigError: it is somebody else's; Ray could not make its sockets in it, which it says
            with a traceback.
    """
    temp = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    folder = Path(temp, f"sce-{os.getuid()}")
    if len(str(folder)) + len(_SOCKET) > MAX_SOCKET_CHARS:
        most = MAX_SOCKET_CHARS - len(_SOCKET) - len(f"/{folder.name}")
        raise ConfigError(
            f"TMPDIR: {temp} has {len(temp)} characters; Ray keeps its sockets below it, for "
            f"which at most {most} are left. Set RAY_TMPDIR to a shorter folder: RAY_TMPDIR=/tmp."
        )
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700, parents=True)
        about = folder.lstat()
    except OSError as error:
        raise ConfigError(
            f"TMPDIR: {folder} cannot be made ({error.strerror}), in which Ray keeps its files. "
            "Set RAY_TMPDIR to a folder that can be written."
        ) from None
    mine = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
    if not mine or about.st_mode & 0o077:
        raise ConfigError(
            f"TMPDIR: {folder}, in which Ray keeps its files, is not this user's alone: whoever "
            f"writes there runs code as this user. Delete it, or set RAY_TMPDIR to another folder."
        )
    return folder


def _listen_anywhere() -> None:
    """The agent that takes a node's jobs listens at 52365, and `ray.init` has no argument for
    another port: beside another Ray of this machine it ends, and no batch can be started. 0 is any.
    """
    names = list(inspect.signature(RayParams).parameters)
    first = len(names) - len(RayParams.__init__.__defaults__ or ())
    defaults = list(RayParams.__init__.__defaults__ or ())
    defaults[names.index("dashboard_agent_listen_port") - first] = 0
    RayParams.__init__.__defaults__ = tuple(defaults)


def _listen_on_loopback() -> None:
    """A local Ray is for this machine; by default its ports, that of the metrics without a token
    among them, are open to the network. Ray has this for machines with a firewall that asks."""
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
