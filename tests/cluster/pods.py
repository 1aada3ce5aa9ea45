"""A container of a manifest on this machine's own files, without a container runtime: the root
read-only, the volumes of the pod and nothing else to write to, its user, no capabilities.

Needs root, for namespaces of its own: who has it on a test machine has a container anyway.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cluster.manifests import CLUSTER, ROOT

DOCKERFILE = CLUSTER / "image" / "Dockerfile"
USER = 1000
BIN = Path(sys.executable).parent


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: name and value of each."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]  # type: ignore


def image_environment() -> dict[str, str]:
    return dict(
        pair.split("=", 1)
        for name, value in instructions()
        if name == "ENV"
        for pair in value.split()
    )


def image_folders() -> list[str]:
    """The commands of the Dockerfile that make what a container finds below / and in its home."""
    steps = [step.strip() for _, value in instructions() for step in value.split("&&")]
    found = [step for step in steps if re.match(r"(install -d|ln -s|echo) .*/", step)]
    return [re.sub(r"(-[og]) sce", rf"\1 {USER}", step) for step in found]


def can_be_made() -> bool:
    """Whether this machine lets us: root, namespaces, overlays."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
        return False
    probe = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r && mount -t overlay overlay "
    probe += "-o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r"
    made = subprocess.run(["unshare", "--mount", "sh", "-c", probe], capture_output=True)
    return made.returncode == 0


def _open_python() -> list[str]:
    """Commands that let every user reach this Python, which may stand in root's home."""
    above = {*Path(sys.executable).parents, *Path(sys.executable).resolve().parents}
    return [f'chmod go+x "$root"{shlex.quote(str(folder))}' for folder in sorted(above)]


def _mounts(
    spec: Mapping[str, Any], container: Mapping[str, Any], given: Mapping[str, Path]
) -> list[str]:
    """Commands that mount the volumes of a container below $root as the kubelet does: an emptyDir
    is open to all and its group's, files of a Secret are root's and the group's."""
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    group = spec["securityContext"]["fsGroup"]
    commands = []
    for mount in sorted(container["volumeMounts"], key=lambda item: item["mountPath"]):
        name, place = mount["name"], f'"$root"{shlex.quote(mount["mountPath"])}'
        commands.append(f"mkdir -p {place}")
        if "emptyDir" in volumes.get(name, {}):
            commands.append(f"mount -t tmpfs -o mode=2777,gid={group},size=2g tmpfs {place}")
            continue
        commands.append(f"mount --bind {shlex.quote(str(given[name]))} {place}")
        if "secret" in volumes.get(name, {}):
            commands.append(f"chown -R 0:{group} {place} && chmod 750 {place}")
            commands.append(f"chmod 440 {place}/*")
        if mount.get("readOnly"):
            commands.append(f"mount -o remount,bind,ro {place}")
    return commands


def start(
    spec: Mapping[str, Any],
    container: Mapping[str, Any],
    command: Sequence[str],
    scratch: Path,
    given: Mapping[str, Path],
    environment: Mapping[str, str],
    network: bool = False,
) -> subprocess.Popen:
    """Start `command` as the container would be.

    Args:
        scratch: an empty folder; in the container's world its root is mounted there.
        given: the folders behind volumes that are no emptyDir, by the volumes' names.
        environment: beside the image's and the container's own.
        network: this machine's, rather than a loopback of its own.
    """
    security = {**spec["securityContext"], **container["securityContext"]}
    assert security["readOnlyRootFilesystem"] is True
    user = security["runAsUser"]
    variables = {
        **image_environment(),
        **{item["name"]: item["value"] for item in container.get("env", []) if "value" in item},
        **environment,
        "PATH": f"{BIN}:/usr/bin:/bin",
        "PYTHONPATH": "/opt/sce",
    }
    setup = [
        "set -e",
        f"cd {shlex.quote(str(scratch))}",
        "mount -t tmpfs tmpfs . && cd .",
        f"cd {shlex.quote(str(scratch))} && mkdir upper work root && root=$PWD/root",
        "mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root",
        *_open_python(),
        *(f'chroot "$root" sh -c {shlex.quote(step)}' for step in image_folders()),
        'mkdir -p "$root/opt/sce"',
        f'mount --bind {shlex.quote(str(ROOT))} "$root/opt/sce"',
        'mount -o remount,bind,ro "$root/opt/sce"',
        'mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev"',
        *_mounts(spec, container, given),
        *([] if network else ["ip link set lo up"]),
        'mount -o remount,ro "$root"',
        f'exec chroot "$root" setpriv --reuid={user} --regid={security["runAsGroup"]} '
        f"--groups={security['fsGroup']} --no-new-privs --inh-caps=-all --bounding-set=-all "
        f"env -i -C /opt/sce {shlex.join(f'{k}={v}' for k, v in variables.items())} "
        f"{shlex.join(command)}",
    ]
    spaces = ["--mount", "--pid", "--fork", "--kill-child=KILL", "--ipc"]
    return subprocess.Popen(
        ["unshare", *spaces, *([] if network else ["--net"]), "bash", "-c", "\n".join(setup)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def kuberay_command(group: Mapping[str, Any], kind: str, **changes: str) -> list[str]:
    """What KubeRay makes of a group's `args` and `rayStartParams` (its `BuildPod`)."""
    (container,) = group["template"]["spec"]["containers"]
    before = " ".join([*container.get("command", []), *container.get("args", [])])
    params = {**group["rayStartParams"], **{k.replace("_", "-"): v for k, v in changes.items()}}
    flags = [f"--{key}" if value == "true" else f"--{key}={value}" for key, value in params.items()]
    line = " ".join(["ray start", *(["--head"] if kind == "head" else []), *flags])
    line = f"ulimit -n 65536; {line}"
    return ["/bin/bash", "-c", "--", f"{before} && {line}" if before else line]
