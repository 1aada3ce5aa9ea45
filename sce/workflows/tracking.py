"""Experiment tracking with MLflow, which training must never wait for or die of.

The driver opens and closes a run; any process may log to it. A `Tracker` speaks to MLflow by run
id, never through MLflow's global state. Where it fails it says so once in the log and is left alone
for a minute.

Default store: one SQLite database for all jobs (`mlflow_store.local_store`), artifacts beside it;
`mlflow ui` on it needs no server. Runs on several machines need one: set `tracking.uri` or
MLFLOW_TRACKING_URI to `http://host:5000`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from sce.config import Section
from sce.errors import HIDDEN, ConfigError, InputError, hide_secrets, without_secrets
from sce.storage import Place, fetch
from sce.workflows import mlflow_store
from sce.workflows.mlflow_data import DataUsed
from sce.workflows.mlflow_store import DATABASE_NAME, MODE, SQLITE, Kind, cause

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PAUSE_SECONDS = 60.0
MAX_NAME_CHARS = 250
_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
_ONE_MACHINE = (None, "", "auto", "local")
"""Values of RAY_ADDRESS that name no other machine's Ray."""
_REPLACED = re.compile(r"[^\w\-. /:]")


class TrackingConfig(Section):
    """Where runs are recorded."""

    enabled: bool = True
    """Record this run with MLflow."""
    uri: str | None = None
    """MLflow store: http://host:5000 or sqlite:////absolute/path/mlflow.db. Default:
    MLFLOW_TRACKING_URI, else runs/mlflow.db of the checkout, for all its jobs; where the package
    is installed without one, ~/.local/share/sce/mlflow.db."""
    experiment: str | None = None
    """MLflow experiment that the run belongs to; made if it is not there. Default: by what the job
    does, sce-training, sce-evaluation, sce-bulk or sce-benchmarks."""
    run_name: str | None = None
    """Name of the run; default: given by the job."""
    system_metrics: bool = True
    """Record CPU, memory, disk, network and GPU use of the driver's machine."""


