"""Measuring a method of an experiment: on the test sets and on the user's own rows."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.text import Text

from sce.datasets.custom import read_label_set
from sce.datasets.labelled import read_labelled
from sce.datasets.prepare import PreparedData, prepare_data
from sce.datasets.settings import CUSTOM
from sce.distributed.embed import embed_prepared
from sce.embedding.embedder import TextEmbedder, load_embedder
from sce.embedding.store import EmbeddingStore, embedding_matrix
from sce.errors import ConfigError, InputError
from sce.evaluation import plots
from sce.evaluation.evaluate import Evaluated, EvaluationSet, Method, evaluate_sets
from sce.evaluation.overview import overview, reliability_curves
from sce.evaluation.report import WIDE_CHARS, to_markdown, to_table, tree_tables
from sce.evaluation.settings import EvaluateConfig
from sce.evaluation.summaries import Result, dataset_metrics, rounded_metrics
from sce.model.calibration import Temperature
from sce.model.label_vectors import TextLookup
from sce.predictor import Predictor
from sce.storage import Place, fetch, relative, replace_folder, write_text
from sce.training.random_keys import some_places
from sce.workflows.evaluate_long_texts import measure_long_texts
from sce.workflows.experiment import Experiment, RunSettings
from sce.workflows.methods import AdaptedMethod, PromptedMethod, SceMethod, SimilarityMethod
from sce.workflows.mlflow_model import find_model
from sce.workflows.mlflow_runs import log_measured, open_run
from sce.workflows.tracking import Tracker, experiment_of, tracking_uri

RESULTS_FILE, METHODS_FILE, PREDICTIONS_FILE = "results.json", "methods.json", "predictions.parquet"
ALL_FILE, REPORT_FILE = "results.md", "report.html"
RELIABILITY_FILE = "reliability.png"
SOURCE_FILE = "labelled.txt"
"""Where the user's rows came from."""
MIN_ROWS_A_LABEL = 10
"""Texts a label of a test set from which its labels are adapted; those of the user always are."""
CORPUS_ROWS = 100_000
"""Texts of a corpus at most that labels are fitted to, drawn by their ids."""

logger = logging.getLogger("sce")


def evaluate(experiment: Experiment) -> dict[str, Any]:
    """Measure the method of an experiment on its test sets or on the user's own rows: the model in
    `model_dir`, or one that needs no training.

    Raises:
        InputError: there is no model, or no rows to measure it on.
    """
    started = time.perf_counter()
    tracking_uri(experiment.tracking)
    trained, model = experiment.method == "sce", experiment.measured_model
    if trained and not (model / "config.json").exists():
        raise InputError(f"there is no model in {model}. jobs/train_sce.py makes one.")
    prepared = prepared_for(experiment)
    labelled = experiment.evaluate.labelled
    folder = experiment.results_dir
    if labelled is not None:
        folder = own_folder(experiment.own_results_dir, labelled)
    sets, methods, adapted = sets_and_methods(experiment, prepared)
    with open_run(experiment, "evaluation", "evaluate") as tracker:
        model_id = None
        if trained:
            trained_in = experiment.tracking.experiment or experiment_of("training")
            model_id = find_model(tracker, trained_in, model)
        results = measure_sets(
            experiment, sets, methods, tracker, folder, adapted, model_id=model_id
        )
    summary: dict[str, Any] = {"model": str(model)} if trained else {"method": experiment.method}
    if experiment.evaluate.long_texts:
        summary["long_texts"] = measure_long_texts(experiment, folder)
    return summary | {
        "results": str(folder),
        "report": str(folder / REPORT_FILE),
        "sets": len(results),
        "test": rounded_metrics(results),
        "mlflow_run_id": tracker.run_id,
        "seconds": round(time.perf_counter() - started, 1),
    }


def own_folder(parent: Place, labelled: Place) -> Place:
    """Where the results on the user's rows go: a folder with the name of their file, or a longer
    one where that has results of another file of the same name."""
    longer = f"{labelled.parent.name}-{labelled.stem}"
    digest = hashlib.sha256(_source(labelled).encode()).hexdigest()[:8]
    for name in (labelled.stem, longer):
        file = parent / name / SOURCE_FILE
        if not file.exists() or file.read_text(encoding="utf-8") == _source(labelled):
            return parent / name
    return parent / f"{labelled.stem}-{digest}"


def record_source(folder: Place, labelled: Place) -> None:
    """Note in a folder of results which rows they are of, for `own_folder`."""
    write_text(folder / SOURCE_FILE, _source(labelled))


def _source(labelled: Place) -> str:
    return str(labelled.resolve())


