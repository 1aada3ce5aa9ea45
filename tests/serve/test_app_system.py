"""The endpoint as an operator runs it: `serve deploy configs/serve.yaml` on a cluster of its own.

Changes and kills under load, ten thousand hostile requests, bulk jobs by request, an end by signal.
"""

import asyncio
import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import requests
import yaml

from sce.client.wire import ErrorResponse
from serve.ray_settings import ENVIRONMENT
from tests.serve.conftest import settings_of
from tests.serve.load import HEADERS, LABELS, TEXTS, TOKEN, Load, free_ports

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LIMITS = {"max_body_bytes": 200_000, "max_texts": 50, "max_labels": 100, "max_label_tokens": 5000,
          "max_concurrent_requests": 64, "request_timeout_seconds": 30}  # fmt: skip
HOSTILE = 10_000

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


class Cluster:
    """`ray start` and `serve deploy`, as in configs/serve.yaml but for models, limits and port."""

    def __init__(self, home: Path, models: Path) -> None:
        self.home, self.models = home, models
        self.port, self.gcs, self.dashboard, self.agent = free_ports(4)
        self.url = f"http://127.0.0.1:{self.port}"
        self.ray_folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        self.environment = {
            **os.environ,
            "RAY_TMPDIR": self.ray_folder,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "of-this-test-alone-0123456789abcdef",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
            "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
            "PYTHONPATH": str(ROOT),
            **ENVIRONMENT,
        }
        self.config = yaml.safe_load((ROOT / "configs" / "serve.yaml").read_text())
        self.config["http_options"]["port"] = self.port
        (self.app,) = self.config["applications"]
        self.settings = json.loads(settings_of(models).model_dump_json(exclude={"scaling"}))
        batches = {"input_roots": [str(home / "in")], "output_roots": [str(home / "out")]}
        tokens = home / "tokens"
        tokens.write_text(f"{TOKEN}\n")
        tokens.chmod(0o600)
        self.app["args"] = {"models": {"tiny": self.settings}, "limits": LIMITS,
                            "batches": batches, "tokens_file": str(tokens)}  # fmt: skip

    def start(self) -> None:
        ports = ["--port", str(self.gcs), "--dashboard-port", str(self.dashboard)]
        # By default that of any other Ray of this machine; without it there are no jobs.
        ports += ["--dashboard-agent-listen-port", str(self.agent)]
        self.run("ray", "start", "--head", "--num-cpus", "4", *ports)
        self.deploy()

    def stop(self) -> None:
        for process in psutil.process_iter(["pid"]):
            with suppress(psutil.Error):
                if process.environ().get("RAY_TMPDIR") == self.ray_folder:
                    process.kill()
        shutil.rmtree(self.ray_folder, ignore_errors=True)

    def run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(BIN / program), *arguments], env=self.environment, cwd=ROOT,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def deploy(self) -> None:
        file = self.home / "serve.yaml"
        file.write_text(yaml.safe_dump(self.config))
        self.run("serve", "deploy", str(file))
        deadline = time.monotonic() + 120
        while not self._healthy():
            assert time.monotonic() < deadline, "not ready"
            time.sleep(0.5)

    def _healthy(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=10).status_code == 200
        except requests.RequestException:
            return False

    def post(self, path: str, body: Any) -> requests.Response:
        return requests.post(f"{self.url}{path}", json=body, headers=HEADERS, timeout=60)

    def get(self, path: str) -> Any:
        response = requests.get(f"{self.url}{path}", headers=HEADERS, timeout=60)
        response.raise_for_status()
        return response.json()

    def processes(self, title: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["pid"]):
            with suppress(psutil.Error):
                mine = process.environ().get("RAY_TMPDIR") == self.ray_folder
                if mine and title in " ".join(process.cmdline()):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, models) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), models)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def test_weights_and_limits_change_under_load(cluster, right):
    before = cluster.get("/info")["models"][0]["model_fingerprint"]
    other = cluster.settings | {"path": str(cluster.models / "other")}
    gateway = {"limits": LIMITS | {"max_texts": 33}, "log_texts": False,
               "batches": cluster.app["args"]["batches"], "models": {"tiny": other}}  # fmt: skip
    with Load(cluster.url, [right["sce"], right["other"]]) as load:
        cluster.app["deployments"] = [
            {"name": "model-tiny", "user_config": other},
            {"name": "gateway", "user_config": gateway},
        ]
        cluster.deploy()
        deadline = time.monotonic() + 60
        while (info := cluster.get("/info"))["models"][0]["model_fingerprint"] == before:
            assert time.monotonic() < deadline, info
            time.sleep(0.2)
        time.sleep(2)
    assert info["limits"]["max_texts"] == 33
    assert load.statuses[200] > 20
    assert set(load.statuses) == {200}
    assert not load.wrong
    with Load(cluster.url, [right["other"]]) as after:
        time.sleep(1)
    assert not after.wrong

    cluster.app["deployments"][0]["user_config"] = other | {"path": str(cluster.home / "nowhere")}
    with Load(cluster.url, [right["other"]]) as load:
        cluster.deploy()
        deadline = time.monotonic() + 60
        while not (error := cluster.get("/info")["models"][0]["error"]):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert "nowhere" in error
    assert set(load.statuses) == {200}
    assert not load.wrong
    cluster.app["deployments"] = []
    cluster.deploy()
    deadline = time.monotonic() + 60
    while cluster.get("/info")["models"][0]["model_fingerprint"] != before:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_rolling_update_under_load(cluster, right, record_property):
    """Every process is begun anew, as for new code: another environment of its workers is another
    version to Ray Serve, which replaces replica by replica."""
    names = ("gateway", "model-tiny")

    def processes() -> set[int]:
        return {p.pid for name in names for p in cluster.processes(f"ServeReplica:sce:{name}")}

    before = processes()
    assert len(before) == len(names)
    options = {"runtime_env": {"env_vars": {"SCE_TEST_VERSION": "2"}}}
    with Load(cluster.url, [right["sce"]]) as load:
        cluster.app["deployments"] = [{"name": n, "ray_actor_options": options} for n in names]
        began = time.monotonic()
        cluster.deploy()
        deadline = time.monotonic() + 120
        while before & (now := processes()) or len(now) != len(names):
            assert time.monotonic() < deadline, (before, now)
            time.sleep(0.2)
        took = time.monotonic() - began
        time.sleep(3)
    times = [at for at, _ in load.answered]
    longest = max(later - at for at, later in pairwise(times))
    print(
        f"\nrolling update in {took:.0f} s: {dict(load.statuses)}, longest without an answer "
        f"{longest:.1f} s"
    )
    record_property("longest_seconds_without_an_answer", round(longest, 1))
    assert not load.wrong
    assert set(load.statuses) == {200}
    cluster.app["deployments"] = []
    cluster.deploy()


