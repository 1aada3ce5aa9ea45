"""Fixtures that several test modules share."""

import pytest


@pytest.fixture(scope="session")
def ray_session():
    """A Ray of this test session alone; four logical CPUs, so that no stage waits for another."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
