"""Which Ray a process joins, and what it says where it can join or start none."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sce.distributed import session
from sce.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
WHERE = """
import ray
from sce.distributed.session import dashboard_url, ensure_ray
ensure_ray(dashboard=True)
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
    with pytest.raises(ConfigError, match=r"has 85 characters; .* at most 3\d are left"):
        session.ensure_ray()


@pytest.mark.parametrize(
    "raised",
    [
        PermissionError(13, "Permission denied", "/tmp/ray"),
        Exception("The current node timed out during startup."),  # a bare one, Ray's own
    ],
)
def test_what_ray_says_is_no_traceback(monkeypatch, raised):
    def refuse(**_):
        raise raised

    monkeypatch.setattr(session.ray, "init", refuse)
    told = r"Ray cannot start on this machine: .*(Permission denied|timed out)"
    with pytest.raises(ConfigError, match=told):
        session.ensure_ray()


def test_nothing_that_ray_starts_has_a_secret_in_its_environment(monkeypatch):
    """Ray starts its processes with the environment of this one."""
    shown = "import json, os; print(json.dumps(dict(os.environ)))"
    given = {"SCE_TOKENS": "first-secret", "sce_endpoint_token": "second-secret"}
    others = {"SCE_TOKENS_FILE": "/run/secrets/tokens", "SCE_NAME": "kept"}
    for name, value in (given | others).items():
        monkeypatch.setenv(name, value)
    found = {}

    def start(**_):
        found.update(json.loads(subprocess.check_output([sys.executable, "-c", shown])))

    monkeypatch.setattr(session.ray, "init", start)
    session.ensure_ray()
    assert others.items() <= found.items()
    assert not given.keys() & found.keys()
    assert not any("-secret" in value for value in found.values())


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


LOCAL = """
import json, os, psutil, ray, stat, urllib.request
from sce.distributed.session import ensure_ray, shared_session
ensure_ray()
mine = {os.getpid()} | {process.pid for process in psutil.Process().children(recursive=True)}
listening = {c.laddr.ip for c in psutil.net_connections("inet") if c.status == "LISTEN"
             and c.pid in mine}
(node,) = ray.nodes()
url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
print(json.dumps({
    "folder": ray._private.worker._global_node.get_session_dir_path(),
    "listening": sorted(listening), "shared": shared_session(),
    "metrics": urllib.request.urlopen(url).status,
    "worker": ray.get(ray.remote(lambda: os.environ.get("SCE_TOKENS")).remote()),
}))
"""


@pytest.mark.system
def test_a_local_ray_is_this_users_and_this_machines_alone(tmp_path):
    temp = Path("/tmp") / f"l{os.getpid()}"
    environment = {**os.environ, "RAY_TMPDIR": str(temp), "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOCAL], env=environment, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        private = temp / f"sce-{os.getuid()}"
        assert found["folder"].startswith(f"{private}/ray/session_")
        assert private.stat().st_mode & 0o777 == 0o700
        assert set(found["listening"]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        assert found["shared"] is None
        assert found["metrics"] == 200
    finally:
        shutil.rmtree(temp, ignore_errors=True)


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_folder_that_is_not_this_users_alone_is_refused(monkeypatch, tmp_path, kind):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(session, "MAX_SOCKET_CHARS", 500)
    folder = tmp_path / f"sce-{os.getuid()}"
    if kind == "open":
        folder.mkdir()
        folder.chmod(0o755)
    elif kind == "link":
        (tmp_path / "others").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "others")
    else:
        folder.write_text("")
    with pytest.raises(ConfigError, match="is not this user's alone"):
        session.ensure_ray()


def test_a_shared_session_is_told_from_a_private_one(monkeypatch, tmp_path):
    folder = tmp_path / "ray" / "session"
    folder.mkdir(parents=True)
    for one in (folder, folder.parent):
        one.chmod(0o777)
    node = SimpleNamespace(get_session_dir_path=lambda: str(folder))
    monkeypatch.setattr(session.ray._private.worker, "_global_node", node)
    monkeypatch.setattr(Path, "parents", property(lambda path: [tmp_path / "ray"]))
    assert session.shared_session() == str(folder)
    folder.parent.chmod(0o700)
    assert session.shared_session() is None


def test_the_agent_that_takes_jobs_listens_at_any_port(monkeypatch):
    """At Ray's fixed one it ends beside another Ray of this machine."""
    from ray._private.parameter import RayParams

    given = RayParams.__init__.__defaults__
    monkeypatch.setattr(RayParams.__init__, "__defaults__", given)
    session._listen_anywhere()
    assert RayParams().dashboard_agent_listen_port == 0
    changed = [a != b for a, b in zip(given, RayParams.__init__.__defaults__, strict=True)]
    assert sum(changed) <= 1
