"""Servers as processes of their own, each with a Ray of its own, as a user would start them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import requests
import yaml

from jobs.benchmarks.peers import GLICLASS_ROUTE, save_gliclass

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 180.0
STOP_SECONDS = 60.0


@contextmanager
def serve_app(home: Path, settings: dict[str, Any]) -> Iterator[str]:
    """`python -m serve.app` with these settings; its address."""
    port = _free_port()
    config = home / "serve.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [sys.executable, "-m", "serve.app", "--config", str(config), "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with _server(home, "serve", command, partial(requests.get, f"{url}/health")):
        yield url


@contextmanager
def gliclass_server(home: Path, dtype: str) -> Iterator[str]:
    save_gliclass(home / "gliclass")
    port = _free_port()
    command = [sys.executable, "-m", "jobs.benchmarks.gliclass_server", "--dtype", dtype]
    command += ["--model", str(home / "gliclass"), "--port", str(port)]
    url = f"http://127.0.0.1:{port}{GLICLASS_ROUTE}"
    body = {"text": "a text", "labels": ["a", "b"]}
    with _server(home, "peer", command, partial(requests.post, url, json=body)):
        yield url


@contextmanager
def _server(
    home: Path, name: str, command: Sequence[str], request: Callable[..., requests.Response]
) -> Iterator[None]:
    """A process with a Ray of its own that answers the request; ended with all its children."""
    said, env = home / f"{name}.log", own_ray(home, name)
    with said.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True, env=env
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answered(request):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)}:\n{said.read_text()[-3000:]}")
            time.sleep(0.5)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(env["RAY_TMPDIR"], ignore_errors=True)


def own_ray(home: Path, name: str) -> dict[str, str]:
    """The environment of a Ray whose sockets do not take the long paths of temporary folders."""
    folder = Path(tempfile.gettempdir()) / f"{home.name[-8:]}-{name}"
    return {**os.environ, "RAY_TMPDIR": str(folder)}


def _answered(request: Callable[..., requests.Response]) -> bool:
    try:
        return request(timeout=10).ok
    except requests.RequestException:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
