"""Preparation: every source through the same readers, into one folder of Parquet.

The split rules are in `splits`, the sources in `sources`, the folder in `prepared`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import pyarrow as pa

from sce.datasets.prepared import (
    PreparedData,
    check_replaceable,
    content_fingerprint,
    load_current,
    write_prepared,
)
from sce.datasets.schema import LABEL_SETS, ROWS, SPLITS
from sce.datasets.settings import DataConfig, SourceConfig
from sce.datasets.sources import Source, read_source
from sce.datasets.splits import PRECEDENCE, Row, assign_splits, keep_apart
from sce.errors import ConfigError
from sce.storage import Place, to_place

__all__ = ["DataConfig", "PreparedData", "SourceConfig", "prepare", "prepare_data"]

logger = logging.getLogger(__name__)


def prepare_data(config: DataConfig, out: str | Place, seed: int) -> dict[str, Any]:
    """As `prepare`; returns the manifest (fingerprint, rows, counts, label_counts, asked, dropped,
    licences, sources, seed, created) and `unchanged`: whether the folder was already there."""
    prepared, unchanged = prepare(config, out, seed)
    return {**prepared.manifest, "unchanged": unchanged}


def prepare(config: DataConfig, out: str | Place, seed: int) -> tuple[PreparedData, bool]:
    """Read all sources, choose splits, and write one prepared data folder.

    The same configuration, data and seed give the same rows in the same order and the same
    fingerprint. An existing folder is replaced only by a complete one; where it already holds
    the same data it is left alone.

    Args:
        out: the folder; see `PreparedData`.
        seed: of sampling and splitting.

    Returns:
        The data, and whether the folder was already there.

    Raises:
        ConfigError: a setting is wrong, or `out` holds something else.
        DataError: a source cannot be read, or a row of it breaks the contract.
        LabelError: a label set is not one.
    """
    out = to_place(out)
    check_replaceable(out)
    sources = []
    for source in config.sources:
        start = time.perf_counter()
        sources.append(read_source(source, config, seed))
        found = sources[-1].name, len(sources[-1].rows), time.perf_counter() - start
        logger.info("read %s: %d rows in %.1f s", *found)
    rows, dropped = _split(sources, seed)
    rows_table = _rows_table(rows)
    label_sets_table = _label_sets_table(sources, {row.label_set for row in rows})
    fingerprint = content_fingerprint(rows_table, label_sets_table)
    counts = Counter((row.dataset, row.split) for row in rows)
    manifest = {
        "fingerprint": fingerprint,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "rows": rows_table.num_rows,
        "counts": {
            source.name: {s: n for s in SPLITS if (n := counts[source.name, s])}
            for source in sources
        },
        "label_counts": _label_counts(rows),
        "asked": {source.name: source.sizes for source in sources},
        "dropped": dropped,
        "licences": {source.name: source.licence for source in sources},
        "sources": {source.name: source.origin for source in sources},
    }
    current = load_current(out, manifest)
    if current is not None:
        logger.info("unchanged: %s already holds %s", out, fingerprint[:12])
        return current, True
    write_prepared(out, rows_table, label_sets_table, manifest)
    logger.info("wrote %d rows to %s (%s)", rows_table.num_rows, out, fingerprint[:12])
    return PreparedData.load(out), False


def _split(sources: Sequence[Source], seed: int) -> tuple[list[Row], dict[str, dict[str, int]]]:
    """Splits for all rows, none of a text on two sides, over all sources."""
    # What files prescribe comes first, then each dataset's own choice, held-out datasets before
    # those trained on: the later ones keep to what is already chosen for a text.
    pinned: dict[bytes, str] = {}
    for source in sources:
        # Where sizes are wanted, given train rows may yet be divided; see `assign_splits`.
        fixed = SPLITS if source.sizes is None else SPLITS[1:]
        _pin(pinned, (row for row in source.rows if row.split in fixed))
    dropped: dict[str, Counter[str]] = {s.name: Counter(s.dropped) for s in sources}
    rows: list[Row] = []
    for source in sorted(sources, key=_trains):
        chosen, left_out = assign_splits(
            source.rows, source.sizes, seed, pinned, source.balanced, f"source {source.name!r}"
        )
        _pin(pinned, chosen)
        got = Counter(row.split for row in chosen)
        for split, size in (source.sizes or {}).items():
            if isinstance(size, int) and got[split] < size:
                short = source.name, got[split], split, size
                logger.warning("%s: %d rows for %s, %d were asked for", *short)
        dropped[source.name].update(left_out)
        rows += chosen
    rows, straddling = keep_apart(rows)
    for name, counts in straddling.items():
        dropped[name].update(counts)
    kept = {row.dataset for row in rows}
    for source in sources:
        if source.name not in kept:
            raise ConfigError(
                f"source {source.name!r}: every row of it also stands in a held-out split of "
                "another source. Leave one of them out."
            )
    rows.sort(key=lambda r: (r.dataset, PRECEDENCE[r.split or "train"], r.content))
    return rows, {name: dict(sorted(counts.items())) for name, counts in dropped.items()}


def _trains(source: Source) -> bool:
    return source.sizes is None or source.sizes.get("train", 0) != 0


def _pin(pinned: dict[bytes, str], rows: Any) -> None:
    for row in rows:
        if PRECEDENCE[row.split] >= PRECEDENCE[pinned.get(row.key, "train")]:
            pinned[row.key] = row.split


def _rows_table(rows: Sequence[Row]) -> pa.Table:
    """Rows in `schema.ROWS`, each with an id that its content decides."""
    repeats: Counter[str] = Counter()
    ids = []
    for row in rows:
        digest = blake2b("\x1f".join(row.content).encode(), digest_size=8).hexdigest()
        row_id = f"{row.dataset}-{digest}"
        repeats[row_id] += 1
        ids.append(row_id if repeats[row_id] == 1 else f"{row_id}-{repeats[row_id]}")
    columns = {name: [getattr(row, name) for row in rows] for name in ROWS.names[1:]}
    columns["label"] = [row.label if row.labels is None else None for row in rows]
    return pa.table({"row_id": ids} | columns, schema=ROWS)


def _label_sets_table(sources: Sequence[Source], used: set[str]) -> pa.Table:
    """Label sets in `schema.LABEL_SETS`, sorted by id; those without rows are left out."""
    items: dict[str, dict[str, Any]] = {}
    for source in sources:
        for label_set, labels in source.label_sets.items():
            if label_set not in used:
                continue
            if label_set in items:
                raise ConfigError(
                    f"the sources {items[label_set]['dataset']!r} and {source.name!r} both have a "
                    f"label set {label_set!r}; set another `name` for one of them."
                )
            items[label_set] = {
                "label_set": label_set,
                "dataset": source.name,
                "domain": source.domains[label_set],
                "labels": labels.to_list(),
            }
    return pa.Table.from_pylist([items[key] for key in sorted(items)], schema=LABEL_SETS)


def _label_counts(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, int]]]:
    """Rows by label set, split and label."""
    counts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for row in rows:
        right = (row.label,) if row.labels is None else row.labels
        counts[row.label_set][row.split or ""].update(right)
    return {
        label_set: {s: dict(sorted(by_split[s].items())) for s in SPLITS if s in by_split}
        for label_set, by_split in sorted(counts.items())
    }
