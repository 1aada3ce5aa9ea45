"""The containers of the manifests with their own files read-only, as far as this machine can be
one: Ray's head trains and serves, MLflow records, and they write to volumes and nowhere else."""

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.cluster import pods
from tests.cluster.manifests import ROOT, objects, pod_specs, ray_specs, serve_configs
from tests.cluster.test_end_to_end_system import (
    POSTGRES,
    database,  # noqa: F401  # a fixture
)
from tests.serve.conftest import models  # noqa: F401  # a fixture
from tests.serve.load import LABELS, TEXTS, free_ports
from tests.tiny_models import build_all

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not pods.can_be_made(), reason="needs root, and overlays of its own"),
]

TOKEN = "of-this-test-alone-0123456789abcdef"
SMALL = {"num_cpus": "4", "object_store_memory": "200000000"}
"""In the place of what the manifest's nodes have."""
CHECKS = f"""
for file in /x /opt/sce/x /home/sce/x /home/sce/private/x /usr/x; do
  touch $file 2>/dev/null && echo "WRITTEN $file"
done
echo "UMASK $(umask)"
echo "SESSION $(stat -c %a {"/home/sce/private/ray/session_latest/"})"
echo "ABOVE $(stat -c %a:%u /home/sce/private)"
echo "API $(ls /var/run/secrets/kubernetes.io 2>/dev/null)"
echo "CAPABILITIES $(awk '/CapEff|CapBnd|NoNewPrivs/ {{print $2}}' /proc/self/status | xargs)"
"""


def ray_head(name: str) -> dict[str, Any]:
    (spec,) = [spec for key, spec in ray_specs().items() if key.endswith(name)]
    head: dict[str, Any] = spec["headGroupSpec"]
    return head


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that every user can enter, as pytest's own is not."""
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/pod.XXXXXX"], text=True).strip())
    folder.chmod(0o755)
    for name in ("root", "shared", "secrets", "tokens"):
        (folder / name).mkdir()
    (folder / "secrets" / "mlflow_credentials").write_text("[mlflow]\n")
    (folder / "tokens" / "tokens").write_text(f"{TOKEN}\n")
    yield folder
    shutil.rmtree(folder)


def give(folder: Path) -> None:
    """To the user of the containers, and to no other."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, pods.USER, pods.USER)
        path.chmod(0o700 if path.is_dir() else 0o600)


def run_head(head: dict[str, Any], home: Path, script: str) -> str:
    """Start the head as KubeRay does, then `script` in it; what both said."""
    command = pods.kuberay_command(head, "head", **SMALL)
    command[-1] += f" >/tmp/start 2>&1 || cat /tmp/start\n{script}\n{CHECKS}"
    spec = head["template"]["spec"]
    given = {name: home / name for name in ("shared", "secrets", "tokens")}
    environment = {"RAY_AUTH_TOKEN": TOKEN}
    pod = pods.start(spec, spec["containers"][0], command, home / "root", given, environment)
    try:
        said, _ = pod.communicate(timeout=400)
    finally:
        pod.kill()
    return said


def check(said: str) -> None:
    """That nothing but volumes was written to, nobody else could enter Ray's folder, which is open
    itself, and no key of Kubernetes' API lay about."""
    lines = said.splitlines()
    assert "WRITTEN" not in said, said[-3000:]
    assert "UMASK 0077" in lines
    assert "SESSION 777" in lines, "Ray keeps its folder to itself by now: /home/sce/private may go"
    assert f"ABOVE 700:{pods.USER}" in lines
    assert "API " in lines
    assert f"CAPABILITIES {'0' * 16} {'0' * 16} 1" in lines


def test_ray_trains_and_only_its_user_reads_what_it_wrote(home):
    shared = home / "shared"
    build_all(shared / "models")
    config = yaml.safe_load((ROOT / "configs" / "tiny" / "sce.yaml").read_text())
    config["run_dir"] = "/shared/run"
    config["embedder"]["model"] = "/shared/models/jina"
    config["model"]["encoder"] = "/shared/models/roberta"
    config["evaluate"]["pictures"] = True  # by matplotlib, which has a cache
    config["tracking"] = {"uri": "sqlite:////shared/mlflow.db", "system_metrics": False}
    (shared / "tiny.yaml").write_text(yaml.safe_dump(config))
    give(shared)
    said = run_head(
        ray_head("RayCluster/sce"),
        home,
        "ray job submit --address http://127.0.0.1:8265 -- "
        "python /opt/sce/jobs/train_sce.py --config /shared/tiny.yaml && echo TRAINED",
    )
    assert "TRAINED" in said.splitlines(), said[-5000:]
    check(said)
    written = list((shared / "run").rglob("*"))
    assert (shared / "run" / "model" / "model.safetensors") in written
    for path in written:
        about = path.lstat()
        assert about.st_uid == pods.USER
        assert not about.st_mode & 0o077 or stat.S_ISLNK(about.st_mode), path


