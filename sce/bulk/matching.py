"""Reads the outputs of two bulk runs and finds the rows that stand in both.

An output is a folder with one row an input row in Parquet or JSONL: an id, `label` (null for no
answer), `score` and `error` (null or "" for none). Rows are matched by a 128-bit hash of their
id, so that fewer than 100 bytes a row are held however long ids are.

Shapes: N rows of an output, P rows that stand in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pandas.util import hash_array

from sce.bulk.corpus import Columns, Shard, field_names, require_columns
from sce.bulk.listing import InputFile, list_files
from sce.bulk.output import OutputFormat, read_rows, read_run
from sce.bulk.reading import read_shard
from sce.errors import DataError
from sce.storage import to_place

NULL, ERROR = -1, -2
"""What stands for a label's number where there is no answer, and where there is an error."""

_HASH_KEYS = ("soft-context-one", "soft-context-two")
_COLUMNS = ("label", "score", "error")
_KINDS: dict[str, OutputFormat] = {".parquet": "parquet", ".jsonl": "jsonl", ".csv": "csv"}

IntArray = NDArray[np.int64]


@dataclass
class OutputRows:
    """The rows of an output in the order of its files.

    Attributes:
        hash_2N: two independent 64-bit hashes of each id, uint64 [2, N].
        code_N: number of the label, `NULL` or `ERROR`.
        score_N: float32; NaN for none.
    """

    folder: str
    id_column: str
    files: list[InputFile]
    hash_2N: NDArray[np.uint64]
    code_N: NDArray[np.int32]
    score_N: NDArray[np.float32]

    @property
    def rows(self) -> int:
        return len(self.code_N)

    @classmethod
    def read(
        cls, folder: str, names: dict[str, int], renamed: Mapping[str, str] | None = None
    ) -> OutputRows:
        """Stream every Parquet, JSONL and CSV file below a folder, a path or a URI, but for what
        begins with "_" or "."; labels that `names` has not get the next numbers in it,
        those that are `renamed` by their other name.

        A row without an id, such as one that could not be read, is in no other output.

        Raises `DataError`: no folder, or none with a data file; a file that cannot be read or
        lacks a column.
        """
        files = list_files(folder, "compare_to").files
        id_column = _id_column(folder, files)
        files = [f for f in files if f.uri.endswith(tuple(_KINDS)) and _has_rows(f, id_column)]
        hashes, codes = [np.empty((2, 0), np.uint64)], [np.empty(0, np.int32)]
        scores = [np.empty(0, np.float32)]
        for file in files:
            for batch in read_columns(file, (id_column, *_COLUMNS)):
                hashes.append(_hashes(_all_ids(batch[id_column], file.uri, len(hashes))))
                codes.append(_codes(batch, names, renamed or {}))
                scores.append(pc.fill_null(batch["score"].cast(pa.float32()), np.nan).to_numpy())
        hash_2N = np.concatenate(hashes, axis=1)
        return cls(folder, id_column, files, hash_2N, np.concatenate(codes), np.concatenate(scores))

    def ids_at(self, rows: IntArray) -> list[str]:
        """The ids of some rows, in the order asked for: they are not kept, but read again."""
        wanted = np.unique(rows)
        found: dict[int, str] = {}
        for first, ids in self.ids():
            here = wanted[(wanted >= first) & (wanted < first + len(ids))]
            found.update(zip(here.tolist(), ids.take(pa.array(here - first)).to_pylist()))
        return [found[row] for row in rows.tolist()]

    def ids(self) -> Iterator[tuple[int, pa.Array]]:
        """The ids of all rows, read again, in batches, each with the number of its first row."""
        first = 0
        for file in self.files:
            for batch in read_columns(file, [self.id_column]):
                yield first, batch[self.id_column].cast(pa.string())
                first += batch.num_rows

    def score(self, row: int) -> float | None:
        return None if np.isnan(self.score_N[row]) else float(self.score_N[row])

    def counts(self, names: Mapping[str, int], labels: Sequence[str] | None) -> dict[str, int]:
        """Rows of each label of the run, in the order of `labels`, else by count. Raises
        `DataError`: a label that is not among `labels`."""
        counts = np.bincount(self.code_N[self.code_N >= 0], minlength=len(names)).tolist()
        seen = {name: rows for name, rows in zip(names, counts) if rows}
        if labels is None:
            return dict(sorted(seen.items(), key=lambda one: (-one[1], one[0])))
        strange = sorted(seen.keys() - set(labels))
        if strange:
            raise DataError(
                f"{self.folder}: the label {strange[0]!r} stands in the rows, but not among the "
                f"{len(labels)} labels that the run is said to have had."
            )
        return {name: seen.get(name, 0) for name in labels}