def test_more_than_it_can_take(cluster, right):
    gateway = cluster.processes("ServeReplica:sce:gateway")[0]
    before = _own_bytes(gateway)
    seen: Counter[int] = Counter()

    async def ask(session: aiohttp.ClientSession, i: int) -> None:
        text = TEXTS[i % len(TEXTS)]
        body = {"texts": [text] + [f"{'long ' * 30}{i} {j}" for j in range(20)], "labels": LABELS}
        url = f"{cluster.url}/v1/classify"
        async with session.post(url, json=body, headers=HEADERS) as response:
            seen[response.status] += 1
            if response.status == 200:
                row = (await response.json())["data"][0]
                assert row["label"] == right["sce"][text][0]
            else:
                assert int(response.headers["Retry-After"]) >= 1
                ErrorResponse.model_validate(await response.json())

    async def flood() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(*(ask(session, i) for i in range(240)))

    asyncio.run(flood())
    print(f"\n240 requests at once: {dict(seen)}")
    assert set(seen) == {200, 429}
    assert seen[200] >= LIMITS["max_concurrent_requests"]
    assert _own_bytes(gateway) < before + 50 * 2**20
    assert cluster.post("/v1/classify", {"texts": "x", "labels": LABELS}).status_code == 200


def test_a_replica_killed_under_load(cluster, right, record_property):
    (replica,) = cluster.processes("ServeReplica:sce:model-tiny")
    with Load(cluster.url, [right["sce"]]) as load:
        replica.kill()
        killed = time.monotonic()
        time.sleep(1)
        deadline = time.monotonic() + 90
        while not any(status == 200 and at > killed + 1 for at, status in load.answered):
            assert time.monotonic() < deadline, "no recovery"
            time.sleep(0.1)
        time.sleep(3)
    recovery = min(at for at, s in load.answered if s == 200 and at > killed + 1) - killed
    record_property("recovery_seconds", round(recovery, 1))
    print(f"\nreplica killed: {dict(load.statuses)}, first answer after {recovery:.1f} s")
    assert not load.wrong
    refused = sum(count for status, count in load.statuses.items() if status != 200)
    assert refused <= 8, load.statuses  # those in flight
    assert {status for _, status in load.answered[-8:]} == {200}


