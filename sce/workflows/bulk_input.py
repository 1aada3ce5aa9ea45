"""What a bulk job is asked: labels, input, columns and an earlier output, read and checked before
anything that takes seconds to load. Without torch, Ray and MLflow."""

from __future__ import annotations

from dataclasses import dataclass

from sce.adaptation.artefact import AdaptedLabels
from sce.bulk.classifier import own_columns
from sce.bulk.corpus import (
    FILES_CHECKED,
    Columns,
    Corpus,
    check_columns,
    column_names,
    join_plans,
    open_corpus,
    plan_files,
)
from sce.bulk.matching import id_hashes, refuse_repeated_ids
from sce.bulk.output import read_run
from sce.bulk.reading import kept_name
from sce.bulk.table_csv import SEPARATOR
from sce.config import check_writable, resolve_output
from sce.datasets.custom import read_label_set
from sce.datasets.labelled import read_labelled, read_with_none
from sce.datasets.text_form import TextForm
from sce.embedding.store import STORE_NAMES, EmbeddingStore
from sce.errors import ConfigError, InputError
from sce.labels import LabelSet
from sce.model.label_tree import LabelTree, tree_of
from sce.storage import Place, to_place
from sce.workflows.bulk_settings import (
    ClassifyConfig,
    answer_options,
    check_model,
    check_together,
    renamed_labels,
    within_roots,
)

ROW_ID = "row_id"


@dataclass(frozen=True)
class BulkInput:
    """What the settings of a job name, read and checked. `read_input` makes it.

    Attributes:
        labels: one set for all rows, as it is or adapted; or with a column of labels what is known
            of some, or None.
        labelled: texts and their labels, to find a threshold or cut on; and texts that none of
            the labels fits.
        previous: an earlier output to compare with, its labels where they are known, and which of
            them were renamed.
    """

    labels: LabelSet | AdaptedLabels | None
    corpus: Corpus
    columns: Columns
    labelled: tuple[list[str], list[str], list[str]] | None
    previous: tuple[str, list[str] | None, dict[str, str]] | None


def read_input(config: ClassifyConfig) -> BulkInput:
    """Read, parse and check what can be before the model. Nothing is written.

    Raises:
        InputError: settings, labels or input that cannot be used; a folder that cannot be written.
    """
    config = within_roots(config)
    labels = _read_labels(config)
    check_model(config, isinstance(labels, AdaptedLabels))
    check_together(config)
    _check_names(config, labels)
    previous = None
    if config.compare_to is not None:
        previous = _previous_output(config, config.compare_to, tree_of(labels))
    for name in ("output", "save_embeddings"):
        if (place := getattr(config, name)) is not None:
            check_writable(resolve_output(place), name)
    form = TextForm(config.encoding, config.delimiter)
    corpus = open_corpus(config.input, form)
    if corpus.store is not None and config.save_embeddings is not None:
        raise ConfigError("save_embeddings: the input is an embedding store already.")
    columns = _columns(config, corpus, labels)
    check_columns(corpus, columns)
    if previous is not None and columns.id is not None and len(corpus.files) <= FILES_CHECKED:
        files = [(file, number) for number, file in enumerate(corpus.files)]
        shards = join_plans(plan_files(files, columns))
        refuse_repeated_ids([id_hashes(shard, columns) for shard in shards], columns.id)
    labelled = None
    if config.labelled is not None:
        known = labels.label_set if isinstance(labels, AdaptedLabels) else labels
        read = (config.labelled, config.text_column, config.label_column)
        if config.none_label is not None:
            assert known is not None  # there is no column of labels beside labelled rows
            labelled = read_with_none(*read, known, config.none_label)
        else:
            labelled = (*read_labelled(*read, known)[:2], [])
    return BulkInput(labels, corpus, columns, labelled, previous)


def _check_names(config: ClassifyConfig, labels: LabelSet | AdaptedLabels | None) -> None:
    """Refuse names that nobody could tell apart in a CSV that has several of them in a field."""
    several = config.mode == "multi" or config.coverage is not None
    if config.output_format != "csv" or labels is None or config.labels_column is not None:
        return
    if not several and config.coverage_cut is None:
        return
    known = labels.label_set if isinstance(labels, AdaptedLabels) else labels
    for name in known.names:
        if SEPARATOR in name:
            raise ConfigError(
                f"labels: {name!r} holds {SEPARATOR!r}, which stands between a row's labels in a "
                "CSV. Give --output-format parquet or jsonl, or another name."
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
        found = read_label_set(config.labels_file)[0]
        if isinstance(found, LabelTree) and config.labels_column is not None:
            raise ConfigError("labels_column: a tree is one set for all rows.")
        return found
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


def _previous_output(
    config: ClassifyConfig, place: Place, tree: LabelTree | None
) -> tuple[str, list[str] | None, dict[str, str]]:
    if not place.is_dir():
        raise ConfigError(f"compare_to: there is no folder {place}.")
    run = read_run(str(place))
    if run is not None and run.summary is None:
        raise ConfigError(f"compare_to: the job that writes {place} is unfinished.")
    labels = run.summary["label_names"] if run and run.summary else None
    renamed = renamed_labels(config)
    for name in renamed:
        # In a tree also a node: all that is below it has its new path.
        node = None if tree is None else name + tree.separator
        is_node = node is not None and any(label.startswith(node) for label in labels or ())
        if labels is not None and name not in labels and not is_node:
            raise ConfigError(f"renamed: {name!r} is none of the labels of {place}.")
    return str(place), labels, renamed


def _columns(
    config: ClassifyConfig, corpus: Corpus, labels: LabelSet | AdaptedLabels | None
) -> Columns:
    store = corpus.store
    embedding = config.embedding_column if store is None else "embedding"
    chunked = config.long_text == "chunk"
    if chunked and store is not None:
        store.require_chunks()
    if chunked and (config.embedding_column or (config.endpoint and store is not None)):
        what = "embedding_column" if config.embedding_column else "endpoint"
        raise ConfigError(f"long_text: with {what}, chunks are made of texts. Give texts.")
    keep, all_kept = list(config.keep_columns), config.keep_columns == ["*"]
    if all_kept:  # named, so that a resumed run knows what it kept
        left_out = {config.embedding_column, *(() if store is None else STORE_NAMES)}
        keep = [name for name in column_names(corpus) if name not in left_out]
    elif "*" in keep:
        raise ConfigError("keep_columns: '*' is every column already; give nothing beside it.")
    id_name = config.id_column or (None if store is None else _made_from(store)) or "id"
    own = own_columns(answer_options(config, labels), None if config.labels_column else labels)
    return Columns(
        text=config.text_column if embedding is None else None,
        embedding=embedding,
        id=config.id_column if store is None else _store_id(config.id_column, store),
        labels=config.labels_column,
        chunks=chunked and store is not None,
        keep=tuple(name for name in dict.fromkeys(keep) if name != config.id_column),
        some_lack=all_kept,
        raw_json=config.output_format == "jsonl" and corpus.kind == ".jsonl",
        id_name=kept_name(id_name, own),
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
