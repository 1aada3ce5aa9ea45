"""Embeds a corpus of any size into an embedding store, as a stream, to be resumed when killed."""

from __future__ import annotations

import hashlib
import json
import logging
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from sce.bulk.corpus import Columns, Corpus, open_corpus
from sce.bulk.counts import ErrorLimit, MaxErrors
from sce.bulk.output import OutputRun
from sce.bulk.request import identify_input
from sce.bulk.vectors import STORE_COLUMNS, BlockEmbedder
from sce.config import resolve_output
from sce.distributed.embed import embed_prepared
from sce.distributed.resources import ActorPlan, embed_actors
from sce.distributed.stage import (
    ACTOR_CPUS,
    COMMIT_ROWS,
    EMBED_ROWS_PER_FILE,
    TEXT_BLOCK_BYTES,
    Stage,
    plan_corpus,
    run_stage,
)
from sce.embedding.embedder import embedder_fingerprint, load_embedder
from sce.embedding.fingerprint import EmbedderFingerprint, check_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import MANIFEST, EmbeddingStore, Manifest, write_manifest
from sce.errors import ConfigError
from sce.storage import RemotePath, to_place
from sce.workflows.experiment import Experiment

log = logging.getLogger(__name__)


def embed_corpus(
    corpus: Corpus,
    columns: Columns,
    store: str,
    embedder: EmbedderConfig,
    plan: ActorPlan,
    limit: ErrorLimit,
    commit_rows: int = COMMIT_ROWS,
) -> tuple[EmbeddingStore, dict[str, Any]]:
    """Make `store` hold one vector for each row of `corpus`; where it does, nothing is done.

    Rows with errors are in the store as well, with their error and a vector of zeros. The store
    also has the columns `place`, `error` and those that `columns.keep` names.

    Args:
        store: a folder that every node reaches, or a URI.

    Returns:
        The store, and the summary.

    Raises:
        InputError: the store holds something else; too many rows with errors; the input.
    """
    folder = resolve_output(store)
    if isinstance(folder, RemotePath):
        folder.check("store")
    fingerprint = embedder_fingerprint(embedder)
    if (folder / MANIFEST).is_file():
        EmbeddingStore.open(folder).require(fingerprint)
    request = {
        "job": "embed",
        "embedder": fingerprint.id,
        "input": identify_input(corpus),
        "columns": {"text": columns.text, "id": columns.id, "keep": list(columns.keep)},
    }
    run = OutputRun.open(str(folder), request, "save_embeddings")
    if run.done and (folder / MANIFEST).is_file():
        log.info("%s: holds these rows already; nothing to embed", folder)
        assert run.summary is not None
        return EmbeddingStore.open(folder), run.summary | {"unchanged": True}
    shards = plan_corpus(corpus, columns)
    settings = embedder.model_copy(update={"device": plan.device})
    stage = Stage(
        make=partial(make_embedder, settings, columns),
        columns=columns,
        output_format="parquet",
        rows_per_file=EMBED_ROWS_PER_FILE[plan.device],
        block_bytes=TEXT_BLOCK_BYTES,
        classified=False,
        write_options={
            "compression": "none",
            "use_dictionary": [*STORE_COLUMNS[4:5], *columns.keep],
            "row_group_size": 8192,
        },
    )
    found = run_stage(run, shards, stage, plan, limit, "embedding", commit_rows)
    counts, work = found.counts, found.work
    seconds = work.finished - work.started
    rate = round(work.rows / seconds, 1) if work.rows else 0.0
    parts = sorted(
        f"{part.name}/{path.name}"
        for part in (to_place(run.part_uri(number)) for number in run.parts)
        for path in part.iterdir()
        if path.suffix == ".parquet"
    )
    source = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    write_manifest(
        folder,
        Manifest(
            embedder=fingerprint.to_dict() | {"id": fingerprint.id},
            source=source,
            rows=counts.rows,
            truncated=counts.truncated,
            embed_seconds=round(seconds, 3),
            texts_per_second=rate,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            parts=parts,
        ),
    )
    summary = {
        "store": str(folder),
        "embedder": fingerprint.id,
        "rows_in": sum(shard.rows for shard in shards),
        "rows_out": counts.rows,
        "errors": counts.errors,
        "truncated": counts.truncated,
        "seconds": round(run.seconds, 1),
        "texts_per_second": rate,
    }
    run.finish(summary)
    log.info("%s: %d rows, %.0f texts/s", folder, counts.rows, rate)
    return EmbeddingStore.open(folder), summary


class EmbedJob(Experiment):
    """Settings of `jobs/embed.py`: an experiment, or with `input` any corpus."""

    input: list[str] = []
    """Files, folders, globs or URIs of Parquet, JSONL or CSV (.gz too), to embed into `store`.
    Without it, the data of the experiment is embedded."""
    store: str | None = None
    """Folder or URI of the embedding store."""
    text_column: str = "text"
    id_column: str | None = None
    """Default: ids made from places, `tickets.jsonl:17`."""
    keep_columns: list[str] = []
    """Columns to carry into the store, beside the text."""
    max_errors: MaxErrors = "50%"
    """Stop when more rows than this have errors: a count (`100`) or a share (`1%`). A share
    counts from 1,000 rows on."""
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
        return embed_prepared(
            config.data_dir, config.embeddings_dir, config.embedder, config.resources
        )
    columns = Columns(
        text=config.text_column,
        id=config.id_column,
        keep=tuple(dict.fromkeys([*config.keep_columns, config.text_column])),
    )
    corpus = open_corpus(config.input)
    _, summary = embed_corpus(
        corpus,
        columns,
        config.store,
        local_model(config.embedder),
        embed_actors(config.resources, default_cpus=ACTOR_CPUS),
        ErrorLimit.parse(config.max_errors),
        config.commit_rows,
    )
    return summary


def make_embedder(settings: EmbedderConfig, columns: Columns) -> BlockEmbedder:
    """Runs in the actor."""
    return BlockEmbedder(load_embedder(settings), columns)


def local_model(settings: EmbedderConfig) -> EmbedderConfig:
    """Workers run in another folder: a checkpoint's path is made absolute."""
    if settings.model and Path(settings.model).is_dir():
        return settings.model_copy(update={"model": str(Path(settings.model).resolve())})
    return settings


def embedder_of(given: EmbedderConfig | None, trained_with: EmbedderFingerprint) -> EmbedderConfig:
    """The embedder to load: the one given, else the one that the model was trained with.

    Raises:
        FingerprintMismatch: it is another.
        EmbedderError: it is not to be found. Better said here than by an actor.
    """
    settings = local_model(given or EmbedderConfig.from_fingerprint(trained_with.to_dict()))
    check_fingerprint(trained_with, embedder_fingerprint(settings), "the model")
    return settings
