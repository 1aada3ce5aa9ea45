"""What a container may do: write only where something is mounted, reach only what it needs."""

import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest
from ray._common.utils import get_default_ray_temp_dir

from sce.distributed.session import _SOCKET, MAX_SOCKET_CHARS
from tests.cluster.manifests import (
    CLUSTER,
    LAUNCHERS,
    named_images,
    objects,
    pod_specs,
    ray_specs,
    read,
    walk,
    yaml_files,
)
from tests.cluster.pods import image_folders

DOCKERFILE = CLUSTER / "image" / "Dockerfile"
PRIVATE = "/home/sce/private"
RAY_FOLDER = f"{PRIVATE}/ray"
API_KEY = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where Ray's autoscaler reads it."""
README = (CLUSTER / "README.md").read_text()
SERVICES = read(CLUSTER / "compose.yaml")[0]["services"]
WRITTEN = {
    "ray-head": {RAY_FOLDER, "/tmp", "/home/sce/.cache", "/spill", "/dev/shm"},
    "ray-worker": {RAY_FOLDER, "/tmp", "/home/sce/.cache", "/spill", "/dev/shm"},
    "mlflow": {"/tmp", "/home/sce/.cache"},
    "postgres": {"/tmp", "/var/run/postgresql", "/var/lib/postgresql/data"},
    "redis": {"/data"},
    "prometheus": {"/data"},
    "grafana": {"/data", "/tmp"},
}
"""Where each program writes, beside its own files."""


def test_containers_write_only_what_is_mounted():
    for name, document in objects().items():
        options = [v for keys, v in walk(document) if keys[-1:] == ("autoscalerOptions",)]
        for spec in pod_specs(document):
            volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
            for container in spec["containers"]:
                place = f"{name} {container['name']}"
                assert container["securityContext"]["readOnlyRootFilesystem"] is True, place
                mounted = {
                    m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")
                }
                assert mounted >= WRITTEN[container["name"]], place
                for mount in container["volumeMounts"]:
                    empty = volumes.get(mount["name"], {}).get("emptyDir")
                    assert empty is None or empty["sizeLimit"], place
            for autoscaler in options:
                assert autoscaler["securityContext"]["readOnlyRootFilesystem"] is True, name
                for mount in autoscaler["volumeMounts"]:
                    head = spec["containers"][0]["name"] == "ray-head"
                    assert mount["name"] in volumes or not head, name
                assert {m["mountPath"] for m in autoscaler["volumeMounts"]} == {
                    RAY_FOLDER, "/tmp", API_KEY,
                }  # fmt: skip
    for service in SERVICES.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    for name in ("postgres", "mlflow", "grafana"):
        assert set(SERVICES[name]["tmpfs"]) == WRITTEN[name] - {"/data", "/var/lib/postgresql/data"}


def test_the_key_of_kubernetes_api_is_the_autoscalers_alone():
    """KubeRay gives the head's pod its account, and jobs run in that pod's other container."""
    for name, document in objects().items():
        for spec in pod_specs(document):
            assert spec["automountServiceAccountToken"] is False, name
            keys = {v["name"] for v in spec["volumes"] if "serviceAccountToken" in str(v)}
            head = [c for c in spec["containers"] if c["name"] == "ray-head"]
            assert bool(keys) == bool(head), name
            mounted = {m["name"] for c in spec["containers"] for m in c["volumeMounts"]}
            assert not keys & mounted, name
    for name, document in ray_specs().items():
        mounts = {m["name"]: m for m in document["autoscalerOptions"]["volumeMounts"]}
        assert mounts["api"] == {"name": "api", "mountPath": API_KEY, "readOnly": True}, name


def test_volumes_are_not_opened_to_the_group_at_each_start():
    """By default the kubelet gives every file of a volume to fsGroup, to be read and written."""
    for name, document in objects().items():
        for spec in pod_specs(document):
            security = spec["securityContext"]
            assert security["fsGroupChangePolicy"] == "OnRootMismatch", name
            assert security["fsGroup"] == security["runAsGroup"], name


