"""What the user asks of the cluster, checked against what the cluster has or can grow to.

Ray and torch, which take seconds to import, are imported where they are used.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from sce.distributed.settings import ResourcesConfig
from sce.errors import ConfigError

log = logging.getLogger(__name__)

PRODUCTS = 128
"""Shapes that each of torch's caches keeps what it made for."""
PRODUCT_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")

T = TypeVar("T")

IO_CPUS = 0.25
"""That Ray sets aside for a task that reads or writes."""
_ACCELERATOR = "accelerator_type:"


@dataclass(frozen=True)
class ActorPlan:
    """Concrete arguments of a pool of actors.

    Attributes:
        num_cpus, num_gpus: what Ray sets aside for each.
        threads: torch's in each actor; the actor takes no more than its machine has cores.
    """

    actors: int
    num_cpus: float
    num_gpus: float
    threads: int
    device: Literal["cpu", "cuda"]
    accelerator_type: str | None = None

    def ray_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `map_batches` and of `ray.remote`."""
        asked = ("num_cpus", "num_gpus", "accelerator_type")
        return {name: getattr(self, name) for name in asked if getattr(self, name)}


@dataclass(frozen=True)
class WorkerPlan:
    """Concrete arguments of Ray Train's `ScalingConfig`, and torch's threads in each worker.

    Attributes:
        least: workers that are enough, at most `count`.
    """

    count: int
    least: int
    resources: dict[str, float]
    use_gpu: bool
    threads: int
    accelerator_type: str | None = None

    def __str__(self) -> str:
        kind = (self.accelerator_type or "GPU") if self.use_gpu else "CPU"
        count = f"{self.count}" if self.least == self.count else f"{self.least} to {self.count}"
        return f"{count} on {kind}"


@dataclass(frozen=True)
class ClusterSize:
    """What the cluster has, or can grow to where it scales itself.

    Attributes:
        nodes: resources of each node that is there now.
        total: over all nodes, with those that an autoscaler may add.
        kinds: resources of a node of each kind that an autoscaler may add.
    """

    nodes: list[dict[str, float]]
    total: dict[str, float]
    kinds: tuple[dict[str, float], ...] = ()

    @property
    def gpus(self) -> float:
        return self.total.get("GPU", 0.0)

    @property
    def cpus(self) -> float:
        return self.total.get("CPU", 0.0)

    @property
    def grows(self) -> bool:
        return self.cpus > sum(node.get("CPU", 0.0) for node in self.nodes)

    @property
    def accelerators(self) -> list[str]:
        return sorted(k.split(":")[1] for k in self.total if k.startswith(_ACCELERATOR))

    def room(self, num_cpus: float, num_gpus: float, accelerator_type: str | None = None) -> float:
        """How many actors of this kind the nodes that are there could hold."""
        return sum(_room(node, num_cpus, num_gpus, accelerator_type) for node in self.nodes)

    def __str__(self) -> str:
        types = f" ({', '.join(self.accelerators)})" if self.accelerators else ""
        more = ", those included that it may add" if self.grows else ""
        nodes = f"{len(self.nodes)} node(s)"
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs{types} on {nodes}{more}"


def cluster_size() -> ClusterSize:
    """Measure the cluster; joins it where that is not done."""
    import ray
    from ray._private.state import state as ray_state  # limits of an autoscaler: no public name

    from sce.distributed.session import ensure_ray

    ensure_ray()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    config = ray_state.get_cluster_config()
    kinds = () if config is None else config.node_group_configs
    total = dict(ray.cluster_resources())
    for name, amount in (ray_state.get_max_resources_from_cluster_config() or {}).items():
        total[name] = max(total.get(name, 0.0), amount)
    return ClusterSize(nodes, total, tuple(dict(kind.resources) for kind in kinds))


def embed_actors(
    config: ResourcesConfig,
    default_cpus: float = 1.0,
    what: str = "embedding",
    io_cpus: float = IO_CPUS,
) -> ActorPlan:
    """Turn the settings into a pool of actors; joins the cluster where that is not done.

    Args:
        default_cpus: CPUs that Ray sets aside for an actor where the settings do not say.
        what: what the actors do, for messages.
        io_cpus: that the tasks need which read for them and write; without any left they would wait
            without end.

    Raises:
        ConfigError: the cluster cannot have that much; names what was asked and what there is.
    """
    size = cluster_size()
    accelerator = config.accelerator_type
    num_gpus = _gpus_each(config, config.gpus_per_embed_actor, "gpus_per_embed_actor", size, what)
    num_cpus = config.cpus_per_embed_actor or default_cpus
    if num_gpus:
        room = size.room(num_cpus, num_gpus, accelerator)
        if size.grows and accelerator is None:
            room = _room(size.total, num_cpus, num_gpus, None)
        actors = config.embed_actors or max(1, int(room))
        threads = max(1, int(num_cpus))
    else:
        cpu_nodes = sum(_room(node, num_cpus, 0.0, accelerator) >= 1 for node in size.nodes)
        actors = config.embed_actors or max(1, cpu_nodes)
        threads = max(1, int(config.cpus_per_embed_actor or _shared_threads(size, actors, 1)))
    check_fits(size, what, actors, "actors", num_cpus, num_gpus, accelerator)
    if size.cpus - actors * num_cpus < io_cpus:
        raise ConfigError(
            f"{what}: {actors} actors with {num_cpus:g} CPUs each leave none of the cluster's "
            f"{size.cpus:g} for reading and writing, which need {io_cpus:g}. Lower "
            "`resources.embed_actors` or `resources.cpus_per_embed_actor`."
        )
    _log_plan(what, f"{actors} actor(s)", num_gpus, threads, size)
    return ActorPlan(
        actors, num_cpus, num_gpus, threads, "cuda" if num_gpus else "cpu", accelerator
    )


def training_workers(config: ResourcesConfig) -> WorkerPlan:
    """Turn the settings into the workers of Ray Train; joins the cluster where that is not done.

    Raises:
        ConfigError: the cluster cannot have that much; names what was asked and what there is.
    """
    size = cluster_size()
    num_gpus = _gpus_each(config, config.gpus_per_worker, "gpus_per_worker", size, "training")
    num_cpus = config.cpus_per_worker
    count, least = config.num_workers, config.min_workers or config.num_workers
    if least > count:
        raise ConfigError(
            f"resources.min_workers: {least} are more than resources.num_workers, {count}."
        )
    check_fits(size, "training", least, "workers", num_cpus, num_gpus, config.accelerator_type)
    threads = max(1, int(num_cpus)) if num_gpus else _shared_threads(size, count, num_cpus)
    resources = {"CPU": num_cpus} | ({"GPU": num_gpus} if num_gpus else {})
    asked = f"{count} worker(s)" if least == count else f"{least} to {count} workers"
    _log_plan("training", asked, num_gpus, threads, size)
    return WorkerPlan(count, least, resources, bool(num_gpus), threads, config.accelerator_type)


def use_threads(threads: int) -> None:
    """Give torch in this process `threads` threads, or as many as there are cores.

    Ray sets OMP_NUM_THREADS of a worker to the CPUs set aside for it, which is often 1. What torch
    keeps of its products is bounded with it.
    """
    import torch

    bound_products()
    torch.set_num_threads(max(1, min(threads, len(os.sched_getaffinity(0)))))


def bound_products() -> None:
    """Bound torch's caches, where the environment does not; before the process's first product.

    For each shape of a product of bfloat16, on a CPU, torch and oneDNN keep what they compiled and
    packed, half a megabyte each, up to 1,024 of them in two caches: texts of all lengths make a
    process twice as large as it was. With 128 it grew by a sixth, in the same time.
    """
    for name in PRODUCT_CACHES:
        os.environ.setdefault(name, str(PRODUCTS))


class TorchThread:
    """One thread for all of torch's work in an actor, with `threads` as for `use_threads`; its
    `executor` is for event loops.

    Ray builds an actor in one thread and calls it in another. OpenMP keeps a team of threads for
    each thread that ever computed, and with more of them than cores they no longer spin but sleep
    between two operations: a quarter of the rate is lost.
    """

    def __init__(self, threads: int) -> None:
        bound_products()  # a model may be loaded in another thread, before this one begins
        self.executor = ThreadPoolExecutor(1, "torch", use_threads, (threads,))

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call it there and wait for what it returns or raises."""
        return self.executor.submit(work, *arguments).result()


