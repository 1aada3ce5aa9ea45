"""Settings of the jobs on files of rows, and which of them go together."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SecretStr

from sce.adaptation.settings import AdaptSettings
from sce.bulk.counts import MaxErrors
from sce.bulk.output import COMMIT_ROWS, OutputFormat
from sce.config import JobConfig, Section, Verbatim
from sce.datasets.text_form import Delimiter, Encoding
from sce.distributed.settings import Engine, ResourcesConfig
from sce.embedding.settings import EmbedderConfig
from sce.errors import ConfigError, DataError
from sce.labels import LabelSet
from sce.model.label_tree import answer_names
from sce.model.linear_labels import LinearLabels
from sce.model.options import AnswerOptions, LongText, Mode, Pooling, Threshold
from sce.storage import Place, rooted_place, to_place
from sce.workflows.tracking import TrackingConfig


class BulkSettings(Section):
    """How files of rows are read, and who works on them."""

    text_column: str = "text"
    encoding: Encoding | None = None
    """Of text files. Default: found out, UTF-8 with or without a mark, UTF-16 or Windows-1252."""
    delimiter: Delimiter | None = None
    """Between the fields of a CSV: a character or `tab`. Default: found out, of `,`, `;`, tab and
    `|`; or what a first line `sep=;` names."""
    long_text: LongText = "truncate"
    """`truncate`: of a text that is longer than the embedder reads, the beginning is read. `chunk`:
    every text is read whole, in chunks of sentences. Answers have a column `where` then: in which
    chunk the label was found, in characters. A store has the chunks' vectors (1.5 kB each of
    all-MiniLM-L6-v2, one for 110 tokens of text) beside `embedding`, which is their mean."""
    max_errors: MaxErrors = "50%"
    """Fail when more rows than this have errors: a count (`100`) or a share (`1%`), which counts
    from 1,000 rows on while the job runs and in the end whatever their number."""
    engine: Engine = "auto"
    """`process`: one process beside the job, which has done a small input of this machine (8,192
    texts or 65,536 vectors) before Ray starts; `ray`: on the cluster, or a Ray of the job's own.
    `auto`: the first where it can."""


class ClassifyConfig(BulkSettings, JobConfig):  # type: ignore[misc]
    """Settings of `jobs/classify.py`."""

    input: Verbatim = []
    """Files, folders, globs or URIs of Parquet, JSONL, CSV (.gz and others too) or Excel; or an
    embedding store."""
    id_column: str | None = None
    """Keeps its name in the output. Default: ids made from places, `tickets.jsonl:17`, as `id`; of
    an embedding store, those of the texts that it was made from."""
    roots: Verbatim = []
    """Folders or URIs that input, output and stores must lie below: nothing else is read or written
    but the model, links there are refused, and what a caller is told quotes no file. `/v1/batches`
    gives its own. Default: no bounds, and links below the input are followed and named."""
    keep_columns: Verbatim = []
    """Columns to carry into the output, untouched; `*` for all that the input has. Of JSONL: texts
    as they are, else as JSON."""
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
    output: Place | None = None
    """Folder or URI for the answers; needed but for `--dry-run`."""
    labels: Verbatim = []
    """Names, each as `--labels NAME`, or one JSON list."""
    labels_file: Place | None = None
    """Labels as a list, or with description, synonyms and examples: YAML, JSON, JSONL, or .txt
    with a name a line. Or a folder of adapted labels, which jobs/adapt.py wrote."""
    adapt: bool = False
    """Fit the labels to the input first (jobs/adapt.py), into `output` with `-labels` behind it."""
    accept_changed_labels: bool = False
    """Answer with adapted labels although the file that they were made from has changed."""
    labels_column: str | None = None
    """A column with one list of labels a row. `labels_file` may tell more about them."""
    embedding_column: str | None = None
    """Read unit vectors of the model's embedder from this column of a Parquet or JSONL input."""
    output_format: OutputFormat = "parquet"
    """`csv` opens in spreadsheets: UTF-8 with a mark, a "'" in front of what they would take for a
    formula, several labels a row by their names between "; ", with `return_scores` a column a
    label. In JSONL, of the columns that are kept, NaN and
    infinity are null and bytes are base64."""
    mode: Mode = "single"
    """`multi`: any number of labels of a row may be right; those over their thresholds are in a
    column `labels`. What the probabilities rest on is in the summary."""
    threshold: Threshold | None = None
    """Below this calibrated probability a label is not answered; its score stays. One for all, or
    `{label: threshold}`. Default: in mode `multi` K / (K + 26) of K labels and at most 0.5, else
    none."""
    at_least: int = Field(default=0, ge=0)
    """In mode `multi`: labels to answer even below their thresholds."""
    at_most: int | None = Field(default=None, ge=1)
    """In mode `multi`: no more labels than this, the best ones."""
    contrast_labels: Verbatim = []
    """In mode `multi`: names that each label is held against in place of the others, so that its
    probability does not depend on which others are given."""
    target_precision: float | None = Field(default=None, gt=0, le=1)
    """Find the threshold that reaches this precision on the rows of `labelled`."""
    labelled: Place | None = None
    """Labelled rows for `target_precision`, `coverage`, `none_recall`, `none_label`: JSONL, CSV or
    Parquet with `text_column` and `label_column`."""
    label_column: str = "label"
    top_k: int | None = Field(default=None, ge=1)
    """Also the best labels with their scores, in a column `top`."""
    return_scores: bool = False
    """Also every label's score, in a column `scores`."""
    pooling: Pooling | None = None
    """How a text of several chunks is answered: by the mean of their vectors (`vector`, the
    default), by their probabilities (`mean`, `max`), or by these with more weight on the chunks
    that a label is likely in (`attention`)."""
    none_of_these: bool = False
    """Also the probability that no label fits, in a column `none_score`; the label is null where
    that is more likely than the best one."""
    none_share: float | None = Field(default=None, gt=0, lt=1)
    """Of the input's rows, those that no label fits, as far as you know: the mean `none_score` will
    be that. Default: 0.1 is assumed of texts like those of the starter corpus."""
    none_label: str | None = None
    """The label of those rows of `labelled` that no label fits: their share is the `none_share`,
    and the mean `none_score` of these rows will be that."""
    none_threshold: float | None = Field(default=None, ge=0, le=1)
    """The label is null where `none_score` is above it, instead."""
    none_recall: float | None = Field(default=None, gt=0, lt=1)
    """Find the `none_threshold` on the rows of `labelled`: the lowest at which this share of them,
    which all have a label, keeps it."""
    coverage_cut: float | None = Field(default=None, ge=0, le=1)
    """Also all labels of at least this probability, in a column `labels`; always the best one."""
    coverage: float | None = Field(default=None, gt=0, lt=1)
    """Find the `coverage_cut` on the rows of `labelled`, so that the labels of a row hold the right
    one in this share of rows, if those to answer come from where the labelled ones do."""
    explain: bool = False
    """Also what the label rests on, in a column `why`: its nearest examples, and the next best
    label."""
    save_embeddings: Place | None = None
    """Embed the texts into this store (a folder or URI) first and classify from it; the next
    labels need only the store."""
    compare_to: Place | None = None
    """An earlier output, a folder or URI: report what has changed since, in `_comparison/` of the
    output; each row that moved stands in its `moved.parquet`."""
    renamed: Verbatim = []
    """Labels of `compare_to` that have another name now, each as `--renamed OLD=NEW`; in a tree
    also nodes, with all that is below them. Subtrees that moved whole are found without."""
    dry_run: bool = False
    """Read a sample; show predictions, confused labels, expected time and size; write nothing."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The encoder's numbers. `auto`: half precision where the device computes in it."""
    exact: bool = False
    """Contextualise every label also of a large set, rather than a shortlist."""


