"""The workers of a training find each other by the addresses that Ray has for their nodes.

Gloo would take the address that a machine's own name resolves to. Debian and many images write
that name beside 127.0.1.1 into /etc/hosts: workers on two machines then wait for each other on
themselves until they give up. NCCL looks at the interfaces itself.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
"""Of torch, by which an operator may name another interface in the nodes' environment."""


@dataclass
class NodeAddresses(TorchConfig):
    """Torch's process group on the network of Ray's nodes."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)


def name_interface(address: str | None = None) -> None:
    """In a worker: let Gloo use the network interface that has the node's address, unless one is
    named already.

    Args:
        address: default what Ray has for the node.
    """
    address = address or ray.util.get_node_ip_address()
    families = (socket.AF_INET, socket.AF_INET6)
    for name, found in psutil.net_if_addrs().items():
        # An IPv6 address of a link has the interface's name behind it.
        own = {one.address.partition("%")[0] for one in found if one.family in families}
        if address in own:
            os.environ.setdefault(GLOO_INTERFACE, name)
            return
