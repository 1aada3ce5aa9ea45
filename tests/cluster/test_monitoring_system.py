"""Every query of the dashboard, asked of a real Prometheus that scrapes a real cluster.

The cluster serves the endpoint, embeds with Ray Data and trains with Ray Train; Prometheus has the
configurations that are shipped, with no more than the targets replaced.
"""

import copy
import math
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.cluster.manifests import CLUSTER, ROOT, read
from tests.cluster.pods import instructions
from tests.cluster.test_dashboard import queries
from tests.serve.conftest import models  # noqa: F401  # a fixture
from tests.serve.load import LABELS, TEXTS, free_ports
from tests.serve.test_app_system import BIN, Cluster
from tests.tiny_models import build_all

WITHOUT_DATA = "GPU"
"""The row whose queries need hardware that is not here. Prometheus must read them all the same."""
RATE_INTERVAL = "40s"
"""Grafana's $__rate_interval: four scrapes of ten seconds."""

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="prometheus is not installed (Debian's package, see the Makefile)",
    ),
]


class Watched(Cluster):
    """The endpoint's cluster, with a metrics port that is known and asks for the token, as in
    cluster/."""

    def start(self) -> None:
        (line,) = [value for _, value in instructions() if "sce-scraping.pth" in value]
        (call,) = re.findall(r"echo '(import .*?)'", line)  # as the image has it in a .pth file
        folder = self.home / "site"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(call)
        self.environment["PYTHONPATH"] += f":{folder}"
        (self.metrics,) = free_ports(1)
        ports = ["--port", str(self.gcs), "--dashboard-port", str(self.dashboard)]
        ports += ["--dashboard-agent-listen-port", str(self.agent)]
        ports += ["--metrics-export-port", str(self.metrics), "--dashboard-host", "127.0.0.1"]
        self.run("ray", "start", "--head", "--num-cpus", "4", *ports)
        self.deploy()

    @property
    def token(self) -> str:
        return self.environment["RAY_AUTH_TOKEN"]


class Prometheus:
    """A server with one of the shipped configurations.

    Args:
        config: its content, targets replaced.
        flags: of the container that is shipped; places replaced here.
    """

    def __init__(self, home: Path, config: dict[str, Any], flags: list[str]) -> None:
        (port,) = free_ports(1)
        home.mkdir()
        (home / "prometheus.yml").write_text(yaml.safe_dump(config))
        places = {
            "--config.file": home / "prometheus.yml",
            "--storage.tsdb.path": home / "data",
            "--web.listen-address": f"127.0.0.1:{port}",
        }
        replaced = [f"{flag.split('=')[0]}={places.get(flag.split('=')[0], flag.split('=')[1])}"
                    for flag in flags]  # fmt: skip
        self.url, self.started = f"http://127.0.0.1:{port}", time.time()
        self._log = (home / "log").open("w")
        self._process = subprocess.Popen(
            ["prometheus", *replaced], stdout=self._log, stderr=subprocess.STDOUT
        )

    def wait(self) -> None:
        """Until something is scraped: before minutes of work that nobody would see."""
        deadline = time.monotonic() + 60
        while True:
            with suppress(requests.ConnectionError):
                if 1 in self.ask("up"):
                    return
            assert time.monotonic() < deadline, "nothing is scraped"
            time.sleep(0.5)

    def __enter__(self) -> "Prometheus":
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def ask(self, query: str) -> list[float]:
        """Every value since the start; those that are no number left out."""
        answer = requests.post(
            f"{self.url}/api/v1/query_range",
            data={"query": query, "start": self.started, "end": time.time(), "step": 10},
            timeout=30,
        ).json()
        assert answer["status"] == "success", (query, answer)
        values = [value for line in answer["data"]["result"] for _, value in line["values"]]
        return [float(value) for value in values if not math.isnan(float(value))]


def flags(name: str) -> list[str]:
    if name == "prometheus.yml":
        return read(CLUSTER / "compose.yaml")[0]["services"]["prometheus"]["command"]
    (deployment,) = [
        d for d in read(CLUSTER / "monitoring" / "kubernetes.yaml") if d["kind"] == "Deployment"
    ]
    return deployment["spec"]["template"]["spec"]["containers"][0]["args"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, models) -> Iterator[Watched]:  # noqa: F811
    cluster = Watched(tmp_path_factory.mktemp("watched"), models)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def prometheus(cluster, tmp_path_factory) -> Iterator[Prometheus]:
    """As on premises and on AWS: Ray's dashboard, which asks for the token, names the targets."""
    home = tmp_path_factory.mktemp("prometheus")
    (home / "ray_token").write_text(cluster.token)
    config = read(CLUSTER / "monitoring" / "prometheus.yml")[0]
    (job,) = config["scrape_configs"]
    (discovery,) = job["http_sd_configs"]
    discovery["url"] = discovery["url"].replace("127.0.0.1:8265", f"127.0.0.1:{cluster.dashboard}")
    for reader in (job, discovery):
        reader["authorization"]["credentials_file"] = str(home / "ray_token")
    with Prometheus(home / "launchers", config, flags("prometheus.yml")) as server:
        yield server


@pytest.fixture(scope="module")
def of_kubernetes(cluster, tmp_path_factory) -> Iterator[Prometheus]:
    """As on Kubernetes, but that no DNS names the pods."""
    home = tmp_path_factory.mktemp("kubernetes")
    config = read(CLUSTER / "monitoring" / "prometheus-kubernetes.yml")[0]
    (job,) = config["scrape_configs"]
    del job["dns_sd_configs"]
    (home.parent / "kubernetes_token").write_text(cluster.token)
    job["authorization"]["credentials_file"] = str(home.parent / "kubernetes_token")
    job["static_configs"] = [{"targets": [f"127.0.0.1:{cluster.metrics}"]}]
    with Prometheus(home / "kubernetes", config, flags("prometheus-kubernetes.yml")) as server:
        yield server


