"""The files of cluster/, read strictly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHERS = [CLUSTER / home / "cluster.yaml" for home in ("onprem", "aws")]
KUBERAY = ("RayCluster", "RayJob", "RayService")
IMAGE = "soft-contextualized-encoder"


class StrictLoader(yaml.CSafeLoader):
    """Refuses a key that stands twice: YAML would silently take the latter."""


def _mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise ValueError(f"{node.start_mark}: twice: {', '.join(sorted(twice))}")
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    with path.open(encoding="utf-8") as file:
        return list(yaml.load_all(file, StrictLoader))


def yaml_files() -> list[Path]:
    return sorted([*CLUSTER.rglob("*.yaml"), *CLUSTER.rglob("*.yml")])


def objects() -> dict[str, dict[str, Any]]:
    """Every Kubernetes object, by file, kind and name."""
    found = {}
    for path in yaml_files():
        for document in read(path):
            if {"kind", "apiVersion", "metadata"} <= document.keys():
                name = f"{path.relative_to(ROOT)}:{document['kind']}/{document['metadata']['name']}"
                found[name] = document
    return found


def named_images() -> dict[str, str]:
    """Images by their name in manifests, as kustomize writes them: with their tag or digest."""
    found = {}
    for entry in read(CLUSTER / "kubernetes" / "images" / "kustomization.yaml")[0]["images"]:
        name = entry.get("newName", entry["name"])
        digest = entry.get("digest")
        found[entry["name"]] = f"{name}@{digest}" if digest else f"{name}:{entry['newTag']}"
    return found


def by_kind(*kinds: str) -> dict[str, dict[str, Any]]:
    return {name: found for name, found in objects().items() if found["kind"] in kinds}


def walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value inside, with the keys that lead to it; itself first."""
    yield path, value
    items: Iterator[tuple[Any, Any]] | enumerate[Any] = iter(())
    if isinstance(value, dict):
        items = iter(value.items())
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from walk(inner, (*path, key))


def pod_specs(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods that an object makes."""
    return [inner["spec"] for path, inner in walk(document) if path[-1:] == ("template",)]


def ray_specs() -> dict[str, dict[str, Any]]:
    """What starts Ray on Kubernetes: the cluster of each RayCluster and RayService."""
    found = {}
    for name, document in by_kind("RayCluster", "RayService").items():
        spec = document["spec"]
        found[name] = spec if document["kind"] == "RayCluster" else spec["rayClusterConfig"]
    return found


def serve_configs() -> dict[str, dict[str, Any]]:
    """Ray Serve's configurations: for `serve deploy`, and inside each RayService."""
    found = {"configs/serve.yaml": read(ROOT / "configs" / "serve.yaml")[0]}
    for name, document in by_kind("RayService").items():
        found[name] = yaml.load(document["spec"]["serveConfigV2"], StrictLoader)
    return found
