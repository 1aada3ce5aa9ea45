"""What the NetworkPolicies let through, decided as Kubernetes says it: a pod that a policy selects
may be reached, or may reach, by the rules of all that select it, and by nothing else."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tests.cluster.manifests import by_kind, objects, ray_specs

NAMESPACE = "sce"
OPERATOR = "kuberay-system"
"""Where cluster/README.md installs KubeRay."""


@dataclass(frozen=True)
class Pod:
    namespace: str
    labels: dict[str, str] = field(hash=False)


def pods() -> dict[str, Pod]:
    """Those that the manifests make, by name; Ray's with the labels that KubeRay adds."""
    found = {}
    for name, document in objects().items():
        if document["kind"] in ("Deployment", "StatefulSet"):
            labels = document["spec"]["template"]["metadata"]["labels"]
            found[name.rpartition("/")[2]] = Pod(NAMESPACE, labels)
    for name, spec in ray_specs().items():
        cluster = name.rpartition("/")[2]
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            kind = "worker" if "groupName" in group else "head"
            labels = {
                "app.kubernetes.io/name": "kuberay",
                "ray.io/is-ray-node": "yes",
                "ray.io/node-type": kind,
                "ray.io/cluster": cluster,
                **group["template"]["metadata"]["labels"],
            }
            found[f"{cluster}-{group.get('groupName', 'head')}"] = Pod(NAMESPACE, labels)
    return found


@cache
def _policies() -> list[dict[str, Any]]:
    return [document["spec"] for document in by_kind("NetworkPolicy").values()]


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}, "this reads no expressions"
    return selector.get("matchLabels", {}).items() <= labels.items()


def _is_peer(peer: dict[str, Any], place: Pod | str) -> bool:
    if "ipBlock" in peer:
        if isinstance(place, Pod):
            return False  # its address is the network's business; a rule that means pods says so
        address, block = ipaddress.ip_address(place), peer["ipBlock"]
        networks = [
            ipaddress.ip_network(cidr) for cidr in (block["cidr"], *block.get("except", []))
        ]
        return address in networks[0] and not any(address in network for network in networks[1:])
    if isinstance(place, str):
        return False
    if "namespaceSelector" in peer:
        labels = {"kubernetes.io/metadata.name": place.namespace}
        if not _selects(peer["namespaceSelector"], labels):
            return False
    elif place.namespace != NAMESPACE:
        return False
    return _selects(peer.get("podSelector", {}), place.labels)


def allowed(way: str, pod: Pod, other: Pod | str, port: int, protocol: str = "TCP") -> bool:
    """Whether `pod` may be reached from ("ingress") or may reach ("egress") `other`: a pod, or an
    address outside."""
    rules = []
    selected = False
    for spec in _policies():
        if way.capitalize() in spec["policyTypes"] and _selects(spec["podSelector"], pod.labels):
            selected = True
            rules += spec.get(way, [])
    side = "from" if way == "ingress" else "to"
    return not selected or any(
        (side not in rule or any(_is_peer(peer, other) for peer in rule[side]))
        and (
            "ports" not in rule
            or any((one["port"], one["protocol"]) == (port, protocol) for one in rule["ports"])
        )
        for rule in rules
    )


def reaches(source: Pod, target: Pod, port: int) -> bool:
    """Between two pods of the manifests: both have to allow it."""
    out = source.namespace != NAMESPACE or allowed("egress", source, target, port)
    return out and allowed("ingress", target, source, port)
