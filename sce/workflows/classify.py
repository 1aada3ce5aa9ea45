"""The bulk classification job: its steps, by the plan that its settings are resolved to."""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from sce.bulk.blocks import Stage
from sce.bulk.corpus import FILES_CHECKED, Columns, open_corpus
from sce.bulk.display import print_preview, print_summary
from sce.bulk.matching import id_hashes, refuse_repeated_ids
from sce.bulk.output import OutputRun
from sce.bulk.reading import read_texts
from sce.bulk.unlabelled import FEWEST, Unlabelled, group, to_markdown, to_table
from sce.bulk.vectors import TextVectors
from sce.distributed.backends import ServedByEndpoint
from sce.distributed.embed import embed_corpus
from sce.distributed.engine_choice import choose_workers, early_process
from sce.distributed.one_process import OneProcess
from sce.distributed.stage import Workers, in_tasks, plan_corpus, run_stage
from sce.distributed.trial import (
    FoundThreshold,
    find_cut,
    find_exemplars,
    find_none_threshold,
    find_threshold,
    none_share_of_corpus,
    none_share_of_rows,
    preview,
)
from sce.embedding.settings import EmbedderConfig
from sce.errors import ConfigError, InputError
from sce.storage import Place, filesystem_of, put, readable, to_place, write_text
from sce.workflows.answer_changes import report_changes
from sce.workflows.bulk_input import ROW_ID
from sce.workflows.bulk_plan import ClassifyPlan, resolve
from sce.workflows.bulk_settings import AdaptConfig, ClassifyConfig, within_roots
from sce.workflows.mlflow_data import read_by
from sce.workflows.tracking import Tracker

CONFUSION = "_confusion.png"
"""In the output, where there were labelled rows."""
UNLABELLED = "_unlabelled"
"""In the output, where rows were told that no label fits."""

log = logging.getLogger(__name__)


def classify(config: ClassifyConfig) -> dict[str, Any]:
    """Answer every row of the input.

    Returns:
        The summary: rows_in, rows_out, errors, truncated, null_labels, labels, engine, seconds,
        texts_per_second and what else the output's `_run.json` says; of a dry run, what to expect.

    Raises:
        InputError: as `resolve`; too many rows with errors.
        SCEError: the endpoint gives no answer; what was answered is kept.
    """
    started = time.perf_counter()
    config = within_roots(config)
    if config.adapt:
        config = adapt_first(config)
    with early_process(config.engine, config.resources, _modules(config)) as process:
        plan = resolve(config)
        run = plan.run
        if run is not None and run.summary is not None:
            rows = run.summary["rows_out"]
            log.info("%s: answered before, %d rows; nothing to do", run.uri, rows)
            return _compare(plan, run, run.summary | {"unchanged": True}, None)
        if plan.previous is not None and len(plan.corpus.files) > FILES_CHECKED:
            _refuse_repeated_ids(plan)
        workers = _workers(plan, process)
        if run is None:
            plan, _ = _with_threshold(plan, workers)
            expected = preview(plan.asked, plan.corpus, plan.text_column, workers)
            print_preview(expected, Console(stderr=True))
            return expected.summary()
        return _compare(plan, run, _classify(plan, run, workers, started), workers)


def _modules(config: ClassifyConfig) -> list[str]:
    """What the process is to import that answers: nothing heavy where no model is needed."""
    has_model = config.model is not None and config.endpoint is None
    adapted = config.labels_file is not None and config.labels_file.is_dir()
    return ["sce.predictor"] if has_model and not adapted else []


def _workers(plan: ClassifyPlan, process: OneProcess | None) -> Workers:
    """Who answers. A dry run starts no cluster where there is none."""
    asked = plan.asked
    actors = partial(asked.backend.actor_plan, plan.resources)
    if plan.run is None:
        return process or actors()
    begun, most = plan.run.has_checkpoint, plan.rows_per_file
    return choose_workers(plan.engine, process, plan.corpus, asked.columns, begun, actors, most)