def prepared_for(experiment: Experiment) -> PreparedData | None:
    """The experiment's data with its vectors up to date; None where the user's rows are all."""
    # Who asks about rows of his own has no wish to wait for all the other sets.
    if experiment.evaluate.labelled is not None and not experiment.evaluate.sets:
        return None
    if experiment.method != "sce" or experiment.evaluate.model is not None:
        prepare_data(experiment.data, experiment.data_dir, experiment.data.seed)
    elif not experiment.data_dir.exists():
        raise InputError(
            f"there is no prepared data in {experiment.data_dir}. Run jobs/prepare_data.py, or "
            "give rows of your own: --evaluate.labelled FILE."
        )
    prepared = PreparedData.load(experiment.data_dir)
    if experiment.method != "prompted":
        folders = experiment.data_dir, experiment.embeddings_dir
        embed_prepared(*folders, experiment.embedder, experiment.resources)
    return prepared


def measure(
    experiment: Experiment,
    prepared: PreparedData,
    training: Tracker,
    embedder: TextEmbedder,
    model_id: str | None,
) -> list[Result]:
    """`measure_sets` of the model that was just trained, on the test sets of `prepared` and on the
    user's own rows, where there are any.

    Args:
        training: the run of the training, which gets the figures by dataset; all else has a run of
            its own, beside those of other methods.
        embedder: the experiment's.
        model_id: of the model in MLflow.
    """
    sets, methods, adapted = sets_and_methods(experiment, prepared, embedder)
    folder = experiment.results_dir
    with open_run(experiment, "evaluation", "evaluate", watched=False) as tracker:
        results = measure_sets(
            experiment, sets, methods, tracker, folder, adapted, model_id=model_id
        )
    training.log_metrics(dataset_metrics(results))
    training.set_tags({"evaluation_run": tracker.run_id})
    return results


def sets_and_methods(
    experiment: Experiment, prepared: PreparedData | None, embedder: TextEmbedder | None = None
) -> tuple[list[EvaluationSet], list[Method], list[Method]]:
    """What is measured, and by what: the experiment's method, beside the one it is compared with;
    and adapted labels. Rows have their vectors where the method reads them."""
    config = experiment.evaluate
    if experiment.method == "prompted":
        validation = validation_sets(prepared, config)
        prompted = PromptedMethod(experiment.prompted, experiment.resources, validation)
        return rows_to_measure(prepared, config), [prompted], []
    embedder = embedder or load_embedder(experiment.embedder)
    store = None
    known: dict[str, np.ndarray] = {}
    if prepared is not None:
        stores = experiment.embeddings_dir
        store = EmbeddingStore.open(stores / "rows")
        labels = EmbeddingStore.open(stores / "labels").read(["text", "embedding"])
        known = dict(zip(labels["text"].to_pylist(), embedding_matrix(labels["embedding"])))
    text_vectors = TextLookup(known, lambda texts: embedder.embed(texts).vectors)
    sets = rows_to_measure(prepared, config, store, embedder)
    if experiment.method == "similarity":
        version = experiment.model.label_vectors
        cosine = SimilarityMethod(embedder, text_vectors, version)
        cosine.calibrate(validation_sets(prepared, config, store))
        methods: list[Method] = [cosine]
    else:
        model_folder = fetch(experiment.measured_model)
        predictor = Predictor.from_pretrained(model_folder, embedder, text_vectors=text_vectors)
        settings = predictor.model.config
        version = settings.label_vectors
        cosine = SimilarityMethod(embedder, text_vectors, version)
        cosine.temperature = Temperature(*settings.cosine_calibration)
        methods = [SceMethod(predictor, model_folder), cosine]
    adapted: list[Method] = []
    if any(rows.corpus_MD is not None for rows in sets):
        for examples in (0, *dict.fromkeys(config.adapted_examples)):
            one = AdaptedMethod(embedder, text_vectors, version, examples, experiment.seed)
            adapted.append(one)
    return sets, methods, adapted


