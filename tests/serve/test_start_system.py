"""A signal that comes while the server starts ends it as one that comes later does."""

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
import yaml

from jobs.benchmarks.servers import ROOT, own_ray
from tests.serve.conftest import settings_of
from tests.serve.load import free_ports

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


def titles(folder: str) -> list[str]:
    """Of the processes of the Ray that keeps its files there."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("RAY_TMPDIR") == folder:
                found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["ServeController", "ServeReplica:sce:gateway"])
def test_an_end_while_it_starts(models, tmp_path, number, moment):
    model = json.loads(settings_of(models).model_dump_json(exclude={"scaling"}))
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump({"models": {"tiny": model}, "port": free_ports(1)[0]}))
    env, said = own_ray(tmp_path, "serve"), tmp_path / "said"
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve.app", "--config", str(config)],
            cwd=ROOT, stdout=file, stderr=file, env=env, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + 90
    while not any(moment in title for title in titles(env["RAY_TMPDIR"])):
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(90) == 0, said.read_text()
    assert "Traceback" not in said.read_text()
    while left := titles(env["RAY_TMPDIR"]):
        assert time.monotonic() < deadline + 30, left
        time.sleep(0.1)
    shutil.rmtree(env["RAY_TMPDIR"])
