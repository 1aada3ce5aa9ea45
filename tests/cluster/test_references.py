"""What the files of cluster/ name is there: images, files, commands, configurations of jobs."""

import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from sce.config import VERSION, load_config
from serve.settings import ServeConfig
from tests.cluster.manifests import (
    CLUSTER,
    IMAGE,
    LAUNCHERS,
    ROOT,
    by_kind,
    named_images,
    objects,
    ray_specs,
    read,
    serve_configs,
    walk,
    yaml_files,
)

DOCKERFILE = CLUSTER / "image" / "Dockerfile"
TEXTS = [CLUSTER / "README.md", DOCKERFILE, *yaml_files()]


def images() -> dict[str, set[str]]:
    """Every image, with the files that name it; those of manifests as kustomize writes them."""
    named = named_images()
    found: dict[str, set[str]] = {}
    for path in yaml_files():
        for document in read(path):
            for keys, value in walk(document):
                if str(keys[-1:]).strip("(),'").endswith("image") and isinstance(value, str):
                    value = named.get(value, value)
                    found.setdefault(value, set()).add(str(path.relative_to(ROOT)))
    return found


def test_our_image_has_one_tag_everywhere():
    ours = {image for image in images() if image.startswith(IMAGE)}
    assert ours == {f"{IMAGE}:{VERSION}-{device}" for device in ("gpu", "cpu")}
    for text in TEXTS:
        for tag in re.findall(rf"{IMAGE}:([\w.$-]+)", text.read_text()):
            assert re.fullmatch(rf"{re.escape(VERSION)}-(gpu|cpu|\$device)", tag), text


def test_other_images_are_pinned_and_the_same_everywhere():
    tags: dict[str, set[str]] = {}
    for image in images():
        name, _, tag = image.partition(":")
        assert re.search(r"\d+\.\d+", tag), f"{image} is not pinned"
        tags.setdefault(name, set()).add(tag)
    assert all(len(found) == 1 for name, found in tags.items() if name != IMAGE), tags
    (base,) = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE.read_text(), re.M)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)


def test_rays_version_is_the_installed_one():
    for name, document in ray_specs().items():
        assert document["rayVersion"] == ray.__version__, name
    readme = (CLUSTER / "README.md").read_text()
    assert f"the same Ray ({ray.__version__.rpartition('.')[0]})" in readme


def test_files_that_are_named_exist():
    """In commands, comments and texts; below /opt/sce lies the checkout."""
    pattern = re.compile(r"(?<![\w/.~-])(?:/opt/sce/)?((?:cluster|configs|jobs|tests)/[\w./-]+\w)")
    named = set()
    for text in TEXTS:
        for name in pattern.findall(text.read_text()):
            assert (ROOT / name).exists(), f"{text.relative_to(ROOT)}: {name}"
            named.add(name)
    assert {"cluster/mlflow/server.py", "configs/serve.yaml", "jobs/train_sce.py"} <= named
    for folder in ("image", "onprem", "aws", "kubernetes", "mlflow", "monitoring", "compose.yaml"):
        assert (CLUSTER / folder).exists()
        assert folder in (CLUSTER / "README.md").read_text()


def arguments_of(command: str) -> list[str]:
    return [word.replace("/opt/sce/", f"{ROOT}/") for word in shlex.split(command)]


def check_job(command: list[str], monkeypatch) -> None:
    """Run a job's file up to where it would begin, and read its configuration."""
    seen = []

    def instead(config_class, work, doc, argv=None):
        argv = sys.argv[1:] if argv is None else list(argv)
        seen.append(load_config(config_class, argv, "job", doc))
        return 0

    script, *argv = command
    for module in ("sce.workflows.cli", "jobs.benchmarks.records"):
        monkeypatch.setattr(f"{module}.run_job", instead)
    argv = [word.replace("/shared/runs/epoch-cost.md", os.devnull) for word in argv]
    monkeypatch.setattr(sys, "argv", [script, *argv])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0
    assert len(seen) == 1


@pytest.mark.parametrize(("name", "document"), by_kind("RayJob").items())
def test_the_configuration_of_a_ray_job_is_read(name, document, monkeypatch):
    python, *command = arguments_of(document["spec"]["entrypoint"])
    assert python == "python"
    check_job(command, monkeypatch)


def test_the_commands_of_the_readme_are_read(monkeypatch):
    text = (CLUSTER / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"-- python (jobs/.+)$", text, re.M)
    assert commands
    for command in commands:
        check_job(shlex.split(command, comments=True), monkeypatch)


def unknown_keys(value, model: type[BaseModel], path: str = "") -> list[str]:
    """Keys that a pydantic model does not have, which Ray would take in silence."""
    found = []
    for key, inner in value.items():
        field = model.model_fields.get(key)
        if field is None:
            found.append(f"{path}{key}")
            continue
        kinds = re.findall(r"ray\.serve\.\w+(?:\.\w+)*", str(field.annotation))
        for kind in kinds:
            module, _, name = kind.rpartition(".")
            inside = getattr(importlib.import_module(module), name, None)
            if isinstance(inside, type) and issubclass(inside, BaseModel):
                for item in inner if isinstance(inner, list) else [inner]:
                    if isinstance(item, dict):
                        found += unknown_keys(item, inside, f"{path}{key}.")
    return found


