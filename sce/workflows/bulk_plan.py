"""What a bulk classification job does: its settings, read, parsed and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sce.adaptation.artefact import AdaptedLabels
from sce.bulk.answering import Endpoint
from sce.bulk.classifier import own_columns
from sce.bulk.corpus import Corpus, open_corpus
from sce.bulk.counts import ErrorLimit
from sce.bulk.output import OutputFormat, OutputRun
from sce.bulk.request import identify_embedder, identify_input, identify_labels
from sce.config import resolve_output
from sce.distributed.backends import AdaptedAlone, Classification, LocalModel, ServedByEndpoint
from sce.distributed.settings import Engine, ResourcesConfig
from sce.embedding.fingerprint import check_fingerprint
from sce.model.options import PATH_COLUMN
from sce.storage import Place
from sce.workflows.bulk_input import read_input
from sce.workflows.bulk_settings import ClassifyConfig, answer_options
from sce.workflows.tracking import TrackingConfig


@dataclass(frozen=True)
class ClassifyPlan:
    """What a job does: its settings read, parsed and checked. `resolve` makes it.

    Attributes:
        asked: which model, labels and columns answer a row; its threshold may yet be found.
        corpus: the files of the input.
        text_column: of the input, to show texts; None where it has none.
        run: the output, begun or to be continued; None for a dry run.
        labelled: texts and their labels, to find a threshold or cut on; and texts that none of
            the labels fits.
        target_precision: that a threshold has to reach on them.
        none_recall: share of them that have to keep their label where rows may have none.
        coverage: share of them whose right label has to be among those that a cut leaves.
        exemplars: whether rows of the corpus are among an answer's reasons.
        store: where to keep embeddings, to classify from there; None to keep none.
        previous: an earlier output to compare with, its labels where they are known, and which of
            them were renamed.
        settings: for the tracker: those that the user chose, and all.
    """

    asked: Classification
    corpus: Corpus
    text_column: str | None
    run: OutputRun | None
    output_format: OutputFormat
    rows_per_file: int | None
    commit_rows: int
    error_limit: ErrorLimit
    labelled: tuple[list[str], list[str], list[str]] | None
    target_precision: float | None
    coverage: float | None
    none_recall: float | None
    exemplars: bool
    store: Place | None
    previous: tuple[str, list[str] | None, dict[str, str]] | None
    engine: Engine
    resources: ResourcesConfig
    tracking: TrackingConfig
    settings: tuple[dict[str, Any], dict[str, Any]]


def resolve(config: ClassifyConfig) -> ClassifyPlan:
    """Read, parse and check all that the settings name. Nothing is written and no cluster joined.

    Raises:
        InputError: as `read_input`; a model, embedder or store that cannot be used; an output that
            another request wrote.
        SCEError: the endpoint gives no answer.
    """
    given = read_input(config)
    corpus, labels = given.corpus, given.labels
    backend = _backend(config, labels if isinstance(labels, AdaptedLabels) else None, corpus)
    if corpus.store is not None:
        corpus.store.require(backend.embedder)
    options = answer_options(config, labels)
    asked = Classification(backend, labels, given.columns, options)
    has_text = config.embedding_column is None and (
        corpus.store is None or config.text_column in corpus.store.column_names()
    )
    in_store = corpus.store is not None or config.save_embeddings is not None
    exemplars = options.explain and has_text and in_store and options.long_text == "truncate"
    exemplars = exemplars and config.labels_column is None
    run = None
    if config.output is not None and not config.dry_run:
        uri = str(resolve_output(config.output))
        request = _request(config, asked, corpus, uri) | ({"exemplars": True} if exemplars else {})
        run = OutputRun.open(uri, request)
    return ClassifyPlan(
        asked=asked,
        corpus=corpus,
        text_column=config.text_column if has_text else None,
        run=run,
        output_format=config.output_format,
        rows_per_file=config.rows_per_file,
        commit_rows=config.commit_rows,
        error_limit=ErrorLimit.parse(config.max_errors),
        labelled=given.labelled,
        target_precision=config.target_precision,
        coverage=config.coverage,
        none_recall=config.none_recall,
        exemplars=exemplars,
        store=config.save_embeddings,
        previous=given.previous,
        engine=config.engine,
        resources=config.resources,
        tracking=config.tracking,
        settings=(
            config.model_dump(mode="json", exclude_defaults=True, exclude={"tracking"}),
            config.model_dump(mode="json") | {"keep_columns": list(given.columns.keep)},
        ),
    )


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


def _request(
    config: ClassifyConfig, asked: Classification, corpus: Corpus, uri: str
) -> dict[str, Any]:
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
        **asked.options.several_given(),
        "threshold": config.threshold,
        "target_precision": config.target_precision,
        "labelled": None if labelled is None else identify_input(labelled),
        **({} if config.coverage is None else {"coverage": config.coverage}),
        **({} if config.none_recall is None else {"none_recall": config.none_recall}),
        **({} if config.none_label is None else {"none_label": config.none_label}),
        "top_k": config.top_k,
        "return_scores": config.return_scores,
        "output_format": config.output_format,
        **({"pooling": pooling} if (pooling := asked.options.scoring.pooling) else {}),
        **asked.options.newer(),
        **({PATH_COLUMN: True} if PATH_COLUMN in own_columns(asked.options, asked.labels) else {}),
        **asked.backend.identity,
        "embedder": identify_embedder(asked.backend.embedder, uri),
    }
