"""Experiment tracking with MLflow, which training must never wait for or die of.

The driver opens and closes a run; any process may log to it. A `Tracker` speaks to MLflow by run
id, never through MLflow's global state. Where it fails it says so once in the log and is left alone
for a minute.

Default store: `mlflow.db` (SQLite) in a folder that the caller names, artifacts beside it;
`mlflow ui` on it needs no server. Runs on several machines need one: set `tracking.uri` or
MLFLOW_TRACKING_URI to `http://host:5000`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from sce.config import Section
from sce.errors import HIDDEN, ConfigError, hide_secrets, without_secrets
from sce.storage import Place, RemotePath, fetch, to_place
from sce.workflows import mlflow_store
from sce.workflows.mlflow_store import DATABASE_NAME, SQLITE, cause

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PAUSE_SECONDS = 60.0
MAX_NAME_CHARS = 250
_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
_REPLACED = re.compile(r"[^\w\-. /:]")


class TrackingConfig(Section):
    """Where runs are recorded."""

    enabled: bool = True
    """Record this run with MLflow."""
    uri: str | None = None
    """MLflow store: http://host:5000 or sqlite:////absolute/path/mlflow.db. Default:
    MLFLOW_TRACKING_URI, else mlflow.db in the run's folder."""
    experiment: str = "sce"
    """MLflow experiment that the run belongs to; made if it is not there."""
    run_name: str | None = None
    """Name of the run; default: given by the job."""
    system_metrics: bool = True
    """Record CPU, memory, disk, network and GPU use of the driver's machine."""


