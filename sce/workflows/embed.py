"""The embedding job: any corpus into a store, or the prepared data of an experiment."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sce.bulk.corpus import Columns, check_columns, open_corpus
from sce.bulk.counts import ErrorLimit, MaxErrors
from sce.bulk.output import COMMIT_ROWS
from sce.config import Verbatim
from sce.datasets.text_form import Delimiter, Encoding, TextForm
from sce.distributed.embed import embed_corpus, embed_prepared
from sce.distributed.resources import embed_actors
from sce.distributed.stage import ACTOR_CPUS
from sce.errors import ConfigError
from sce.workflows.experiment import Experiment


class EmbedJob(Experiment):
    """Settings of `jobs/embed.py`: an experiment, or with `input` any corpus."""

    input: Verbatim = []
    """Files, folders, globs or URIs of Parquet, JSONL, CSV (.gz and others too) or Excel, to embed
    into `store`. Without it, the data of the experiment is embedded."""
    store: str | None = None
    """Folder or URI of the embedding store."""
    text_column: str = "text"
    id_column: str | None = None
    """Default: ids made from places, `tickets.jsonl:17`."""
    keep_columns: Verbatim = []
    """Columns to carry into the store, beside the text."""
    encoding: Encoding | None = None
    """Of text files. Default: found out, UTF-8 with or without a mark, UTF-16 or Windows-1252."""
    delimiter: Delimiter | None = None
    """Between the fields of a CSV: a character or `tab`. Default: found out, of `,`, `;`, tab and
    `|`; or what a first line `sep=;` names."""
    max_errors: MaxErrors = "50%"
    """Fail when more rows than this have errors: a count (`100`) or a share (`1%`), which counts
    from 1,000 rows on while the job runs and in the end whatever their number."""
    commit_rows: int = Field(default=COMMIT_ROWS, ge=1)
    """Inputs of more rows are committed in parts of whole files or row groups."""


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
    corpus = open_corpus(config.input, TextForm(config.encoding, config.delimiter))
    check_columns(corpus, columns)
    _, summary = embed_corpus(
        corpus,
        columns,
        config.store,
        config.embedder,
        lambda: embed_actors(config.resources, default_cpus=ACTOR_CPUS),
        ErrorLimit.parse(config.max_errors),
        config.commit_rows,
    )
    return summary