def test_who_shares_a_volume_is_one_user():
    """So that a umask of 077 keeps nobody out who has to read."""
    users: dict[str, set[int]] = {}
    for document in objects().values():
        for spec in pod_specs(document):
            for volume in spec["volumes"]:
                if claim := volume.get("persistentVolumeClaim"):
                    user = spec["securityContext"]["runAsUser"]
                    users.setdefault(claim["claimName"], set()).add(user)
    assert users == {"sce-shared": {1000}, "monitoring": {65534}}
    assert "ARG UID=1000\n" in DOCKERFILE.read_text()


def test_rays_folder_lies_below_one_that_only_its_user_enters():
    for name, document in ray_specs().items():
        for group in [document["headGroupSpec"], *document["workerGroupSpecs"]]:
            assert group["rayStartParams"]["temp-dir"] == RAY_FOLDER, name
    for path in LAUNCHERS:
        for part in ("head", "worker"):
            (start,) = [c for c in read(path)[0][f"{part}_start_ray_commands"] if "ray start" in c]
            assert f"--temp-dir={RAY_FOLDER}" in start.split(), path
    assert len(RAY_FOLDER) + len(_SOCKET.removeprefix("/ray")) <= MAX_SOCKET_CHARS


def test_a_command_on_a_node_finds_rays_folder(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", PRIVATE)
    assert get_default_ray_temp_dir() == RAY_FOLDER


@pytest.mark.parametrize("flags", ["-c", "-lc"])
def test_what_kuberay_starts_by_bash_has_the_umask(tmp_path, flags):
    """The file of the image, by the variable of the image."""
    text = DOCKERFILE.read_text()
    ((line, path),) = re.findall(r"echo '(umask \d+)' > (\S+)", text)
    assert f"BASH_ENV={path} " in text
    assert Path(path).parent == Path("/etc/profile.d")  # where launchers' login shells find it
    (tmp_path / "umask.sh").write_text(line)
    environment = os.environ | {"BASH_ENV": str(tmp_path / "umask.sh")}
    done = subprocess.run(
        ["bash", flags, "--", "ulimit -n; umask"], env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "0077"


def test_every_image_of_a_manifest_is_named_in_one_place():
    used = {
        value
        for document in objects().values()
        for keys, value in walk(document)
        if keys[-1:] == ("image",)
    }
    assert used == set(named_images())
    for folder in ("", "endpoint"):
        found = read(CLUSTER / "kubernetes" / folder / "kustomization.yaml")[0]
        assert found["components"] == ["../images" if folder else "images"]
    assert "docker buildx imagetools inspect --format '{{.Manifest.Digest}}'" in README


def test_no_password_that_can_be_a_file_is_in_an_environment():
    """KubeRay gives Ray's token and Redis' password by itself."""
    for path in yaml_files():
        assert "SCE_TOKENS" not in path.read_text(), path
    found = {
        container["name"]
        for document in objects().values()
        for spec in pod_specs(document)
        for container in spec["containers"]
        for item in container.get("env", [])
        if "valueFrom" in item
    }
    assert not found
    for name, document in objects().items():
        for keys, value in walk(document):
            if keys[-1:] == ("secret",) and isinstance(value, dict):
                assert value["defaultMode"] == 0o400, name


def test_the_image_makes_a_folder_for_ray_that_its_user_alone_can_enter(tmp_path):
    """The very commands of the Dockerfile, below a folder in the place of the root."""
    for command in image_folders():
        words = [f"{tmp_path}{w}" if w.startswith("/") else w for w in shlex.split(command)]
        plain = [w for i, w in enumerate(words) if not {w, words[i - 1]} & {"-o", "-g"}]
        subprocess.run(plain, check=True)
    for place in (PRIVATE, RAY_FOLDER, "/home/sce", "/shared", "/spill"):
        assert stat.S_IMODE(Path(f"{tmp_path}{place}").stat().st_mode) == 0o700, place
    assert all(" -o 1000 -g 1000 " in c for c in image_folders() if c.startswith("install"))
    assert "/opt/sce" not in " ".join(image_folders()), "the code is root's"


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.parent.name)
def test_the_launchers_containers_are_restricted(path):
    options = read(path)[0]["docker"]["run_options"]
    for option in ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"):
        assert option in options
    volumes = {o.removeprefix("--volume=").split(":")[-1] for o in options if "--volume" in o}
    expected = {"/home/sce", "/tmp", "/spill"} | ({"/shared"} if "onprem" in str(path) else set())
    assert volumes == expected
    assert "--privileged" not in options