def test_the_endpoint_answers_with_its_token_and_takes_batches(home, models):  # noqa: F811
    shared = home / "shared"
    shutil.copytree(models, shared / "models")
    (config,) = [c for name, c in serve_configs().items() if name.endswith("RayService/endpoint")]
    arguments = config["applications"][0]["args"]
    (model,) = arguments["models"].values()
    model |= {"path": "/shared/models/sce", "threads": 1}
    model["embedder"] = {"kind": "sentence_transformers", "model": "/shared/models/embedder"}
    model["scaling"] |= {"num_cpus": 0.5}
    # Refused where others could enter Ray's folder.
    arguments["batches"] = {"input_roots": ["/shared/in"], "output_roots": ["/shared/out"]}
    (shared / "serve.yaml").write_text(yaml.safe_dump(config))
    (shared / "ask.py").write_text(
        f"""
import time, requests
url, body = "http://127.0.0.1:8000", {{"texts": {TEXTS[:2]!r}, "labels": {LABELS!r}}}
until = time.monotonic() + 120
while time.monotonic() < until:
    try:
        if requests.get(url + "/health", timeout=10).ok:
            break
    except requests.RequestException:
        pass
    time.sleep(0.5)
for token in ({TOKEN!r}, "another-one-0123456789"):
    headers = {{"Authorization": "Bearer " + token}}
    answer = requests.post(url + "/v1/classify", json=body, headers=headers, timeout=60)
    print("ANSWER", answer.status_code, flush=True)
"""
    )
    give(shared)
    script = "RAY_DASHBOARD_ADDRESS=http://127.0.0.1:8265 serve deploy /shared/serve.yaml\n"
    script += "python /shared/ask.py || serve status\ntouch /shared/x 2>/dev/null && echo WRITTEN"
    said = run_head(ray_head("RayService/endpoint"), home, script)
    answers = [line for line in said.splitlines() if line.startswith("ANSWER")]
    assert answers == ["ANSWER 200", "ANSWER 401"], said[-5000:]
    check(said)


@contextmanager
def mlflow(home: Path, place: str, password: str) -> Iterator[str]:
    """MLflow's container, its database `place`; where it answers."""
    (deployment,) = [d for name, d in objects().items() if name.endswith("Deployment/mlflow")]
    (spec,) = pod_specs(deployment)
    (container,) = spec["containers"]
    passwords = home / "passwords"
    passwords.mkdir()
    (passwords / "database_password").write_text(password)
    for name in ("admin_password", "secret_key"):
        (passwords / name).write_text(TOKEN)
    (port,) = free_ports(1)
    given = {"shared": home / "shared", "secrets": passwords}
    give(home / "shared")
    environment = {"MLFLOW_HOST": "127.0.0.1", "MLFLOW_PORT": str(port), "MLFLOW_DATABASE": place}
    command = container["command"]
    pod = pods.start(spec, container, command, home / "root", given, environment, network=True)
    try:
        yield f"http://127.0.0.1:{port}"
    except BaseException:
        pod.kill()
        print(pod.communicate()[0][-3000:])
        raise
    finally:
        pod.kill()
        pod.wait(30)


@pytest.mark.skipif(not POSTGRES, reason="PostgreSQL is not installed (the Makefile does it)")
def test_mlflow_records_and_keeps_artifacts(home, database, monkeypatch):  # noqa: F811
    from mlflow import MlflowClient

    with mlflow(home, *database) as url:
        deadline = time.monotonic() + 300
        while True:
            try:
                if requests.get(f"{url}/health", timeout=5).ok:
                    break
            except requests.RequestException:
                pass
            assert time.monotonic() < deadline, "MLflow does not answer"
            time.sleep(0.5)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", TOKEN)
        client = MlflowClient(url)
        run = client.create_run(client.create_experiment("read-only"))
        client.log_metric(run.info.run_id, "loss", 0.5)
        client.log_text(run.info.run_id, "words", "notes.txt")
        assert client.get_run(run.info.run_id).data.metrics == {"loss": 0.5}
    (kept,) = (home / "shared" / "mlflow").rglob("notes.txt")
    assert kept.read_text() == "words"
    assert kept.stat().st_mode & 0o077 == 0
