"""The bulk classification job: what it is asked, and the steps of its answer."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pydantic import Field, SecretStr
from ray.exceptions import RayTaskError
from rich.console import Console

from sce.bulk.answering import Connect, Endpoint
from sce.bulk.changes import Comparison, compare_outputs
from sce.bulk.classifier import OWN_COLUMNS, AnswerColumns, BlockClassifier
from sce.bulk.corpus import Columns, Corpus, Shard, column_names, open_corpus
from sce.bulk.counts import ErrorLimit, MaxErrors
from sce.bulk.output import OutputRun, read_run
from sce.bulk.preview import Preview, confused_pairs
from sce.bulk.reading import BLOCK_ROWS, kept_name, read_shard, read_texts
from sce.bulk.request import identify_input, identify_labels
from sce.config import JobConfig, resolve_output
from sce.datasets.custom import read_label_file
from sce.datasets.labelled import read_labelled
from sce.distributed.embed import embed_corpus
from sce.distributed.resources import ActorPlan, ResourcesConfig, TorchThread
from sce.distributed.sources import (
    ActorSettings,
    LocalSource,
    Source,
    endpoint_source,
    local_source,
)
from sce.distributed.stage import (
    COMMIT_ROWS,
    EMBED_ROWS_PER_FILE,
    ROWS_PER_FILE,
    TEXT_BLOCK_BYTES,
    Stage,
    plan_corpus,
    run_stage,
)
from sce.embedding.embedder import EmbedderConfig
from sce.embedding.store import STORE_COLUMNS, EmbeddingStore
from sce.errors import ConfigError, SCEError
from sce.evaluation import thresholds
from sce.evaluation.plots import precision_coverage_figure
from sce.labels import LabelSet
from sce.storage import Place, RemotePath, to_place, write_text
from sce.workflows.tracking import Tracker, TrackingConfig

SCORES_PER_BATCH = 1_000_000
MIN_BATCH_ROWS = 256
VECTOR_BLOCK_BYTES = 16 * 2**20
ROW_ID = "row_id"
COMPARISON_FILE = "_comparison.md"
SAMPLE_ROWS = 1000
SAMPLE_SHARDS = 8

log = logging.getLogger(__name__)


class ClassifyConfig(JobConfig):
    """Settings of `jobs/classify.py`."""

    input: list[str] = []
    """Files, folders, globs or URIs of Parquet, JSONL or CSV (.gz too); or an embedding store."""
    text_column: str = "text"
    id_column: str | None = None
    """Default: ids made from places, `tickets.jsonl:17`; of an embedding store, `row_id`."""
    keep_columns: list[str] = []
    """Columns to carry into the output, untouched; `["*"]` for all that serve for nothing else. Of
    JSONL: texts as they are, else as JSON."""
    max_errors: MaxErrors = "50%"
    """Stop when more rows than this have errors: a count (`100`) or a share (`1%`). A share
    counts from 1,000 rows on."""
    commit_rows: int = Field(default=COMMIT_ROWS, ge=1)
    """Inputs of more rows are committed in parts of whole files or row groups."""
    rows_per_file: int | None = Field(default=None, ge=1)
    """At least this many rows in a file of the output; what is not yet in a file is done again
    after a kill. Default: 65,536, or 8,192 where a CPU embeds the texts."""
    embedder: EmbedderConfig | None = None
    """Default: the model's. Give it where its checkpoint lies elsewhere on this machine."""
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()

    model: str | None = None
    """Folder, URI or hub id of a model that jobs/train_sce.py wrote."""
    endpoint: str | None = None
    """Instead of `model`: URL of a server (serve/app.py) that answers the rows."""
    endpoint_model: str | None = None
    """One of the endpoint's models. Default: its own default."""
    endpoint_token: SecretStr = SecretStr("")
    """Bearer token of the endpoint: best as the environment variable SCE_ENDPOINT_TOKEN."""
    endpoint_concurrency: int = Field(default=4, ge=1, le=256)
    """Requests at a time of each actor (`resources.embed_actors`, by default one)."""
    endpoint_patience_seconds: float = Field(default=600.0, gt=0)
    """How long to wait for an endpoint that is overloaded or away, before the job fails."""
    output: str | None = None
    """Folder or URI for the answers; needed but for `--dry_run`."""
    labels: list[str] = []
    """Names, each as `--labels NAME`, or one JSON list."""
    labels_file: Place | None = None
    """Labels as a list, or with description, synonyms and examples: YAML, JSON, JSONL, or .txt
    with a name a line."""
    labels_column: str | None = None
    """A column with one list of labels a row. `labels_file` may tell more about them."""
    embedding_column: str | None = None
    """Read unit vectors of the model's embedder from this column of a Parquet or JSONL input."""
    output_format: Literal["parquet", "jsonl"] = "parquet"
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Below this calibrated probability a label is null; its score stays."""
    target_precision: float | None = Field(default=None, gt=0, le=1)
    """Find the threshold that reaches this precision on the rows of `labelled`."""
    labelled: Place | None = None
    """Labelled rows for `target_precision`: JSONL, CSV or Parquet with `text_column` and
    `label_column`."""
    label_column: str = "label"
    top_k: int | None = Field(default=None, ge=1)
    """Also the best labels with their scores, in a column `top`."""
    return_scores: bool = False
    """Also every label's score, in a column `scores`."""
    save_embeddings: str | None = None
    """Embed the texts into this store (a folder or URI) first and classify from it; the next
    labels need only the store."""
    compare_to: str | None = None
    """An earlier output, a folder or URI: report what has changed since."""
    dry_run: bool = False
    """Read a sample; show predictions, confused labels, expected time and size; write nothing."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the encoder. `auto`: half precision where the device computes in it."""
    exact: bool = False
    """Contextualise every label also of a large set, rather than a shortlist."""