def _with_threshold(
    plan: ClassifyPlan, workers: Workers
) -> tuple[ClassifyPlan, FoundThreshold | None]:
    """The plan with the threshold and the cut that its labelled rows ask for, where it has some."""
    plan = _with_none_share(plan, workers)
    if plan.labelled is None:
        return plan, None
    from sce.evaluation import thresholds

    texts, names, _ = plan.labelled
    options, chosen = plan.asked.options, None
    if plan.target_precision is not None:
        chosen = find_threshold(plan.asked, texts, names, plan.target_precision, workers)
        thresholds.to_terminal(chosen.curve, chosen.choice, Console(stderr=True))
        options = replace(options, threshold=chosen.choice.threshold)
    if plan.coverage is not None:
        cut, left = find_cut(plan.asked, texts, names, plan.coverage, workers)
        said = "labels from a probability of %.4g on (coverage %g), %.1f a row of the labelled ones"
        log.info(said, cut, plan.coverage, left)
        options = replace(options, coverage_cut=cut)
    if plan.none_recall is not None:
        most = find_none_threshold(plan.asked, texts, plan.none_recall, workers)
        log.info("no label above a none_score of %.4g (recall %g)", most, plan.none_recall)
        options = replace(options, none_threshold=most)
    return replace(plan, asked=replace(plan.asked, options=options)), chosen


def _with_none_share(plan: ClassifyPlan, workers: Workers) -> ClassifyPlan:
    """The plan with the `none_share` of an answer at which `none_score` is that often right, by the
    labelled rows that no label fits or by the share of the input that was stated."""
    asked = plan.asked
    if plan.labelled is not None and plan.labelled[2]:
        texts, _, none_texts = plan.labelled
        stated, share = none_share_of_rows(asked, texts, none_texts, workers)
    elif asked.options.none_share is not None:
        stated = asked.options.none_share
        share = none_share_of_corpus(asked, plan.corpus, workers)
    else:
        return plan
    said = "a mean none_score of %.4g: over HTTP and in Python by none_share %.4g"
    log.info(said, stated, share)
    options = replace(asked.options, none_share=share)
    return replace(plan, asked=replace(asked, options=options))


def _classify(
    plan: ClassifyPlan, run: OutputRun, workers: Workers, started: float
) -> dict[str, Any]:
    plan, chosen = _with_threshold(plan, workers)
    if isinstance(workers, OneProcess) and plan.store is None:
        workers.make(_stage(plan, workers).make)  # it loads while MLflow does
    embedded: dict[str, Any] = {}
    with _tracker(plan, run) as tracker:
        tracker.log_params(*plan.settings)
        tracker.log_inputs([read_by(plan.corpus)])
        if plan.store is not None:
            plan, embedded = _embed(plan, plan.store, workers)
            tracker.log_metrics({"embedded_texts_per_second": embedded["texts_per_second"]})
        summary = _answer(plan, run, workers)
        # How the texts were read, where they are answered from the store made of them.
        summary |= {key: embedded[key] for key in ("read_as", "passed_over") if key in embedded}
        summary |= _group_unlabelled(plan, run, summary, workers)
        summary["seconds"] = round(time.perf_counter() - started, 1)
        summary["mlflow_run_id"] = tracker.run_id
        if chosen is not None:
            summary["threshold_choice"] = chosen.choice.headline()
            _log_threshold(plan, run, chosen, tracker)
        run.finish(summary)
        print_summary(summary, plan.output_format, plan.asked.columns.id_name, Console(stderr=True))
        tracker.log_metrics(_metrics(summary))
        tracker.log_dict(summary, "summary.json")
    return summary


def _refuse_repeated_ids(plan: ClassifyPlan) -> None:
    """Of many files in tasks, before the work. Raises `DataError`."""
    columns = plan.asked.columns
    if columns.id is not None:
        shards = plan_corpus(plan.corpus, columns)
        found = in_tasks(id_hashes, [(shard,) for shard in shards], columns)
        refuse_repeated_ids(list(found), columns.id)


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
        *("encoding", "delimiter", "keep_columns", "max_errors", "long_text"),
        *("save_embeddings", "engine", "resources", "tracking"),
    ]
    from sce.workflows.adapt import adapt

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


