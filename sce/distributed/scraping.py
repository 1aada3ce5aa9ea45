"""Ray's metrics ask for Ray's token, as everything else of a cluster does.

The processes of a node that show metrics to Prometheus (the agent, on the head also the dashboard
and the autoscaler) listen on every address, ask for nothing, and have no setting for either. All of
them serve what `prometheus_client` makes, so `ask_for_token`, called at the start of Python, puts
a check before it. cluster/image has the call in a `.pth` file of its site-packages; where Ray runs
without RAY_AUTH_MODE=token it changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

SERVERS = (
    "ray/dashboard/agent.py",
    "ray/dashboard/dashboard.py",
    "ray/autoscaler/_private/monitor.py",
    "ray/autoscaler/v2/monitor.py",
)
"""The programs of Ray 2.60 that show metrics."""

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def ask_for_token() -> None:
    """In a process of `SERVERS`: what `prometheus_client` serves from now on needs the header
    `Authorization: Bearer TOKEN`; 401 without one, 403 with another. Elsewhere nothing."""
    if not any(part.endswith(SERVERS) for part in sys.orig_argv):
        return
    import prometheus_client
    from prometheus_client import exposition

    make = exposition.make_wsgi_app

    def make_guarded(*arguments: Any, **options: Any) -> WSGI:
        return _guarded(make(*arguments, **options))

    prometheus_client.make_wsgi_app = exposition.make_wsgi_app = make_guarded


def _guarded(app: WSGI) -> WSGI:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # Ray's own check, as its dashboard has it.
        from ray._private.authentication import authentication_utils

        if authentication_utils.is_token_auth_enabled():
            given = environ.get("HTTP_AUTHORIZATION", "")
            if not given:
                start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer")])
                return [b"the metrics of a cluster need its token: Authorization: Bearer TOKEN\n"]
            if not authentication_utils.validate_request_token(given):
                start_response("403 Forbidden", [])
                return [b"this is not the cluster's token\n"]
        return app(environ, start_response)

    return answer