def classify(config: ClassifyConfig, connect: Connect | None = None) -> dict[str, Any]:
    """Answer every row of the input.

    Args:
        connect: how to ask the endpoint that the settings name.

    Returns:
        The summary: rows_in, rows_out, errors, truncated, null_labels, labels, seconds,
        texts_per_second and what else the output's `_run.json` says.

    Raises:
        InputError: settings, labels or input that cannot be used; an output that another request
            wrote; too many rows with errors.
        SCEError: the endpoint gives no answer; what was answered is kept.
    """
    started = time.perf_counter()
    labels = _read_labels(config)
    _check(config, labels)
    source = _source(config, connect)
    corpus = open_corpus(config.input)
    config = _name_kept(config, corpus)
    if corpus.store is not None:
        corpus.store.require(source.embedder)
        if config.save_embeddings is not None:
            raise ConfigError("save_embeddings: the input is an embedding store already.")
    run = None
    if not config.dry_run:
        assert config.output is not None
        uri = str(resolve_output(config.output))
        run = OutputRun.open(uri, _request(config, labels, source, corpus))
        if run.done:
            assert run.summary is not None
            rows = run.summary["rows_out"]
            log.info("%s: answered before, %d rows; nothing to do", uri, rows)
            return _finish(config, run, corpus, run.summary | {"unchanged": True})

    plan = source.plan(config.resources)
    settings = source.settings(plan)
    threshold, chosen = config.threshold, None
    if config.labelled is not None:
        assert labels is not None
        chosen = find_threshold(config, labels, settings, plan)
        threshold = chosen[1].threshold
    answer = AnswerColumns(threshold, config.top_k, config.return_scores)
    if run is None:
        columns = _columns(config, corpus)
        return _dry_run(config, corpus, columns, labels, answer, settings, plan)

    with _tracker(config, run.uri) as tracker:
        tracker.log_params(config.model_dump(mode="json"))
        if config.save_embeddings is not None:
            corpus, embedded = _embed(config, corpus, source, plan)
            tracker.log_metrics({"embed/texts_per_second": embedded["texts_per_second"]})
        summary = _answer(config, run, corpus, labels, answer, source, plan)
        summary["seconds"] = round(time.perf_counter() - started, 1)
        summary["mlflow_run_id"] = tracker.run_id
        if chosen is not None:
            summary["threshold_choice"] = chosen[1].headline()
            tracker.log_text(thresholds.to_markdown(*chosen), "threshold.md")
            tracker.log_figure(precision_coverage_figure(*chosen), "threshold.png")
        run.finish(summary)
        tracker.log_metrics(_metrics(summary))
        tracker.log_dict(summary, "summary.json")
    return _finish(config, run, corpus, summary)


