"""Embeds a corpus once, into a store: the one engine, for prepared data and for users' corpora.

The first time, the corpus runs through a stage (`sce.distributed.stage`): shards to blocks, blocks
through actors that have the embedder, vectors to Parquet, written by the workers and resumed where
a kill cut it short. Where the store holds vectors already, the corpus is compared with it first
(`sce.distributed.store_diff`): only rows that are new or changed run through the stage, as parts
beside the old ones, and parts of which rows have gone are written anew. The manifest comes last:
until then, the store is what it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

from sce.bulk.blocks import CHUNKED_ROWS, EMBED_ROWS_PER_FILE, TEXT_BLOCK_BYTES, Stage
from sce.bulk.corpus import Columns, Corpus, Shard, open_corpus
from sce.bulk.counts import ActorCounts, ErrorLimit
from sce.bulk.output import COMMIT_ROWS, RUN_FILE, FolderLock, OutputRun, PartCounts, read_run
from sce.bulk.reading import BLOCK_ROWS
from sce.bulk.request import identify_embedder, identify_input
from sce.bulk.vectors import BlockEmbedder
from sce.config import resolve_output
from sce.datasets.prepared import ROWS_FILE, read_label_sets
from sce.distributed.engine_choice import choose_workers, early_process
from sce.distributed.resources import ActorPlan, embed_actors
from sce.distributed.settings import ResourcesConfig
from sce.distributed.stage import ACTOR_CPUS, Workers, in_tasks, plan_corpus, run_stage
from sce.distributed.store_diff import Change, compare
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.chunking import chunking
from sce.embedding.fingerprint import EmbedderFingerprint, check_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import (
    EmbeddingStore,
    Manifest,
    discard_unnamed,
    dtypes_of,
    manifest_of,
    rewrite_part,
    text_hash,
    write_manifest,
)
from sce.errors import DataError
from sce.model.options import LongText
from sce.storage import Place, RemotePath, absolute_model, to_place, write_text

log = logging.getLogger(__name__)


def embed_corpus(
    corpus: Corpus,
    columns: Columns,
    store: str | Place,
    embedder: EmbedderConfig,
    workers: Workers | Callable[[], Workers],
    limit: ErrorLimit,
    commit_rows: int = COMMIT_ROWS,
    prepared: bool = False,
    long_text: LongText = "truncate",
) -> tuple[EmbeddingStore, dict[str, Any]]:
    """Make `store` hold one vector for each row of `corpus`, and no other.

    Only rows that are new, or of which the text or what `columns.keep` names has changed, are
    embedded; where none is, no model is loaded and no actor starts. Rows with errors are in the
    store as well, with their error and a vector of zeros. The store has the columns
    `STORE_COLUMNS` and those to be kept. Rows that come later have places behind the others.

    Args:
        store: a folder that every node reaches, or a URI.
        workers: who embeds, or what works them out once they are needed.
        limit: of rows with errors among those that are embedded.
        prepared: rows with errors, and ids that stand twice, are refused; and an unfinished store
            of other rows is begun anew rather than refused.
        long_text: "chunk" to read every text whole, in chunks: each row has their vectors and
            places beside `embedding`, which is their mean.

    Returns:
        The store, and the summary: store, embedder, dtype, rows_in, rows_out, embedded, reused,
        removed, errors, truncated, seconds (over all attempts), embed_seconds and texts_per_second
        (start-up left out), model_load_seconds; and `unchanged` where nothing was to be done.

    Raises:
        FingerprintMismatch: the store was made by another embedder; give a new folder.
        InputError: the store has other columns or chunks; too many rows with errors; the input.
    """
    folder = resolve_output(store)
    if isinstance(folder, RemotePath):
        folder.check("store")
    fingerprint = embedder_fingerprint(embedder)
    old = EmbeddingStore.open(folder) if manifest_of(folder) else None
    chunks = chunking(fingerprint.max_tokens) if long_text == "chunk" else None
    request = _request(folder, fingerprint, corpus, columns, chunks)
    if old is not None:
        _require_chunks(old.require(fingerprint), chunks)
    elif prepared:
        with FolderLock(str(folder)):
            _clear(folder, request)
    run = OutputRun.open(str(folder), request, "save_embeddings", update=old is not None)
    if old is not None and run.done:
        return _unchanged(old, run)
    shards = plan_corpus(corpus, columns)
    with run.lock:
        change = compare(old, shards, columns, prepared)
        work = ActorCounts()
        if old is not None:
            if not change.pending and not change.removed:
                discard_unnamed(folder)
                counts = _count(old, old.manifest.parts)
                run.finish(_summary(run, old, change, counts, work) | corpus.reading(shards))
                return _unchanged(old, run)
            _clear(folder, request)
            run.first_part = _next_number(old)
        if change.pending:
            found = workers() if callable(workers) else workers
            stage = _stage(embedder, columns, found, chunks is not None)
            done = run_stage(run, change.pending, stage, found, limit, "embedding", commit_rows)
            work = done.work
        new, counts = _commit(run, old, fingerprint, shards, change, work, chunks)
        summary = _summary(run, new, change, counts, work) | corpus.reading(shards)
        run.finish(summary)
    log.info(
        "%(store)s: %(rows_out)d rows, %(embedded)d embedded, %(reused)d reused, "
        "%(removed)d removed, %(truncated)d truncated in %(embed_seconds).1f s "
        "(%(texts_per_second).0f texts/s)",
        summary,
    )
    return new, summary


def _request(
    folder: Place,
    fingerprint: EmbedderFingerprint,
    corpus: Corpus,
    columns: Columns,
    chunks: dict[str, Any] | None,
) -> dict[str, Any]:
    """All that decides a store."""
    return ({} if chunks is None else {"chunks": chunks}) | {
        "job": "embed",
        "embedder": identify_embedder(fingerprint, str(folder)),
        "input": identify_input(corpus),
        "columns": {"text": columns.text, "id": columns.id, "keep": list(columns.keep)},
    }


def _require_chunks(store: EmbeddingStore, chunks: dict[str, Any] | None) -> None:
    """Raises `DataError` where texts are cut otherwise than in a store."""
    if store.manifest.chunks != chunks:
        there, here = (
            "the beginning of each text" if one is None else f"chunks of {one['tokens']} tokens"
            for one in (store.manifest.chunks, chunks)
        )
        raise DataError(
            f"long_text: the store {str(store.folder)!r} holds the vectors of {there}, and those "
            f"of {here} are asked for. Embed into a new folder."
        )


def embed_prepared(
    data_dir: str | Place,
    embeddings_dir: str | Place,
    embedder: EmbedderConfig,
    resources: ResourcesConfig,
) -> dict[str, Any]:
    """Embed a prepared data folder: its rows, and every text of its label sets.

    Writes the stores `embeddings_dir/rows` (ids as in rows.parquet) and
    `embeddings_dir/labels` (each distinct text that makes a label's vector: names, in templates
    too, synonyms, descriptions and examples; `row_id` is its `text_hash`, and the column `text`
    has the text).

    Returns:
        The summaries of `embed_corpus` as "rows" and "labels", `seconds` those of this call; also
        as they were once named: rows, path, fingerprint.

    Raises:
        InputError: as `embed_corpus`; `data_dir` is not prepared, a text is empty, an id is missing
            or stands twice; the cluster cannot give what `resources` asks for.
    """
    from sce.model.label_vectors import label_texts_to_keep

    folder = resolve_output(embeddings_dir)
    labels = [one for labels in read_label_sets(data_dir).values() for one in labels.labels]
    texts = sorted(label_texts_to_keep(labels))
    lines = [json.dumps({"row_id": text_hash(text), "text": text}) + "\n" for text in texts]
    label_texts = folder / "label_texts.jsonl"
    if not label_texts.is_file() or label_texts.read_text("utf-8") != "".join(lines):
        write_text(label_texts, "".join(lines))
    actors = cache(partial(embed_actors, resources, default_cpus=ACTOR_CPUS))
    limit = ErrorLimit(count=0)
    found = {}
    for name, file, columns in (
        ("rows", to_place(data_dir).absolute() / ROWS_FILE, Columns(id="row_id")),
        ("labels", label_texts, Columns(id="row_id", keep=("text",))),
    ):
        started = time.perf_counter()
        corpus, store = open_corpus([str(file)]), folder / name
        with ExitStack() as until_done:
            workers = partial(_workers, corpus, columns, resources, actors, until_done)
            made = embed_corpus(corpus, columns, store, embedder, workers, limit, prepared=True)
        summary = made[1]
        found[name] = summary | {
            "rows": summary["rows_out"],
            "path": summary["store"],
            "fingerprint": summary["embedder"],
            "seconds": round(time.perf_counter() - started, 3),
        }
    return found


def _workers(
    corpus: Corpus,
    columns: Columns,
    resources: ResourcesConfig,
    actors: Callable[[], ActorPlan],
    until_done: ExitStack,
) -> Workers:
    process = until_done.enter_context(early_process("auto", resources, []))
    return choose_workers("auto", process, corpus, columns, False, actors)


def embedder_of(given: EmbedderConfig | None, trained_with: EmbedderFingerprint) -> EmbedderConfig:
    """The embedder to load: the one given, else the one that the model was trained with. Raises
    `FingerprintMismatch` or `EmbedderError`, which is better said here than by an actor."""
    settings = _local_model(given or EmbedderConfig.from_fingerprint(trained_with.to_dict()))
    check_fingerprint(trained_with, embedder_fingerprint(settings), "the model")
    return settings


def _local_model(settings: EmbedderConfig) -> EmbedderConfig:
    """Workers run in another folder: a checkpoint's path is made absolute."""
    model = settings.model and absolute_model(settings.model)
    return settings.model_copy(update={"model": model})


