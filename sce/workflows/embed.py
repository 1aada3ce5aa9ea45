"""The embedding job: any corpus into a store, or the prepared data of an experiment."""

from __future__ import annotations

from functools import partial
from typing import Any

from sce.bulk.corpus import Columns, check_columns, open_corpus
from sce.bulk.counts import ErrorLimit
from sce.bulk.output import OutputRun
from sce.config import resolve_output
from sce.datasets.text_form import TextForm
from sce.distributed.embed import embed_corpus, embed_prepared
from sce.distributed.engine_choice import choose_workers, early_process
from sce.distributed.resources import embed_actors
from sce.distributed.stage import ACTOR_CPUS
from sce.errors import ConfigError
from sce.workflows.experiment import EmbedJob


def embed(config: EmbedJob) -> dict[str, Any]:
    """What `jobs/embed.py` does; the summary of the stores that it wrote.

    Raises:
        InputError: as `embed_prepared` and `embed_corpus`.
    """
    if bool(config.input) != (config.store is not None):
        raise ConfigError("input and store go together: texts to embed, and where to.")
    if config.store is None:
        data, embeddings = config.data_dir, config.embeddings_dir
        return embed_prepared(data, embeddings, config.embedder, config.resources)
    keep = tuple(dict.fromkeys([*config.keep_columns, config.text_column]))
    columns = Columns(text=config.text_column, id=config.id_column, keep=keep)
    modules = ["sce.embedding.embedder"]
    with early_process(config.engine, config.resources, modules) as process:
        corpus = open_corpus(config.input, TextForm(config.encoding, config.delimiter))
        check_columns(corpus, columns)
        begun = OutputRun(str(resolve_output(config.store)), {}).has_checkpoint
        actors = partial(embed_actors, config.resources, default_cpus=ACTOR_CPUS)
        engine = config.engine
        _, summary = embed_corpus(
            corpus,
            columns,
            config.store,
            config.embedder,
            lambda: choose_workers(engine, process, corpus, columns, begun, actors),
            ErrorLimit.parse(config.max_errors),
            config.commit_rows,
            long_text=config.long_text,
        )
    return summary
