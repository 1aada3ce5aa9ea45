"""The bulk classification job: the plan that its settings are resolved to, and its steps."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rich.console import Console

from sce.adaptation.artefact import AdaptedLabels
from sce.bulk.answering import Endpoint
from sce.bulk.changes import compare_outputs
from sce.bulk.classifier import OWN_COLUMNS, AnswerColumns
from sce.bulk.corpus import Columns, Corpus, column_names, open_corpus
from sce.bulk.counts import ErrorLimit
from sce.bulk.display import comparison_markdown, print_comparison, print_preview
from sce.bulk.output import OutputFormat, OutputRun, read_run
from sce.bulk.reading import kept_name, read_texts
from sce.bulk.request import identify_input, identify_labels
from sce.config import resolve_output
from sce.datasets.custom import read_label_set
from sce.datasets.labelled import read_labelled
from sce.datasets.text_form import TextForm
from sce.distributed.backends import AdaptedAlone, Classification, LocalModel, ServedByEndpoint
from sce.distributed.embed import embed_corpus
from sce.distributed.resources import ActorPlan, ResourcesConfig
from sce.distributed.stage import plan_corpus, run_stage
from sce.distributed.trial import find_threshold, preview
from sce.embedding.fingerprint import check_fingerprint
from sce.embedding.store import STORE_COLUMNS, EmbeddingStore
from sce.errors import ConfigError, InputError
from sce.evaluation import thresholds
from sce.evaluation.plots import precision_coverage_figure
from sce.labels import LabelSet
from sce.storage import Place, to_place, write_text
from sce.workflows.adapt import AdaptConfig, adapt
from sce.workflows.bulk_settings import ClassifyConfig, check_model, check_together
from sce.workflows.tracking import Tracker, TrackingConfig

ROW_ID = "row_id"
COMPARISON_FILE = "_comparison.md"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassifyPlan:
    """What a job does: its settings read, parsed and checked. `resolve` makes it.

    Attributes:
        asked: which model, labels and columns answer a row; its threshold may yet be found.
        corpus: the files of the input.
        text_column: of the input, to show texts; None where it has none.
        run: the output, begun or to be continued; None for a dry run.
        labelled: texts and their labels, and the precision that a threshold has to reach on them.
        store: where to keep embeddings, to classify from there; None to keep none.
        previous: an earlier output to compare with, and its labels where they are known.
        settings: for the tracker.
    """

    asked: Classification
    corpus: Corpus
    text_column: str | None
    run: OutputRun | None
    output_format: OutputFormat
    rows_per_file: int | None
    commit_rows: int
    error_limit: ErrorLimit
    labelled: tuple[list[str], list[str], float] | None
    store: Place | None
    previous: tuple[str, list[str] | None] | None
    resources: ResourcesConfig
    tracking: TrackingConfig
    settings: dict[str, Any]


def resolve(config: ClassifyConfig) -> ClassifyPlan:
    """Read, parse and check all that the settings name. Nothing is written and no cluster joined.

    Raises:
        InputError: settings, labels or input that cannot be used; an output that another request
            wrote.
        SCEError: the endpoint gives no answer.
    """
    labels = _read_labels(config)
    adapted = labels if isinstance(labels, AdaptedLabels) else None
    check_model(config, adapted is not None)
    check_together(config)
    previous = None if config.compare_to is None else _previous_output(config.compare_to)
    corpus = open_corpus(config.input, TextForm(config.encoding, config.delimiter))
    backend = _backend(config, adapted, corpus)
    columns = _columns(config, corpus)
    if corpus.store is not None:
        corpus.store.require(backend.embedder)
        if config.save_embeddings is not None:
            raise ConfigError("save_embeddings: the input is an embedding store already.")
    answer = AnswerColumns(config.threshold, config.top_k, config.return_scores)
    asked = Classification(backend, labels, columns, answer)
    run = None
    if config.output is not None and not config.dry_run:
        uri = str(resolve_output(config.output))
        run = OutputRun.open(uri, _request(config, asked, corpus))
    labelled = None
    if config.labelled is not None and config.target_precision is not None:
        text, label = config.text_column, config.label_column
        texts, names, _ = read_labelled(
            config.labelled,
            text,
            label,
            labels.label_set if isinstance(labels, AdaptedLabels) else labels,
        )
        labelled = (texts, names, config.target_precision)
    has_text = config.embedding_column is None and (
        corpus.store is None or config.text_column in corpus.store.column_names()
    )
    return ClassifyPlan(
        asked=asked,
        corpus=corpus,
        text_column=config.text_column if has_text else None,
        run=run,
        output_format=config.output_format,
        rows_per_file=config.rows_per_file,
        commit_rows=config.commit_rows,
        error_limit=ErrorLimit.parse(config.max_errors),
        labelled=labelled,
        store=config.save_embeddings,
        previous=previous,
        resources=config.resources,
        tracking=config.tracking,
        settings=config.model_dump(mode="json") | {"keep_columns": list(columns.keep)},
    )


def classify(config: ClassifyConfig) -> dict[str, Any]:
    """Answer every row of the input.

    Returns:
        The summary: rows_in, rows_out, errors, truncated, null_labels, labels, seconds,
        texts_per_second and what else the output's `_run.json` says; of a dry run, what to expect.

    Raises:
        InputError: as `resolve`; too many rows with errors.
        SCEError: the endpoint gives no answer; what was answered is kept.
    """
    started = time.perf_counter()
    if config.adapt:
        config = adapt_first(config)
    plan = resolve(config)
    run = plan.run
    if run is not None and run.summary is not None:
        rows = run.summary["rows_out"]
        log.info("%s: answered before, %d rows; nothing to do", run.uri, rows)
        return _compare(plan, run, run.summary | {"unchanged": True})

    actors = plan.asked.backend.actor_plan(plan.resources)
    chosen = None
    if plan.labelled is not None:
        chosen = find_threshold(plan.asked, *plan.labelled, actors)
        thresholds.to_terminal(*chosen, Console(stderr=True))
        answer = replace(plan.asked.answer, threshold=chosen[1].threshold)
        plan = replace(plan, asked=replace(plan.asked, answer=answer))
    if run is None:
        expected = preview(plan.asked, plan.corpus, plan.text_column, actors)
        print_preview(expected, Console(stderr=True))
        return expected.summary()

    with _tracker(plan, run) as tracker:
        tracker.log_params(plan.settings)
        if plan.store is not None:
            plan, embedded = _embed(plan, plan.store, actors)
            tracker.log_metrics({"embed/texts_per_second": embedded["texts_per_second"]})
        summary = _answer(plan, run, actors)
        summary["seconds"] = round(time.perf_counter() - started, 1)
        summary["mlflow_run_id"] = tracker.run_id
        if chosen is not None:
            summary["threshold_choice"] = chosen[1].headline()
            tracker.log_text(thresholds.to_markdown(*chosen), "threshold.md")
            tracker.log_figure(precision_coverage_figure(*chosen), "threshold.png")
        run.finish(summary)
        tracker.log_metrics(_metrics(summary))
        tracker.log_dict(summary, "summary.json")
    return _compare(plan, run, summary)


def adapt_first(config: ClassifyConfig) -> ClassifyConfig:
    """Fit the labels to the input; the settings that classify its store with them.

    Raises:
        InputError: as `sce.workflows.adapt.adapt`; settings that do not go with it.
    """
    for name, given in {
        "endpoint": config.endpoint is not None,
        "dry_run": config.dry_run,
        "labels_column": config.labels_column is not None,
        "embedding_column": config.embedding_column is not None,
        "output": config.output is None,
    }.items():
        if given:
            missing = "is needed" if name == "output" else "does not go"
            raise ConfigError(f"{name}: {missing} with --adapt. Run jobs/adapt.py by itself.")
    same = [
        *("model", "embedder", "input", "labels", "labels_file", "text_column", "id_column"),
        *(
            "encoding",
            "delimiter",
            "keep_columns",
            "max_errors",
            "save_embeddings",
            "resources",
            "tracking",
        ),
    ]
    made = adapt(
        AdaptConfig(
            **{name: getattr(config, name) for name in same},
            output=to_place(f"{config.output}-labels"),
        )
    )
    return config.model_copy(
        update={
            "adapt": False,
            "input": [made["store"]],
            "labels": [],
            "labels_file": to_place(made["output"]),
            "save_embeddings": None,
        }
    )


def _read_labels(config: ClassifyConfig) -> LabelSet | AdaptedLabels | None:
    """The label set, as it is or adapted; or with a column of labels what is known of some."""
    if config.labels and config.labels_file is not None:
        raise ConfigError("give the labels either with --labels or with --labels-file.")
    if config.labels:
        return LabelSet.parse(config.labels, "--labels")
    if config.labels_file is None:
        if config.labels_column is None:
            raise ConfigError("give labels: --labels, --labels-file or --labels-column.")
        return None
    if not config.labels_file.is_dir():
        return read_label_set(config.labels_file)[0]
    adapted = AdaptedLabels.load(config.labels_file)
    if config.labels_column is not None:
        raise ConfigError("labels_column: adapted labels are one set for all rows.")
    check_not_changed(adapted, config.accept_changed_labels)
    return adapted


def check_not_changed(adapted: AdaptedLabels, accept: bool) -> None:
    """Raises `ConfigError`: the file that adapted labels were made from says something else by
    now. One that is gone or elsewhere is not missed."""
    path, made_from = adapted.labels_file.get("path"), adapted.labels_file.get("fingerprint")
    if accept or path is None:
        return
    try:
        now, _ = read_label_set(to_place(path))
    except (InputError, OSError):
        return
    if now.fingerprint != made_from:
        raise ConfigError(
            f"labels_file: {path} has changed since these labels were adapted. Run jobs/adapt.py "
            "again, or answer with the labels as they were: --accept-changed-labels."
        )


def _previous_output(place: Place) -> tuple[str, list[str] | None]:
    run = read_run(str(place))
    if run is not None and run.summary is None:
        raise ConfigError(f"compare_to: the job that writes {place} is unfinished.")
    return str(place), run.summary["label_names"] if run and run.summary else None


def _backend(
    config: ClassifyConfig, adapted: AdaptedLabels | None, corpus: Corpus
) -> LocalModel | AdaptedAlone | ServedByEndpoint:
    if adapted is not None:
        has_vectors = corpus.store is not None or config.embedding_column is not None
        reads_texts = not has_vectors or config.labelled is not None
        found = AdaptedAlone.find(adapted, config.embedder, reads_texts)
        if config.model is not None:  # it is not needed, but another one's vectors are not meant
            model = LocalModel.find(config.model, config.embedder, config.dtype, config.exact)
            check_fingerprint(found.embedder, model.embedder, "the corpus of the adapted labels")
        return found
    if config.endpoint is None:
        assert config.model is not None
        return LocalModel.find(config.model, config.embedder, config.dtype, config.exact)
    endpoint = Endpoint(
        config.endpoint,
        config.endpoint_model,
        config.endpoint_token,
        config.endpoint_concurrency,
        config.endpoint_patience_seconds,
    )
    return ServedByEndpoint.find(endpoint)


def _columns(config: ClassifyConfig, corpus: Corpus) -> Columns:
    store = corpus.store
    embedding = config.embedding_column if store is None else "embedding"
    keep, all_kept = list(config.keep_columns), config.keep_columns == ["*"]
    if all_kept:  # named, so that a resumed run knows what it kept
        left_out = {config.embedding_column, *(() if store is None else STORE_COLUMNS)}
        keep = [name for name in column_names(corpus) if name not in left_out]
    elif "*" in keep:
        raise ConfigError("keep_columns: '*' is every column already; give nothing beside it.")
    id_name = config.id_column or (None if store is None else _made_from(store)) or "id"
    return Columns(
        text=config.text_column if embedding is None else None,
        embedding=embedding,
        id=config.id_column if store is None else _store_id(config.id_column, store),
        labels=config.labels_column,
        keep=tuple(name for name in dict.fromkeys(keep) if name != config.id_column),
        some_lack=all_kept,
        raw_json=config.output_format == "jsonl" and corpus.kind == ".jsonl",
        id_name=kept_name(id_name, OWN_COLUMNS),
    )


def _store_id(id_column: str | None, store: EmbeddingStore) -> str:
    """A store's ids were made when it was: the column of the texts that they are from may be
    named again, so that the same settings serve the texts and their store."""
    if id_column is None or id_column in store.column_names():
        return id_column or ROW_ID
    return ROW_ID if _made_from(store) == id_column else id_column


def _made_from(store: EmbeddingStore) -> str | None:
    """The column of the texts that a store's ids are from; None where they are places."""
    made = read_run(str(store.folder))
    return None if made is None else made.request["columns"]["id"]


