"""The model in the gateway's process, as `make serve` has it: killed under load, heavy load."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from jobs.benchmarks.servers import serve_app
from sce.client import Client
from tests.serve.conftest import settings_of
from tests.serve.load import LABELS, TEXTS, TOKEN, Load
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


def actors_of(url: str, title: str) -> list[psutil.Process]:
    (server,) = servers_of(url)
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name().startswith(title) and of_the_same_ray(process, server):
                found.append(process)
    return found


def listens_at(process: psutil.Process) -> list[int]:
    found = process.net_connections("tcp")
    return [one.laddr.port for one in found if one.status == psutil.CONN_LISTEN]


def test_a_process_killed_under_load(url, right, record_property):
    """Nobody listens until Ray has started another: connections are refused, and our own client
    waits."""
    (process,) = actors_of(url, "ray::ServeRepl")
    patient = Client(url, token=TOKEN, patience_seconds=90)
    with Load(url, [right["sce"]]) as load:
        process.kill()
        killed = time.monotonic()
        (found,) = patient.predict([TEXTS[0]], LABELS)
        waited = time.monotonic() - killed
        while not any(status == 200 and at > killed + waited for at, status in load.answered):
            assert time.monotonic() < killed + 90, load.statuses
            time.sleep(0.1)
        time.sleep(2)
    record_property("recovery_seconds", round(waited, 1))
    print(f"\nprocess killed: {dict(load.statuses)}, first answer after {waited:.1f} s")
    assert not load.wrong
    assert found.label is not None
    assert set(load.statuses) <= {200, 0, 503}, load.statuses
    assert {status for _, status in load.answered[-CLIENTS:]} == {200}
    assert [one.pid for one in actors_of(url, "ray::ServeRepl")] != [process.pid]


def test_rays_own_proxy_answers_nobody(url):
    (proxy,) = actors_of(url, "ray::ProxyActor")
    statuses = []
    for port in listens_at(proxy):
        with suppress(requests.RequestException):  # one of Ray's own
            statuses.append(
                requests.get(f"http://127.0.0.1:{port}/v1/models", timeout=5).status_code
            )
    assert statuses == [421]
    (replica,) = actors_of(url, "ray::ServeRepl")
    assert urlsplit(url).port in listens_at(replica)