def measure_sets(
    experiment: RunSettings,
    sets: Sequence[EvaluationSet],
    methods: Sequence[Method],
    tracker: Tracker,
    folder: Place,
    adapted: Sequence[Method] = (),
    show: bool = True,
    model_id: str | None = None,
) -> list[Result]:
    """Evaluate methods on the same rows; print the table, write everything to `folder`, log it.
    Returns the results.

    Args:
        experiment: whose name reports call the first method by.
        methods: the one that is measured, and one that it is compared with.
        adapted: methods of adapted labels, measured on the sets that they apply to.
        show: whether the table is printed.
        model_id: in MLflow, of the first method.
    """
    config = experiment.evaluate
    logger.info("measuring %d label sets, %d rows", len(sets), sum(map(len, sets)))
    started = time.perf_counter()
    evaluated = evaluate_sets(sets, methods, config, experiment.seed, adapted)
    results = [e.result for e in evaluated]
    run = {"name": experiment.name, "seed": experiment.seed, "note": config.note}
    described = {method.name: method.describe(sets) | run for method in (*methods, *adapted)}
    logger.info("measured in %.1f s", time.perf_counter() - started)
    _write_results(evaluated, described, experiment, folder)
    console = Console(stderr=True)  # standard output is left to the closing line of JSON
    if show:
        wide = console.width >= WIDE_CHARS
        console.print(to_table(results, wide=wide, caption=config.caption))
        for table in tree_tables(results):
            console.print(table)
        for what, file in (("Every set", ALL_FILE), ("To look at", REPORT_FILE)):
            console.print(Text(f"{what}: {relative(folder / file)}"), soft_wrap=True)
    main = described[methods[0].name]
    log_measured(tracker, experiment, sets, results, main, folder, model_id)
    return results


