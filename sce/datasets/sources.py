"""From a source's settings to its rows and label sets: shipped and known datasets, custom files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from sce.datasets.columns import Columns, raise_bad, read_rows
from sce.datasets.custom import CustomLabels
from sce.datasets.hub import download, split_files
from sce.datasets.inbox import LICENCE as INBOX_LICENCE
from sce.datasets.inbox import inbox_label_sets, inbox_rows
from sce.datasets.readers import BadRow
from sce.datasets.settings import CUSTOM, INBOX, STARTER, DataConfig, SourceConfig
from sce.datasets.specs import SPECS, DatasetSpec
from sce.datasets.splits import Row, Size, text_key
from sce.datasets.starter import LICENCE, choose_validation_sets, read_starter, starter_rows
from sce.errors import ConfigError, DataError
from sce.labels import LabelSet
from sce.storage import fetch, to_place

OTHER_LABEL = "label not used"
CUSTOM_FILES = DatasetSpec(CUSTOM, {}, "not stated", label=("label", "labels"), domain=CUSTOM)
DEFAULT_CUSTOM_SIZES: dict[str, Size] = {"train": 0.8, "validation": 0.1, "test": 0.1}


@dataclass
class Source:
    """One dataset as it was read, before splits are chosen.

    Attributes:
        sizes: the wanted splits; None keeps the splits of the file.
        label_sets, domains: by label set id.
        dropped: rows left out so far, by reason.
        origin: where it was read from, for the manifest.
    """

    name: str
    rows: list[Row]
    label_sets: dict[str, LabelSet]
    domains: dict[str, str]
    licence: str
    origin: dict[str, Any]
    sizes: dict[str, Size] | None = None
    balanced: bool = False
    dropped: Counter[str] = field(default_factory=Counter)


def read_source(source: SourceConfig, config: DataConfig, seed: int) -> Source:
    """Read one source.

    Raises:
        ConfigError: a file is needed and no setting says where it is.
        DataError: it cannot be read, or a row breaks the contract.
        LabelError: its label set is not one.
    """
    if source.dataset == STARTER:
        return _starter(source, config, seed)
    if source.dataset == INBOX:
        return _inbox(source)
    source = _in_folder(source, config.folder)
    result = _custom(source) if source.dataset == CUSTOM else _known(source, config)
    if not result.rows:
        raise DataError(
            f"source {result.name!r}: no row is left of {result.origin}. Left out: "
            f"{dict(result.dropped) or 'nothing (the files are empty)'}."
        )
    if source.license is not None:
        result.licence = source.license
    if source.sizes is not None:
        result.sizes = dict(source.sizes)  # type: ignore[arg-type]
    return result


def _in_folder(source: SourceConfig, folder: str | None) -> SourceConfig:
    """The source with its relative paths below `DataConfig.folder`."""
    if folder is None:
        return source
    found = {}
    for name in ("path", "validation_path", "test_path", "labels"):
        value = getattr(source, name)
        if isinstance(value, str) and not value.startswith("~"):
            place = to_place(value)
            if isinstance(place, Path) and not place.is_absolute():
                found[name] = str(to_place(folder) / value)
    return source.model_copy(update=found)


def _starter(source: SourceConfig, config: DataConfig, seed: int) -> Source:
    sets = read_starter()
    validation = choose_validation_sets(sets, config.validation_label_sets)
    return Source(
        name=source.output_name,
        rows=starter_rows(source.output_name, sets, validation, seed),
        label_sets={f"starter/{item.name}": item.labels for item in sets},
        domains={f"starter/{item.name}": item.domain for item in sets},
        licence=LICENCE,
        origin={"dataset": STARTER},
    )


def _inbox(source: SourceConfig) -> Source:
    rows, left_out = inbox_rows(source.output_name)
    label_sets = inbox_label_sets()
    return Source(
        name=source.output_name,
        rows=rows,
        label_sets=label_sets,
        domains=dict.fromkeys(label_sets, "support"),
        licence=INBOX_LICENCE,
        origin={"dataset": INBOX},
        sizes={"test": "all"},
        dropped=left_out,
    )


def _known(source: SourceConfig, config: DataConfig) -> Source:
    spec = SPECS[source.dataset]
    write = spec.as_printed if config.label_case == "paper" else str
    name = source.output_name
    files, origin = _files(source, spec)
    sizes: dict[str, Size] = dict(source.sizes or spec.sizes)  # type: ignore[arg-type]
    dropped: Counter[str] = Counter()
    rows: list[Row] = []
    columns = _columns(source, spec)
    wanted = {split for split, size in sizes.items() if size != 0}
    named = {split for _, split in files}
    for path, split in files:
        # A file of a split that nothing is taken from need not be read.
        if split is not None and split not in wanted and wanted <= named:
            continue
        for raw in read_rows(path, columns, _on_bad(source, dropped), source.form):
            label = spec.our_label(raw.label)
            if label is None:
                dropped[f"{OTHER_LABEL}: {raw.label}"] += 1
                continue
            split_of = raw.split or split
            rows.append(Row(name, split_of, raw.text, write(label), name, text_key(raw.text)))
    labels = spec.labels or tuple(sorted({row.label for row in rows}))
    return Source(
        name=name,
        rows=rows,
        label_sets={name: label_set_for(labels, spec.synonyms, write)} if labels else {},
        domains={name: source.domain or spec.domain},
        licence=spec.licence,
        origin=origin,
        sizes=sizes,
        balanced=spec.balanced,
        dropped=dropped,
    )


@cache
def synonym_tables() -> dict[str, dict[str, dict[str, Any]]]:
    """Table name -> label -> {synonyms, description}, from `synonyms.yaml`."""
    text = resources.files("sce.datasets").joinpath("synonyms.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def label_set_for(
    names: Sequence[str], table: str = "", write: Callable[[str], str] = str
) -> LabelSet:
    """A label set of these names, each with what the table knows about it.

    Args:
        table: a table of `synonyms.yaml`, or "" for bare names.
        write: how a name is written in the set; the table has it in lower case.
    """
    known = synonym_tables()[table] if table else {}
    return LabelSet.parse([{"name": write(name), **known.get(name, {})} for name in names])


def _custom(source: SourceConfig) -> Source:
    name = source.output_name
    files, origin = _files(source, CUSTOM_FILES)
    columns = _columns(source, CUSTOM_FILES)
    labels = CustomLabels(name, source.labels)
    dropped: Counter[str] = Counter()
    on_bad = _on_bad(source, dropped)
    rows: list[Row] = []
    for path, split in files:
        for raw in read_rows(path, columns, on_bad, source.form):
            label_set = labels.accept(path, raw, on_bad)
            if label_set is not None:
                key = text_key(raw.text)
                of = raw.split or split, raw.text, raw.label, label_set, key, raw.labels
                rows.append(Row(name, *of))
    label_sets = labels.finish()
    return Source(
        name=name,
        rows=rows,
        label_sets=label_sets,
        domains=dict.fromkeys(label_sets, source.domain or CUSTOM_FILES.domain),
        licence=CUSTOM_FILES.licence,
        origin=origin,
        sizes=None if any(row.split for row in rows) else dict(DEFAULT_CUSTOM_SIZES),
        dropped=dropped,
    )


def _on_bad(source: SourceConfig, dropped: Counter[str]) -> Callable[[BadRow], None]:
    return (lambda bad: dropped.update([bad.reason])) if source.skip_bad_rows else raise_bad


def _columns(source: SourceConfig, spec: DatasetSpec) -> Columns:
    """The columns that the settings of a source name, else those of its dataset."""
    names = ("split", "label_set", "all_labels")
    given = {name: getattr(source, f"{name}_column") for name in names}
    named = {name: column for name, column in given.items() if column is not None}
    label = ("labels",) if source.several_labels else spec.label
    return Columns(
        text=spec.text if source.text_columns is None else (tuple(source.text_columns),),
        label=label if source.label_column is None else (source.label_column,),
        several=source.several_labels,
        required=tuple(named.values()),
        header=spec.header,
        **named,
    )


def _files(
    source: SourceConfig, spec: DatasetSpec
) -> tuple[list[tuple[Path, str | None]], dict[str, Any]]:
    """The files of a source with the split each one is of, and their origin for the manifest."""
    extra = [(source.validation_path, "validation"), (source.test_path, "test")]
    if source.path is None:
        if spec.hub_id is None:
            raise ConfigError(
                f"source {source.output_name!r} has no `path`, and this dataset cannot be "
                f"downloaded without an account or a licence. To get it, {spec.get_it}; then set "
                "`path` of this source to the file or folder."
            )
        folder = download(spec.hub_id, source.revision)
        files = split_files(folder, spec.files)
        origin = {"dataset": source.dataset, "hub_id": spec.hub_id, "revision": folder.name}
    else:
        path = fetch(source.path).expanduser()
        if path.is_dir():
            files = split_files(path, spec.files)
        elif path.exists():
            # Beside files of their own for validation or test, the main file is the training file.
            files = [(path, "train" if any(given for given, _ in extra) else None)]
        else:
            how = f" To get this dataset, {spec.get_it}." if spec.get_it else ""
            raise DataError(f"{path}: no such file or folder.{how}")
        origin = {"dataset": source.dataset, "path": source.path}
    for given, split in extra:
        if given is not None:
            files.append((fetch(given).expanduser(), split))
            origin[f"{split}_path"] = given
    return files, origin
