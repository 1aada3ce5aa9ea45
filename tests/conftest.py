"""Fixtures that several test modules share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# What is not there is refused at once, where a hub that is out of reach would be tried again.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: threads that wait for the next product would take them from others.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# No deadline: a machine under load is no failure of an example that happens to run then.
settings.register_profile("without a deadline", deadline=None)
settings.load_profile("without a deadline")


@pytest.fixture(scope="session")
def ray_session():
    """A Ray of this test session alone; four logical CPUs, so that no stage waits for another."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def own_store(tmp_path_factory) -> Iterator[Path]:
    """The MLflow store of jobs that are told of no other: no test writes into the checkout's."""
    from sce.workflows import mlflow_store

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_store, "local_store", lambda: path)
        yield path


def pytest_collection_modifyitems(items):
    """What starts Ray comes first, so that no worker is left with it when the others are done."""
    slow = ("distributed", "jobs", "serve")
    items.sort(key=lambda item: item.path.parent.name not in slow)
