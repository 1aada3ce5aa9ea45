"""The jobs as processes: killed in the middle, and submitted to a running cluster."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sce.adaptation.artefact import FACTS_FILE, WEIGHTS_FILE, AdaptedLabels
from tests.jobs.kills import kill_in_a_row
from tests.tiny_bulk import LABELS, build_models, embedder_of, model_flags, text, write_store
from tests.tiny_models import build_all

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).parent / "ray")

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    models = build_all(home / "models")
    config = yaml.safe_load((ROOT / "configs" / "tiny" / "sce.yaml").read_text())
    config["embedder"]["model"] = str(models["jina"])
    config["model"]["encoder"] = str(models["roberta"])
    config["shared_dir"] = str(home / "shared")
    config["train"] = {"epochs": 4, "batch_size": 128, "patience": 4}
    (home / "tiny.yaml").write_text(yaml.safe_dump(config))
    return home


def start(home: Path, name: str, *argv: str) -> subprocess.Popen:
    command = [sys.executable, "jobs/train_sce.py", "--config", str(home / "tiny.yaml")]
    return subprocess.Popen(
        [*command, "--run-dir", str(home / "runs" / name), *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def finish(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out[-4000:]
    return out


def test_a_killed_job_goes_on_when_asked_and_ends_at_the_same_model(home):
    finish(start(home, "undisturbed"))
    killed = start(home, "killed")
    assert killed.stdout is not None
    for line in killed.stdout:
        if "epoch 2/4  loss" in line:
            os.killpg(killed.pid, signal.SIGKILL)
            break
    killed.wait(timeout=60)
    time.sleep(3)
    assert not (home / "runs" / "killed" / "model").exists(), "nothing half-written"

    refused = start(home, "killed")
    out, _ = refused.communicate(timeout=300)
    assert refused.returncode == 2
    assert "--resume" in out
    assert "--restart" in out

    out = finish(start(home, "killed", "--resume"))
    assert "going on after epoch" in out
    whole = load_file(home / "runs" / "undisturbed" / "model" / "model.safetensors")
    resumed = load_file(home / "runs" / "killed" / "model" / "model.safetensors")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=0, rtol=0, msg=name)


def test_ctrl_c_ends_a_training_with_a_line_that_says_how_it_goes_on(home):
    stopped = start(home, "stopped")
    lines = []
    assert stopped.stdout is not None
    for line in stopped.stdout:
        lines.append(line)
        if "epoch 1/4  loss" in line:
            os.killpg(stopped.pid, signal.SIGINT)
    assert stopped.wait(timeout=60) == 130
    assert "train_sce.py: interrupted. The epochs that were finished are kept in" in lines[-1]
    text = "".join(lines)
    for noise in ("Traceback", "PlacementGroupCleaner", "max_restarts", "Loading weights", "\x1b"):
        assert noise not in text
    finish(start(home, "stopped", "--resume"))
    assert (home / "runs" / "stopped" / "results" / "report.html").exists()


def test_ctrl_c_ends_a_bulk_job_on_rays_actors_with_a_line(home, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text(i)}) + "\n" for i in range(200_000)))
    build_models(tmp_path, "sce")
    command = [sys.executable, "jobs/classify.py", *model_flags(tmp_path), "--input", str(rows)]
    command += ["--output", str(tmp_path / "out"), "--labels", json.dumps(LABELS)]
    stopped = subprocess.Popen(
        [*command, "--engine", "ray", "--no-tracking.enabled"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert stopped.stdout is not None
    lines = []
    for line in stopped.stdout:
        lines.append(line)
        if "the cluster has" in line:
            time.sleep(5)  # the actors are begun, and have more to do than that
            os.killpg(stopped.pid, signal.SIGINT)
    assert stopped.wait(timeout=60) == 130, lines
    assert "of 200,000 rows are kept in" in lines[-1]
    for noise in ("Traceback", "max_restarts", "Loading weights", "\x1b"):
        assert noise not in "".join(lines)


@pytest.mark.timeout(7200)
def test_kills_in_a_row_leave_adapted_labels_the_same(tmp_path):
    build_models(tmp_path, "sce")
    write_store(tmp_path / "store", embedder_of(tmp_path), [text(i) for i in range(90)])

    def begin(name: str) -> subprocess.Popen:
        command = [sys.executable, "jobs/adapt.py", *model_flags(tmp_path)[:-2], "--engine", "ray"]
        command += ["--labels", json.dumps(LABELS), "--input", str(tmp_path / "store")]
        command += ["--trust", "bold", "--output", str(tmp_path / name), "--no-tracking.enabled"]
        with (tmp_path / f"{name}.log").open("a") as log:
            return subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def made(name: str) -> list[bytes]:
        return [(tmp_path / name / file).read_bytes() for file in (WEIGHTS_FILE, FACTS_FILE)]

    def same(number: int) -> None:
        assert made(str(number)) == made("undisturbed")
        assert not (tmp_path / f".{number}.rounds").exists()

    began = time.monotonic()
    assert begin("undisturbed").wait(300) == 0
    said = kill_in_a_row(
        lambda number: begin(str(number)),
        same,
        lambda number: tmp_path / f"{number}.log",
        time.monotonic() - began,
    )
    print(f"jobs/adapt.py: {said}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of its own, as `ray start` makes one, with the token that its jobs need."""
    token = tmp_path_factory.mktemp("auth") / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    environment = {
        **os.environ,
        # As on a cluster whose image has the dependencies: "python" is the one that has them.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ADDRESS": "",
        "PYTHONUNBUFFERED": "1",
    }
    environment.pop("RAY_ADDRESS")
    ports = ["--port", "26379", "--dashboard-port", "28265", "--dashboard-agent-listen-port"]
    ports += ["28266", "--ray-client-server-port", "28267", "--num-cpus", "4"]
    # In a folder of its own, or its address would outlive it and be taken for a live cluster.
    ports += ["--temp-dir", tempfile.mkdtemp(prefix="ray")]
    # A test that stops this cluster must not stop others: its processes die with its group.
    node = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--include-dashboard=true", *ports],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    environment["RAY_API_SERVER_ADDRESS"] = "http://127.0.0.1:28265"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        listed = subprocess.run(
            [RAY, "job", "list"], env=environment, capture_output=True, text=True, timeout=60
        )
        if listed.returncode == 0:
            break
        time.sleep(2)
    else:
        pytest.fail(f"the cluster did not come up: {listed.stderr[-2000:]}")
    yield environment
    os.killpg(node.pid, signal.SIGTERM)
    try:
        node.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(node.pid, signal.SIGKILL)


