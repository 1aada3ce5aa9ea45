"""Workers on several machines find each other by the addresses of Ray's nodes."""

import os
import socket
from typing import NamedTuple

import psutil
import pytest

from sce.distributed.process_group import GLOO_INTERFACE, NodeAddresses, _Backend, name_interface


class Address(NamedTuple):
    """What psutil has of it."""

    family: int
    address: str


@pytest.fixture
def interfaces(monkeypatch):
    found = {
        "lo": [Address(socket.AF_INET, "127.0.0.1")],
        "eth0": [Address(socket.AF_INET, "10.0.0.5")],
        "ib0": [Address(socket.AF_INET6, "fe80::1%ib0")],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setenv(GLOO_INTERFACE, "")  # so that it is put back
    monkeypatch.delenv(GLOO_INTERFACE)


@pytest.mark.parametrize(
    ("address", "name"),
    [("10.0.0.5", "eth0"), ("127.0.0.1", "lo"), ("fe80::1", "ib0"), ("10.9.9.9", None)],
)
def test_the_interface_is_that_of_the_nodes_address(interfaces, monkeypatch, address, name):
    name_interface(address)
    assert os.environ.get(GLOO_INTERFACE) == name


def test_one_that_is_named_stays(interfaces, monkeypatch):
    monkeypatch.setenv(GLOO_INTERFACE, "ib0")
    name_interface("10.0.0.5")
    assert os.environ[GLOO_INTERFACE] == "ib0"


def test_ray_train_asks_it():
    assert NodeAddresses().backend_cls is _Backend
