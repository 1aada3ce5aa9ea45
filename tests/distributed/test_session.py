"""Which Ray a process joins, and what it says where it can join or start none."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sce.distributed import session
from sce.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
WHERE = """
import ray
from sce.distributed.session import dashboard_url, ensure_ray
ensure_ray()
print(ray.get_runtime_context().gcs_address, dashboard_url())
"""


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """As in a process that has joined none, and must join none here."""
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session.ray, "init", lambda **_: pytest.fail("Ray was started"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:1", "no Ray cluster answers"),
        ("http://127.0.0.1:8265", "no address of a Ray cluster. Write HOST:PORT"),
        ("nonsense", "no address of a Ray cluster"),
        ("127.0.0.1:port", "no Ray cluster answers"),
        ("auto", "no Ray runs on this machine"),
    ],
)
def test_a_cluster_that_is_gone_is_said_at_once(monkeypatch, tmp_path, address, message):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(session, "_started_here", lambda: None)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        session.ensure_ray()
    assert time.monotonic() - started < 30


def test_a_folder_too_long_for_sockets_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'x' * 80}")
    with pytest.raises(ConfigError, match=r"has 85 characters; .* at most 39 are left"):
        session.ensure_ray()


def test_what_ray_says_is_the_users_mistake(monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied", "/tmp/ray")

    monkeypatch.setattr(session.ray, "init", refuse)
    with pytest.raises(ConfigError, match=r"Ray cannot start on this machine: .*Permission denied"):
        session.ensure_ray()


@pytest.mark.system
def test_a_strangers_ray_is_joined_when_it_is_named_and_not_else(tmp_path):
    binary = Path(sys.executable).parent / "ray"
    # Ray finds it by this folder, so that it is nobody else's on this machine.
    temp = Path("/tmp") / f"s{os.getpid()}"
    temp.mkdir()
    environment = {**os.environ, "RAY_TMPDIR": str(temp), "RAY_AUTH_MODE": "disabled"}
    environment["PYTHONPATH"] = str(ROOT)
    environment.pop("RAY_ADDRESS", None)
    options = ["--head", "--block", "--port=0", "--num-cpus=1", "--include-dashboard=true"]
    options += ["--dashboard-port=0", "--temp-dir", str(temp / "ray")]
    # Its processes die with its group: `ray stop` would stop every Ray of the machine.
    node = subprocess.Popen(
        [str(binary), "start", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    written = temp / "ray" / "ray_current_cluster"
    deadline = time.monotonic() + 120
    while not written.exists() and time.monotonic() < deadline:
        time.sleep(1)
    theirs = written.read_text().strip()
    try:
        found = {}
        for address in ("", "auto", theirs):
            ended = subprocess.run(
                [sys.executable, "-c", WHERE],
                env=environment | {"RAY_ADDRESS": address},
                capture_output=True,
                text=True,
                timeout=180,
            )
            assert ended.returncode == 0, ended.stderr
            found[address] = ended.stdout.splitlines()[-1].split()
        assert found[""][0] != theirs
        assert found["auto"][0] == found[theirs][0] == theirs
        assert found["auto"][1] == found[theirs][1] != found[""][1]
    finally:
        os.killpg(node.pid, signal.SIGKILL)
        shutil.rmtree(temp, ignore_errors=True)
