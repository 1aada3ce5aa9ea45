"""Who reaches whom on Kubernetes, by the policies that stand in the manifests."""

import re

import pytest

from tests.cluster.manifests import CLUSTER, by_kind, read
from tests.cluster.network import NAMESPACE, OPERATOR, Pod, allowed, pods, reaches

PODS = pods()
RAY = {name: pod for name, pod in PODS.items() if "ray.io/node-type" in pod.labels}
HEADS = {name: pod for name, pod in RAY.items() if name.endswith("-head")}
PORTS = {5000, 5432, 6379, 8000, 8080, 8265, 10001, 3000, 9090, 52365}
"""Every port that something here listens on."""
KUBERAY = Pod(OPERATOR, {"app.kubernetes.io/name": "kuberay-operator"})
DNS = Pod("kube-system", {"k8s-app": "kube-dns"})
STRANGER = Pod("others", {"app.kubernetes.io/name": "kuberay-operator", "k8s-app": "kube-dns"})
INTRUDER = Pod(NAMESPACE, {"app.kubernetes.io/name": "something-new"})
PUBLIC, METADATA = "52.216.1.1", ["169.254.169.254", "169.254.170.23", "169.254.170.2"]


def test_these_are_the_pods():
    others = {"mlflow", "postgres", "redis", "monitoring"}
    assert PODS.keys() == RAY.keys() | others
    assert RAY.keys() == {"sce-head", "sce-cpu", "sce-gpu", "endpoint-head", "endpoint-replicas"}


def open_ports(source: Pod, target: Pod) -> set[int]:
    return {port for port in PORTS if reaches(source, target, port)}


def test_the_operator_reaches_what_it_asks_and_from_its_own_namespace_alone():
    for name, pod in RAY.items():
        assert open_ports(KUBERAY, pod) == {8265, 8000}, name
        others = open_ports(STRANGER, pod)
        assert others == ({8000} if name.startswith("endpoint") else set()), name
    for name in PODS.keys() - RAY.keys():
        assert not open_ports(KUBERAY, PODS[name]), name
    (command,) = re.findall(r"^helm install .*", (CLUSTER / "README.md").read_text(), re.M)
    assert re.search(rf"-n {OPERATOR} .*kuberay-operator$", command)


def test_the_endpoint_is_open_to_all_and_nothing_else_is():
    for name, pod in PODS.items():
        for port in PORTS:
            for other in (STRANGER, INTRUDER, PUBLIC):
                opened = allowed("ingress", pod, other, port)
                assert opened == (name.startswith("endpoint") and port == 8000), (name, port)


def test_prometheus_reads_metrics_and_nobody_else_from_outside_the_cluster_of_ray():
    for name, pod in RAY.items():
        assert open_ports(PODS["monitoring"], pod) - {8000} == {8080}, name
        for other in PODS.keys() - RAY.keys() - {"monitoring"}:
            assert not reaches(PODS[other], pod, 8080), (other, name)
    assert not [name for name in PODS if open_ports(PODS[name], PODS["monitoring"])]


def test_each_program_is_reached_by_those_that_ask_it():
    askers = {("mlflow", 5000): set(RAY), ("postgres", 5432): {"mlflow"}}
    askers["redis", 6379] = {"endpoint-head", "endpoint-replicas"}
    for (target, port), expected in askers.items():
        found = {name for name, pod in PODS.items() if reaches(pod, PODS[target], port)}
        assert found == expected, target
    for one in RAY.values():
        assert all(open_ports(one, other) == PORTS for other in RAY.values())


@pytest.mark.parametrize("name", PODS)
def test_what_goes_out_is_named(name):
    pod = PODS[name]
    assert allowed("egress", pod, DNS, 53, "UDP")
    assert allowed("egress", pod, DNS, 53, "TCP")
    assert not allowed("egress", pod, STRANGER, 53, "UDP")
    stores = name in RAY or name == "mlflow"
    for port in (22, 25, 53, 80, 443, 6443, 8080):
        assert allowed("egress", pod, PUBLIC, port) == (stores and port == 443), port
        assert not allowed("egress", pod, STRANGER, port)
    for private in ("10.0.0.1", "172.20.0.1", "192.168.1.1"):
        api = {port for port in (80, 443, 6443, 10250) if allowed("egress", pod, private, port)}
        assert api == ({443, 6443} if name in HEADS else set()), private
    assert not allowed("egress", pod, "100.64.0.1", 443)


@pytest.mark.parametrize("name", PODS)
def test_the_clouds_metadata_is_not_reached(name):
    """Who needs it takes the comments away, which are rules."""
    for address in METADATA:
        for port in (80, 443, 988):
            assert not allowed("egress", PODS[name], address, port)
    text = (CLUSTER / "kubernetes" / "common.yaml").read_text()
    assert text.count("# - to: [{ipBlock: {cidr: 169.254.") == 2


def test_a_pod_that_nobody_thought_of_is_alone():
    assert not allowed("ingress", INTRUDER, PODS["sce-head"], 80)
    assert not allowed("egress", INTRUDER, PODS["sce-head"], 8265)
    assert not allowed("egress", INTRUDER, PUBLIC, 443)


def test_the_rules_are_rules():
    """So that the tests above could fail: they read every policy that kustomize applies."""
    documents = by_kind("NetworkPolicy").values()
    names = [document["metadata"]["name"] for document in documents]
    assert len(names) == len(set(names)) == 9
    applied = {
        (path.parent / file).resolve()
        for path in CLUSTER.rglob("kustomization.yaml")
        for file in read(path)[0].get("resources", [])
    }
    for name in by_kind("NetworkPolicy"):
        assert (CLUSTER.parent / name.partition(":")[0]).resolve() in applied, name
