"""Whether a training run is new, unfinished or done: the file `run.json` beside its checkpoints.

Ray Train goes on by itself when a run's name is used again. Here that takes a word of the
user's: an unfinished run is neither continued nor thrown away unless asked for.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from sce.errors import ConfigError
from sce.storage import Place, remove, write_text
from sce.workflows.tracking import Tracker, flatten

STATE_FILE = "run.json"


@dataclass
class TrainingRun:
    """One training run in a folder, as far as it has come.

    Attributes:
        folder: holds the checkpoints and this state.
        settings: everything that decides the model; a resumed run must have the same.
        run_name: name of the run within `folder`.
        tracker_run_id: the run in MLflow that a retry goes on in.
        finished: the model was written and measured.
    """

    folder: Place
    settings: dict[str, Any]
    run_name: str
    tracker_run_id: str | None = None
    finished: bool = False

    @classmethod
    def open(
        cls, folder: Place, settings: Mapping[str, Any], resume: bool, restart: bool
    ) -> TrainingRun:
        """Decide what a job may do in `folder`.

        Raises:
            ConfigError: an unfinished run is there and neither flag is given; there is none to
                resume; the one to resume was started with other settings.
        """
        if resume and restart:
            raise ConfigError("--resume and --restart exclude each other.")
        plain = json.loads(json.dumps(settings, default=str))
        old = cls._read(folder)
        if resume:
            if old is None:
                raise ConfigError(f"--resume: there is no training run in {folder}.")
            then, now = dict(flatten(old.settings)), dict(flatten(plain))
            differences = [
                f"  {key}: {then.get(key)!r} then, {now.get(key)!r} now"
                for key in sorted({*then, *now})
                if then.get(key) != now.get(key)
            ]
            if differences:
                raise ConfigError(
                    f"--resume: the run in {folder} was started with other settings or data:\n"
                    + "\n".join(differences)
                    + "\nGive the same ones, or --restart to begin again."
                )
            return old
        if old is not None and not old.finished and not restart:
            raise ConfigError(
                f"an unfinished training run lies in {folder}. Go on with it: --resume. "
                "Throw it away and begin again: --restart."
            )
        remove(folder)
        state = cls(folder, plain, f"run-{uuid.uuid4().hex[:8]}")
        state.save()
        return state

    def save(self) -> None:
        """Write the state; never half of it."""
        content = {k: v for k, v in asdict(self).items() if k != "folder"}
        write_text(self.folder / STATE_FILE, json.dumps(content, indent=2) + "\n")

    @contextmanager
    def recorded(self, tracker: Tracker) -> Iterator[Tracker]:
        """Keep `tracker` open for the work inside, which finishes this run unless it raises; a run
        that is resumed after that goes on in the same run of MLflow."""
        with tracker:
            self.tracker_run_id = tracker.run_id
            self.save()
            try:
                yield tracker
            except KeyboardInterrupt as stopped:
                stopped.add_note(
                    f"The epochs that were finished are kept in {self.folder}; the same command "
                    "with --resume goes on behind them."
                )
                raise
        self.finished = True
        self.save()

    @classmethod
    def settings_of(cls, folder: Place) -> dict[str, Any]:
        """Settings of the run in `folder`; none where there is no run."""
        found = cls._read(folder)
        return {} if found is None else found.settings

    @classmethod
    def is_finished(cls, folder: Place) -> bool:
        """Whether a run lies in `folder` whose model was written and measured."""
        found = cls._read(folder)
        return found is not None and found.finished

    @classmethod
    def _read(cls, folder: Place) -> TrainingRun | None:
        path = folder / STATE_FILE
        if not path.exists():
            return None
        try:
            return cls(folder=folder, **json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{path}: damaged ({error}). Delete {folder} to begin again."
            ) from None
