"""The settings of data preparation: which sources, and how each is read and split."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sce.config import Section
from sce.datasets.specs import SPECS
from sce.datasets.splits import Size
from sce.datasets.text_form import Delimiter, Encoding, TextForm

STARTER, INBOX = "starter", "inbox"
SHIPPED = (STARTER, INBOX)
"""Datasets that come with the package."""
CUSTOM = "custom"
DATASETS = (*SHIPPED, CUSTOM, *SPECS)

Split = Literal["train", "validation", "test"]


class SourceConfig(Section):
    """One source of labelled texts."""

    dataset: str
    """"starter" or "inbox" (test rows alone), which come with the package, the name of a known
    dataset, or "custom" for files of your own."""
    name: str | None = None
    """Name of the dataset in the output; default: `dataset`. Two sources need two names."""
    path: str | None = None
    """File, folder or URI (JSONL, CSV, TSV, Parquet, .gz). In a folder, names say the split.
    Without it a dataset that is on the Hugging Face hub is downloaded."""
    validation_path: str | None = None
    """A file of its own for the validation split."""
    test_path: str | None = None
    """A file of its own for the test split."""
    revision: str | None = None
    """Commit, tag or branch of a dataset on the hub."""
    text_columns: list[str] | None = None
    """Columns whose parts form the text, joined by a space. Custom default: [text]."""
    label_column: str | None = None
    """Column of the label's name. Custom default: label, or labels with one item."""
    several_labels: bool = False
    """Custom only: any number of labels may be right for a row. The column `labels` (or
    `label_column`) then holds a list of names, in a CSV names with ";" between them; an empty one
    says that no label fits. Trains mode multi."""
    split_column: str | None = None
    """Column of train, validation or test. Default: split, where it exists."""
    label_set_column: str | None = None
    """Column that names the label set of a row. Default: label_set, where it exists."""
    all_labels_column: str | None = None
    """Column with a row's candidate labels. Default: all_labels, where it exists."""
    labels: str | list[str | dict[str, Any]] | dict[str, Any] | None = None
    """Custom only: the label set, or a YAML or JSON file that holds it: names, {name:
    description}, or {name, description, synonyms, examples} objects. With a label set column: a
    mapping from its values to label sets. Default: the distinct labels found."""
    encoding: Encoding | None = None
    """Of text files. Default: found out, see jobs/classify.py."""
    delimiter: Delimiter | None = None
    """Between the fields of a CSV: a character or `tab`. Default: found out."""
    sizes: dict[Split, Size] | None = None
    """Rows for each split: a count, a fraction, or "all" (the rest). Defaults: a known dataset
    has the paper's; custom files with a split column keep it, others are split 0.8, 0.1, 0.1."""
    skip_bad_rows: bool = False
    """Leave out and count rows that cannot be used, instead of stopping at the first one."""
    domain: str | None = None
    """Kind of text, for results by domain."""
    license: str | None = None
    """Licence of the texts, for the manifest."""

    @field_validator("dataset")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in DATASETS:
            raise ValueError(f"no such dataset; allowed: {', '.join(DATASETS)}")
        return value

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or value != value.strip()):
            raise ValueError("a name must not be empty nor start or end with a space")
        return value

    @field_validator("sizes")
    @classmethod
    def _possible_sizes(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None:
            return None
        for split, size in value.items():
            if isinstance(size, float) and not 0 < size <= 1:
                raise ValueError(f"{split}: a fraction lies above 0 and is at most 1; got {size}")
            if isinstance(size, int) and size < 0:
                raise ValueError(f"{split}: a row count is 0 or more; got {size}")
        if all(size == 0 for size in value.values()):
            raise ValueError("at least one split must have rows")
        if sum(size for size in value.values() if isinstance(size, float)) > 1 + 1e-9:
            raise ValueError("the fractions add up to more than 1")
        if sum(size == "all" for size in value.values()) > 1:
            raise ValueError('only one split can have "all"')
        return value

    @model_validator(mode="after")
    def _fits_the_dataset(self) -> SourceConfig:
        if self.dataset == CUSTOM and self.path is None:
            raise ValueError("dataset custom needs a path")
        if self.dataset in SHIPPED:
            extra = self.model_dump(exclude_defaults=True).keys() - {"dataset", "name"}
            if extra:
                raise ValueError(f"dataset {self.dataset} does not take {', '.join(sorted(extra))}")
        elif self.dataset != CUSTOM:
            for field in ("labels", "label_set_column", "all_labels_column", "several_labels"):
                if getattr(self, field) not in (None, False):
                    raise ValueError(f"{field} is for dataset custom; {self.dataset} has its own")
        return self

    @property
    def form(self) -> TextForm:
        return TextForm(self.encoding, self.delimiter)

    @property
    def output_name(self) -> str:
        return self.name or self.dataset


class DataConfig(Section):
    """What to train and measure on."""

    sources: list[SourceConfig] = Field(default=[SourceConfig(dataset=STARTER)], min_length=1)
    """The sources, in order."""
    folder: str | None = None
    """Folder or URI in which the relative paths of all sources are looked up. Default: the working
    directory. Absolute paths, `~` and URIs are taken as they stand."""
    seed: int = 0
    """Decides sampling and splitting. Apart from the seed of training, so that runs with several
    seeds share one data set."""
    label_case: Literal["lower", "paper"] = "lower"
    """How the labels of the paper's datasets are written: all in lower case, so that a word is the
    same label everywhere, or as appendix F prints them ("Food" beside "health")."""
    validation_label_sets: int = Field(default=12, ge=0)
    """How many of the starter corpus's train label sets become validation label sets: models
    are then chosen by accuracy on label sets that they never trained on."""

    @model_validator(mode="after")
    def _distinct_names(self) -> DataConfig:
        names = [source.output_name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are called {twice[0]!r}; set `name` for one of them")
        return self