@dataclass
class Tracker:
    """Picklable handle of one MLflow run, from `open`; one without a run id does nothing.

    No method raises on a tracking failure, and none records a password that stands in a URL. As a
    context manager it closes the run: FINISHED, FAILED on an exception, KILLED on Ctrl-C.
    """

    uri: str = field(default="", repr=False)
    experiment_id: str | None = None
    run_id: str | None = None

    def __post_init__(self) -> None:
        # Of this process alone: a pickled handle has none of it.
        self._client: MlflowClient | None = None
        self._monitor: Any = None
        self._paused_until = 0.0
        self._warned: set[str] = set()
        self._config: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Tracker, (self.uri, self.experiment_id, self.run_id)

    @classmethod
    def open(
        cls,
        config: TrackingConfig,
        run_id: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        default_dir: str | Place = ".",
    ) -> Tracker:
        """Go on in the run `run_id`, as a retry does, or open a new one where none is named or the
        store has no such run.

        Args:
            run_name: of a new run, where the configuration names none.
            tags: added to MLflow's own (user, source, git revision).
            default_dir: of the default SQLite store and of local artifacts; instead of a URI
                `runs` in the working directory.

        Raises:
            ConfigError: a URI of a kind that cannot work; nothing else raises.
        """
        if not config.enabled:
            return cls()
        # Where the store is down just now the run keeps its id: it may come back.
        tracker = cls(tracking_uri(config, default_dir), run_id=run_id or None)
        if run_id:
            found = tracker._guard("resume a run", partial(tracker._reopen, run_id, tags))
            if found is False:
                log.warning("tracking: the store has no run %s, so a new one is opened.", run_id)
                tracker.run_id = None
        if tracker.run_id is None:
            if tracker.uri.startswith(SQLITE) and isinstance(to_place(default_dir), RemotePath):
                log.warning(
                    "tracking: this run is recorded on this machine alone, in %s. A server keeps "
                    "it (tracking.uri, MLFLOW_TRACKING_URI).",
                    tracker.uri.removeprefix(SQLITE),
                )
            begin = partial(tracker._create, config, run_name, tags, _local(default_dir))
            tracker._guard("start a run", begin)
        if tracker.run_id is not None and config.system_metrics:
            resumed = tracker.run_id == run_id
            tracker._guard("record system metrics", partial(tracker._watch, resumed))
        return tracker

    @property
    def hint(self) -> str:
        """Where to look at the run: a URL or a command. "" if there is no run."""
        if self.run_id is None:
            return ""
        if self.uri.startswith("http"):
            server = without_secrets(self.uri).rstrip("/")
            return f"{server}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return f"mlflow ui --backend-store-uri {without_secrets(self.uri)}"

    def log_params(self, config: Mapping[str, Any]) -> None:
        """Record a nested configuration: dotted keys as params, and all that this handle was given
        so far as config.yaml.

        MLflow keeps the first value of a param for ever: on a resumed run, changed values are
        named in a warning and stand in config.yaml only.
        """
        plain = _plain(config)
        self._config.update(plain)

        def send(client: MlflowClient, run_id: str) -> None:
            from mlflow.entities import Param
            from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH

            client.log_text(run_id, yaml.safe_dump(self._config, sort_keys=False), "config.yaml")
            known = client.get_run(run_id).data.params
            params = {metric_name(k): str(v)[:MAX_PARAM_VAL_LENGTH] for k, v in flatten(plain)}
            changed = [key for key, value in params.items() if known.get(key, value) != value]
            if changed:
                log.warning("tracking: params changed on resume: %s", ", ".join(changed))
            new = [Param(key, value) for key, value in params.items() if key not in known]
            for first in range(0, len(new), MAX_PARAMS_TAGS_PER_BATCH):
                client.log_batch(run_id, params=new[first : first + MAX_PARAMS_TAGS_PER_BATCH])

        self._send("log params", send)

    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """Record numbers at one step in one call; values of None are left out."""

        def send(client: MlflowClient, run_id: str) -> None:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            known = {metric_name(k): float(v) for k, v in metrics.items() if v is not None}
            found = [Metric(name, value, now, int(step)) for name, value in known.items()]
            client.log_batch(run_id, metrics=found)

        self._send("log metrics", send)

    def log_artifact(self, path: str | Place, folder: str | None = None) -> None:
        """Copy a file, or a folder with all in it, into the run's artifacts."""

        def send(client: MlflowClient, run_id: str) -> None:
            local = fetch(path)
            upload = client.log_artifacts if local.is_dir() else client.log_artifact
            upload(run_id, str(local), folder)

        self._send(f"log the artifact {path}", send)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Save a matplotlib figure as the artifact `name`, for example `plots/ece.png`."""
        self._send(f"log {name}", lambda client, run_id: client.log_figure(run_id, figure, name))

    def log_text(self, text: str, name: str) -> None:
        """Save a text as the artifact `name`."""
        plain = without_secrets(text)
        self._send(f"log {name}", lambda client, run_id: client.log_text(run_id, plain, name))

    def log_dict(self, value: Mapping[str, Any], name: str) -> None:
        """Save a dict as the artifact `name`, JSON or YAML by its ending."""
        content = _plain(value)
        self._send(f"log {name}", lambda client, run_id: client.log_dict(run_id, content, name))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run, replacing those of the same name."""

        def send(client: MlflowClient, run_id: str) -> None:
            from mlflow.entities import RunTag

            plain = hide_secrets({key: str(value) for key, value in tags.items()})
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in plain.items()])

        self._send("set tags", send)

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run with FINISHED, FAILED or KILLED and stop the system metrics."""
        if self._monitor is not None:
            self._guard("stop system metrics", self._monitor.finish)
            self._monitor = None
        self._paused_until = 0.0
        self._send("close the run", lambda client, run_id: client.set_terminated(run_id, status))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.finish("FINISHED")
        else:
            self.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def _create(
        self,
        config: TrackingConfig,
        run_name: str | None,
        tags: Mapping[str, str] | None,
        default_dir: Path,
    ) -> None:
        from mlflow.tracking.context.registry import resolve_tags

        client = self._connect(create=True)
        experiment_id = mlflow_store.experiment_id(client, config.experiment, self.uri, default_dir)
        # MLflow adds the address of the code's git remote, which may hold a token.
        all_tags = hide_secrets(resolve_tags({**git_tags(), **(tags or {})}))
        name = hide_secrets(config.run_name or run_name)
        run = client.create_run(experiment_id, tags=all_tags, run_name=name)
        self.experiment_id, self.run_id = experiment_id, run.info.run_id

    def _reopen(self, run_id: str, tags: Mapping[str, str] | None) -> bool:
        """False if the store has no such run."""
        from mlflow.exceptions import MlflowException

        client = self._connect(create=True)
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        if run.info.lifecycle_stage != "active":
            return False
        client.update_run(run_id, status="RUNNING")
        self.experiment_id = run.info.experiment_id
        self.set_tags({**git_tags(), **(tags or {})})
        return True

    def _watch(self, resumed: bool) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(self.run_id, resume_logging=resumed, tracking_uri=self.uri)
        monitor.start()
        self._monitor = monitor

    def _connect(self, create: bool = False) -> MlflowClient:
        if self._client is None:
            self._client = mlflow_store.connect(self.uri, create)
        return self._client

    def _send(self, what: str, call: Callable[[MlflowClient, str], Any]) -> None:
        run_id = self.run_id
        if run_id is not None:
            self._guard(what, lambda: call(self._connect(), run_id))

    def _guard(self, what: str, call: Callable[[], Any]) -> Any:
        """Run `call`; on an error say it once, and leave a store that is down for a minute."""
        if time.monotonic() < self._paused_until:
            return None
        try:
            return call()
        except Exception as error:
            # What MLflow refuses is refused alone; anything else means that it is not there.
            code = getattr(error, "error_code", "")
            refused = code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST") or isinstance(
                error, (FileNotFoundError, TypeError, ValueError)
            )
            if not refused:
                self._paused_until = time.monotonic() + PAUSE_SECONDS
            topic = what if refused else "down"
            if topic not in self._warned:
                self._warned.add(topic)
                log.warning(
                    "tracking: could not %s at %s: %s. The work goes on%s",
                    what,
                    without_secrets(self.uri),
                    cause(error, self.uri),
                    "." if refused else " without tracking it.",
                )
            return None


def tracking_uri(config: TrackingConfig, default_dir: str | Place) -> str:
    """The store's URI: the configuration's, the environment's, or SQLite in `default_dir`, with an
    absolute path.

    Raises:
        ConfigError: a `file:` URI or bare path, which MLflow no longer takes; an unknown kind; one
            whose password was left out when it was written down.
    """
    default = SQLITE + str(_local(default_dir) / DATABASE_NAME)
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or default
    where = "tracking.uri" if config.uri else "MLFLOW_TRACKING_URI"
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        raise ConfigError(
            f"{where}: {uri!r} cannot be read as a URI. In a password @ is written as %40, / as "
            "%2F, : as %3A."
        ) from None
    if f":{HIDDEN}@" in uri or f"={HIDDEN}" in uri:
        raise ConfigError(
            f"{where}: {uri!r} stands for a password that was not written down. Give the whole "
            "URI, best as the environment variable SCE_TRACKING__URI."
        )
    scheme = parts.scheme.split("+")[0]
    if scheme in ("", "file"):
        folder = Path(parts.path).absolute()
        raise ConfigError(
            f"{where}: {uri!r} is a folder, and MLflow no longer keeps runs in plain files. "
            f"Use a database: {SQLITE}{folder / DATABASE_NAME}"
        )
    if scheme not in _SCHEMES:
        raise ConfigError(f"{where}: {uri!r} is none of {', '.join(_SCHEMES)}.")
    if scheme == "sqlite":
        path = uri.removeprefix(SQLITE)
        if path == uri or not path or path.startswith(":memory:"):
            raise ConfigError(
                f"{where}: {uri!r} names no file. Write {SQLITE}/absolute/path/mlflow.db"
            )
        return SQLITE + str(Path(path).absolute())
    return uri


def _local(folder: str | Place) -> Path:
    """No SQLite database can lie in an object store."""
    place = to_place(folder)
    return Path("runs").absolute() if isinstance(place, RemotePath) else place.absolute()


def metric_name(name: str) -> str:
    """`name` with every character that MLflow refuses replaced by `_`, at most 250 long, and
    without empty, `.` and `..` parts of a path."""
    parts = _REPLACED.sub("_", name).split("/")
    kept = [part for part in parts if part.strip() not in ("", ".", "..")]
    return "/".join(kept)[:MAX_NAME_CHARS].rstrip("/") or "_"


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values: `{"train": {"epochs": 3}}` gives `("train.epochs", 3)`."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def git_tags() -> dict[str, str]:
    """Revision of this code: of its git checkout, else GIT_COMMIT or GITHUB_SHA, else {}. MLflow's
    own tag is of the program's checkout, which an image or a wheel has not."""
    mlflow_store.prepare()
    from mlflow.utils.git_utils import get_git_commit
    from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

    named = os.environ.get("GIT_COMMIT") or os.environ.get("GITHUB_SHA")
    commit = get_git_commit(__file__) or named
    return {MLFLOW_GIT_COMMIT: commit} if commit else {}


def _plain(value: Any) -> Any:
    """Only what YAML and JSON can hold; anything else as text, NaN as text too. No secrets."""
    return hide_secrets(json.loads(json.dumps(value, default=str), parse_constant=str))
