"""Embeds a corpus once, on Ray Data, into an embedding store.

Ray Data reads ids and texts; the driver drops what the store has already and sorts the rest by
length; a pool of actors, one model each, embeds blocks of it. An actor writes its vectors
itself, so that they never pass through the object store, and answers with one row of figures.
Only parts that were reported are committed: a task that Ray runs twice adds nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from sce.datasets.prepared import ROWS_FILE, PreparedData
from sce.datasets.schema import embeddings_schema
from sce.distributed.resources import ResourcesConfig, TorchThread, embed_actors, ensure_ray
from sce.embedding.embedder import embedder_fingerprint, load_embedder
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import (
    MANIFEST,
    EmbeddingStore,
    Manifest,
    embedding_column,
    text_hash,
    write_part,
)
from sce.embedding.store_update import (
    TEXT,
    Update,
    commit,
    open_staging,
    part_name,
    plan_update,
    read_source,
)
from sce.errors import DataError, InputError
from sce.storage import Place, to_place

BLOCK_ROWS = (512, 8192)
BLOCKS_PER_ACTOR = 16
PROGRESS_SECONDS = 10

log = logging.getLogger(__name__)


def embed_to_store(
    source: pa.Table | Sequence[str | Path],
    store: str | Place,
    embedder: EmbedderConfig,
    resources: ResourcesConfig,
    id_column: str = "row_id",
    text_column: str = "text",
    passthrough: Sequence[str] = (),
) -> dict[str, Any]:
    """Make `store` hold the vectors of exactly the rows of `source`.

    Only rows that are new or whose text changed are embedded; where nothing changed, no model
    is loaded and no actor starts. Rows that share a text are embedded together, as one.

    Args:
        source: a table, or paths of Parquet files. Ids and texts pass through the driver's
            memory.
        store: folder that every node reaches, or a URI.
        id_column: unique ids, "row_id" in the store.
        passthrough: further columns that the store repeats.

    Returns:
        rows, embedded, reused, removed, truncated, seconds, embed_seconds, texts_per_second
        (start-up left out), model_load_seconds, path, fingerprint.

    Raises:
        DataError: as `sce.embedding.store_update.read_source`.
        EmbedderError: the embedder cannot be loaded.
        FingerprintMismatch: the store was made by another embedder; give a new folder.
        ConfigError: the cluster cannot give what `resources` asks for.
    """
    started = time.perf_counter()
    folder = to_place(store).absolute()
    fingerprint = embedder_fingerprint(embedder)
    if not isinstance(source, pa.Table):
        source = _read_parquet(source, list(dict.fromkeys((id_column, text_column, *passthrough))))
    rows = read_source(source, id_column, text_column, passthrough)
    old = EmbeddingStore.open(folder) if (folder / MANIFEST).is_file() else None
    if old is not None:
        old.require(fingerprint)
    update = plan_update(old, rows)
    embedded = update.pending.num_rows
    figures = {"embed_seconds": 0.0, "texts_per_second": 0.0, "model_load_seconds": 0.0}
    if update.is_empty:
        assert old is not None
        new = old
        log.info("%s: unchanged, %d rows; nothing to embed", folder, old.manifest.rows)
    else:
        staging = open_staging(folder)
        parts: list[str] = []
        if embedded:
            parts, figures = _embed_pending(update, staging, embedder, resources, rows.passthrough)
        last = old.manifest if old is not None and not embedded else None
        manifest = Manifest(
            embedder=fingerprint.to_dict() | {"id": fingerprint.id},
            source=rows.fingerprint,
            rows=0,
            truncated=0,
            embed_seconds=last.embed_seconds if last else figures["embed_seconds"],
            texts_per_second=last.texts_per_second if last else figures["texts_per_second"],
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            parts=[],
        )
        new = commit(folder, old, rows, update, parts, manifest)
    seconds = time.perf_counter() - started
    summary = {
        "rows": new.manifest.rows,
        "embedded": embedded,
        "reused": new.manifest.rows - embedded,
        "removed": update.dropped,
        "truncated": new.manifest.truncated,
        "seconds": round(seconds, 3),
        **figures,
        "path": str(folder),
        "fingerprint": fingerprint.id,
    }
    log.info(
        "%s: %d rows, %d embedded, %d reused, %d removed, %d truncated in %.1f s (%.0f texts/s)",
        folder,
        *(summary[k] for k in ("rows", "embedded", "reused", "removed", "truncated", "seconds")),
        figures["texts_per_second"],
    )
    return summary


def embed_prepared(
    data_dir: str | Place,
    embeddings_dir: str | Place,
    embedder: EmbedderConfig,
    resources: ResourcesConfig,
) -> dict[str, Any]:
    """Embed a prepared data folder: its rows, and every text of its label sets.

    Writes the stores `embeddings_dir/rows` (ids as in rows.parquet) and
    `embeddings_dir/labels` (each distinct text of a name, synonym, description or example;
    `row_id` is its `text_hash`, and the column `text` has the text).

    Returns:
        The summaries of `embed_to_store` as "rows" and "labels".

    Raises:
        As `embed_to_store`; `DataError` also where `data_dir` is not prepared.
    """
    data = PreparedData.load(data_dir)
    labels = [label for labels in data.label_sets.values() for label in labels.labels]
    texts = sorted(set(chain.from_iterable((*lb.info_texts, *lb.examples) for lb in labels)))
    table = pa.table({"row_id": pa.array(map(text_hash, texts), pa.string()), "text": texts})
    folder = to_place(embeddings_dir)
    return {
        "rows": embed_to_store(
            [str(to_place(data_dir).absolute() / ROWS_FILE)], folder / "rows", embedder, resources
        ),
        "labels": embed_to_store(
            table, folder / "labels", embedder, resources, passthrough=("text",)
        ),
    }


def _read_parquet(paths: Sequence[str | Path], columns: list[str]) -> pa.Table:
    """Columns of Parquet files, read by Ray Data; the order of the rows is of no account.

    Raises:
        DataError: a file cannot be read, or lacks a column.
    """
    ensure_ray()
    try:
        dataset = ray.data.read_parquet([str(path) for path in paths])
        schema = dataset.schema()
        missing = [name for name in columns if schema is None or name not in schema.names]
        if missing:
            raise DataError(f"the rows to embed have no column {missing[0]!r}.")
        return pa.concat_tables(ray.get(dataset.select_columns(columns).to_arrow_refs()))
    except (OSError, pa.ArrowException, RayError) as error:
        raise DataError(f"the rows to embed cannot be read: {error}") from None


class EmbedActor:
    """One loaded embedder; turns a block of rows into one part of a store."""

    def __init__(
        self, config: EmbedderConfig, threads: int, staging: Place, passthrough: Sequence[str]
    ) -> None:
        started = time.perf_counter()
        self._torch = TorchThread(threads)
        self._embedder = self._torch.run(load_embedder, config)
        self._staging = staging
        self._passthrough = list(passthrough)
        self._load_seconds = time.perf_counter() - started

    def __call__(self, block: pa.Table) -> pa.Table:
        """Columns row_id, `TEXT`, text_hash and passthrough in; one row of figures out."""
        started = time.time()
        codes_N = block["text_hash"].combine_chunks().dictionary_encode().indices.to_numpy()
        _, first_M, text_of_N = np.unique(codes_N, return_index=True, return_inverse=True)
        texts = block[TEXT].take(pa.array(first_M)).to_pylist()
        embedded = self._torch.run(self._embedder.embed, texts)
        others = block.select(self._passthrough)
        part = part_name()
        write_part(
            self._staging / part,
            pa.Table.from_arrays(
                [
                    block["row_id"],
                    block["text_hash"],
                    embedding_column(embedded.vectors[text_of_N]),
                    pa.array(embedded.truncated[text_of_N]),
                    *others.columns,
                ],
                schema=embeddings_schema(self._embedder.dimension, others.schema),
            ),
        )
        return pa.table(
            {
                "part": [part],
                "rows": [block.num_rows],
                "started": [started],
                "finished": [time.time()],
                "load_seconds": [self._load_seconds],
            }
        )


def split_blocks(table: pa.Table, actors: int) -> list[pa.Table]:
    """Consecutive slices of equal size: enough for progress and to share among the actors."""
    size = int(np.clip(table.num_rows // (actors * BLOCKS_PER_ACTOR), *BLOCK_ROWS))
    return [table.slice(i, size) for i in range(0, table.num_rows, size)]


def _embed_pending(
    update: Update,
    staging: Place,
    embedder: EmbedderConfig,
    resources: ResourcesConfig,
    passthrough: Sequence[str],
) -> tuple[list[str], dict[str, float]]:
    """Embed `update.pending` into `staging`; names of the parts, and figures."""
    plan = embed_actors(resources)
    rows = update.pending.num_rows
    blocks = split_blocks(update.pending, plan.actors)
    settings = embedder.model_copy(update={"device": plan.device})
    if settings.model and Path(settings.model).is_dir():
        settings = settings.model_copy(update={"model": str(Path(settings.model).resolve())})

    context = DataContext.get_current()
    progress_bars, context.enable_progress_bars = context.enable_progress_bars, False
    started = logged = time.perf_counter()
    reports, done = [], 0
    try:
        dataset = ray.data.from_arrow(blocks).map_batches(
            EmbedActor,
            fn_constructor_args=(settings, plan.threads, staging, tuple(passthrough)),
            batch_size=blocks[0].num_rows,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(plan.actors, len(blocks))),
            **plan.ray_arguments(),
        )
        for report in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            reports.append(report)
            done += pc.sum(report["rows"]).as_py()
            now = time.perf_counter()
            if now - logged >= PROGRESS_SECONDS and done < rows:
                logged, rate = now, done / (now - started)
                left = (rows - done) / rate
                log.info(
                    "embedded %d of %d rows, %.0f a second, %.0f s left", done, rows, rate, left
                )
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
    finally:
        context.enable_progress_bars = progress_bars
    report = pa.concat_tables(reports)
    seconds = pc.max(report["finished"]).as_py() - pc.min(report["started"]).as_py()
    return report["part"].to_pylist(), {
        "embed_seconds": round(seconds, 3),
        "texts_per_second": round(rows / seconds, 1),
        "model_load_seconds": round(pc.max(report["load_seconds"]).as_py(), 3),
    }


def _log_progress(done: int, rows: int, seconds: float) -> None:
    rate = done / seconds
    log.info(
        "embedded %d of %d rows, %.0f a second, %.0f s left", done, rows, rate, (rows - done) / rate
    )
