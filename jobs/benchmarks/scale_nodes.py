"""Logical nodes on one machine, each with a fixed share of its cores: what more nodes gain, where
the work on each is the same.

A node is a raylet of its own, with its workers; Linux' control groups hold all of its processes to
its share, so that two nodes have twice what one has. The head has no CPUs for tasks and what is
left of the machine, with the driver.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from sce.distributed.session import ensure_ray
from sce.errors import ConfigError

LOGICAL_CPUS = 2
"""Of a node: an actor takes more than half of them, so that no node has two."""
ACTOR_CPUS = 1.5
PERIOD_MICROSECONDS = 100_000
GROUPS = Path("/sys/fs/cgroup")


@contextmanager
def logical_nodes(count: int, cores_each: float) -> Iterator[None]:
    """This process is the driver of a cluster of so many nodes.

    Args:
        cores_each: of the machine, that all processes of a node have together.

    Raises:
        ConfigError: this machine lets nobody limit a process to a share.
    """
    # By default Ray lets every other program go before its workers.
    environment = {"RAY_ADDRESS": "", "RAY_worker_niceness": "0"}
    before = {name: os.environ.get(name) for name in environment}
    os.environ |= environment
    groups: list[Path] = []
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(count):
            node: Any = cluster.add_node(num_cpus=LOGICAL_CPUS)
            (raylet,) = node.all_processes["raylet"]
            groups.append(_limited(raylet.process.pid, cores_each))
        os.environ["RAY_ADDRESS"] = cluster.address
        ensure_ray()
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        for group in groups:
            _removed(group)


def _limited(pid: int, cores: float) -> Path:
    """Put a process, what it has started and what it will start into a control group of so many
    cores. Returns the group's folder."""
    quota = int(cores * PERIOD_MICROSECONDS)
    first = GROUPS / "cpu" if (GROUPS / "cpu").is_dir() else GROUPS
    group = first / f"sce-node-{pid}"
    try:
        group.mkdir()
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{quota} {PERIOD_MICROSECONDS}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            (group / "cgroup.procs").write_text(str(process.pid))
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        raise ConfigError(
            f"parts: 'nodes' gives each node a share of the cores by a control group below "
            f"{first}, which this user or machine cannot make: {error}. Leave 'nodes' out."
        ) from None
    return group


def _removed(group: Path) -> None:
    """End what is left of a node, and its group."""
    with suppress(OSError):
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        psutil.wait_procs([psutil.Process(int(p)) for p in _alive(group)], timeout=10)
        group.rmdir()


def _alive(group: Path) -> list[str]:
    return [
        pid for pid in (group / "cgroup.procs").read_text().split() if psutil.pid_exists(int(pid))
    ]