def _embed(
    plan: ClassifyPlan, store: Place, workers: Workers
) -> tuple[ClassifyPlan, dict[str, Any]]:
    """Put the corpus into the store that the user wants to keep; that store is the input then."""
    backend, columns = plan.asked.backend, plan.asked.columns
    assert not isinstance(backend, ServedByEndpoint)
    carried = [*columns.keep, columns.labels, columns.text]
    keep = tuple(dict.fromkeys(name for name in carried if name is not None))
    stored, summary = embed_corpus(
        plan.corpus,
        Columns(text=columns.text, id=columns.id, keep=keep, some_lack=columns.some_lack),
        str(store),
        backend.embedder_config,
        workers,
        plan.error_limit,
        plan.commit_rows,
        long_text=plan.asked.options.long_text,
    )
    ids = columns.id if columns.id in keep else ROW_ID
    columns = replace(columns, text=None, embedding="embedding", id=ids, raw_json=False)
    columns = replace(columns, chunks=plan.asked.options.long_text == "chunk")
    asked = replace(plan.asked, columns=columns)
    return replace(plan, asked=asked, corpus=open_corpus([str(stored.folder)])), summary


def _stage(plan: ClassifyPlan, workers: Workers) -> Stage:
    return plan.asked.stage(workers, plan.output_format, plan.rows_per_file)


def _answer(plan: ClassifyPlan, run: OutputRun, workers: Workers) -> dict[str, Any]:
    """Classify, and sum up."""
    if plan.exemplars:
        assert plan.text_column is not None
        rows = find_exemplars(plan.asked, plan.corpus, plan.text_column, workers)
        plan = replace(plan, asked=replace(plan.asked, exemplars=rows))
    asked = plan.asked
    shards = plan_corpus(plan.corpus, asked.columns)
    stage = _stage(plan, workers)
    limit, commit_rows = plan.error_limit, plan.commit_rows
    try:
        found = run_stage(run, shards, stage, workers, limit, "classifying", commit_rows)
    except Exception as error:
        if not isinstance(error, InputError):
            log.error("%s: the rows that are done stay; the same command goes on", run.uri)
        raise
    counts, work = found.counts, found.work
    return {
        "output": readable(run.uri),
        **asked.backend.named,
        "rows_in": sum(shard.rows for shard in shards),
        "rows_out": counts.rows,
        **plan.corpus.reading(shards),
        "errors": counts.errors,
        "truncated": counts.truncated,
        "null_labels": counts.null_labels,
        "labels": counts.labels,
        **asked.answered,
        "threshold": asked.options.threshold,
        **({"coverage_cut": cut} if (cut := asked.options.coverage_cut) is not None else {}),
        **({"none_of_these": True} if asked.options.none_of_these else {}),
        **({} if (share := asked.options.none_share) is None else {"none_share": share}),
        **({} if (most := asked.options.none_threshold) is None else {"none_threshold": most}),
        "scoring": asked.scoring,
        **asked.about_mode,
        "engine": "process" if isinstance(workers, OneProcess) else "ray",
        "rows_this_run": found.new_rows,
        "answer_seconds": round(work.seconds, 3),
        "texts_per_second": round(work.rows_per_second, 1),
    }


