"""What a job may ask of the cluster. Without Ray, which takes seconds to import."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sce.config import Gpus, Section

Engine = Literal["auto", "process", "ray"]


class ResourcesConfig(Section):
    """Actors, workers and their hardware. The defaults run on two CPU cores and use a GPU an
    actor where there is one."""

    use_gpu: Literal["auto"] | bool = "auto"
    """`auto`: GPUs where the cluster has any, else CPUs. `true`: refuse to run without."""
    accelerator_type: str | None = None
    """Only nodes with this accelerator, by Ray's name for it, e.g. `A100` or `RTX-A6000`."""
    num_workers: int = Field(default=1, ge=1)
    """Training workers."""
    min_workers: int | None = Field(default=None, ge=1)
    """Training begins, and goes on from its last checkpoint where workers are lost, with as few as
    these, and takes more as nodes come, up to `num_workers`. The batches stay the same whatever the
    number; dropout is drawn anew where it changes. Default: `num_workers`, all waited for."""
    gpus_per_worker: Gpus | None = None
    """Default: 1 where GPUs are used, else 0. A part (0.5) shares a GPU."""
    cpus_per_worker: float = Field(default=0.5, gt=0)
    """Below 1 by default, so that training on a small machine leaves a CPU for reading."""
    embed_actors: int | None = Field(default=None, ge=1)
    """Actors that embed, or that prompt a language model. Default: one for each GPU, or one for
    each node without GPUs."""
    gpus_per_embed_actor: Gpus | None = None
    """Default: 1 where GPUs are used, else 0. A part (0.5) shares a GPU."""
    cpus_per_embed_actor: float | None = Field(default=None, gt=0)
    """CPUs that Ray sets aside for an actor, and its threads. Default: 1 set aside, and on a
    node without GPUs as many threads as the node's cores allow."""
