"""The model in the gateway's process, as `make serve` has it: killed under load, heavy load."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from jobs.benchmarks.servers import serve_app
from tests.serve.conftest import settings_of
from tests.serve.load import TOKEN, Load
from tests.serve.test_proxy_system import of_the_same_ray, servers_of

CLIENTS = 8

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def url(models, tmp_path_factory) -> Iterator[str]:
    model = json.loads(settings_of(models).model_dump_json(exclude={"scaling"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCE_TOKENS", TOKEN)
        with serve_app(tmp_path_factory.mktemp("served"), {"models": {"tiny": model}}) as url:
            yield url


def replicas_of(url: str) -> list[psutil.Process]:
    (server,) = servers_of(url)
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name().startswith("ray::ServeRepl") and of_the_same_ray(process, server):
                found.append(process)
    return found


def test_a_process_killed_under_load(url, right, record_property):
    (process,) = replicas_of(url)
    with Load(url, [right["sce"]]) as load:
        process.kill()
        killed = time.monotonic()
        deadline = killed + 90
        while not any(status == 200 and at > killed + 1 for at, status in load.answered):
            assert time.monotonic() < deadline, load.statuses
            time.sleep(0.1)
        time.sleep(2)
    recovery = min(at for at, s in load.answered if s == 200 and at > killed + 1) - killed
    record_property("recovery_seconds", round(recovery, 1))
    print(f"\nprocess killed: {dict(load.statuses)}, first answer after {recovery:.1f} s")
    assert not load.wrong
    refused = sum(count for status, count in load.statuses.items() if status != 200)
    assert refused <= CLIENTS, load.statuses  # those in flight
    assert {status for _, status in load.answered[-CLIENTS:]} == {200}
    assert [one.pid for one in replicas_of(url)] != [process.pid]
