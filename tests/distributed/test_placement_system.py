"""Placement on a Ray of three nodes with logical GPUs: actors, training workers, replicas.

The cluster is of this process; what asks it runs in another, as a job does.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.serve.conftest import models  # noqa: F401  # a fixture

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

PROGRAM = """
import json, sys
import ray
from sce.distributed.stage import ACTOR_CPUS
from sce.distributed.resources import *
from sce.distributed.session import ensure_ray
from sce.errors import ConfigError
from serve.app import build
from serve.settings import ServeConfig

ensure_ray()
of_node = {n["NodeID"]: n["Resources"] for n in ray.nodes()}

class Where:
    def gpus(self):
        context = ray.get_runtime_context()
        kinds = [k for k in of_node[context.get_node_id()] if k.startswith("accelerator_type:")]
        return [len(ray.get_gpu_ids()), *kinds]

found = {}
for name, kind, settings in json.load(sys.stdin):
    try:
        if kind == "serve":
            gateway = build(ServeConfig(models=settings))._bound_deployment
            deployments = [h._bound_deployment for h in gateway.init_args[0].values()]
            found[name] = [d.ray_actor_options for d in deployments]
        elif kind == "workers":
            plan = training_workers(ResourcesConfig(**settings))
            found[name] = {"resources": plan.resources, "use_gpu": plan.use_gpu}
        else:
            cpus = ACTOR_CPUS if kind == "bulk" else 1.0
            plan = embed_actors(ResourcesConfig(**settings), default_cpus=cpus)
            Actor = ray.remote(Where).options(**plan.ray_arguments())
            actors = [Actor.remote() for _ in range(plan.actors)]
            found[name] = ray.get([a.gpus.remote() for a in actors], timeout=60)
            for a in actors:
                ray.kill(a)
    except ConfigError as error:
        found[name] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    kinds = {"RTX-A6000": 2, "A100": 1}
    for kind, gpus in kinds.items():
        cluster.add_node(num_cpus=4, num_gpus=gpus, resources={f"accelerator_type:{kind}": 1})
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def placed(cluster, models) -> dict[str, Any]:  # noqa: F811
    def served(**settings: Any) -> dict[str, Any]:
        return {"m": {"path": str(models / "sce"), **settings}}

    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("all GPUs", "actors", {}),
        ("one type", "bulk", {"accelerator_type": "RTX-A6000"}),
        ("halves", "bulk", {"accelerator_type": "RTX-A6000", "gpus_per_embed_actor": 0.5}),
        ("no GPU", "actors", {"use_gpu": False}),
        ("workers", "workers", {"num_workers": 2, "accelerator_type": "RTX-A6000"}),
        ("too many", "workers", {"num_workers": 3, "accelerator_type": "RTX-A6000"}),
        ("too large", "bulk", {"gpus_per_embed_actor": 2, "accelerator_type": "A100"}),
        ("unknown", "actors", {"accelerator_type": "H100"}),
        ("served", "serve", served(scaling={"accelerator_type": "A100", "num_gpus": 0.5})),
        ("served by default", "serve", served()),
        ("replicas", "serve", served(scaling={"min_replicas": 4, "max_replicas": 4})),
        ("two models", "serve", {
            name: served(scaling={"min_replicas": 2, "max_replicas": 2})["m"] for name in "ab"
        }),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(cases), capture_output=True, text=True, cwd=ROOT, timeout=200,
        env={**os.environ, "RAY_ADDRESS": cluster.address},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_actors_are_where_they_were_asked_for(placed):
    a6000, a100 = [1, "accelerator_type:RTX-A6000"], [1, "accelerator_type:A100"]
    assert sorted(placed["all GPUs"]) == sorted([a6000, a6000, a100])
    assert placed["one type"] == [a6000] * 2
    assert placed["halves"] == [a6000] * 4
    assert [gpus for gpus, *_ in placed["no GPU"]] == [0, 0, 0]
    assert placed["workers"] == {"resources": {"CPU": 0.5, "GPU": 1.0}, "use_gpu": True}


def test_what_cannot_be_had_is_refused_at_once(placed):
    has = "the cluster has 10 CPUs and 3 GPUs (A100, RTX-A6000) on 3 node(s)"
    assert placed["too many"] == (
        "training asks for 3 workers with 0.5 CPUs and 1 GPUs each on nodes with RTX-A6000, but "
        f"the nodes have room for 2 of them; {has}."
    )
    assert placed["too large"] == (
        "embedding asks for 1 actors with 0.5 CPUs and 2 GPUs each on nodes with A100, but "
        f"the nodes have room for 0 of them; {has}."
    )
    assert "'H100' is not in the cluster, which has A100, RTX-A6000" in placed["unknown"]


def test_replicas_are_placed_or_refused_as_well(placed):
    assert placed["served"] == [{"num_cpus": 0.5, "num_gpus": 0.5, "accelerator_type": "A100"}]
    assert placed["served by default"] == [{"num_cpus": 0.5, "num_gpus": 1.0}]
    assert placed["replicas"].startswith("models.m asks for 4 replicas with 0.5 CPUs and 1 GPUs")
    assert "models.m.scaling" in placed["replicas"]
    assert placed["two models"].startswith("models.a, models.b, gateway ask together for")
    assert "and 4 GPUs, but the cluster has 10 CPUs and 3 GPUs" in placed["two models"]
