"""A prepared data folder: `rows.parquet`, `label_sets.parquet`, `manifest.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sce.datasets.schema import LABEL_SETS, ROWS, SPLITS
from sce.errors import ConfigError, DataError
from sce.labels import LabelSet
from sce.storage import Place, parquet_source, replace_folder, to_place

ROWS_FILE = "rows.parquet"
LABEL_SETS_FILE = "label_sets.parquet"
MANIFEST_FILE = "manifest.json"
FILES = (ROWS_FILE, LABEL_SETS_FILE, MANIFEST_FILE)


@dataclass(frozen=True)
class PreparedData:
    """Labelled texts with their splits and label sets, and where they came from.

    Attributes:
        rows: `schema.ROWS`.
        label_sets: label set id -> labels with all that is known about them.
        domains: label set id -> kind of text.
        manifest: counts, licences, sources and what was dropped.
    """

    rows: pa.Table
    label_sets: dict[str, LabelSet]
    domains: dict[str, str]
    manifest: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Place) -> PreparedData:
        """Read a folder that `prepare_data` wrote.

        Raises:
            DataError: it is not such a folder, or one of its files is damaged.
        """
        folder = to_place(folder)
        with _whole(folder):
            rows = pq.read_table(parquet_source(folder / ROWS_FILE), schema=ROWS)
            sets = _read_label_sets(folder)
            manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        domains = dict(zip(sets["label_set"].to_pylist(), sets["domain"].to_pylist()))
        return cls(rows, _parse(sets), domains, manifest)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of rows and label sets, as the manifest records it."""
        return self.manifest["fingerprint"]

    @cached_property
    def seen_label_sets(self) -> set[str]:
        """Ids of the label sets that have train rows."""
        return set(self._of_split("train")["label_set"].unique().to_pylist())

    def select(
        self,
        split: str | None = None,
        seen: bool | None = None,
        datasets: Collection[str] | None = None,
        several: bool | None = None,
    ) -> pa.Table:
        """The rows of a split, of seen (True) or unseen (False) label sets, of some datasets, with
        several right labels (True) or one (False).

        None leaves a condition out. Rows stay in order.

        Raises:
            ConfigError: there is no such split or dataset.
        """
        table = self.rows if split is None else self._of_split(split)
        if datasets is not None:
            known = self.manifest["counts"]
            for name in datasets:
                if name not in known:
                    raise ConfigError(
                        f"no dataset {name!r} in the prepared data. Allowed: {', '.join(known)}."
                    )
            table = table.filter(_is_in(table, "dataset", datasets))
        if several is not None:
            mask = pc.is_valid(table["labels"])
            table = table.filter(mask if several else pc.invert(mask))
        if seen is not None:
            mask = _is_in(table, "label_set", self.seen_label_sets)
            table = table.filter(mask if seen else pc.invert(mask))
        return table

    def corpus(self, label_set: str) -> list[str]:
        """Ids of a row for each distinct text of a label set and of its dataset's other sets that
        share a text with it: several label sets of one corpus. Of every split, sorted."""
        dataset = self.rows.filter(pc.equal(self.rows["label_set"], label_set))["dataset"][0]
        rows = self.rows.filter(pc.equal(self.rows["dataset"], dataset))
        texts = rows.filter(pc.equal(rows["label_set"], label_set))["text"].unique()
        sharing = rows.filter(pc.is_in(rows["text"], texts))["label_set"].unique()
        rows = rows.filter(pc.is_in(rows["label_set"], sharing))
        first = rows.group_by("text").aggregate([("row_id", "min")])
        return sorted(first["row_id_min"].to_pylist())

    def _of_split(self, split: str) -> pa.Table:
        if split not in SPLITS:
            raise ConfigError(f"no split {split!r}. Allowed: {', '.join(SPLITS)}.")
        return self.rows.filter(pc.equal(self.rows["split"], split))


def _is_in(table: pa.Table, column: str, values: Collection[str]) -> pa.ChunkedArray:
    return pc.is_in(table[column], value_set=pa.array(list(values), pa.string()))


def read_label_sets(folder: str | Place) -> dict[str, LabelSet]:
    """The label sets of a prepared data folder alone, by id. Raises like `PreparedData.load`."""
    folder = to_place(folder)
    with _whole(folder):
        return _parse(_read_label_sets(folder))


def _parse(sets: pa.Table) -> dict[str, LabelSet]:
    return {one["label_set"]: LabelSet.parse(one["labels"]) for one in sets.to_pylist()}


@contextmanager
def _whole(folder: Place) -> Iterator[None]:
    """What is not there, or cannot be read in the block, is a `DataError`."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder}: not a prepared data folder (no {', '.join(missing)}). Make one with "
            "jobs/prepare_data.py."
        )
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{folder}: a damaged prepared data folder ({error}). Remove it and run "
            "jobs/prepare_data.py again."
        ) from None


def _read_label_sets(folder: Place) -> pa.Table:
    return pq.read_table(parquet_source(folder / LABEL_SETS_FILE), schema=LABEL_SETS)


def content_fingerprint(rows: pa.Table, label_sets: pa.Table) -> str:
    """SHA-256 over all rows and label sets, in the order of the tables."""
    digest = hashlib.sha256()
    for table in (rows, label_sets):
        for batch in table.to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                if "row_id" in row and row.get("labels") is None:
                    row.pop("labels", None)  # as it was before a row could have several
                digest.update(json.dumps(row, ensure_ascii=False, sort_keys=True).encode())
                digest.update(b"\n")
        digest.update(b"\0")
    return digest.hexdigest()


def load_current(folder: Place, manifest: Mapping[str, Any]) -> PreparedData | None:
    """What a folder holds if that is exactly this data, whole and with the same manifest.

    The time of creation does not count.
    """
    try:
        old = PreparedData.load(folder)
        same = {**old.manifest, "created": None} == {**manifest, "created": None}
        sets = _read_label_sets(folder)
        current = same and content_fingerprint(old.rows, sets) == manifest["fingerprint"]
        return old if current else None
    except Exception:
        # Whatever is wrong with the old folder, the answer is to write it anew.
        return None


def check_replaceable(folder: Place) -> None:
    """Raises `ConfigError` if writing here would remove something that is not prepared data."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder}: a file stands where the prepared data folder would go.")
    others = sorted(path.name for path in folder.iterdir() if path.name not in FILES)
    if others:
        raise ConfigError(
            f"{folder}: the folder holds {others[0]!r}, which is not prepared data and would be "
            "removed. Choose another output folder."
        )


def write_prepared(
    folder: Place, rows: pa.Table, label_sets: pa.Table, manifest: Mapping[str, Any]
) -> None:
    """Write the folder whole or not at all."""
    if rows["labels"].null_count == rows.num_rows:
        rows = rows.drop_columns(["labels"])
    with replace_folder(folder, MANIFEST_FILE) as new:
        pq.write_table(rows, new / ROWS_FILE, compression="zstd")
        pq.write_table(label_sets, new / LABEL_SETS_FILE, compression="zstd")
        text = json.dumps(manifest, ensure_ascii=False, indent=2)
        (new / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