def _request(config: ClassifyConfig, asked: Classification, corpus: Corpus) -> dict[str, Any]:
    """All that decides the rows of the output; a job that goes on must be asked for the same."""
    labelled = None if config.labelled is None else open_corpus([str(config.labelled)])
    return {
        "job": "classify",
        "labels": identify_labels(asked.labels, config.labels_column),
        "input": identify_input(corpus),
        "columns": {
            name: value
            for name, value in asked.columns.__dict__.items()
            if value and (name, value) != ("id_name", "id")
        },
        "threshold": config.threshold,
        "target_precision": config.target_precision,
        "labelled": None if labelled is None else identify_input(labelled),
        "top_k": config.top_k,
        "return_scores": config.return_scores,
        "output_format": config.output_format,
        **asked.backend.identity,
    }


def _embed(
    plan: ClassifyPlan, store: Place, actors: ActorPlan
) -> tuple[ClassifyPlan, dict[str, Any]]:
    """Put the corpus into the store that the user wants to keep; that store is the input then."""
    backend, columns = plan.asked.backend, plan.asked.columns
    assert not isinstance(backend, ServedByEndpoint)
    carried = [*columns.keep, columns.labels, columns.text]
    keep = tuple(dict.fromkeys(name for name in carried if name is not None))
    stored, summary = embed_corpus(
        plan.corpus,
        Columns(text=columns.text, id=columns.id, keep=keep),
        str(store),
        backend.embedder_config,
        actors,
        plan.error_limit,
        plan.commit_rows,
    )
    ids = columns.id if columns.id in keep else ROW_ID
    columns = replace(columns, text=None, embedding="embedding", id=ids, raw_json=False)
    asked = replace(plan.asked, columns=columns)
    return replace(plan, asked=asked, corpus=open_corpus([str(stored.folder)])), summary