def _write_results(
    evaluated: Sequence[Evaluated],
    described: Mapping[str, Any],
    experiment: RunSettings,
    folder: Place,
) -> None:
    """Everything that a comparison and a reader want of a run, whole or not at all."""
    config, results = experiment.evaluate, [e.result for e in evaluated]
    with replace_folder(folder, RESULTS_FILE) as new:
        for name, value in ((RESULTS_FILE, results), (METHODS_FILE, described)):
            (new / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        (new / ALL_FILE).write_text(to_markdown(results, show_all=True), encoding="utf-8")
        page = overview(experiment.name, evaluated, described, config.report_texts)
        (new / REPORT_FILE).write_text(page, encoding="utf-8")
        pq.write_table(pa.concat_tables(e.predictions for e in evaluated), new / PREDICTIONS_FILE)
        if config.labelled is not None:
            record_source(new, config.labelled)
        if config.pictures:
            figure = plots.reliability_figure(reliability_curves(evaluated), experiment.name)
            plots.save(figure, new / RELIABILITY_FILE)
        for one in evaluated:
            if config.pictures and one.result["information"] == "all":
                title = one.result["name"]
                figure = plots.confusion_figure(one.confusion_KK, one.label_names, title)
                plots.save(figure, new / "confusion" / f"{title.replace('/', '_')}.png")


def rows_to_measure(
    prepared: PreparedData | None,
    config: EvaluateConfig,
    store: EmbeddingStore | None = None,
    embedder: TextEmbedder | None = None,
) -> list[EvaluationSet]:
    """The user's own rows and the test sets, with vectors where there is a store and an embedder,
    and then with the texts to adapt to.

    Raises:
        InputError: there are none; a corpus is given and no method reads vectors, or it has fewer
            texts than a set has labels.
        FingerprintMismatch: the corpus was embedded by another embedder.
    """
    corpus_MD = None
    if config.corpus is not None:
        if embedder is None:
            raise ConfigError("evaluate.corpus: this method reads texts and adapts no labels.")
        corpus_MD = _vectors_of(EmbeddingStore.open(config.corpus).require(embedder.fingerprint))
    sets = []
    if config.labelled is not None:
        sets.append(_own_set(config, embedder, corpus_MD))
    if prepared is not None:
        sets += _test_sets(prepared, store, config, corpus_MD)
    if not sets:
        raise InputError("there are no test rows to measure the model on.")
    for one in sets:
        if one.corpus_MD is not None and len(one.corpus_MD) < len(one.label_set):
            raise InputError(
                f"evaluate.corpus: {config.corpus} has {len(one.corpus_MD)} texts, fewer than the "
                f"{len(one.label_set)} labels of {one.name!r}. Give a larger corpus."
            )
    return sets


def _vectors_of(store: EmbeddingStore) -> np.ndarray:
    """The vectors of the texts of a store, float32 [M, D], of at most `CORPUS_ROWS` of them."""
    has_errors, tables = "error" in store.column_names(), []
    for part in store.manifest.parts:
        tables.append(store.read_part(part, ["row_id", *["error"] * has_errors]))
    rows = pa.concat_tables(tables)
    fine_M = np.ones(len(rows), bool)
    if has_errors:
        fine_M = pc.equal(pc.fill_null(rows["error"], ""), "").to_numpy()
    places = np.flatnonzero(fine_M)
    ids = [str(row_id) for row_id in rows["row_id"].take(places).to_pylist()]
    places = places[some_places(ids, CORPUS_ROWS)]
    found, first = [], 0
    for part, table in zip(store.manifest.parts, tables, strict=True):
        mine = places[(places >= first) & (places < first + len(table))] - first
        first += len(table)
        found.append(embedding_matrix(store.read_part(part, ["embedding"])["embedding"])[mine])
    return np.concatenate(found)


def validation_sets(
    prepared: PreparedData | None, config: EvaluateConfig, store: EmbeddingStore | None = None
) -> list[EvaluationSet]:
    """At most `calibration_rows` validation rows, to fit a temperature on."""
    if prepared is None or not config.calibration_rows:
        return []
    table = _some(prepared.select("validation", several=False), config.calibration_rows)
    return _sets_of(prepared, table, store)


def _test_sets(
    prepared: PreparedData,
    store: EmbeddingStore | None,
    config: EvaluateConfig,
    corpus_MD: np.ndarray | None = None,
) -> list[EvaluationSet]:
    """Every label set with test rows, or those that `sets` names by set or dataset; with the texts
    to adapt to, those given or where there are enough a label the set's own."""
    table = prepared.select("test", several=False)
    names, datasets = table["label_set"].to_pylist(), table["dataset"].to_pylist()
    known = {*names, *datasets}
    for name in config.sets:
        if name not in known:
            raise ConfigError(
                f"evaluate.sets: {name!r} has no test rows. These have: {', '.join(sorted(known))}."
            )
    if config.sets:
        wanted = pa.array(config.sets)
        table = table.filter(
            pc.or_(pc.is_in(table["label_set"], wanted), pc.is_in(table["dataset"], wanted))
        )
    sets = _sets_of(prepared, table, store, config.rows_per_set)
    if not config.adapted or store is None:
        return sets
    if corpus_MD is not None:
        return [replace(one, corpus_MD=corpus_MD) for one in sets]
    found, vectors = [], dict[tuple[str, ...], np.ndarray]()
    for one in sets:
        ids = tuple(prepared.corpus(one.name))
        if len(one.label_set) > 1 and len(ids) >= MIN_ROWS_A_LABEL * len(one.label_set):
            ids = tuple(ids[i] for i in some_places(ids, CORPUS_ROWS))
            if ids not in vectors:  # several label sets of one corpus
                vectors[ids] = store.vectors_for(ids)
            one = replace(one, corpus_MD=vectors[ids])
        found.append(one)
    return found


def _sets_of(
    prepared: PreparedData,
    table: pa.Table,
    store: EmbeddingStore | None,
    rows_per_set: int | None = None,
) -> list[EvaluationSet]:
    """Rows by label set, in the order of their names."""
    sets = []
    for name in sorted(set(table["label_set"].to_pylist())):
        members = _some(table.filter(pc.equal(table["label_set"], name)), rows_per_set).to_pydict()
        ids = members["row_id"]
        group = "seen" if name in prepared.seen_label_sets else "unseen"
        label_set, texts, labels = prepared.label_sets[name], members["text"], members["label"]
        vectors_ND = None if store is None else store.vectors_for(ids)
        dataset = members["dataset"][0]
        own = prepared.manifest["sources"].get(dataset, {}).get("dataset") == CUSTOM
        found = EvaluationSet(name, dataset, group, label_set, ids, texts, labels, vectors_ND)
        sets.append(replace(found, own=own))
    return sets


def _some(table: pa.Table, limit: int | None) -> pa.Table:
    """At most `limit` rows, the same for every method and seed."""
    return table.take(some_places(table["row_id"].to_pylist(), limit))


def _own_set(
    config: EvaluateConfig, embedder: TextEmbedder | None, corpus_MD: np.ndarray | None
) -> EvaluationSet:
    assert config.labelled is not None
    file, label_set = config.labelled_labels, None
    if file is not None:
        label_set, _ = read_label_set(file)
    texts, names, label_set = read_labelled(
        config.labelled, config.text_column, config.label_column, label_set
    )
    places = some_places([str(i) for i in range(len(texts))], config.rows_per_set)
    vectors_ND, name = None, config.labelled.stem
    if embedder is not None:
        own = config.adapted and corpus_MD is None
        embedded = range(len(texts)) if own else places  # all of them are the corpus
        vectors_ND = embedder.embed([texts[i] for i in embedded]).vectors
        if own:
            distinct = len({vector_D.tobytes() for vector_D in vectors_ND})
            if len(label_set) > 1 and distinct >= len(label_set):
                corpus_MD = vectors_ND
            else:
                message = "%s: labels are not adapted: %d labels, %d different texts"
                logger.warning(message, name, len(label_set), distinct)
            vectors_ND = vectors_ND[places]
    ids, labels = [str(i) for i in places], [names[i] for i in places]
    texts = [texts[i] for i in places]
    found = EvaluationSet(name, "own", "own", label_set, ids, texts, labels, vectors_ND, corpus_MD)
    return replace(found, own=True)
