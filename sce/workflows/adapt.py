"""The adaptation job: labels fitted to a corpus, their report, and what it is resumed from."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from sce.adaptation.adapt import finish
from sce.adaptation.artefact import AdaptedLabels
from sce.adaptation.fit import Fitter, Start
from sce.adaptation.illustration import Illustration, illustrate
from sce.adaptation.progress import restore, to_arrays
from sce.adaptation.report import metrics
from sce.adaptation.settings import AdaptSettings
from sce.bulk.corpus import Columns, Corpus, check_columns, open_corpus
from sce.bulk.counts import ErrorLimit
from sce.bulk.output import FolderLock, OutputRun
from sce.bulk.request import identify_model
from sce.config import resolve_output
from sce.datasets.custom import read_label_set
from sce.datasets.labelled import read_labelled
from sce.datasets.text_form import TextForm
from sce.distributed.adapt import ShownRows, StoreSums
from sce.distributed.embed import embed_corpus, embedder_of
from sce.distributed.engine_choice import choose_workers, early_process
from sce.distributed.resources import embed_actors
from sce.distributed.stage import ACTOR_CPUS
from sce.embedding.embedder import load_embedder
from sce.embedding.fingerprint import EmbedderFingerprint
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import EmbeddingStore
from sce.errors import ConfigError, DataError
from sce.labels import LabelSet
from sce.model.label_vectors import LABEL_VECTORS, TextLookup
from sce.model.rejection import STAND_IN, Rejection
from sce.storage import Place, fetch, put, remove, to_place, write_text
from sce.workflows.adaptation_report import (
    ARTIFACTS,
    TO_LABEL_FILE,
    Commands,
    to_terminal,
    write_report,
)
from sce.workflows.bulk_settings import AdaptConfig
from sce.workflows.cli import typed
from sce.workflows.mlflow_data import read_by
from sce.workflows.mlflow_runs import log_settings
from sce.workflows.tracking import Tracker

STATE_FILE, REQUEST_FILE = "rounds.npz", "request.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaptPlan:
    """What the job does: its settings read, parsed and checked. `resolve` makes it.

    Attributes:
        store: of the corpus; None where its texts are to be embedded into `embed_into`.
        labelled: texts and their labels by name.
        version: of the labels' vectors.
        model: its id; None without one.
        rejection: its coefficients of the probability that no label fits.
    """

    output: Place
    corpus: Corpus
    store: EmbeddingStore | None
    embed_into: Place
    label_set: LabelSet
    shares: Mapping[str, float]
    labelled: tuple[list[str], list[str]]
    embedder: EmbedderConfig
    version: int
    model: str | None
    rejection: Rejection
    settings: AdaptSettings


def resolve(config: AdaptConfig) -> AdaptPlan:
    """Read, parse and check all that the settings name; nothing is written, no cluster joined.

    Raises:
        InputError: settings, labels, labelled rows or an input that cannot be used.
    """
    if config.output is None:
        raise ConfigError("output: give a folder for the adapted labels.")
    output = resolve_output(config.output)
    label_set, shares = _read_labels(config)
    if len(label_set) < 2:
        raise ConfigError("labels: there is one label; two are needed for a corpus to tell apart.")
    _check_output(output, config)
    corpus = open_corpus(config.input, TextForm(config.encoding, config.delimiter))
    if corpus.store is None:
        check_columns(corpus, _columns(config))
    store, model, version, rejection = corpus.store, None, LABEL_VECTORS, STAND_IN
    if config.model is not None:
        model_config, model = identify_model(config.model)
        version = model_config.label_vectors
        rejection = Rejection(*model_config.rejection) if model_config.rejection else STAND_IN
        trained_with = EmbedderFingerprint.from_dict(model_config.embedder or {})
        embedder = embedder_of(config.embedder, trained_with)
        if store is not None:
            store.require(trained_with)
    elif store is not None:
        made_by = EmbedderFingerprint.from_dict(store.manifest.embedder)
        embedder = embedder_of(config.embedder, made_by)
    else:
        embedder = config.embedder or EmbedderConfig()
    if store is not None and config.save_embeddings is not None:
        raise ConfigError("save_embeddings: the input is an embedding store already.")
    labelled: tuple[list[str], list[str]] = ([], [])
    if config.labelled is not None:
        texts, names, _ = read_labelled(
            config.labelled, config.text_column, config.label_column, label_set
        )
        labelled = texts, names
    settings = AdaptSettings(**{n: getattr(config, n) for n in AdaptSettings.model_fields})
    into = resolve_output(config.save_embeddings or to_place(f"{output}-embedded"))
    return AdaptPlan(
        output,
        corpus,
        store,
        into,
        label_set,
        shares,
        labelled,
        embedder,
        version,
        model,
        rejection,
        settings,
    )


def adapt(config: AdaptConfig) -> dict[str, Any]:
    """Fit labels to a corpus.

    Returns:
        The summary: output, labels, rows, fitted_rows, trust, adapted, changed, agreement,
        temperature, seconds; and `unchanged` where that was done before.

    Raises:
        InputError: as `resolve`; a corpus from which nothing can be read; another job at work on
            the same output.
    """
    started = time.perf_counter()
    plan = resolve(config)
    name, tags = f"adapt-{plan.output.name}", {"job": "adapt"}
    store = plan.store or _embed(plan, config)
    request = _request(plan, store)
    done = _done_before(plan, request)
    if done is not None:
        log.info("%s: fitted before to the same rows and labels; nothing to do", plan.output)
        return _summary(plan, done, started, store) | {"unchanged": True}
    with (
        _alone(plan.output),
        Tracker.open(config.tracking, "bulk", None, name, tags) as tracker,
    ):
        log_settings(tracker, config)
        tracker.log_inputs([read_by(plan.corpus)])
        adapted, illustration = _fit(plan, config, store, request)
        commands = _commands(config, plan.output, store)
        labelled = list(zip(*plan.labelled))
        adapted.save(
            plan.output,
            lambda new: write_report(new, adapted, illustration, commands, labelled),
        )
        remove(_state_folder(plan.output))
        tracker.log_metrics(metrics(adapted.report))
        for file in ARTIFACTS:
            folder = "report/charts" if file == "charts" else "report"
            tracker.log_artifact(plan.output / file, folder)
        to_terminal(adapted, illustration, commands, Console(stderr=True))
        return _summary(plan, adapted, started, store) | {"mlflow_run_id": tracker.run_id}


def _read_labels(config: AdaptConfig) -> tuple[LabelSet, dict[str, float]]:
    if config.labels and config.labels_file is not None:
        raise ConfigError("give the labels either with --labels or with --labels-file.")
    if config.labels:
        return LabelSet.parse(config.labels, "--labels"), {}
    if config.labels_file is None:
        raise ConfigError("give labels: --labels or --labels-file.")
    if AdaptedLabels.is_at(config.labels_file):
        raise ConfigError(
            f"labels_file: {config.labels_file} holds adapted labels already. Give the labels that "
            "they were made from."
        )
    return read_label_set(config.labels_file)


def _check_output(output: Place, config: AdaptConfig) -> None:
    """A folder of something else, and rows that were labelled by hand, are not written over."""
    if not output.exists():
        return
    if not output.is_dir() or (any(output.iterdir()) and not AdaptedLabels.is_at(output)):
        raise ConfigError(f"output: {output} holds something else. Give a new folder.")
    file = output / TO_LABEL_FILE
    if config.labelled is None and file.is_file():
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        try:
            filled = sum(bool(json.loads(line).get("label")) for line in lines)
        except (ValueError, AttributeError):
            filled = len(lines)
        if filled:
            raise ConfigError(
                f"output: {file} has {filled} row(s) that you labelled. Give --labelled {file}, or "
                "a new folder."
            )


def _columns(config: AdaptConfig) -> Columns:
    """Of texts that are to be embedded."""
    keep = tuple(dict.fromkeys([*config.keep_columns, config.text_column]))
    return Columns(text=config.text_column, id=config.id_column, keep=keep)


def _embed(plan: AdaptPlan, config: AdaptConfig) -> EmbeddingStore:
    columns, resources = _columns(config), config.resources
    actors = partial(embed_actors, resources, default_cpus=ACTOR_CPUS)
    begun = OutputRun(str(plan.embed_into), {}).has_checkpoint
    with early_process(config.engine, resources, ["sce.embedding.embedder"]) as process:
        store, _ = embed_corpus(
            plan.corpus,
            columns,
            plan.embed_into,
            plan.embedder,
            lambda: choose_workers(config.engine, process, plan.corpus, columns, begun, actors),
            ErrorLimit.parse(config.max_errors),
            long_text=config.long_text,
        )
    return store


def _request(plan: AdaptPlan, store: EmbeddingStore) -> str:
    """A hash of all that decides the fit."""
    content = {
        "labels": plan.label_set.fingerprint,
        "shares": dict(sorted(plan.shares.items())),
        "labelled": sorted(zip(*plan.labelled)),
        "store": [store.manifest.source, store.manifest.rows],
        "embedder": store.manifest.embedder["id"],
        "label_vectors": plan.version,
        "rejection": astuple(plan.rejection),
        "settings": plan.settings.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _done_before(plan: AdaptPlan, request: str) -> AdaptedLabels | None:
    if not AdaptedLabels.is_at(plan.output):
        return None
    try:
        found = AdaptedLabels.load(plan.output)
    except DataError:
        return None  # damaged: it is made anew
    same_order = found.names == plan.label_set.names
    return found if found.facts["corpus"].get("request") == request and same_order else None


def _fit(
    plan: AdaptPlan, config: AdaptConfig, store: EmbeddingStore, request: str
) -> tuple[AdaptedLabels, Illustration]:
    embedder = load_embedder(plan.embedder)
    text_vectors = TextLookup({}, lambda texts: embedder.embed(texts).vectors)
    texts, names = plan.labelled
    labelled = (text_vectors(texts), names) if texts else None
    start = Start.of(
        plan.label_set,
        text_vectors,
        plan.version,
        labelled,
        plan.shares,
        plan.settings.labelled_weight,
    )
    has_text = config.text_column in store.column_names()
    columns = Columns(
        text=None,
        embedding="embedding",
        id=_id_column(config, store),
        keep=(config.text_column,) if has_text else (),
    )
    corpus = open_corpus([str(store.folder)])
    sample_rows, resources = plan.settings.sample_rows, config.resources
    sums = StoreSums(corpus, store, columns, sample_rows, resources, config.engine)
    fitter = Fitter.of(start, plan.settings)
    _go_on(fitter, plan.output, request)
    while fitter.step(sums.add_up):
        _keep(fitter, plan.output, request)
    shown = sums.shown()
    facts = {
        "source": store.manifest.source,
        "request": request,
        "rows": sums.rows,
        "fitted_rows": sums.fitted_rows,
    }
    given = None if plan.model is None else {"id": plan.model}
    file = {}
    if config.labels_file is not None:
        path = str(resolve_output(config.labels_file))
        file = {"path": path, "fingerprint": plan.label_set.fingerprint}
    adapted = finish(
        fitter,
        sums.add_up,
        shown.vectors_SD,
        plan.label_set,
        store.manifest.embedder,
        plan.version,
        facts,
        given,
        file,
        plan.rejection,
    )
    return adapted, _illustrate(adapted, start, shown, texts)


def _illustrate(
    adapted: AdaptedLabels, start: Start, shown: ShownRows, labelled: list[str]
) -> Illustration:
    own_KD = start.own_vectors()[np.argsort(adapted.label_set.canonical_order)]
    return illustrate(adapted, shown.ids, shown.texts, shown.vectors_SD, own_KD, labelled)


def _id_column(config: AdaptConfig, store: EmbeddingStore) -> str:
    named = config.id_column
    return named if named is not None and named in store.column_names() else "row_id"


def _state_folder(output: Place) -> Place:
    return output.parent / f".{output.name}.rounds"


@contextmanager
def _alone(output: Place) -> Iterator[None]:
    """The lock of an output, which lies beside it: what is there stays whole until the new is."""
    folder = _state_folder(output)
    try:
        with FolderLock(str(folder)):
            yield
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            remove(folder)


def _keep(fitter: Fitter, output: Place, request: str) -> None:
    """Write down what the rounds so far have found; the request last, which says it is whole."""
    folder = _state_folder(output)
    (folder / REQUEST_FILE).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / STATE_FILE
        np.savez(file, **to_arrays(fitter))  # type: ignore[arg-type]
        put(file, folder / STATE_FILE)
    write_text(folder / REQUEST_FILE, json.dumps({"request": request}))


def _go_on(fitter: Fitter, output: Place, request: str) -> None:
    """Where an earlier run of the same request was cut short, begin after its last round."""
    folder = _state_folder(output)
    if not (folder / REQUEST_FILE).is_file():
        return
    if json.loads((folder / REQUEST_FILE).read_text(encoding="utf-8"))["request"] != request:
        return
    with np.load(io.BytesIO(fetch(folder / STATE_FILE).read_bytes())) as arrays:
        restore(fitter, dict(arrays))
    log.info("going on after round %d, where an earlier run ended", fitter.rounds_done)


def _commands(config: AdaptConfig, output: Place, store: EmbeddingStore) -> Commands:
    given = [f"--input {shlex.quote(one)}" for one in config.input]
    if config.labels_file is not None:
        given.append(f"--labels-file {shlex.quote(str(config.labels_file))}")
    given += [f"--labels {shlex.quote(name)}" for name in config.labels]
    if config.model is not None:
        given.append(f"--model {shlex.quote(config.model)}")
    folder = shlex.quote(str(config.output))
    adapt = f"{typed('adapt')} {' '.join(given)} --output {folder}"
    if config.save_embeddings is not None:
        adapt += f" --save-embeddings {shlex.quote(str(config.save_embeddings))}"
    classify = (
        f"{typed('classify')} --input {shlex.quote(str(store.folder))} --labels-file {folder} "
        f"--output {folder}-answers"
    )
    return Commands(str(config.output), adapt, classify)


def _summary(
    plan: AdaptPlan, adapted: AdaptedLabels, started: float, store: EmbeddingStore
) -> dict[str, Any]:
    report = adapted.report
    names = ("rows", "fitted_rows", "adapted", "trust", "why", "changed", "agreement")
    return {
        "output": str(plan.output),
        "store": str(store.folder),
        "adapted_labels": adapted.id,
        "labels": len(adapted),
        **{name: report[name] for name in names},
        "temperature": adapted.temperature,
        "seconds": round(time.perf_counter() - started, 1),
    }
