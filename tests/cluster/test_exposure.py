"""Who may come in: tokens everywhere, nothing open that is not guarded, no secret in a file."""

import ipaddress
import re
import subprocess

import pytest
from mlflow.utils.credentials import read_mlflow_creds

from tests.cluster.manifests import (
    CLUSTER,
    LAUNCHERS,
    ROOT,
    by_kind,
    objects,
    pod_specs,
    ray_specs,
    read,
    serve_configs,
    walk,
    yaml_files,
)

SECRET_NAME = re.compile(r"(password|passwd|token|secret|private_?key|access_?key)", re.I)
REFERENCES = re.compile(
    r"^(/home/sce/secrets/|/run/secrets/|~/\.(ssh|sce)/|\$\{SCE_SECRETS|token$)|_FILE$|^(true|false)$"
    r"|^required$"
)
"""Values that a key with such a name may have: where the secret is, Ray's mode, EC2's."""


def test_ray_starts_with_a_token_in_every_home():
    for path in LAUNCHERS:
        options = read(path)[0]["docker"]["run_options"]
        assert "--env=RAY_AUTH_MODE=token" in options, path
        assert "--env=RAY_AUTH_TOKEN_PATH=/home/sce/secrets/ray_token" in options, path
    clusters = ray_specs()
    assert len(clusters) == 2
    for name, document in clusters.items():
        assert document["authOptions"]["mode"] == "token", name
        assert document["authOptions"]["secretName"], name
        for spec in pod_specs(document):
            env = {item["name"]: item.get("value") for item in spec["containers"][0]["env"]}
            assert env["RAY_AUTH_MODE"] == "token", name
            assert "RAY_AUTH_TOKEN" not in env, name
    assert re.search(r"^ENV .*?RAY_AUTH_MODE=token", _dockerfile(), re.M | re.S)
    starts = {p.parent.name for p in yaml_files() if re.search(r"\bray start\b", p.read_text())}
    assert starts == {path.parent.name for path in LAUNCHERS}, "another file starts Ray"


def _dockerfile() -> str:
    return (CLUSTER / "image" / "Dockerfile").read_text()


def test_the_dashboard_is_on_loopback():
    for path in LAUNCHERS:
        (start,) = [c for c in read(path)[0]["head_start_ray_commands"] if "ray start" in c]
        assert "--dashboard-host=127.0.0.1" in start.split(), path


def is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


@pytest.mark.parametrize(("name", "config"), serve_configs().items())
def test_the_endpoint_is_on_loopback_or_has_tokens(name, config):
    (app,) = config["applications"]
    assert is_loopback(config["http_options"]["host"]) or app["args"].get("tokens_file")
    assert "tokens" not in app["args"]


