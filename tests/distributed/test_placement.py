"""What is asked of a cluster against what it has, by the numbers. With Ray: the system test."""

import logging
import os

import pytest
from pydantic import ValidationError

from sce.distributed import resources
from sce.distributed.resources import (
    ClusterSize,
    ResourcesConfig,
    check_fits,
    embed_actors,
    training_workers,
)
from sce.errors import ConfigError

CPUS = {"CPU": 8.0}
A6000 = {"CPU": 16.0, "GPU": 2.0, "accelerator_type:RTX-A6000": 1.0}
A100 = {"CPU": 16.0, "GPU": 4.0, "accelerator_type:A100": 1.0}


def cluster(*nodes: dict[str, float], grows_to: dict[str, float] | None = None, kinds=()):
    total: dict[str, float] = {}
    for node in nodes:
        for name, amount in node.items():
            total[name] = total.get(name, 0.0) + amount
    return ClusterSize(list(nodes), total | (grows_to or {}), tuple(kinds))


@pytest.fixture
def has(monkeypatch):
    """Makes the cluster that the settings are held against."""

    def make(size: ClusterSize) -> None:
        monkeypatch.setattr(resources, "cluster_size", lambda: size)

    return make


def test_actors_leave_a_cpu_for_reading_and_writing(has):
    has(cluster({"CPU": 2.0}))
    with pytest.raises(
        ConfigError, match=r"1 actors with 2 CPUs each leave none of the cluster's 2"
    ):
        embed_actors(ResourcesConfig(cpus_per_embed_actor=2))
    assert embed_actors(ResourcesConfig(cpus_per_embed_actor=1.75)).num_cpus == 1.75
    assert embed_actors(ResourcesConfig(cpus_per_embed_actor=2), io_cpus=0.0).num_cpus == 2


@pytest.mark.parametrize(
    ("settings", "actors", "num_gpus"),
    [
        ({}, 6, 1),
        ({"accelerator_type": "RTX-A6000"}, 2, 1),
        ({"accelerator_type": "RTX-A6000", "gpus_per_embed_actor": 0.1}, 16, 0.1),
        ({"gpus_per_embed_actor": 0.6}, 6, 0.6),
        ({"gpus_per_embed_actor": 4}, 1, 4),
        ({"use_gpu": False}, 3, 0),
        ({"use_gpu": False, "accelerator_type": "A100"}, 1, 0),
    ],
)
def test_actors_by_default_fill_the_gpus_that_may_be_used(has, settings, actors, num_gpus):
    has(cluster(CPUS, A6000, A100))
    plan = embed_actors(ResourcesConfig(**settings))
    assert (plan.actors, plan.num_gpus) == (actors, num_gpus)
    assert plan.ray_arguments().get("accelerator_type") == settings.get("accelerator_type")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_workers": 3, "accelerator_type": "RTX-A6000"},
            r"training asks for 3 workers with 0\.5 CPUs and 1 GPUs each on nodes with RTX-A6000, "
            r"but the nodes have room for 2 of them; the cluster has 40 CPUs and 6 GPUs "
            r"\(A100, RTX-A6000\) on 3 node",
        ),
        (
            {"accelerator_type": "H100"},
            r"'H100' is not in the cluster, which has A100, RTX-A6000; training asks for 1 workers",
        ),
        ({"num_workers": 7}, r"7 workers .*the cluster has 40 CPUs and 6 GPUs"),
        ({"gpus_per_worker": 8}, r"8 GPUs each, but the cluster has 40 CPUs and 6 GPUs"),
        ({"gpus_per_worker": 5}, r"room for 0 of them"),
        ({"num_workers": 2, "gpus_per_worker": 3}, r"room for 1 of them"),
        ({"use_gpu": False, "cpus_per_worker": 17}, r"room for 0 of them"),
    ],
)
def test_what_no_nodes_can_hold_is_refused(has, settings, message):
    has(cluster(CPUS, A6000, A100))
    with pytest.raises(ConfigError, match=message):
        training_workers(ResourcesConfig(**settings))


def test_a_cluster_that_grows_is_taken_for_what_it_may_become(has):
    kind = {"CPU": 16.0, "GPU": 4.0, "accelerator_type:RTX-A6000": 1.0}
    has(cluster(CPUS, grows_to={"CPU": 40.0, "GPU": 8.0, "accelerator_type:RTX-A6000": 2.0},
                kinds=[CPUS, kind]))  # fmt: skip
    assert embed_actors(ResourcesConfig()).actors == 8
    plan = training_workers(ResourcesConfig(num_workers=8, accelerator_type="RTX-A6000"))
    assert plan.resources == {"CPU": 0.5, "GPU": 1.0}
    with pytest.raises(ConfigError, match="those included that it may add"):
        training_workers(ResourcesConfig(num_workers=9))
    with pytest.raises(ConfigError, match="no kind of node has room for one of them"):
        training_workers(ResourcesConfig(gpus_per_worker=8))


def test_fewer_workers_may_be_enough(has):
    has(cluster(CPUS, A6000, A100))
    asked = {"num_workers": 9, "accelerator_type": "RTX-A6000"}
    plan = training_workers(ResourcesConfig(**asked, min_workers=2))
    assert (plan.least, plan.count, str(plan)) == (2, 9, "2 to 9 on RTX-A6000")
    with pytest.raises(ConfigError, match="asks for 9 workers"):
        training_workers(ResourcesConfig(**asked))
    with pytest.raises(ConfigError, match=r"min_workers: 3 are more than resources.num_workers, 2"):
        training_workers(ResourcesConfig(num_workers=2, min_workers=3))


def test_without_a_gpu_it_is_said_that_a_cpu_computes(has, caplog):
    has(cluster(CPUS))
    with caplog.at_level(logging.INFO):
        assert embed_actors(ResourcesConfig()).device == "cpu"
        assert not training_workers(ResourcesConfig()).use_gpu
    assert [record.message.count("CPU (no GPU is used)") for record in caplog.records] == [1, 1]


def test_a_part_of_a_gpu_or_whole_ones():
    ResourcesConfig(gpus_per_worker=0.5, gpus_per_embed_actor=2)
    with pytest.raises(ValidationError, match="a part of a GPU, or whole GPUs"):
        ResourcesConfig(gpus_per_worker=1.5)


def test_replicas_that_ask_for_no_cpu_have_room():
    check_fits(cluster(CPUS), "gateway", 3, "replicas", 0.0, 0.0, None)


def test_what_torch_keeps_is_bounded_unless_somebody_did(monkeypatch):
    one, other = resources.PRODUCT_CACHES
    monkeypatch.setenv(one, "7")
    monkeypatch.delenv(other, raising=False)
    resources.use_threads(1)
    assert (os.environ[one], os.environ[other]) == ("7", str(resources.PRODUCTS))