def make_classifier(
    settings: ActorSettings, labels: LabelSet | None, columns: Columns, answer: AnswerColumns
) -> BlockClassifier:
    """Runs in the actor."""
    return BlockClassifier(settings.block_predictor(), labels, columns, answer)


def _source(config: ClassifyConfig, connect: Connect | None) -> Source:
    if config.endpoint is None:
        assert config.model is not None
        return local_source(config.model, config.embedder, config.dtype, config.exact)
    if connect is None:
        raise ConfigError("endpoint: this program asks none; jobs/classify.py does.")
    endpoint = Endpoint(
        config.endpoint,
        config.endpoint_model,
        config.endpoint_token,
        config.endpoint_concurrency,
        config.endpoint_patience_seconds,
    )
    return endpoint_source(endpoint, connect)


def _request(
    config: ClassifyConfig,
    labels: LabelSet | None,
    source: Source,
    corpus: Corpus,
) -> dict[str, Any]:
    """All that decides the rows of the output."""
    labelled = (
        None if config.labelled is None else identify_input(open_corpus([str(config.labelled)]))
    )
    columns = _columns(config, corpus)
    return {
        "job": "classify",
        "labels": identify_labels(labels, config.labels_column),
        "input": identify_input(corpus),
        "columns": {name: value for name, value in columns.__dict__.items() if value},
        "threshold": config.threshold,
        "target_precision": config.target_precision,
        "labelled": labelled,
        "top_k": config.top_k,
        "return_scores": config.return_scores,
        "output_format": config.output_format,
        **source.identity,
    }


def _embed(
    config: ClassifyConfig, corpus: Corpus, source: Source, plan: ActorPlan
) -> tuple[Corpus, dict[str, Any]]:
    """Put the corpus into the store that the user wants to keep; that store is the input then."""
    assert config.save_embeddings is not None
    assert isinstance(source, LocalSource)
    keep = [*config.keep_columns, config.labels_column, config.text_column]
    columns = Columns(
        text=config.text_column,
        id=config.id_column,
        keep=tuple(dict.fromkeys(name for name in keep if name is not None)),
    )
    limit = ErrorLimit.parse(config.max_errors)
    store, summary = embed_corpus(
        corpus,
        columns,
        config.save_embeddings,
        source.embedder_config,
        plan,
        limit,
        config.commit_rows,
    )
    return open_corpus([str(store.folder)]), summary