def _answer(plan: ClassifyPlan, run: OutputRun, actors: ActorPlan) -> dict[str, Any]:
    """Classify, and sum up."""
    asked = plan.asked
    shards = plan_corpus(plan.corpus, asked.columns)
    stage = asked.stage(actors, plan.output_format, plan.rows_per_file)
    limit, commit_rows = plan.error_limit, plan.commit_rows
    try:
        found = run_stage(run, shards, stage, actors, limit, "classifying", commit_rows)
    except Exception as error:
        if not isinstance(error, InputError):
            log.error("%s: the rows that are done stay; the same command goes on", run.uri)
        raise
    counts, work = found.counts, found.work
    return {
        "output": run.uri,
        **asked.backend.named,
        "rows_in": sum(shard.rows for shard in shards),
        "rows_out": counts.rows,
        **plan.corpus.reading(shards),
        "errors": counts.errors,
        "truncated": counts.truncated,
        "null_labels": counts.null_labels,
        "labels": counts.labels,
        "label_names": asked.label_names,
        "threshold": asked.answer.threshold,
        "scoring": asked.scoring,
        "rows_this_run": found.new_rows,
        "answer_seconds": round(work.seconds, 3),
        "texts_per_second": round(work.rows_per_second, 1),
    }


def _compare(plan: ClassifyPlan, run: OutputRun, summary: dict[str, Any]) -> dict[str, Any]:
    """Where that was asked for, compare the finished output with an earlier one: show it, write
    it beside the rows, and add it to the summary."""
    if plan.previous is None:
        return summary
    previous, old = plan.previous
    new = summary["label_names"]
    label_sets = (old, new) if old and new else None
    found = compare_outputs(previous, run.uri, label_sets, partial(_texts_of, plan))
    print_comparison(found, Console(stderr=True))
    report = comparison_markdown(found)
    write_text(to_place(run.uri) / COMPARISON_FILE, report)
    with _tracker(plan, run, summary.get("mlflow_run_id")) as tracker:
        tracker.log_metrics(found.to_metrics())
        tracker.log_text(report, COMPARISON_FILE.removeprefix("_"))
    return summary | {"comparison": found.to_metrics()}


def _texts_of(plan: ClassifyPlan, ids: list[str]) -> dict[str, str]:
    """The texts of some rows, if the input has them."""
    if plan.text_column is None:
        return {}
    columns = Columns(text=plan.text_column, id=plan.asked.columns.id)
    return read_texts(plan_corpus(plan.corpus, columns), columns, ids)


def _tracker(plan: ClassifyPlan, run: OutputRun, run_id: str | None = None) -> Tracker:
    place, tags = to_place(run.uri), {"job": "classify"}
    return Tracker.open(plan.tracking, run_id, f"classify-{place.name}", tags, place.parent)


def _metrics(summary: dict[str, Any]) -> dict[str, float]:
    names = ("rows_in", "rows_out", "truncated", "null_labels", "seconds", "texts_per_second")
    found = {f"classify/{name}": float(summary[name]) for name in names}
    found["classify/errors"] = float(sum(summary["errors"].values()))
    return found | {f"classify/errors/{k}": float(v) for k, v in summary["errors"].items()}