@pytest.fixture(scope="module")
def worked(cluster, prometheus, of_kubernetes, tmp_path_factory) -> Iterator[None]:
    """Requests all the while, of every kind that the dashboard tells apart, and a training."""
    stop = threading.Event()

    def ask() -> None:
        count = 0
        while not stop.wait(0.3):
            count += 1
            new = [f"{TEXTS[count % len(TEXTS)]} {count}", TEXTS[0], ""]  # new, known, refused
            with suppress(requests.RequestException):
                cluster.post("/v1/classify", {"texts": new, "labels": LABELS, "threshold": 0.99})
                requests.get(f"{cluster.url}/info", timeout=30)  # without a token

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        home = tmp_path_factory.mktemp("training")
        tiny = build_all(home / "models")
        config = yaml.safe_load((ROOT / "configs" / "tiny" / "sce.yaml").read_text())
        config["run_dir"] = str(home / "run")
        config["embedder"]["model"] = str(tiny["jina"])
        config["model"]["encoder"] = str(tiny["roberta"])
        config["train"] |= {"epochs": 4, "patience": 4}
        (home / "tiny.yaml").write_text(yaml.safe_dump(config))
        done = subprocess.run(
            [BIN / "ray", "job", "submit", "--", sys.executable, ROOT / "jobs" / "train_sce.py",
             "--config", home / "tiny.yaml"],
            env=cluster.environment, capture_output=True, text=True, timeout=480,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        yield
    finally:
        stop.set()
        thread.join()


def test_the_nodes_are_named_to_who_has_the_token(cluster):
    url = f"http://127.0.0.1:{cluster.dashboard}/api/prometheus/sd"
    assert requests.get(url, timeout=10).status_code == 401
    headers = {"Authorization": f"Bearer {cluster.token}"}
    (found,) = requests.get(url, headers=headers, timeout=10).json()
    assert any(target.endswith(f":{cluster.metrics}") for target in found["targets"])


def test_the_metrics_are_shown_to_who_has_the_token(cluster):
    """Those of the node's agent; the others' ports are the machine's, not a cluster's."""
    url = f"http://127.0.0.1:{cluster.metrics}/metrics"
    found = [
        requests.get(url, headers={"Authorization": header} if header else {}, timeout=10)
        for header in ("", "Bearer x", f"Bearer {cluster.token}")
    ]
    assert [answer.status_code for answer in found] == [401, 403, 200]
    assert ["ray_" in answer.text for answer in found] == [False, False, True]


def test_every_query_returns_data(prometheus, worked):
    needed = {query for query in queries() if query not in queries(WITHOUT_DATA)}
    assert len(needed) > 40
    deadline = time.monotonic() + 120
    empty = needed
    while empty and time.monotonic() < deadline:
        time.sleep(5)
        empty = {
            query
            for query in empty
            if not prometheus.ask(query.replace("$__rate_interval", RATE_INTERVAL))
        }
    print(f"\n{len(needed) - len(empty)} of {len(needed)} queries return data")
    assert not empty, "\n".join(sorted(empty))


def test_what_needs_a_gpu_is_read_by_prometheus(prometheus):
    asked = queries(WITHOUT_DATA)
    assert asked
    for query in asked:
        prometheus.ask(query)


def test_figures_are_right(prometheus, worked):
    """Not only some data: of what is known."""
    assert max(prometheus.ask("sum by (model) (ray_sce_texts_total)")) > 30
    shares = prometheus.ask(_query("ray_sce_row_errors_total"))
    assert 0.2 < max(shares) <= 0.5  # one of three texts is empty
    hits = prometheus.ask(_query("ray_sce_cache_misses_total"))
    assert all(0 <= share <= 1 for share in hits)
    assert max(prometheus.ask("ray_sce_requests_total{status='401'}")) > 0
    assert max(prometheus.ask("sum by (deployment) (ray_serve_deployment_replica_healthy)")) == 1
    assert max(prometheus.ask("ray_node_mem_used / ray_node_mem_total")) < 1


def _query(metric: str) -> str:
    (found,) = [query for query in queries() if metric in query]
    return found.replace("$__rate_interval", RATE_INTERVAL)


def test_kubernetes_scrapes_the_same(of_kubernetes, prometheus, worked):
    assert max(of_kubernetes.ask("up")) == 1
    for query in ("sum by (model) (ray_sce_texts_total)", "count(ray_node_mem_total)"):
        ours, theirs = prometheus.ask(query), of_kubernetes.ask(query)
        assert max(theirs) == pytest.approx(max(ours), rel=0.5), query


def test_a_query_of_something_else_returns_nothing(prometheus, worked):
    """So that the tests above could fail."""
    assert prometheus.ask("ray_sce_request_total") == []
    with pytest.raises(AssertionError, match="parse error"):
        prometheus.ask("sum by (status (ray_sce_requests_total)")


def test_promtool_accepts_both_files(tmp_path):
    for name in ("prometheus.yml", "prometheus-kubernetes.yml"):
        config = copy.deepcopy(read(CLUSTER / "monitoring" / name)[0])
        (tmp_path / "token").write_text("x")  # promtool looks for it
        (job,) = config["scrape_configs"]
        for reader in (job, *job.get("http_sd_configs", [])):
            reader["authorization"]["credentials_file"] = str(tmp_path / "token")
        (tmp_path / name).write_text(yaml.safe_dump(config))
        done = subprocess.run(
            ["promtool", "check", "config", tmp_path / name], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
