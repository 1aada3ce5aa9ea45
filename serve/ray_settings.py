"""Settings of Ray Serve that Ray reads from the environment of its nodes, one by one with reasons.

They are the same wherever the endpoint runs: `python -m serve.app` gives them to the Ray that it
starts, cluster/'s image to its nodes. What stands in the environment already stays.
"""

from __future__ import annotations

import os

ENVIRONMENT = {
    # Called in each proxy before it starts: bounds slow heads, sends short bodies along.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy:prepare",
    # Gateway and models never block their event loop: what takes long is in threads. So they can
    # share Ray's own, and a request changes threads twice less in each process.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}
"""Tried and left out: gRPC between proxy and replicas (RAY_SERVE_USE_GRPC_BY_DEFAULT) gains a tenth
and refuses an answer of more than 4 MB; routing in the shared loop gains nothing."""


DIRECT = "RAY_SERVE_ENABLE_DIRECT_INGRESS"
"""Ray's own: replicas of the gateway listen themselves. Off by default."""


def apply(port: int | None = None) -> None:
    """Set them for a Ray that this process starts afterwards.

    Args:
        port: on which the gateway, of one replica on one machine, is to listen itself. A request
            then passes no proxy: a third of the time, and three times the requests a second. While
            the process is dead nobody listens, where Ray's proxies let requests wait.
    """
    found = dict(ENVIRONMENT)
    if port is not None:
        found |= {
            DIRECT: "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 1),  # the end of a range
            # There is no balancer that has to hear of an end or a new start first.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
            "RAY_SERVE_PORT_QUARANTINE_S": "0",
        }
    for name, value in found.items():
        os.environ.setdefault(name, value)


def is_direct() -> bool:
    """Whether the gateway listens itself."""
    return os.environ.get(DIRECT) == "1"


HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
"""Ray's own, for HAProxy in place of its proxies. Off by default."""


def behind_haproxy() -> bool:
    """Whether requests come through Ray's HAProxy: then each looks like one of this machine."""
    return os.environ.get(HAPROXY) == "1"