def _group_unlabelled(
    plan: ClassifyPlan, run: OutputRun, summary: dict[str, Any], workers: Workers
) -> dict[str, Any]:
    """Where it was asked whether any label fits: the rows without one in groups of like texts, as a
    report beside the rows; what the summary says of it."""
    asked = plan.asked
    if not asked.options.none_of_these:
        return {}
    if isinstance(asked.backend, ServedByEndpoint):
        log.info("rows that no label fits are not grouped: an endpoint gives no vectors")
        return {}
    files = [file for number in run.parts for file in run.part_files(number)]
    found = Unlabelled.read(files, plan.output_format, asked.columns.id_name)
    known = _texts_of(plan, found.ids)
    ids = [one for one in found.ids if one in known]
    if len(ids) < FEWEST:
        return {}
    texts = [known[one] for one in ids]
    groups = group(_vectors_of(asked.backend.embedder_config, workers, texts))
    place = to_place(run.uri) / UNLABELLED
    write_text(place / "report.md", to_markdown(found, summary["rows_out"], texts, groups))
    filesystem, path = filesystem_of(place / "unlabelled.parquet")
    pq.write_table(to_table(ids, groups), path, filesystem=filesystem)
    report = readable(str(place / "report.md"))
    return {"unlabelled": {"grouped": len(ids), "groups": len(groups), "report": report}}


def _compare(
    plan: ClassifyPlan, run: OutputRun, summary: dict[str, Any], workers: Workers | None
) -> dict[str, Any]:
    """Where that was asked for, compare the finished output with an earlier one, and add it to the
    summary."""
    if plan.previous is None:
        return summary
    backend, current = plan.asked.backend, (run.uri, summary["label_names"])
    vectors_of = None
    if not isinstance(backend, ServedByEndpoint):
        vectors_of = partial(_vectors_of, backend.embedder_config, workers)
    texts_of = partial(_texts_of, plan)
    separator = summary.get("separator")
    found, report, said = report_changes(plan.previous, current, texts_of, vectors_of, separator)
    with _tracker(plan, run, summary.get("mlflow_run_id")) as tracker:
        tracker.log_metrics(found.to_metrics())
        tracker.log_text(report, "comparison.md")
    return summary | {"comparison": said}


def _log_threshold(
    plan: ClassifyPlan, run: OutputRun, chosen: FoundThreshold, tracker: Tracker
) -> None:
    """The curve, and the labelled rows by right label and by the best label of each, threshold or
    not."""
    from sklearn.metrics import confusion_matrix

    from sce.evaluation import plots, thresholds

    assert plan.labelled is not None
    names = plan.asked.label_names
    assert names is not None
    tracker.log_text(thresholds.to_markdown(chosen.curve, chosen.choice), "threshold.md")
    curve = plots.precision_coverage_figure(chosen.curve, chosen.choice)
    tracker.log_figure(curve, "threshold.png")
    matrix = confusion_matrix(plan.labelled[1], chosen.found, labels=names)
    title = f"{len(chosen.found):,} labelled rows, without a threshold"
    confused = plots.confusion_figure(matrix, names, title)
    tracker.log_figure(confused, "confusion.png")
    place = to_place(run.uri) / CONFUSION
    with tempfile.TemporaryDirectory() as folder:
        put(plots.save(confused, Path(folder) / place.name), place)


def _vectors_of(embedder: EmbedderConfig, workers: Workers | None, texts: list[str]) -> np.ndarray:
    """By the process that has torch loaded, where there is one."""
    make = partial(TextVectors, embedder)
    if isinstance(workers, OneProcess):
        workers.make(make)
        return workers.apply(texts)
    return make()(texts)


def _texts_of(plan: ClassifyPlan, ids: list[str]) -> dict[str, str]:
    """The texts of some rows, if the input has them."""
    if plan.text_column is None:
        return {}
    columns = Columns(text=plan.text_column, id=plan.asked.columns.id)
    return read_texts(plan_corpus(plan.corpus, columns), columns, ids)


def _tracker(plan: ClassifyPlan, run: OutputRun, run_id: str | None = None) -> Tracker:
    place, tags = to_place(run.uri), {"job": "classify"}
    return Tracker.open(plan.tracking, "bulk", run_id, f"classify-{place.name}", tags)


def _metrics(summary: dict[str, Any]) -> dict[str, float]:
    names = ("rows_in", "rows_out", "truncated", "null_labels", "seconds", "texts_per_second")
    found = {name: float(summary[name]) for name in names}
    found["errors"] = float(sum(summary["errors"].values()))
    return found | {f"errors/{k}": float(v) for k, v in summary["errors"].items()}