def test_ten_thousand_hostile_requests(cluster, right, record_property):
    import hypothesis
    import schemathesis

    gateway = cluster.processes("ServeReplica:sce:gateway")[0]
    model = cluster.processes("ServeReplica:sce:model-tiny")[0]
    document = schemathesis.openapi.from_url(f"{cluster.url}/openapi.json")
    session = requests.Session()
    session.headers.update({"Authorization": f"Bearer {TOKEN}"})
    seen: Counter[int] = Counter()
    memory: list[tuple[int, int]] = []

    def note(response: requests.Response) -> None:
        seen[response.status_code] += 1
        assert response.status_code < 500, (response.text, response.request.body)
        if response.status_code >= 400:
            ErrorResponse.model_validate(response.json())
        if sum(seen.values()) % 40 == 0:
            text = TEXTS[sum(seen.values()) // 40 % len(TEXTS)]
            row = cluster.post("/v1/classify", {"texts": text, "labels": LABELS}).json()["data"][0]
            assert row["label"] == right["sce"][text][0]
            assert row["score"] == pytest.approx(right["sce"][text][1], abs=1e-4)
        if sum(seen.values()) % 500 == 0:
            memory.append((_own_bytes(gateway), _own_bytes(model)))

    def generated(path: str, mode: schemathesis.GenerationMode, examples: int) -> None:
        @hypothesis.given(document[path]["POST"].as_strategy(generation_mode=mode))
        @hypothesis.settings(
            max_examples=examples, deadline=None, database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )  # fmt: skip
        def send(case: schemathesis.Case) -> None:
            note(case.call(session=session, headers={"Authorization": f"Bearer {TOKEN}"}))

        send()

    modes = schemathesis.GenerationMode
    for path, mode, examples in (
        ("/v1/classify", modes.NEGATIVE, 3000),
        ("/v1/classify", modes.POSITIVE, 1500),
        ("/v1/embeddings", modes.NEGATIVE, 1500),
        ("/v1/embeddings", modes.POSITIVE, 500),
        ("/v1/batches", modes.NEGATIVE, 500),
    ):
        generated(path, mode, examples)
    dice = random.Random(0)
    while sum(seen.values()) < HOSTILE:
        path = dice.choice(("/v1/classify", "/v1/embeddings", "/v1/batches"))
        headers = {"Content-Type": "application/json"} if dice.random() < 0.97 else {}
        note(session.post(cluster.url + path, data=_wild(dice), headers=headers, timeout=60))
    print(f"\n{sum(seen.values())} requests: {dict(sorted(seen.items()))}")
    record_property("statuses", dict(seen))
    first, last = memory[len(memory) // 3], memory[-1]
    print(f"bytes of gateway and model: {memory[0]}, {first}, {last}")
    assert all(b < 1.2 * a for a, b in zip(first, last)), memory
    assert len(seen) > 4  # requests of several kinds


def _own_bytes(process: psutil.Process) -> int:
    found = process.memory_info()
    return found.rss - found.shared


def _wild(dice: random.Random) -> bytes:
    """Bodies that no schema thinks of."""
    kind = dice.randrange(12)
    labels = '["a", "b"]'
    if kind == 0:
        return dice.randbytes(dice.randrange(300))
    if kind == 1:
        return b"[" * dice.randrange(1, 50_000)
    if kind == 2:
        return ('{"texts": ' + "[" * dice.randrange(1, 300) + '"a"').encode()
    if kind == 3:
        number = dice.choice(["NaN", "Infinity", "-Infinity", "1e400", "1e308", "-0", "9" * 400])
        return f'{{"embeddings": [[{number}]], "labels": {labels}}}'.encode()
    if kind == 4:
        number = dice.choice(["NaN", "1e400", "-1", "null", '"0.5"', "true", "[]"])
        field = dice.choice(["threshold", "top_k", "return_scores", "truncate", "model"])
        return f'{{"texts": ["x"], "labels": {labels}, "{field}": {number}}}'.encode()
    if kind == 5:
        size = dice.choice([1, 1000, 100_000, 250_000])
        return f'{{"texts": ["{"x" * size}"], "labels": {labels}}}'.encode()
    if kind == 6:
        count = dice.choice([0, 1, 49, 51, 5000])
        return json.dumps({"texts": ["x"] * count, "labels": ["a", "b"]}).encode()
    if kind == 7:
        count = dice.choice([0, 1, 99, 101, 5000])
        return json.dumps({"texts": ["x"], "labels": [f"l{k}" for k in range(count)]}).encode()
    if kind == 8:
        bad = dice.choice([b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\x00", b"\\ud800", b"\\u0000"])
        return b'{"texts": ["a' + bad + b'"], "labels": ["x' + dice.choice([b"", bad]) + b'"]}'
    if kind == 9:
        code = base64.b64encode(dice.randbytes(dice.randrange(200))).decode()
        return json.dumps({"embeddings": [code, code[:-1], "="], "labels": ["a"]}).encode()
    if kind == 10:
        text = dice.choice(["\u202e\u0000", "\U0001f600" * 500, " ", "\u00a0", "a\u0301" * 2000])
        sets = dice.choice([[text], [[text]], {text: text}, [{"name": text, "examples": [text]}]])
        return json.dumps({"texts": [text], "labels": sets}).encode()
    place = dice.choice(["/etc/passwd", "../../x", "s3://x?endpoint_override=y", "\u0000", "/"])
    return json.dumps({"input": place, "output": place, "labels": ["a"]}).encode()


def test_batches(cluster):
    source, target = cluster.home / "in", cluster.home / "out"
    source.mkdir(exist_ok=True)
    rows = [{"text": text} for text in TEXTS] + [{"text": ""}]
    (source / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"input": str(source), "output": str(target / "one"), "labels": LABELS}
    for body in (
        asked | {"input": "/etc"},
        asked | {"output": f"{target}/../elsewhere"},
        asked | {"input": str(target / "x")},
        asked | {"input": "relative"},
        asked | {"output": f"file://{target}/../x"},
    ):
        refused = cluster.post("/v1/batches", body)
        assert refused.status_code == 403, refused.text
        assert refused.json()["error"]["code"] == "location_not_allowed"
    os.symlink("/etc", source / "link")
    refused = cluster.post("/v1/batches", asked | {"input": f"{source}/link/passwd"})
    assert refused.status_code == 403
    (source / "link").unlink()
    assert cluster.post("/v1/batches", asked | {"labels": []}).status_code == 422
    assert cluster.post("/v1/batches", asked | {"none_share": 0.2}).status_code == 422

    deadline = time.monotonic() + 60  # Ray's job agents come some time after the cluster
    while True:
        accepted = cluster.post("/v1/batches", asked | {"metadata": {"week": "1"}})
        if accepted.status_code != 503 or time.monotonic() > deadline:
            break
        time.sleep(int(accepted.headers["Retry-After"]))
    assert accepted.status_code == 200, accepted.text
    batch = accepted.json()
    assert batch["status"] == "in_progress"
    busy = cluster.post("/v1/batches", asked | {"output": str(target / "two")})
    assert busy.status_code == 429
    assert busy.json()["error"]["param"] == "max_running"
    done = _wait(cluster, batch["id"])
    assert done["status"] == "completed", done["error"]
    assert done["request_counts"] == {"total": 81, "completed": 80, "failed": 1}
    assert done["metadata"] == {"week": "1"}
    assert list((target / "one").glob("part-*.parquet"))

    bad = cluster.post("/v1/batches", asked | {"text_column": "no", "output": str(target / "bad")})
    failed = _wait(cluster, bad.json()["id"])
    assert failed["status"] == "failed"
    assert failed["error"] == f"{source}/rows.jsonl: has no column 'no'."
    (target / "swapped").mkdir()
    linked = cluster.post("/v1/batches", asked | {"output": str(target / "swapped" / "x")})
    (target / "swapped").rmdir()
    os.symlink(cluster.home, target / "swapped")
    failed = _wait(cluster, linked.json()["id"])
    assert "'swapped' is a link" in failed["error"], failed

    started = cluster.post("/v1/batches", asked | {"output": str(target / "three")}).json()
    stopped = requests.post(
        f"{cluster.url}/v1/batches/{started['id']}/cancel", headers=HEADERS, timeout=60
    ).json()
    assert stopped["status"] in ("cancelling", "cancelled")
    assert _wait(cluster, started["id"])["status"] == "cancelled"
    assert len(cluster.get("/v1/batches")["data"]) == 4
    missing = requests.get(f"{cluster.url}/v1/batches/batch_no", headers=HEADERS, timeout=60)
    assert missing.status_code == 404


def _wait(cluster: Cluster, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + 180
    while (found := cluster.get(f"/v1/batches/{name}"))["status"] in ("in_progress", "cancelling"):
        assert time.monotonic() < deadline, found
        time.sleep(1)
    return found


def test_metrics_tell_of_what_was_asked(cluster):
    text = TEXTS[0]
    cluster.post("/v1/classify", {"texts": [text, ""], "labels": LABELS, "threshold": 1.0})
    cluster.post("/v1/classify", {"texts": [text], "labels": LABELS})
    wanted = ("requests_total", "queue_seconds_bucket", "embed_seconds_bucket",
              "classify_seconds_bucket", "batch_requests_bucket", "batch_tokens_bucket",
              "text_tokens_total", "label_tokens_total", "labels_bucket", "cache_hits_total",
              "null_answers_total", "row_errors_total")  # fmt: skip
    deadline = time.monotonic() + 40
    missing = list(wanted)
    while missing and time.monotonic() < deadline:
        page = requests.get(f"{cluster.url}/metrics", headers=HEADERS, timeout=30).text
        missing = [name for name in wanted if f"ray_sce_{name}" not in page]
        time.sleep(1)
    assert not missing
    assert 'status="200"' in page
    assert text not in page


def test_a_server_that_is_told_to_end_answers_what_it_accepted(models, tmp_path):
    (port,) = free_ports(1)
    settings = json.loads(settings_of(models).model_dump_json(exclude={"scaling"}))
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump({"models": {"tiny": settings}}))
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    process = subprocess.Popen(
        [sys.executable, "-m", "serve.app", "--config", str(config), "--port", str(port)],
        cwd=ROOT, env={**os.environ, "RAY_TMPDIR": folder}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl+C" in line:
                break
        answered: list[float] = []

        def ask(run: int) -> None:
            texts = [f"{'word ' * 400}{run} {i}" for i in range(1000)]
            url = f"http://127.0.0.1:{port}/v1/classify"
            response = requests.post(url, json={"texts": texts, "labels": LABELS}, timeout=120)
            assert response.status_code == 200
            assert len(response.json()["data"]) == 1000
            answered.append(time.monotonic())

        ask(0)
        started = time.monotonic()
        ask(1)
        seconds = answered[1] - started
        asking = [threading.Thread(target=ask, args=(2 + i,)) for i in range(8)]
        for thread in asking:
            thread.start()
        time.sleep(3 * seconds)  # all accepted, and work for five more
        told = time.monotonic()
        process.send_signal(signal.SIGTERM)
        for thread in asking:
            thread.join(120)
        after = sum(at > told for at in answered)
        print(f"\na request of {seconds:.1f} s alone; {after} of 8 came after the signal")
        assert len(answered) == 10
        assert after
        assert process.wait(60) == 0
    finally:
        process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def test_the_benchmark_of_the_endpoint():
    command = [sys.executable, "jobs/benchmark.py", "serve", "--texts", "16", "--seconds", "1",
               "--rounds", "1", "--clients", "[1, 4]", "--request-texts", "[1, 8]",
               "--saturating-texts", "16", "--bulk-rows", "50"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["throughput"]) == {"1", "8"}
    assert all(one["served"] > 0 < one["bare"] for one in found["throughput"].values())
    assert set(found["latency"]["4"]) == {"p50", "p95", "p99", "requests_per_second"}
    assert found["peer"]["ratio"] > 0
    assert set(found["bulk"]) == {"text", "store"}
    assert "| texts a request |" in done.stdout