def _stage(
    embedder: EmbedderConfig,
    columns: Columns,
    workers: Workers,
    chunks: bool,
) -> Stage:
    settings = _local_model(embedder).model_copy(update={"device": workers.device})
    return Stage(
        make=partial(BlockEmbedder, settings, columns, chunks),
        columns=columns,
        output_format="parquet",
        rows_per_file=4 * CHUNKED_ROWS if chunks else EMBED_ROWS_PER_FILE[workers.device],
        block_bytes=TEXT_BLOCK_BYTES,
        batch_rows=CHUNKED_ROWS if chunks else BLOCK_ROWS,
        counted=None,
        write_options={
            "compression": "none",
            "use_dictionary": ["error", *columns.keep],
            "row_group_size": CHUNKED_ROWS if chunks else 8192,
        },
    )


def _clear(folder: Place, request: dict[str, Any]) -> None:
    """Remove what a job with another request left unfinished; the store stays as it is."""
    found = read_run(str(folder))
    if found is None or found.request != request:
        OutputRun(str(folder), request).remove_checkpoint()
        (folder / RUN_FILE).unlink(missing_ok=True)
        discard_unnamed(folder)


def _next_number(store: EmbeddingStore) -> int:
    """Behind the numbers that the names of the store's parts begin with."""
    found = (re.match(r"part-(\d{5})[/_]", name) for name in store.manifest.parts)
    return 1 + max((int(part[1]) for part in found if part), default=-1)


