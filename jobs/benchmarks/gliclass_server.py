"""GLiClass's own Ray Serve deployment, for measuring: python -m jobs.benchmarks.gliclass_server

Its own start-up (`python -m gliclass.serve`, 0.1.21) calls a private function of Ray with an
argument that Ray 2.60 does not have; so its deployment is started here by Ray's public functions.
"""

from __future__ import annotations

import os
import threading

import ray
from pydantic import Field
from ray import serve

from jobs.benchmarks.peers import GLICLASS_ROUTE
from sce.config import JobConfig
from sce.workflows.cli import run_job


class GLiClassServer(JobConfig):
    """Settings of the server."""

    model: str
    """Folder of a GLiClass model."""
    port: int = Field(default=8000, ge=1, le=65535)
    dtype: str = "float32"


def serve_gliclass(config: GLiClassServer) -> dict[str, str]:
    """Serve on this machine's CPUs until killed."""
    from gliclass.serve.config import GLiClassServeConfig
    from gliclass.serve.server import _build_deployment

    settings = GLiClassServeConfig(
        model=config.model,
        device="cpu",
        dtype=config.dtype,
        num_gpus_per_replica=0.0,
        tokenizer_threads=os.cpu_count() or 1,
        route_prefix=GLICLASS_ROUTE,
        http_port=config.port,
    )
    ray.init()
    serve.start(http_options={"host": "127.0.0.1", "port": config.port})
    serve.run(_build_deployment(settings), name="gliclass", route_prefix=GLICLASS_ROUTE)
    threading.Event().wait()
    return {}


if __name__ == "__main__":
    raise SystemExit(run_job(GLiClassServer, serve_gliclass, __doc__ or ""))
