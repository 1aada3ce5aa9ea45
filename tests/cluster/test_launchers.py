"""The files of `ray up`, by Ray's own schema and code and EC2's own description of its requests."""

import copy

import boto3
import pytest
from botocore.validate import ParamValidator
from ray._private.accelerators import NvidiaGPUAcceleratorManager
from ray.autoscaler._private.aws.config import _create_default_ssh_inbound_rules
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.manifests import CLUSTER, LAUNCHERS, read

AWS = CLUSTER / "aws" / "cluster.yaml"


def prepared(path):
    return prepare_config(copy.deepcopy(read(path)[0]))


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.parent.name)
def test_ray_accepts_it(path):
    validate_config(prepared(path))


def test_every_machine_on_premises_takes_part():
    config = read(CLUSTER / "onprem" / "cluster.yaml")[0]
    (kind,) = prepared(CLUSTER / "onprem" / "cluster.yaml")["available_node_types"].values()
    machines = len(config["provider"]["worker_ips"])
    assert kind["min_workers"] == kind["max_workers"] == config["max_workers"] == machines


def test_ray_names_an_a6000_as_the_configurations_do():
    name = NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type("NVIDIA RTX A6000")
    assert name == "RTX-A6000"
    assert name in (CLUSTER / "README.md").read_text()


def test_ec2_knows_every_setting_of_a_node():
    client = boto3.client(
        "ec2", region_name="us-west-2", aws_access_key_id="x", aws_secret_access_key="x"
    )
    shape = client.meta.service_model.operation_model("RunInstances").input_shape
    kinds = read(AWS)[0]["available_node_types"]
    for name, kind in kinds.items():
        request = {**kind["node_config"], "MinCount": 1, "MaxCount": 1}
        assert request.keys() <= shape.members.keys(), name
        for path, inner, members in _unknown(request, shape):
            pytest.fail(f"{name}: {path}: {inner} is not one of {sorted(members)}")
        report = ParamValidator().validate(request, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
        assert request["InstanceType"] in shape.members["InstanceType"].enum, name


def _unknown(value, shape, path=""):
    """Keys that the request does not know, and values that an enumeration does not have."""
    if shape.type_name == "structure":
        for key, inner in value.items():
            if key not in shape.members:
                yield path, key, shape.members
            else:
                yield from _unknown(inner, shape.members[key], f"{path}.{key}")
    elif shape.type_name == "list":
        for inner in value:
            yield from _unknown(inner, shape.member, f"{path}[]")
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield path, value, shape.enum


def test_workers_on_aws_are_on_spot_and_come_and_go():
    kinds = dict(read(AWS)[0]["available_node_types"])
    head = kinds.pop(read(AWS)[0]["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}
    for kind in kinds.values():
        assert kind["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert kind["min_workers"] == 0 < kind["max_workers"]
    families = {kind["node_config"]["InstanceType"].split(".")[0] for kind in kinds.values()}
    assert families == {"m6i", "g5"}


def test_the_security_group_is_made_beforehand_as_rays_opens_ssh_to_the_world():
    (rule,) = _create_default_ssh_inbound_rules()
    assert rule["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]  # else the README may say less
    group = read(AWS)[0]["provider"]["security_group"]["GroupName"]
    assert f"create-security-group --group-name {group}" in (CLUSTER / "README.md").read_text()


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.parent.name)
def test_what_ray_start_is_told(path):
    config = read(path)[0]
    for part in ("head", "worker"):
        (start,) = [line for line in config[f"{part}_start_ray_commands"] if "ray start" in line]
        assert "--metrics-export-port=8080" in start
        assert "--object-spilling-directory=/spill" in start
        assert any(option.endswith(":/spill") for option in config["docker"]["run_options"])
    assert (
        "--autoscaling-config=~/ray_bootstrap_config.yaml" in config["head_start_ray_commands"][1]
    )
    assert "$RAY_HEAD_IP:6379" in config["worker_start_ray_commands"][1]