class AdaptConfig(AdaptSettings, BulkSettings, JobConfig):  # type: ignore[misc]
    """Settings of `jobs/adapt.py`."""

    input: Verbatim = []
    """An embedding store; or files, folders, globs or URIs of texts, which are embedded first."""
    labels: Verbatim = []
    """Names, each as `--labels NAME`, or one JSON list."""
    labels_file: Place | None = None
    """Labels as for jobs/classify.py. As `{labels: ..., shares: {NAME: 0.3}}` it may also say how
    large classes are."""
    output: Place | None = None
    """Folder or URI for the adapted labels and their report."""
    labelled: Place | None = None
    """Labelled rows (JSONL, CSV or Parquet): 30 to 50 are enough to choose how far to trust the
    fit. `to_label.jsonl` of an earlier report, filled in, is such a file."""
    model: str | None = None
    """A model that jobs/train_sce.py wrote, whose labels' vectors the fit starts from. Without one
    the embedder of the store is enough."""
    embedder: EmbedderConfig | None = None
    """Default: the model's or the store's. Give it where its checkpoint lies elsewhere."""
    id_column: str | None = None
    """Default: ids made from places, `tickets.jsonl:17`; of an embedding store, `row_id`."""
    label_column: str = "label"
    save_embeddings: Place | None = None
    """Where texts are embedded to. Default: `output` with `-embedded` behind it."""
    keep_columns: Verbatim = []
    """Columns to carry into that store, beside the text."""
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()