def _log_plan(what: str, who: str, num_gpus: float, threads: int, size: ClusterSize) -> None:
    on = f"{num_gpus:g} GPU each" if num_gpus else "CPU (no GPU is used)"
    log.info("%s: %s on %s, %d thread(s) each; the cluster has %s", what, who, on, threads, size)


def _shared_threads(size: ClusterSize, processes: int, num_cpus: float) -> int:
    """Threads of each process where they share the cores of CPU nodes evenly."""
    nodes = [node for node in size.nodes if node.get("CPU", 0.0) >= 1] or size.nodes
    node_cpus = min(node.get("CPU", 1.0) for node in nodes)
    return max(1, int(num_cpus), int(node_cpus // -(-processes // len(nodes))))


def _gpus_each(
    config: ResourcesConfig, asked: float | None, setting: str, size: ClusterSize, what: str
) -> float:
    """GPUs of one actor or worker; `asked` is the value of `setting`, None by default."""
    if config.use_gpu is False:
        if asked:
            raise ConfigError(f"resources.{setting}: {asked:g}, but resources.use_gpu is false.")
        return 0.0
    if config.use_gpu is True and (asked == 0 or not size.gpus):
        raise ConfigError(
            f"resources.use_gpu is true, but {what} would get no GPU: the cluster has {size} and "
            f"resources.{setting} is {'automatic' if asked is None else format(asked, 'g')}."
        )
    return float(size.gpus > 0) if asked is None else asked


def check_fits(
    size: ClusterSize,
    what: str,
    count: int,
    noun: str,
    num_cpus: float,
    num_gpus: float,
    accelerator_type: str | None,
    settings: str = "resources",
) -> None:
    """Refuse what Ray would wait for without end.

    Args:
        what, noun: what asks, and what it asks for, such as "workers"; for the message.
        settings: name of the section to change.

    Raises:
        ConfigError: the cluster cannot have that much; names what was asked and what there is.
    """
    on = f" on nodes with {accelerator_type}" if accelerator_type else ""
    asked = f"{what} asks for {count} {noun} with {num_cpus:g} CPUs and {num_gpus:g} GPUs each{on}"
    if accelerator_type and accelerator_type not in size.accelerators:
        raise ConfigError(
            f"{settings}.accelerator_type: {accelerator_type!r} is not in the cluster, which has "
            f"{', '.join(size.accelerators) or 'no accelerator'}; {asked}."
        )
    if count * num_cpus > size.cpus or count * num_gpus > size.gpus:
        raise ConfigError(f"{asked}, but the cluster has {size}. Lower the settings `{settings}`.")
    nodes = size.room(num_cpus, num_gpus, accelerator_type)
    new = any(_room(kind, num_cpus, num_gpus, accelerator_type) >= 1 for kind in size.kinds)
    lacks = ""
    if not size.grows and nodes < count:
        lacks = f"the nodes have room for {nodes:g} of them"
    elif size.grows and size.kinds and not nodes and not new:
        lacks = "no kind of node has room for one of them"
    if lacks:
        raise ConfigError(f"{asked}, but {lacks}; the cluster has {size}.")


def _room(
    node: dict[str, float], num_cpus: float, num_gpus: float, accelerator_type: str | None
) -> float:
    """How many actors of this kind a node could hold."""
    if accelerator_type and f"{_ACCELERATOR}{accelerator_type}" not in node:
        return 0.0
    room = _times(num_cpus, node.get("CPU", 0.0))
    if 0 < num_gpus < 1:  # a part is of one GPU
        return min(room, node.get("GPU", 0.0) * _times(num_gpus, 1.0))
    return min(room, _times(num_gpus, node.get("GPU", 0.0)))


def _times(part: float, whole: float) -> float:
    """How many times `part` goes into `whole`; without end for a part of 0."""
    return math.floor(whole / part + 1e-6) if part else math.inf  # ten times 0.1 is one