def _answer(
    config: ClassifyConfig,
    run: OutputRun,
    corpus: Corpus,
    labels: LabelSet | None,
    answer: AnswerColumns,
    source: Source,
    plan: ActorPlan,
) -> dict[str, Any]:
    """Classify, and sum up."""
    columns = _columns(config, corpus)
    shards = plan_corpus(corpus, columns)
    from_text = columns.text is not None
    batch_rows = BLOCK_ROWS
    if config.return_scores and labels is not None:
        batch_rows = int(np.clip(SCORES_PER_BATCH // len(labels), MIN_BATCH_ROWS, BLOCK_ROWS))
    stage = Stage(
        make=partial(make_classifier, source.settings(plan), labels, columns, answer),
        columns=columns,
        output_format=config.output_format,
        rows_per_file=config.rows_per_file
        or (EMBED_ROWS_PER_FILE[plan.device] if from_text else ROWS_PER_FILE),
        block_bytes=TEXT_BLOCK_BYTES if from_text else VECTOR_BLOCK_BYTES,
        batch_rows=batch_rows,
        json_columns=tuple(kept_name(n, OWN_COLUMNS) for n in columns.keep)
        if columns.raw_json
        else (),
    )
    limit = ErrorLimit.parse(config.max_errors)
    try:
        found = run_stage(run, shards, stage, plan, limit, "classifying", config.commit_rows)
    except RayTaskError as error:
        log.error("%s: the rows that are done stay; the same command goes on", run.uri)
        raise _cause(error) from None
    rows_in = sum(shard.rows for shard in shards)
    counts, work = found.counts, found.work
    seconds = work.finished - work.started
    return {
        "output": run.uri,
        **source.named(),
        "rows_in": rows_in,
        "rows_out": counts.rows,
        "errors": counts.errors,
        "truncated": counts.truncated,
        "null_labels": counts.null_labels,
        "labels": counts.labels,
        "label_names": None if labels is None or config.labels_column else labels.names,
        "threshold": answer.threshold,
        "scoring": _scoring(source, labels),
        "rows_this_run": found.new_rows,
        "answer_seconds": round(seconds, 3),
        "texts_per_second": round(work.rows / seconds, 1) if work.rows else 0.0,
    }


def _read_labels(config: ClassifyConfig) -> LabelSet | None:
    """The label set, or with a column of labels what is known of some.

    Raises:
        ConfigError: none or two sources of labels.
        LabelError, DataError: they cannot be used.
    """
    if config.labels and config.labels_file is not None:
        raise ConfigError("give the labels either with --labels or with --labels_file.")
    if config.labels:
        return LabelSet.parse(config.labels, "--labels")
    if config.labels_file is not None:
        return LabelSet.parse(read_label_file(config.labels_file), str(config.labels_file))
    if config.labels_column is None:
        raise ConfigError("give labels: --labels, --labels_file or --labels_column.")
    return None


def _check(config: ClassifyConfig, labels: LabelSet | None) -> None:
    _check_model(config)
    for name in ("output", "save_embeddings", "compare_to"):
        place = to_place(getattr(config, name) or "")
        if isinstance(place, RemotePath):
            place.check(name)
    if config.compare_to is not None:
        previous = read_run(str(to_place(config.compare_to)))
        if previous is not None and not previous.done:
            raise ConfigError(f"compare_to: the job that writes {config.compare_to} is unfinished.")
    if config.output is None and not config.dry_run:
        raise ConfigError("output: give a folder for the answers (or --dry_run).")
    if (config.target_precision is None) != (config.labelled is None):
        raise ConfigError("target_precision and labelled go together.")
    if config.target_precision is not None and config.threshold is not None:
        raise ConfigError("give either threshold or target_precision.")
    if config.labelled is not None and (labels is None or config.labels_column is not None):
        raise ConfigError("labelled: a threshold needs one label set for all rows.")
    if config.embedding_column is not None and config.save_embeddings is not None:
        raise ConfigError("save_embeddings: the input has embeddings already.")


def _check_model(config: ClassifyConfig) -> None:
    if config.endpoint is None:
        if config.model is None:
            raise ConfigError("give a model with --model, or a server that has one: --endpoint.")
        if config.endpoint_model is not None:
            raise ConfigError("endpoint_model: it names a model of an endpoint; give --endpoint.")
        return
    resources = config.resources
    given = {
        "model": config.model is not None,
        "embedder": config.embedder is not None,
        "dtype": config.dtype != "auto",
        "exact": config.exact,
        "save_embeddings": config.save_embeddings is not None,
        "resources.use_gpu": resources.use_gpu is True,
        "resources.gpus_per_embed_actor": bool(resources.gpus_per_embed_actor),
        "resources.accelerator_type": resources.accelerator_type is not None,
    }
    for name in (name for name, is_given in given.items() if is_given):
        raise ConfigError(
            f"{name}: with --endpoint the model is the server's, and so is what decides how it "
            f"is used. Leave {name} out, or give --model rather than --endpoint."
        )


def _columns(config: ClassifyConfig, corpus: Corpus) -> Columns:
    from_store = corpus.store is not None
    embedding = "embedding" if from_store else config.embedding_column
    return Columns(
        text=config.text_column if embedding is None else None,
        embedding=embedding,
        id=_store_id(config, corpus.store) if corpus.store is not None else config.id_column,
        labels=config.labels_column,
        keep=tuple(dict.fromkeys(config.keep_columns)),
        raw_json=config.output_format == "jsonl" and corpus.kind == ".jsonl",
    )


def _name_kept(config: ClassifyConfig, corpus: Corpus) -> ClassifyConfig:
    """With `*` replaced by names, so that a resumed run knows what it kept."""
    if "*" not in config.keep_columns:
        return config
    if config.keep_columns != ["*"]:
        raise ConfigError("keep_columns: '*' is every column already; give nothing beside it.")
    used = {config.text_column, config.id_column, config.labels_column, config.embedding_column}
    if corpus.store is not None:
        used |= set(STORE_COLUMNS)
    names = [name for name in column_names(corpus) if name not in used]
    return config.model_copy(update={"keep_columns": names})


def _store_id(config: ClassifyConfig, store: EmbeddingStore) -> str:
    """A store's ids were made when it was: the column of the texts that they are from may be
    named again, so that the same settings serve the texts and their store."""
    made = read_run(str(store.folder))
    if config.id_column is None or made is None:
        return config.id_column or ROW_ID
    kept = config.id_column in store.column_names()
    return config.id_column if kept or made.request["columns"]["id"] != config.id_column else ROW_ID


def find_threshold(
    config: ClassifyConfig, labels: LabelSet, settings: ActorSettings, plan: ActorPlan
) -> tuple[thresholds.Curve, thresholds.Choice]:
    """Classify the labelled rows, print the precision-coverage curve, and choose from it.

    Raises:
        InputError: the rows cannot be read, or no threshold reaches the precision.
    """
    assert config.labelled is not None
    assert config.target_precision is not None
    texts, names, _ = read_labelled(
        config.labelled, config.text_column, config.label_column, labels
    )
    rows = len(texts)
    block = pa.table(
        {
            "place": pa.array(range(rows), pa.int64()),
            "id": pa.array([str(i) for i in range(rows)], pa.string()),
            "text": pa.array(texts, pa.string()),
            "truncated": pa.repeat(pa.scalar(False), rows),
            "error": pa.repeat(pa.scalar(""), rows),
        }
    )
    make = partial(make_classifier, settings, labels, Columns(), AnswerColumns())
    ((answered, _),) = _try_out(make, [block], plan)
    right_N = np.array(answered["label"].to_pylist(), object) == np.array(names, object)
    curve = thresholds.precision_coverage(answered["score"].to_numpy(), right_N)
    choice = thresholds.choose_threshold(curve, config.target_precision)
    thresholds.to_terminal(curve, choice, Console(stderr=True))
    return curve, choice


def _dry_run(
    config: ClassifyConfig,
    corpus: Corpus,
    columns: Columns,
    labels: LabelSet | None,
    answer: AnswerColumns,
    settings: ActorSettings,
    plan: ActorPlan,
) -> dict[str, Any]:
    shards = plan_corpus(corpus, columns)
    shown = "text" if columns.text is not None else "id"
    if corpus.store is not None and config.text_column in corpus.store.column_names():
        columns = replace(columns, keep=(*columns.keep, config.text_column))
        shown = f"keep.{config.text_column}"
    blocks = _sample(shards, columns)
    make = partial(
        make_classifier, settings, labels, columns, replace(answer, top_k=max(2, answer.top_k or 0))
    )
    tried = _try_out(make, [blocks, blocks], plan)  # the first has the labels to embed
    answered, seconds = tried[1]
    as_asked = answered if answer.top_k else answered.drop_columns("top")
    file = io.BytesIO()
    pq.write_table(as_asked, file)
    rows = sum(shard.rows for shard in shards)
    preview = Preview(
        answered.append_column("shown", blocks[shown]),
        confused_pairs(answered["top"].to_pylist()),
        rows,
        seconds / blocks.num_rows * rows / plan.actors,
        int(file.tell() / blocks.num_rows * rows),
    )
    preview.to_terminal(Console(stderr=True))
    return preview.summary()


def _sample(shards: Sequence[Shard], columns: Columns) -> pa.Table:
    """The first rows of some shards, spread over the input."""
    step = max(1, len(shards) // SAMPLE_SHARDS)
    chosen = shards[::step][:SAMPLE_SHARDS]
    each = max(1, SAMPLE_ROWS // len(chosen))
    return pa.concat_tables(
        [next(read_shard(shard, columns)).slice(0, each) for shard in chosen]
    ).combine_chunks()


class _Desk:
    """A model in an actor of its own, on the hardware that the job will run on."""

    def __init__(self, make: Any, threads: int) -> None:
        self._torch = TorchThread(threads)
        self._apply = self._torch.run(make)

    def answer(self, block: pa.Table) -> tuple[pa.Table, float]:
        started = time.perf_counter()
        return self._torch.run(self._apply, block), time.perf_counter() - started


def _try_out(
    make: Any, blocks: Sequence[pa.Table], plan: ActorPlan
) -> list[tuple[pa.Table, float]]:
    desk: Any = ray.remote(_Desk).options(**plan.ray_arguments()).remote(make, plan.threads)
    try:
        return [ray.get(desk.answer.remote(block)) for block in blocks]
    except RayTaskError as error:
        raise _cause(error) from None
    finally:
        ray.kill(desk)


def _cause(error: RayTaskError) -> Exception:
    """What to raise for it: what was raised on purpose as such, anything else as it is."""
    return error.cause if isinstance(error.cause, SCEError) else error


def _finish(
    config: ClassifyConfig, run: OutputRun, corpus: Corpus, summary: dict[str, Any]
) -> dict[str, Any]:
    """What may follow a finished output."""
    if config.compare_to is None:
        return summary
    found = _compare(config, run, corpus)
    with _tracker(config, run.uri, summary.get("mlflow_run_id")) as tracker:
        tracker.log_metrics(found.to_metrics())
        tracker.log_text(found.to_markdown(), COMPARISON_FILE.removeprefix("_"))
    return summary | {"comparison": found.to_metrics()}


def _compare(config: ClassifyConfig, run: OutputRun, corpus: Corpus) -> Comparison:
    """Compare with an earlier output, show it and write it beside the rows."""
    assert config.compare_to is not None
    previous = read_run(config.compare_to)
    old = previous.summary["label_names"] if previous and previous.summary else None
    new = run.summary["label_names"] if run.summary else None
    found = compare_outputs(
        config.compare_to,
        run.uri,
        previous_labels=old if old and new else None,
        current_labels=new if old and new else None,
        texts_of=_texts_of(config, corpus),
    )
    found.to_terminal(Console(stderr=True))
    write_text(to_place(run.uri) / COMPARISON_FILE, found.to_markdown())
    return found


def _texts_of(
    config: ClassifyConfig, corpus: Corpus
) -> Callable[[list[str]], dict[str, str]] | None:
    """Looks the texts of some rows up in the input, if it has them."""
    columns = replace(_columns(config, corpus), text=config.text_column, embedding=None)
    columns = replace(columns, labels=None, keep=())
    if corpus.store is not None and config.text_column not in corpus.store.column_names():
        return None
    if config.embedding_column is not None:
        return None
    return lambda ids: read_texts(plan_corpus(corpus, columns), columns, ids)


def _scoring(source: Source, labels: LabelSet | None) -> str:
    """How the labels were scored, in words."""
    above, size = source.shortlist
    if above is None:
        return "exact"
    many = f"shortlist of {size}"
    if labels is None:
        return f"exact up to {above} labels in a row, else {many}"
    return many + f" of {len(labels)}" if len(labels) > above else "exact"


def _tracker(config: ClassifyConfig, output: str, run_id: str | None = None) -> Tracker:
    place = to_place(output)
    name = f"classify-{place.name}"
    return Tracker.resume(config.tracking, run_id, name, {"job": "classify"}, place.parent)


def _metrics(summary: dict[str, Any]) -> dict[str, float]:
    names = ("rows_in", "rows_out", "truncated", "null_labels", "seconds", "texts_per_second")
    found = {f"classify/{name}": float(summary[name]) for name in names}
    found["classify/errors"] = float(sum(summary["errors"].values()))
    return found | {f"classify/errors/{k}": float(v) for k, v in summary["errors"].items()}
