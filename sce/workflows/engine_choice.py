"""Who works off a bulk job: a process beside it, or Ray's actors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from sce.bulk.corpus import Columns, Corpus
from sce.distributed.one_process import OneProcess, is_small, may_run_here
from sce.distributed.resources import ActorPlan
from sce.distributed.settings import Engine, ResourcesConfig
from sce.distributed.stage import Workers, plan_corpus
from sce.errors import ConfigError

log = logging.getLogger(__name__)


@contextmanager
def early_process(
    engine: Engine, resources: ResourcesConfig, modules: Sequence[str]
) -> Iterator[OneProcess | None]:
    """A process that imports modules while the input is looked at, where it may be needed."""
    if engine == "ray" or not (engine == "process" or may_run_here(resources)):
        yield None
        return
    with OneProcess(resources.cpus_per_embed_actor, modules) as process:
        yield process


def choose_workers(
    engine: Engine,
    process: OneProcess | None,
    corpus: Corpus,
    columns: Columns,
    has_checkpoint: bool,
    actors: Callable[[], ActorPlan],
    rows_per_file: int | None = None,
) -> Workers:
    """The process for a small corpus, else actors.

    Args:
        has_checkpoint: actors have left rows of an unfinished part, which only they go on with.

    Raises:
        ConfigError: `engine` is "process", and that cannot be.
    """
    if process is None:
        return actors()
    small = is_small(corpus, columns, partial(plan_corpus, corpus, columns), rows_per_file)
    if small and not has_checkpoint:
        log.info("one process of this machine does it (--engine ray: actors)")
        return process
    process.close()
    if engine == "process":
        raise ConfigError(
            "engine: process is for small inputs (8,192 texts or 65,536 vectors). Give ray."
            if not small
            else "engine: ray began this output, and is to go on with it. Give ray."
        )
    return actors()