@dataclass
class Tracker:
    """Picklable handle of one MLflow run, from `open`; one without a run id does nothing.

    No method raises on a tracking failure, and none records a password that stands in a URL. As a
    context manager it closes the run: FINISHED, FAILED on an exception, KILLED on Ctrl-C; a new one
    that wrong input ends before it has measured anything is taken back.
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
        self._is_new = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Tracker, (self.uri, self.experiment_id, self.run_id)

    @classmethod
    def open(
        cls,
        config: TrackingConfig,
        kind: Kind,
        run_id: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Tracker:
        """Go on in the run `run_id`, as a retry does, or open a new one where none is named or the
        store has no such run.

        Args:
            kind: of the run: its experiment, where the configuration names none.
            run_name: of a new run, where the configuration names none.
            tags: added to MLflow's own (user, source, git revision).

        Raises:
            ConfigError: a URI of a kind that cannot work; nothing else raises.
        """
        if not config.enabled:
            return cls()
        # Where the store is down just now the run keeps its id: it may come back.
        tracker = cls(tracking_uri(config), run_id=run_id or None)
        if run_id:
            found = tracker._guard("resume a run", partial(tracker._reopen, run_id, tags))
            if found is False:
                log.warning("tracking: the store has no run %s, so a new one is opened.", run_id)
                tracker.run_id = None
        if tracker.run_id is None:
            if tracker.uri.startswith(SQLITE) and os.environ.get("RAY_ADDRESS") not in _ONE_MACHINE:
                log.warning(
                    "tracking: this run is recorded on this machine alone, in %s. A server keeps "
                    "it (tracking.uri, MLFLOW_TRACKING_URI).",
                    tracker.uri.removeprefix(SQLITE),
                )
            begin = partial(tracker._create, config, kind, run_name, tags)
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
            return f"{server}/#/experiments/{self.experiment_id}/runs/{self.run_id}?{MODE}"
        return f"mlflow ui --backend-store-uri {without_secrets(self.uri)}"

    def log_params(self, config: Mapping[str, Any], whole: Mapping[str, Any] | None = None) -> None:
        """Record a nested configuration: dotted keys as params, but for those without a value; and
        all that this handle was given so far, or `whole` in its place, as config.yaml.

        MLflow keeps the first value of a param for ever: on a resumed run, changed values are
        named in a warning and stand in config.yaml only.
        """
        plain = _plain(config)
        self._config.update(plain if whole is None else _plain(whole))

        def send(client: MlflowClient, run_id: str) -> None:
            from mlflow.entities import Param
            from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH

            client.log_text(run_id, yaml.safe_dump(self._config, sort_keys=False), "config.yaml")
            known = client.get_run(run_id).data.params
            said = {k: v for k, v in flatten(plain) if v not in (None, "", [], {})}
            params = {metric_name(k): str(v)[:MAX_PARAM_VAL_LENGTH] for k, v in said.items()}
            changed = [key for key, value in params.items() if known.get(key, value) != value]
            if changed:
                log.warning("tracking: params changed on resume: %s", ", ".join(changed))
            new = [Param(key, value) for key, value in params.items() if key not in known]
            for first in range(0, len(new), MAX_PARAMS_TAGS_PER_BATCH):
                client.log_batch(run_id, params=new[first : first + MAX_PARAMS_TAGS_PER_BATCH])

        self.send("log params", send)

    def log_metrics(
        self,
        metrics: Mapping[str, Any],
        step: int = 0,
        model_id: str | None = None,
        datasets: Mapping[str, DataUsed] | None = None,
    ) -> None:
        """Record numbers at one step in one call; values of None are left out.

        Args:
            model_id: of the logged model that they are of.
            datasets: by metric, what it was measured on.
        """

        def send(client: MlflowClient, run_id: str) -> None:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            known = {k: float(v) for k, v in metrics.items() if v is not None}
            found: dict[str, Metric] = {}
            for key, value in known.items():
                on = (datasets or {}).get(key)
                used = (None, None) if on is None else (on.name, on.digest)
                name = metric_name(key)
                found[name] = Metric(name, value, now, int(step), model_id, *used)
            client.log_batch(run_id, metrics=list(found.values()))

        self.send("log metrics", send)

    def log_inputs(self, datasets: Sequence[DataUsed], model_id: str | None = None) -> None:
        """Record what the run reads: datasets, and a logged model."""

        def send(client: MlflowClient, run_id: str) -> None:
            from mlflow.entities import LoggedModelInput

            inputs = [one.to_mlflow() for one in datasets]
            client.log_inputs(run_id, inputs, [LoggedModelInput(model_id)] if model_id else None)

        self.send("log inputs", send)

    def log_artifact(self, path: str | Place, folder: str | None = None) -> None:
        """Copy a file, or a folder with all in it, into the run's artifacts."""

        def send(client: MlflowClient, run_id: str) -> None:
            local = fetch(path)
            upload = client.log_artifacts if local.is_dir() else client.log_artifact
            upload(run_id, str(local), folder)

        self.send(f"log the artifact {path}", send)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Save a matplotlib figure as the artifact `name`, for example `plots/ece.png`."""
        self.send(f"log {name}", lambda client, run_id: client.log_figure(run_id, figure, name))

    def log_text(self, text: str, name: str) -> None:
        """Save a text as the artifact `name`."""
        plain = without_secrets(text)
        self.send(f"log {name}", lambda client, run_id: client.log_text(run_id, plain, name))

    def log_dict(self, value: Mapping[str, Any], name: str) -> None:
        """Save a dict as the artifact `name`, JSON or YAML by its ending."""
        content = _plain(value)
        self.send(f"log {name}", lambda client, run_id: client.log_dict(run_id, content, name))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run, replacing those of the same name."""

        def send(client: MlflowClient, run_id: str) -> None:
            from mlflow.entities import RunTag

            plain = hide_secrets({key: str(value) for key, value in tags.items()})
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in plain.items()])

        self.send("set tags", send)

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run with FINISHED, FAILED or KILLED and stop the system metrics."""
        self._stop_watching()
        self._paused_until = 0.0
        self.send("close the run", lambda client, run_id: client.set_terminated(run_id, status))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.finish("FINISHED")
        elif isinstance(error, InputError) and self._is_new and self._take_back():
            self.run_id = None
        else:
            self.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def _create(
        self,
        config: TrackingConfig,
        kind: Kind,
        run_name: str | None,
        tags: Mapping[str, str] | None,
    ) -> None:
        from mlflow.tracking.context.registry import resolve_tags

        client = self._connect(create=True)
        experiment = config.experiment or experiment_of(kind)
        experiment_id = mlflow_store.experiment_id(client, experiment, self.uri)
        # MLflow adds the address of the code's git remote, which may hold a token.
        all_tags = hide_secrets(resolve_tags({**git_tags(), **(tags or {})}))
        name = hide_secrets(config.run_name or run_name)
        run = client.create_run(experiment_id, tags=all_tags, run_name=name)
        self.experiment_id, self.run_id = experiment_id, run.info.run_id
        self._is_new = True

    def _take_back(self) -> bool:
        """Delete the run, unless something was measured."""

        def take(client: MlflowClient, run_id: str) -> bool:
            metrics = client.get_run(run_id).data.metrics
            if any(not name.startswith("system/") for name in metrics):
                return False
            client.set_terminated(run_id, "FAILED")
            client.delete_run(run_id)
            return True

        self._stop_watching()
        return bool(self.send("take a run back", take))

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

    def _stop_watching(self) -> None:
        if self._monitor is not None:
            self._guard("stop system metrics", self._monitor.finish)
            self._monitor = None

    def _connect(self, create: bool = False) -> MlflowClient:
        if self._client is None:
            self._client = mlflow_store.connect(self.uri, create)
        return self._client

    def send(self, what: str, call: Callable[[MlflowClient, str], Any]) -> Any:
        """Call `call` with a client and the run's id. None where it fails or there is no run."""
        run_id = self.run_id
        return None if run_id is None else self._guard(what, lambda: call(self._connect(), run_id))

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


def experiment_of(kind: Kind) -> str:
    """The experiment of runs of a kind, where the configuration names none."""
    return f"sce-{kind}"


def tracking_uri(config: TrackingConfig) -> str:
    """The store's URI: the configuration's, the environment's, or that of the local store; of
    SQLite with an absolute path.

    Raises:
        ConfigError: a `file:` URI or bare path, which MLflow no longer takes; an unknown kind; one
            whose password was left out when it was written down.
    """
    default = SQLITE + str(mlflow_store.local_store())
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
