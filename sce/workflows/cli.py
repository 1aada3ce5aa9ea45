"""What every job's `main` has in common: exit codes, logging, the closing line of JSON.

Exit code 0: done. 1: failed. 2: bad configuration or input (nothing was half-written). 130: ended
by Ctrl+C, which is said in one line.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pkgutil import resolve_name
from typing import Any, TypeVar

from pydantic import BaseModel

from sce.config import DASHBOARD, JobConfig, load_config
from sce.errors import InputError, TooManyErrors, hide_secrets, without_secrets
from sce.storage import RemotePath, readable

ConfigT = TypeVar("ConfigT", bound=JobConfig)

NEW_OBJECTS = 10_000
"""Between two looks for garbage. With Python's 700 a tenth of every import goes to looking, and an
import leaves none."""
INTERRUPTED = 130
"""As shells have it: 128 and the number of the signal."""
KEPT = "What was finished before stays; the same command goes on from there."
"""Where nobody says more: prepared data, embeddings, rounds of a fit."""


def run_job(
    config_class: type[ConfigT],
    job: Callable[[ConfigT], dict[str, Any]] | str,
    doc: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Load the configuration, run `job`, print its summary as one last line of JSON, and return the
    exit code.

    A job that takes seconds to load is given by name, "package.module:function": `--help` and what
    is wrong with the settings do not wait for it. Without `argv` it is this program that runs, and
    leaves the cluster before that line. Of a mistake of the user's that line is `{"error": ...}`,
    which quotes no file's content.
    """
    if argv is None:
        gc.set_threshold(NEW_OBJECTS)
        _no_bars_where_nobody_watches()
    handler = logging.StreamHandler()
    handler.setFormatter(_WithoutSecrets("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    prog, umask, dashboard = sys.argv[0], None, os.environ.get(DASHBOARD)
    try:
        config = load_config(config_class, sys.argv[1:] if argv is None else argv, prog, doc)
        umask = config.apply_umask()
        os.environ[DASHBOARD] = str(config.dashboard).lower()
        for setting, place in remote_places(config):
            place.check(setting)
        summary = (resolve_name(job) if isinstance(job, str) else job)(config)
    except (InputError, TooManyErrors) as error:
        print(f"{prog}: {readable(str(error))}", file=sys.stderr)
        print(json.dumps({"error": readable(error.without_quotes)}), flush=True)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt as stopped:
        if argv is not None:
            raise
        return _interrupted(prog, stopped)
    except Exception:
        if argv is not None:
            raise
        print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)
        return 1
    finally:
        if umask is not None:
            os.umask(umask)
            os.environ.pop(DASHBOARD)
            if dashboard is not None:
                os.environ[DASHBOARD] = dashboard
    if argv is None and "ray" in sys.modules:
        # Ray repeats what its workers printed until it is shut down: let it have said it all.
        sys.modules["ray"].shutdown()
    print(json.dumps(hide_secrets(summary), sort_keys=False), flush=True)
    if argv is None:
        gc.freeze()  # or Python looks at every object of every module once more as it ends
    return 0


def _interrupted(prog: str, stopped: KeyboardInterrupt) -> int:
    """End a job that Ctrl+C ended: say what is kept (the notes of who wrote it), and nothing else.
    A second Ctrl+C does not wait for Ray to end its processes."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    kept = " ".join(getattr(stopped, "__notes__", [])) or KEPT
    print(f"{prog}: interrupted. {readable(kept)}", file=sys.stderr, flush=True)
    logging.disable()
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    return INTERRUPTED


def _no_bars_where_nobody_watches() -> None:
    """In a file or a pipe, by this process and those that it starts; the user's setting stays."""
    if not sys.stderr.isatty():
        for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")


def typed(job: str, python: str = "python") -> str:
    """How a job is started, in the way that this one was: by its file, or as a command of `sce`."""
    return f"sce {job}" if sys.argv[0].startswith("sce ") else f"{python} jobs/{job}.py"


class _WithoutSecrets(logging.Formatter):
    """Of what libraries log too, with their tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def remote_places(settings: BaseModel, head: str = "") -> Iterator[tuple[str, RemotePath]]:
    """The settings that are URIs, by name."""
    for name, value in settings:
        if isinstance(value, BaseModel):
            yield from remote_places(value, f"{head}{name}.")
        elif isinstance(value, RemotePath):
            yield f"{head}{name}", value