@pytest.mark.parametrize(("name", "config"), serve_configs().items())
def test_ray_serve_and_we_know_every_key(name, config):
    ServeDeploySchema.model_validate(config)
    assert unknown_keys(config, ServeDeploySchema) == []
    (app,) = config["applications"]
    ServeConfig.model_validate(app["args"])
    module, _, function = app["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_an_unknown_key_of_serve_is_found():
    config = serve_configs()["configs/serve.yaml"]
    config["http_options"]["prot"] = 8000
    config["applications"][0]["routeprefix"] = "/"
    assert unknown_keys(config, ServeDeploySchema) == [
        "http_options.prot",
        "applications.routeprefix",
    ]


def test_volumes_of_compose_and_its_secrets_are_there():
    compose = read(CLUSTER / "compose.yaml")[0]
    readme = (CLUSTER / "README.md").read_text()
    for name, service in compose["services"].items():
        assert service.keys() <= {
            "image", "restart", "environment", "secrets", "volumes", "healthcheck", "command",
            "ports", "depends_on", "network_mode", "group_add", "user", "read_only", "cap_drop",
            "security_opt", "tmpfs",
        }, name  # fmt: skip
        assert service.get("secrets", []) == [
            secret for secret in service.get("secrets", []) if secret in compose["secrets"]
        ]
        for volume in service["volumes"]:
            source = (
                volume.rsplit(":", 2)[0] if volume.endswith(":ro") else volume.rpartition(":")[0]
            )
            if source.startswith("./"):
                assert (CLUSTER / source).is_file(), volume
            elif not source.startswith("$"):
                assert source in compose["volumes"], volume
        if service.get("secrets") and name != "mlflow":  # whose image has the owner's number
            assert service["group_add"] == ["${SCE_GID:-1000}"], f"{name} cannot read its secrets"
        for variable, value in service.get("environment", {}).items():
            if variable.endswith("_FILE"):
                assert Path(value).name in service["secrets"], (name, variable)
    for name, secret in compose["secrets"].items():
        assert secret["file"].endswith(f"/{name}")
        assert re.search(rf"\b{name}\b", readme), f"the README does not make {name}"


def test_mlflow_is_started_with_settings_that_it_has():
    source = (CLUSTER / "mlflow" / "server.py").read_text()
    compose = read(CLUSTER / "compose.yaml")[0]["services"]["mlflow"]["environment"]
    (deployment,) = [d for name, d in objects().items() if name.endswith("Deployment/mlflow")]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for variable in [*compose, *(item["name"] for item in container["env"])]:
        assert variable.removesuffix("_FILE") in source, variable


def test_secrets_that_the_launchers_name_are_made_by_the_readme():
    readme = (CLUSTER / "README.md").read_text()
    for path in LAUNCHERS:
        for name in re.findall(r"/home/sce/secrets/([\w.]+)", path.read_text()):
            assert re.search(rf"\b{name}\b", readme), (path, name)
        assert read(path)[0]["file_mounts"] == {"/home/sce/secrets": "~/.sce/secrets"}


def test_shell_commands_of_the_readme_are_shell(tmp_path):
    for block in re.findall(r"```bash\n(.*?)```", (CLUSTER / "README.md").read_text(), re.S):
        done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr + block


def test_the_readmes_secrets_are_made_as_it_says(tmp_path):
    text = (CLUSTER / "README.md").read_text()
    (block,) = [b for b in re.findall(r"```bash\n(.*?)```", text, re.S) if "openssl" in b]
    done = subprocess.run(
        ["bash", "-eu"], input=block, text=True, capture_output=True, env={"HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / ".sce" / "secrets"
    compose = read(CLUSTER / "compose.yaml")[0]
    words = {"cluster.env", "mlflow_credentials"}
    assert {*compose["secrets"], "endpoint_tokens", "redis_password"} | words == {
        path.name for path in folder.iterdir()
    }
    values = {p.read_text() for p in folder.iterdir() if p.name not in words}
    assert len(values) == 7
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in values)
    password = (folder / "mlflow_admin_password").read_text()
    assert f"mlflow_tracking_password = {password}\n" in (folder / "mlflow_credentials").read_text()
    assert not re.search("password|token", (folder / "cluster.env").read_text(), re.I)
    # Compose's programs with another user have a group that reads theirs; the folder lets none in.
    services = compose["services"].values()
    shared = {s for service in services for s in service["secrets"] if "group_add" in service}
    assert shared == {"ray_token", "mlflow_database_password", "grafana_admin_password"}
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == (0o640 if path.name in shared else 0o600), path