def refuse_repeated_ids(hashes: Sequence[NDArray[np.uint64]], column: str) -> None:
    """Raises `DataError`: an id stands twice among those whose `id_hashes` these are."""
    if not hashes:
        return
    hash_2N = np.concatenate(hashes, axis=1)
    order = np.lexsort((hash_2N[1], hash_2N[0]))
    twice = (np.diff(hash_2N[:, order], axis=1) == 0).all(axis=0)
    if twice.any():
        raise DataError(
            f"input: {int(twice.sum()):,} id(s) of the column {column!r} stand there again; rows "
            "are compared by id, so ids must be unique."
        )


def id_hashes(shard: Shard, columns: Columns) -> NDArray[np.uint64]:
    """Two hashes of each id of a shard, [2, N]; those that are missing have none."""
    only_ids = Columns(text=None, id=columns.id)
    ids = (table["id"].combine_chunks() for table in read_shard(shard, only_ids))
    found = [_hashes(pc.drop_null(one)) for one in ids]
    return np.concatenate([np.empty((2, 0), np.uint64), *found], axis=1)


def match_rows(before: OutputRows, after: OutputRows) -> tuple[IntArray, IntArray]:
    """Rows of both outputs with the same id, [P] each, in the order of the hashes. Raises
    `DataError`: an id that stands twice in an output; no id that both outputs have."""
    hash_2N = np.concatenate([before.hash_2N, after.hash_2N], axis=1)
    before.hash_2N = after.hash_2N = hash_2N[:, :0].copy()  # of no more use: make room to sort
    # Equal ids are neighbours in the order of their hashes. The sort is stable, so of two the
    # previous output's comes first; two of one output side by side are one id that stands twice.
    order = np.lexsort((hash_2N[1], hash_2N[0]))
    same = np.ones(max(len(order) - 1, 0), bool)
    for hash_N in hash_2N:
        sorted_N = hash_N[order]
        same &= sorted_N[1:] == sorted_N[:-1]
    is_before = order < before.rows
    twice = same & (is_before[1:] == is_before[:-1])
    if twice.any():
        row = order[1:][twice].min()
        output, row = (before, row) if row < before.rows else (after, row - before.rows)
        (id_,) = output.ids_at(np.array([row]))
        raise DataError(
            f"{output.folder}: the id {id_!r:.80} stands twice (column {output.id_column!r}); ids "
            "must be unique within an output."
        )
    if not same.any():
        raise DataError(
            f"{after.folder} and {before.folder} have no id in common ({after.rows:,} and "
            f"{before.rows:,} rows, columns {after.id_column!r} and {before.id_column!r}): are "
            "they outputs for the same input?"
        )
    return order[:-1][same], order[1:][same] - before.rows


def _id_column(folder: str, files: Sequence[InputFile]) -> str:
    """By what the run says, if the files have it: earlier versions called it `id` always."""
    run = read_run(folder) if to_place(folder).is_dir() else None
    named = "id" if run is None else run.request["columns"].get("id_name", "id")
    return named if any(named in field_names(file) for file in files[:1]) else "id"


def _has_rows(file: InputFile, id_column: str) -> bool:
    """Whether a file has any; Arrow would take a field that no line of it has for null."""
    names = field_names(file)
    if not names and next(file.records(), None) is None:
        return False
    require_columns(file, names, (id_column, *_COLUMNS))
    return True


def read_columns(file: InputFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Columns of a file of an output, batch by batch. Raises `DataError`: it cannot be read."""
    try:
        yield from read_rows(file.uri, _KINDS[file.kind], columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file.uri}: cannot be read ({error}).") from None


def _codes(
    batch: pa.RecordBatch, names: dict[str, int], renamed: Mapping[str, str]
) -> NDArray[np.int32]:
    encoded = batch["label"].dictionary_encode()
    found = [renamed.get(name, name) for name in encoded.dictionary.to_pylist()]
    numbers = [names.setdefault(name, len(names)) for name in found]
    place_N = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    code_N = np.array([*numbers, NULL], np.int32)[place_N]
    failed_N = pc.fill_null(pc.not_equal(batch["error"].cast(pa.string()), ""), False)
    code_N[failed_N.to_numpy(zero_copy_only=False)] = ERROR
    return code_N


def _all_ids(ids: pa.Array, uri: str, batch: int) -> pa.Array:
    """With something that no other row has where there is no id."""
    ids = ids.cast(pa.string())
    if not ids.null_count:
        return ids
    places = pa.array(range(len(ids))).cast(pa.string())
    return pc.coalesce(ids, pc.binary_join_element_wise("\0", uri, str(batch), places, "\0"))


def _hashes(ids: pa.Array) -> NDArray[np.uint64]:
    """Two 64-bit hashes of each string, [2, N]: one alone would take two of a billion ids for
    one with a chance of 1 in 40."""
    texts = ids.cast(pa.string()).to_numpy(zero_copy_only=False)
    return np.stack([hash_array(texts, hash_key=key, categorize=False) for key in _HASH_KEYS])