def submit(cluster: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [RAY, "job", "submit", "--working-dir", ".", "--", "python", *entrypoint],
        cwd=ROOT,
        env=cluster,
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.mark.parametrize("job", ["prepare_data", "embed", "train_sce", "evaluate"])
def test_every_job_runs_under_ray_job_submit(home, cluster, job):
    """In this order each finds what the one before it wrote."""
    settings = ["--config", str(home / "tiny.yaml"), "--run-dir", str(home / "runs" / "submitted")]
    done = submit(cluster, f"jobs/{job}.py", *settings, "--shared-dir", str(home / "submitted"))
    assert done.returncode == 0, done.stdout[-4000:]
    summaries = [line for line in done.stdout.splitlines() if line.startswith('{"')]
    assert summaries, done.stdout[-2000:]
    json.loads(summaries[-1])


def test_labels_are_adapted_under_ray_job_submit(cluster, tmp_path):
    build_models(tmp_path, "sce")
    store = write_store(tmp_path / "store", embedder_of(tmp_path), [text(i) for i in range(60)])
    settings = [*model_flags(tmp_path)[:-2], "--labels", json.dumps(LABELS), "--input", store]
    settings += ["--output", str(tmp_path / "labels"), "--no-tracking.enabled"]
    done = submit(cluster, "jobs/adapt.py", *settings)
    assert done.returncode == 0, done.stdout[-4000:]
    assert AdaptedLabels.load(tmp_path / "labels").names == LABELS


def test_a_relative_output_is_refused_under_ray_job_submit(home, cluster):
    done = submit(cluster, "jobs/prepare_data.py", "--run-dir", "runs/lost")
    assert done.returncode != 0
    assert "a folder that Ray deletes" in done.stdout + done.stderr


def test_an_unauthenticated_submit_is_refused(cluster):
    stranger = {**cluster, "RAY_AUTH_MODE": "disabled"}
    done = submit(stranger, "-c", "print(1)")
    assert done.returncode != 0
    assert "401" in done.stdout + done.stderr or "nauth" in done.stdout + done.stderr