def within_roots(config: ClassifyConfig) -> ClassifyConfig:
    """The settings with every place that is read or written as one below its root, by which it is
    opened from then on. Raises `DataError`: one lies below none."""
    if not config.roots:
        return config
    places: dict[str, Any] = {"input": [rooted_place(one, config.roots) for one in config.input]}
    for name in ("output", "save_embeddings", "compare_to", "labelled"):
        if (place := getattr(config, name)) is not None:
            try:
                places[name] = to_place(rooted_place(place, config.roots))
            except DataError as error:
                raise DataError(f"{name}: {error}") from None
    return config.model_copy(update=places | {"roots": []})


def check_model(config: ClassifyConfig, adapted: bool) -> None:
    """Refuse settings that name no model, or both a model and an endpoint's. Labels that are
    `adapted` need none."""
    if adapted and config.endpoint is not None:
        raise ConfigError(
            "labels_file: adapted labels are answered here, without an endpoint. Leave --endpoint "
            "out; a server that has them in its `label_sets` answers them over HTTP."
        )
    if config.endpoint is None:
        if config.model is None and not adapted:
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
    for name, is_given in given.items():
        if is_given:
            raise ConfigError(
                f"{name}: with --endpoint the model is the server's, and so is what decides how it "
                f"is used. Leave {name} out, or give --model rather than --endpoint."
            )


def check_together(config: ClassifyConfig) -> None:
    """Refuse settings that need or exclude another."""
    if config.output is None and not config.dry_run:
        raise ConfigError("output: give a folder for the answers (or --dry-run).")
    found_by = ("target_precision", "coverage", "none_recall", "none_label")
    asked = [name for name in found_by if getattr(config, name) is not None]
    if not asked and config.labelled is not None:
        raise ConfigError(
            "labelled: it goes with target_precision, coverage, none_recall or none_label."
        )
    if asked and config.labelled is None:
        raise ConfigError(f"{asked[0]} and labelled go together.")
    for name in ("none_recall", "none_label"):
        if getattr(config, name) is not None and not config.none_of_these:
            raise ConfigError(f"{name}: it goes with none_of_these.")
    if config.none_label is not None and config.none_share is not None:
        raise ConfigError("give either none_share or none_label, whose rows say what it is.")
    if config.none_recall is not None and config.none_threshold is not None:
        raise ConfigError("give either none_threshold or none_recall.")
    if config.coverage is not None and config.coverage_cut is not None:
        raise ConfigError("give either coverage or coverage_cut.")
    if config.coverage is not None and config.mode != "single":
        raise ConfigError("coverage: it is of the one right label of a row, not of mode multi.")
    if config.target_precision is not None and config.threshold is not None:
        raise ConfigError("give either threshold or target_precision.")
    if config.target_precision is not None and config.mode != "single":
        raise ConfigError(
            "target_precision: it finds one threshold, for one label a row. For mode multi "
            "jobs/evaluate.py finds one a label (--evaluate.mode multi --evaluate.labelled FILE "
            "--evaluate.threshold-by precision --evaluate.threshold-target 0.9): give those."
        )
    if config.labelled is not None and config.labels_column is not None:
        raise ConfigError("labelled: what it finds needs one label set for all rows.")
    if config.embedding_column is not None and config.save_embeddings is not None:
        raise ConfigError("save_embeddings: the input has embeddings already.")
    if config.renamed and config.compare_to is None:
        raise ConfigError("renamed: it goes with compare_to.")


def answer_options(config: ClassifyConfig, labels: LabelSet | LinearLabels | None) -> AnswerOptions:
    """What the settings ask of an answer. Raises `InputError`: these labels cannot have it."""
    options = AnswerOptions(
        config.threshold,
        config.top_k,
        config.return_scores,
        config.long_text,
        config.pooling,
        mode=config.mode,
        at_least=config.at_least,
        at_most=config.at_most,
        contrast_labels=tuple(config.contrast_labels),
        none_of_these=config.none_of_these,
        none_share=config.none_share,
        none_threshold=config.none_threshold,
        coverage_cut=config.coverage_cut,
        explain=config.explain,
    )
    if labels is not None and config.labels_column is None:
        options.check_labels([answer_names(labels)])
    if isinstance(labels, LinearLabels):
        labels.check_scoring(options.scoring)
    return options


def renamed_labels(config: ClassifyConfig) -> dict[str, str]:
    """Old name -> new name. Raises `ConfigError`: a part that is no such pair."""
    pairs = [part.partition("=") for part in config.renamed]
    for old, _, new in pairs:
        if not old.strip() or not new.strip():
            raise ConfigError(f"renamed: {old!r}: write it as OLD=NEW, the name before and now.")
    return {old.strip(): new.strip() for old, _, new in pairs}
