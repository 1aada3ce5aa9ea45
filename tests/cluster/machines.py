"""Several machines on this one: network namespaces with addresses of their own on a bridge, each
with processes and a /tmp that no other sees, and a Ray node in each. A machine can be killed, and
cut off.

Needs root and iproute2 (`possible`). Ports, sockets and files are those of a real cluster; the
processors, the memory and the rest of the disk are shared.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml

from tests.cluster.manifests import ROOT
from tests.cluster.pods import image_environment
from tests.cluster.services import until

BIN = Path(sys.executable).parent
TOKEN = "of-this-test-alone-0123456789abcdef"
GCS, DASHBOARD = 6379, 8265


@cache
def possible() -> str:
    """Why several machines cannot be had here; empty where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    made = subprocess.run(["ip", "netns", "add", "sce-probe"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", "sce-probe"], capture_output=True)
    return "" if made.returncode == 0 else f"no network namespaces: {made.stderr.strip()}"


INIT = """
import os, time
print("booted", flush=True)
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.1)
"""
"""The first process of a machine: it ends what was left to it, and nothing else."""


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


class Machine:
    """A network namespace on the bridge of a `Network`.

    Args:
        disk_mb: size of its /tmp, which otherwise is that of this machine's disk.
    """

    def __init__(self, network: Network, number: int, home: Path, disk_mb: int | None) -> None:
        self.name, self.address = f"{network.name}-{number}", f"{network.prefix}.{number + 10}"
        self.link = f"{network.name}v{number}"
        self.folder = home / str(number)
        self.folder.mkdir(mode=0o700)  # for who may put code to run into Ray's folder
        if disk_mb is not None:
            size = ["-o", f"size={disk_mb}m", "tmpfs", str(self.folder)]
            subprocess.run(["mount", "-t", "tmpfs", *size], check=True)
        _ip("netns", "add", self.name)
        _ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", self.link, "master", network.name, "up")
        for command in (
            ["addr", "add", f"{self.address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
            ["route", "add", "default", "via", f"{network.prefix}.1"],
        ):
            _ip("-n", self.name, *command)
        self.boot()

    def boot(self) -> None:
        """Begin its first process, in namespaces of its own: what runs there sees no process of
        another machine, and ends with it. Ray's driver looks for its node among all it sees."""
        steps = []
        for kept in {ROOT, Path(sys.prefix)}:  # a checkout below /tmp stays where it was
            if kept.is_relative_to("/tmp"):
                place = self.folder / kept.relative_to("/tmp")
                steps.append(f"mkdir -p {place} && mount --bind {kept} {place}")
        steps.append(
            f"mount --rbind {self.folder} /tmp && exec {sys.executable} -c {shlex.quote(INIT)}"
        )
        self._outside = subprocess.Popen(
            ["ip", "netns", "exec", self.name, "unshare", "--mount", "--pid", "--fork",
             "--mount-proc", "sh", "-c", " && ".join(steps)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._outside.stdout is not None
        assert self._outside.stdout.readline() == "booted\n"
        (process,) = psutil.Process(self._outside.pid).children()
        self._first = process.pid

    def run(self, environment: Mapping[str, str], *command: str) -> None:
        done = subprocess.run(
            ["nsenter", "--target", str(self._first), "--mount", "--net", "--pid", f"--wd={ROOT}",
             *command],
            env=dict(environment), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def processes(self, title: str) -> list[psutil.Process]:
        """Those on it whose command line has this text, by their numbers out here."""
        found = []
        for one in psutil.Process(self._first).children(recursive=True):
            with suppress(psutil.Error):
                if title in " ".join(one.cmdline()):
                    found.append(one)
        return found

    def kill(self) -> None:
        """Everything on it at once, as where the power goes: its first process takes the others
        with it. `boot` brings it back, with its disk."""
        with suppress(ProcessLookupError):
            os.kill(self._first, signal.SIGKILL)
        self._outside.wait(30)

    def terminate(self) -> None:
        """SIGTERM to its Ray, as Kubernetes sends it to the container of a pod."""
        (started,) = self.processes("ray start --block")
        started.terminate()

    def empty_disk(self) -> None:
        """Of a machine that is not running."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def cut(self) -> None:
        """Its network, both ways, without a word to anybody."""
        _ip("link", "set", self.link, "down")

    def heal(self) -> None:
        _ip("link", "set", self.link, "up")

    def remove(self) -> None:
        self.kill()
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)
        subprocess.run(["ip", "link", "del", self.link], capture_output=True)
        if os.path.ismount(self.folder):
            subprocess.run(["umount", "--lazy", self.folder], capture_output=True)


class Network:
    """A bridge; this process and its servers are at `host`."""

    def __init__(self, home: Path) -> None:
        number = os.getpid() % 200
        self.name, self.prefix = f"sce{number}", f"10.77.{number}"
        self.host = f"{self.prefix}.1"
        self._home = home
        self.machines: list[Machine] = []
        _ip("link", "add", self.name, "type", "bridge")
        _ip("addr", "add", f"{self.host}/24", "dev", self.name)
        _ip("link", "set", self.name, "up")

    def machine(self, disk_mb: int | None = None) -> Machine:
        self.machines.append(Machine(self, len(self.machines), self._home, disk_mb))
        return self.machines[-1]

    def remove(self) -> None:
        for machine in self.machines:
            machine.remove()
        subprocess.run(["ip", "link", "del", self.name], capture_output=True)


@contextmanager
def network() -> Iterator[Network]:
    home = Path(tempfile.mkdtemp(prefix="machines", dir="/tmp"))
    made = Network(home)
    try:
        yield made
    finally:
        made.remove()
        shutil.rmtree(home, ignore_errors=True)


class RayCluster:
    """A head without CPUs for tasks, and workers, each on a machine of its own.

    Args:
        services: variables of the nodes, such as those that lead to S3 and MLflow.
        cpus: logical ones, of each worker.
        redis: address and password of a Redis that keeps what the head knows.
    """

    def __init__(
        self,
        network: Network,
        services: Mapping[str, str],
        workers: int = 2,
        cpus: int = 4,
        redis: tuple[str, str] | None = None,
    ) -> None:
        self._network, self._cpus, self._redis = network, cpus, redis
        image = {k: v for k, v in image_environment().items() if k.startswith("RAY_")}
        common = {**os.environ, **image, "RAY_AUTH_TOKEN": TOKEN}
        for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", "PYTEST_CURRENT_TEST"):
            common.pop(name, None)
        # Code and dependencies are there, as in an image.
        common |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        self.environment = {**common, **services, "XDG_CACHE_HOME": "/tmp/cache", "HOME": "/tmp"}
        self.head = network.machine()
        self.client = {**common, "RAY_API_SERVER_ADDRESS": self.api,
                       "RAY_DASHBOARD_ADDRESS": self.api}  # fmt: skip
        self.start_head()
        self.workers = [self.add_worker() for _ in range(workers)]
        until(lambda: self.alive() == workers + 1, 90, "nodes")

    @property
    def api(self) -> str:
        return f"http://{self.head.address}:{DASHBOARD}"

    def start_head(self) -> None:
        """Begin it, or again after it was killed."""
        kept = {"RAY_REDIS_ADDRESS": self._redis[0]} if self._redis else {}
        password = ["--redis-password", self._redis[1]] if self._redis else []
        self.head.run(
            self.environment | kept, "ray", "start", "--head", "--num-cpus", "0",
            "--port", str(GCS), "--node-ip-address", self.head.address, "--dashboard-host",
            self.head.address, "--dashboard-port", str(DASHBOARD), "--disable-usage-stats",
            *password,
        )  # fmt: skip

    def add_worker(self, disk_mb: int | None = None, *options: str) -> Machine:
        machine = self._network.machine(disk_mb)
        self.start_worker(machine, *options)
        return machine

    def start_worker(self, machine: Machine, *options: str) -> None:
        """Does not wait until it is there. As a pod's container begins it, so that SIGTERM to
        `ray start` is what the pod would get."""
        command = [
            "ray", "start", "--block", "--address", f"{self.head.address}:{GCS}",
            "--node-ip-address", machine.address, "--num-cpus", str(self._cpus), *options,
        ]  # fmt: skip
        background = f"{shlex.join(command)} > /tmp/ray-start.log 2>&1 &"
        machine.run(self.environment, "sh", "-c", background)

    def get(self, path: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return requests.get(f"{self.api}{path}", headers=headers, timeout=30)

    def alive(self) -> int:
        answer = self.get("/nodes?view=summary").json()
        nodes = (answer.get("data") or {}).get("summary", [])  # none while the head begins
        return sum(node["raylet"]["state"] == "ALIVE" for node in nodes)

    def begin(self, name: str, *entrypoint: str) -> None:
        """`ray job submit`, and do not wait."""
        done = subprocess.run(
            [str(BIN / "ray"), "job", "submit", "--submission-id", name, "--no-wait", "--",
             "python", *entrypoint],
            cwd=ROOT, env=self.client, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def deploy(self, folder: Path, arguments: Mapping[str, Any]) -> None:
        """The endpoint of configs/serve.yaml with these arguments, on every machine's address."""
        config = yaml.safe_load((ROOT / "configs" / "serve.yaml").read_text())
        (app,) = config["applications"]
        config["http_options"]["host"], app["args"] = "0.0.0.0", dict(arguments)
        (folder / "serve.yaml").write_text(yaml.safe_dump(config))
        done = subprocess.run(
            [str(BIN / "serve"), "deploy", str(folder / "serve.yaml")],
            env=self.client, cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def job(self, name: str) -> dict[str, str]:
        answer = self.get(f"/api/jobs/{name}")
        answer.raise_for_status()
        found: dict[str, str] = answer.json()
        return found

    def stop(self, name: str) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        requests.post(f"{self.api}/api/jobs/{name}/stop", headers=headers, timeout=30)

    def log(self, name: str) -> str:
        return str(self.get(f"/api/jobs/{name}/logs").json()["logs"])

    def wait(self, name: str, seconds: float = 300) -> str:
        """Its state at the end."""
        until(lambda: self.job(name)["status"] not in ("PENDING", "RUNNING"), seconds, name)
        return self.job(name)["status"]
