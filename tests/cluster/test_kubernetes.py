"""Manifests against the schemas of KubeRay and Kubernetes, and what schemas do not say."""

import copy
import gzip
import shutil
import subprocess
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import SchemaNotFoundError
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

from tests.cluster.manifests import (
    CLUSTER,
    KUBERAY,
    ROOT,
    by_kind,
    named_images,
    objects,
    pod_specs,
    ray_specs,
    read,
    walk,
)

KUBERNETES = "1.33"
SCHEMAS = ROOT.parent / "shared" / "schemas" / "kuberay"
PLURALS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def amount(text: Any) -> float:
    """Bytes or cores of a Kubernetes quantity."""
    text = str(text)
    if text.endswith("m"):
        return float(text[:-1]) / 1000
    number = text.rstrip("kKMGi")
    return float(number) * UNITS[text[len(number) :]]


def closed(schema: Any) -> Any:
    """The schema with unknown fields refused wherever it names fields, as the API server prunes."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(inner) for key, inner in schema.items()}
    names = isinstance(schema.get("properties"), dict)
    if names and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return found


@cache
def crd_schema(kind: str) -> dict[str, Any]:
    path = SCHEMAS / f"ray.io_{PLURALS[kind]}.yaml.gz"
    if not path.exists():
        pytest.skip(f"{path.relative_to(ROOT.parent)} is not here")
    definition = yaml.load(gzip.decompress(path.read_bytes()), yaml.CSafeLoader)
    (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def test_kuberay_accepts_it(subtests):
    for name, document in by_kind(*KUBERAY).items():
        with subtests.test(name):
            assert document["apiVersion"] == "ray.io/v1"
            validator = jsonschema.Draft202012Validator(crd_schema(document["kind"]))
            errors = [f"{e.json_path}: {e.message[:200]}" for e in validator.iter_errors(document)]
            assert not errors


def test_an_unknown_field_of_kuberay_is_refused():
    (document,) = by_kind("RayCluster").values()
    validator = jsonschema.Draft202012Validator(crd_schema("RayCluster"))
    (group, *_) = document["spec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    container["comand"] = ["true"]
    group["maxReplica"] = 3
    errors = " ".join(error.message for error in validator.iter_errors(document))
    assert "comand" in errors
    assert "maxReplica" in errors


def test_kubernetes_accepts_it(subtests):
    for name, document in objects().items():
        if document["kind"] not in KUBERAY:
            with subtests.test(name):
                kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_pods_of_ray_are_pods():
    for document in ray_specs().values():
        for template in pod_specs(document):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_there_is_a_ray_job_for_each_job():
    entrypoints = [document["spec"]["entrypoint"] for document in by_kind("RayJob").values()]
    called = sorted(entrypoint.split()[1].split("/")[-1] for entrypoint in entrypoints)
    assert called == sorted(path.name for path in (ROOT / "jobs").glob("*.py"))
    for name, document in by_kind("RayJob").items():
        assert document["metadata"]["labels"]["job"] == document["metadata"]["name"], name
        (cluster,) = by_kind("RayCluster").values()
        assert document["spec"]["clusterSelector"] == {
            "ray.io/cluster": cluster["metadata"]["name"]
        }


def test_what_is_referred_to_is_there():
    """Volumes, Secrets and their keys (made by hand as the README says), Services."""
    readme = (CLUSTER / "README.md").read_text().replace("\\\n", " ")
    secrets: dict[str, set[str]] = {}
    for line in readme.splitlines():
        words = line.split()
        if "kubectl create secret generic" in line:
            flags = [word.partition("=")[2].partition("=")[0] for word in words if "--from" in word]
            secrets[words[words.index("sce") + 1]] = set(flags)
    generated = {
        generator["name"]
        for path in CLUSTER.rglob("kustomization.yaml")
        for generator in read(path)[0].get("configMapGenerator", [])
    }
    claims = {
        document["metadata"]["name"] for document in by_kind("PersistentVolumeClaim").values()
    }
    asked = []
    for name, document in objects().items():
        for path, value in walk(document):
            if path[-1:] == ("claimName",):
                assert value in claims, (name, value)
            elif path[-2:] == ("configMap", "name"):
                assert value in {*generated, "kube-root-ca.crt"}, (name, value)  # Kubernetes' own
            elif path[-1:] == ("secretKeyRef",):
                asked.append((name, value["name"], value["key"]))
            elif path[-1:] == ("secret",) and isinstance(value, dict):
                asked += [(name, value["secretName"], item["key"]) for item in value["items"]]
            elif path[-1:] == ("secretRef",):
                assert value["optional"], name
                assert value["name"] in secrets, name
    for name, document in ray_specs().items():
        asked.append((name, document["authOptions"]["secretName"], "auth_token"))
    for name, secret, key in asked:
        assert key in secrets.get(secret, ()), (name, secret, key)
    services = {document["metadata"]["name"] for document in by_kind("Service").values()}
    assert {"mlflow", "postgres", "redis", "ray-metrics"} <= services


def test_every_container_is_probed_limited_and_not_root():
    for name, document in objects().items():
        for spec in pod_specs(document):
            assert spec["securityContext"]["runAsNonRoot"], name
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
            for container in spec["containers"]:
                place = f"{name} {container['name']}"
                assert container["readinessProbe"], place
                assert container["livenessProbe"], place
                limits, requests = (container["resources"][key] for key in ("limits", "requests"))
                assert {"cpu", "memory"} <= limits.keys() == requests.keys(), place
                assert amount(requests["cpu"]) <= amount(limits["cpu"]), place
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, place
                assert container["securityContext"]["allowPrivilegeEscalation"] is False, place


def test_the_object_store_has_its_memory_and_a_disk_to_spill_to():
    for name, document in ray_specs().items():
        groups = [document["headGroupSpec"], *document.get("workerGroupSpecs", [])]
        for group in groups:
            place = f"{name} {group.get('groupName', 'head')}"
            start, spec = group["rayStartParams"], group["template"]["spec"]
            container, volumes = spec["containers"][0], {v["name"]: v for v in spec["volumes"]}
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            store = int(start["object-store-memory"])
            shm = volumes[mounts["/dev/shm"]]["emptyDir"]
            assert shm["medium"] == "Memory", place
            assert store <= amount(shm["sizeLimit"]), place
            limit = amount(container["resources"]["limits"]["memory"])
            assert store <= 0.31 * limit, place
            assert (
                container["resources"]["requests"]["memory"]
                == (container["resources"]["limits"]["memory"])
            ), place
            spill = volumes[mounts[start["object-spilling-directory"]]]["emptyDir"]
            assert "medium" not in spill, place
            assert amount(spill["sizeLimit"]) >= 2 * store, place


def test_the_cluster_grows_and_shrinks():
    for name, document in ray_specs().items():
        assert document["enableInTreeAutoscaling"] is True, name
        assert document["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", name
        for group in document["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"], name


def test_what_rays_autoscaler_reads_in_it():
    for document in ray_specs().values():
        resource = {"metadata": {"name": "x", "namespace": "sce"}, "spec": document}
        config = _derive_autoscaling_config_from_ray_cr(copy.deepcopy(resource))
        kinds = {name: kind["resources"] for name, kind in config["available_node_types"].items()}
        assert kinds.pop("headgroup")["CPU"] == 0
        for group in document["workerGroupSpecs"]:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            found = kinds.pop(group["groupName"])
            assert found["CPU"] == amount(limits["cpu"])
            assert found["memory"] == amount(limits["memory"])
            if "nvidia.com/gpu" in limits:
                assert (found["GPU"], found["accelerator_type:RTX-A6000"]) == (1, 1)
        assert not kinds


def test_gpus_are_asked_for_where_the_image_has_them():
    seen = 0
    for document in ray_specs().values():
        for group in document["workerGroupSpecs"]:
            (container,) = group["template"]["spec"]["containers"]
            gpus = container["resources"]["limits"].get("nvidia.com/gpu", 0)
            assert bool(gpus) == container["image"].endswith("-gpu") == ("num-gpus" in (
                group["rayStartParams"]
            ))  # fmt: skip
            seen += bool(gpus)
    assert seen


def kustomized(folder: str = "") -> list[dict[str, Any]]:
    """What `kubectl apply -k` sends."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(CLUSTER / "kubernetes" / folder)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
def test_kustomize_builds_it():
    built = kustomized()
    assert {"RayCluster", "StatefulSet", "Deployment", "ConfigMap", "NetworkPolicy"} <= {
        document["kind"] for document in built
    }
    built += kustomized("endpoint")
    assert "RayService" in {document["kind"] for document in built}
    images = [value for d in built for path, value in walk(d) if path[-1:] == ("image",)]
    assert set(images) == set(named_images().values())
    for document in built:
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "sce"
        if document["kind"] not in KUBERAY:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_a_kustomization_names_files_that_are_there():
    for path in CLUSTER.rglob("kustomization.yaml"):
        found = read(path)[0]
        files = [
            f.rpartition("=")[2] for g in found.get("configMapGenerator", []) for f in g["files"]
        ]
        others = [*found.get("resources", []), *found.get("components", [])]
        for file in [*others, *files]:
            assert (path.parent / file).exists(), (path, file)


def test_an_unknown_kind_is_told():
    with pytest.raises(SchemaNotFoundError):
        kubernetes_validate.validate({"apiVersion": "v9", "kind": "Pot"}, KUBERNETES, strict=True)