def test_the_tokens_of_the_endpoint_are_mounted_where_it_looks():
    for name, document in by_kind("RayService").items():
        (app,) = serve_configs()[name]["applications"]
        for spec in pod_specs(document["spec"]["rayClusterConfig"]):
            mounts = {m["name"]: m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
            (volume,) = [v for v in spec["volumes"] if "secret" in v]
            assert volume["secret"]["defaultMode"] == 0o400, name
            (item,) = volume["secret"]["items"]
            assert f"{mounts[volume['name']]}/{item['path']}" == app["args"]["tokens_file"], name


def test_mlflows_client_reads_its_password_where_the_homes_put_it(tmp_path, monkeypatch):
    """By the link of the image, from the folder that launchers and Kubernetes mount."""
    (link,) = re.findall(r"ln -s (\S+) (\S+)", _dockerfile())
    assert link == ("/home/sce/secrets/mlflow_credentials", "/home/sce/.mlflow/credentials")
    for name, spec in ray_specs().items():
        if name.endswith("RayCluster/sce"):
            for pod in pod_specs(spec):
                mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
                (secret,) = [v["secret"] for v in pod["volumes"] if v["name"] == "secrets"]
                assert mounts["secrets"] == "/home/sce/secrets"
                assert [item["path"] for item in secret["items"]] == ["mlflow_credentials"]
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").symlink_to(secrets / "mlflow_credentials")
    text = (CLUSTER / "README.md").read_text()
    (content,) = re.findall(r"mlflow_credentials <<EOF\n(.*?)EOF", text, re.S)
    (secrets / "mlflow_credentials").write_text(
        content.replace("$(cat mlflow_admin_password)", "p")
    )
    for variable in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_mlflow_creds() == ("admin", "p")


def test_redis_starts_with_the_password_of_its_file(tmp_path):
    """The very command of the manifest, with a program in Redis' place that repeats its input."""
    (document,) = [d for name, d in objects().items() if name.endswith("StatefulSet/redis")]
    (container,) = document["spec"]["template"]["spec"]["containers"]
    shell, flag, script = container["command"]
    assert "PASSWORD" not in script
    (tmp_path / "password").write_text("the-password")
    server = tmp_path / "redis-server"
    server.write_text('#!/bin/sh\necho "$@"; cat; env\n')
    server.chmod(0o755)
    done = subprocess.run(
        [shell, flag, script.replace("/run/secrets/redis", str(tmp_path))],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    arguments, *lines = done.stdout.splitlines()
    assert arguments == "-"
    assert lines[:3] == ["appendonly yes", "dir /data", "requirepass the-password"]
    environment = lines[3:]
    assert "the-password" not in "".join(environment)


def test_containers_of_compose_listen_on_loopback():
    for name, service in read(CLUSTER / "compose.yaml")[0]["services"].items():
        for port in service.get("ports", []):
            variable = re.fullmatch(r"\$\{(\w+):-([\d.]+)\}:\d+:\d+", port)
            assert variable, f"{name}: {port} has no address"
            assert is_loopback(variable[2]), f"{name}: {port}"
        if service.get("network_mode") == "host":
            flags = " ".join(service.get("command", []))
            hosts = re.findall(r"listen-address=([\d.]+):", flags)
            hosts += [v for k, v in service.get("environment", {}).items() if k.endswith("ADDR")]
            assert hosts, f"{name} shares the machine's network and names no address"
            assert all(map(is_loopback, hosts)), f"{name}: {hosts}"


def test_every_address_that_is_open_to_the_network_has_a_guard():
    """Each line with such an address, and what guards it; a new one belongs into this list."""
    guarded = {
        "cluster/compose.yaml": {
            "MLFLOW_HOST: 0.0.0.0  # in its container; `ports` says who reaches it"
        },
        "cluster/mlflow/kubernetes.yaml": {
            "- {name: MLFLOW_HOST, value: 0.0.0.0}  # it asks for a password"
        },
        "cluster/kubernetes/endpoint/rayservice.yaml": {
            "host: 0.0.0.0  # behind the Service; tokens_file is its guard"
        },
        "configs/serve.yaml": {
            "host: 127.0.0.1  # 0.0.0.0 to be reached from other machines; then tokens are needed"
        },
    }  # fmt: skip
    found: dict[str, set[str]] = {}
    for path in [*yaml_files(), ROOT / "configs" / "serve.yaml", CLUSTER / "image" / "Dockerfile"]:
        for line in path.read_text().splitlines():
            if re.search(r"(?<!\d)0\.0\.0\.0(?!/)|\[?::\]?:\d|hostNetwork|hostPort", line):
                found.setdefault(str(path.relative_to(ROOT)), set()).add(line.strip())
    assert found == guarded
    server = (CLUSTER / "mlflow" / "server.py").read_text()
    assert '"--app-name", "basic-auth"' in server


def test_services_of_kubernetes_are_inside():
    for name, document in by_kind("Service").items():
        assert document["spec"].get("type", "ClusterIP") == "ClusterIP", name
    for name, document in objects().items():
        for keys, value in walk(document):
            assert keys[-1:] != ("serviceType",), f"{name}: {value}"
            assert value not in ("NodePort", "LoadBalancer"), name


def test_prometheus_and_databases_on_kubernetes():
    containers = {
        container["name"]: container
        for document in objects().values()
        for spec in pod_specs(document)
        for container in spec["containers"]
    }
    assert "--web.listen-address=127.0.0.1:9090" in containers["prometheus"]["args"]
    env = {item["name"]: item for item in containers["grafana"]["env"]}
    assert env["GF_SERVER_HTTP_ADDR"]["value"] == "127.0.0.1"
    assert env["GF_AUTH_ANONYMOUS_ENABLED"]["value"] == "false"
    assert "GF_SECURITY_ADMIN_PASSWORD__FILE" in env
    assert "requirepass $(cat /run/secrets/redis/password)" in containers["redis"]["command"][-1]
    assert "POSTGRES_PASSWORD_FILE" in {e["name"] for e in containers["postgres"]["env"]}


def test_no_manifest_holds_a_secret():
    for path in [*yaml_files(), ROOT / "configs" / "serve.yaml"]:
        for document in read(path):
            assert document.get("kind") != "Secret", f"{path}: Secrets are made by hand"
            for keys, value in walk(document):
                key = str(keys[-1]) if keys else ""
                if isinstance(value, dict) and SECRET_NAME.search(str(value.get("name", ""))):
                    literal = value.get("value")
                    assert literal is None or REFERENCES.search(str(literal)), (path, value)
                is_name = key in ("secretName", "claimName", "name")
                if isinstance(value, str) and SECRET_NAME.search(key) and not is_name:
                    assert REFERENCES.search(value), (path, keys, value)


def test_no_file_of_the_repository_holds_a_secret():
    shapes = re.compile(
        r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE|\bgh[pousr]_\w{36}|\bhf_[A-Za-z0-9]{30,}"
        r"|xox[abp]-\w+|://[^/\s:@{}$'\"]+:[^/\s:@{}$'\"]{6,}@"
    )
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    if not files:
        pytest.skip("not a checkout")
    for path in files:
        if path.suffix in (".png", ".gz") or "tests" in path.relative_to(ROOT).parts:
            continue
        if path.is_file():
            for found in shapes.findall(path.read_text(encoding="utf-8")):
                pytest.fail(f"{path.relative_to(ROOT)}: {found}")
    assert not [path for path in files if path.suffix in (".pem", ".key") or path.name == ".env"]