def _commit(
    run: OutputRun,
    old: EmbeddingStore | None,
    fingerprint: EmbedderFingerprint,
    shards: Sequence[Shard],
    change: Change,
    work: ActorCounts,
    chunks: dict[str, Any] | None,
) -> tuple[EmbeddingStore, PartCounts]:
    """Put the parts together, old, compacted and new; then write the manifest, and clear up. Raises
    `RuntimeError`: rows would be missing; the store stays as it was."""
    folder = to_place(run.uri)
    files = [to_place(file) for number in run.parts for file in run.part_files(number)]
    new_parts = [str(file).removeprefix(f"{folder}/") for file in files]
    compacted = run.part_name(len(run.parts))
    items = [
        (folder / name, folder / f"{compacted}_{i:05d}.parquet", live_N, first_place)
        for i, (name, live_N, first_place) in enumerate(change.rewritten)
    ]
    for _ in in_tasks(rewrite_part, items):
        pass
    old_parts = [*change.kept, *(target.name for _, target, *_ in items)]
    kept = [] if old is None else [_count(old, old_parts)]
    counts = PartCounts.total([*run.parts.values(), *kept])
    expected = sum(shard.rows for shard in shards)
    if counts.rows != expected:
        raise RuntimeError(f"{folder}: {counts.rows} rows would be in the store, not {expected}.")
    last = old.manifest if old is not None and not change.pending else None
    dtypes = dtypes_of(str(file) for file in files)
    if kept and kept[0].rows:
        assert old is not None
        dtypes |= set(str(old.manifest.embedder["dtype"]).split(", "))
    held = replace(fingerprint, dtype=", ".join(sorted(dtypes)) or fingerprint.dtype)
    manifest = Manifest(
        embedder=held.to_dict() | {"id": held.id},
        source=hashlib.sha256(json.dumps(run.request, sort_keys=True).encode()).hexdigest(),
        rows=counts.rows,
        truncated=counts.truncated,
        embed_seconds=last.embed_seconds if last else round(work.seconds, 3),
        texts_per_second=last.texts_per_second if last else round(work.rows_per_second, 1),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        parts=sorted([*old_parts, *new_parts]),
        chunks=chunks,
    )
    write_manifest(folder, manifest)
    discard_unnamed(folder)
    return EmbeddingStore(folder, manifest), counts


def _count(store: EmbeddingStore, parts: Sequence[str]) -> PartCounts:
    """What stands in parts of a store, read one at a time."""
    found = []
    for part in parts:
        names = [name for name in ("truncated", "error") if name in store.column_names(part)]
        found.append(PartCounts.of(store.read_part(part, names)))
    return PartCounts.total(found)


def _summary(
    run: OutputRun, store: EmbeddingStore, change: Change, counts: PartCounts, work: ActorCounts
) -> dict[str, Any]:
    return {
        "store": str(store.folder),
        "embedder": store.manifest.embedder["id"],
        "dtype": store.manifest.embedder["dtype"],
        "rows_in": counts.rows,
        "rows_out": counts.rows,
        "embedded": counts.rows - change.reused,
        "reused": change.reused,
        "removed": change.removed,
        "errors": counts.errors,
        "truncated": counts.truncated,
        "seconds": round(run.seconds, 1),
        "embed_seconds": round(work.seconds, 3),
        "texts_per_second": round(work.rows_per_second, 1),
        "model_load_seconds": round(work.load_seconds, 3),
    }


def _unchanged(store: EmbeddingStore, run: OutputRun) -> tuple[EmbeddingStore, dict[str, Any]]:
    """What a job answers that had nothing to do, which an earlier version's job may have left."""
    assert run.summary is not None
    rows = store.manifest.rows
    log.info("%s: unchanged, %d rows; nothing to embed", store.folder, rows)
    idle = dict.fromkeys(("embed_seconds", "texts_per_second", "model_load_seconds"), 0.0)
    now = {"embedded": 0, "reused": rows, "removed": 0, "unchanged": True}
    return store, run.summary | idle | now
