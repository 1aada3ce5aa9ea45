"""Rows as a CSV that spreadsheets open: UTF-8 with a mark, a column a value, no formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.dataset as pads

from sce.bulk.table_json import as_json, as_text
from sce.model.options import PATH_COLUMN, SEVERAL_COLUMN

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Tells Excel that it is UTF-8."""
_FORMULA = r"^'*[\p{Cc}\p{Cf}\p{Z}]*[=+\-@＝＋－＠]|^'*[\t\r\n]"
"""What a spreadsheet might take for a formula: also behind characters that it shows as nothing
(control, format, white space). One that is guarded already gets another mark, so that taking one
away gives back every text. serve/page.html has the same rule."""
SEPARATOR = "; "
"""Between the names of a row's labels."""
_NUMBER = r"^[-+]?\d+([.,]\d+)?$"


def write_csv(table: pa.Table, file: BinaryIO, labels: Sequence[str] | None) -> None:
    """Write rows with a header. Null is an empty field, an empty text `""`.

    The column `labels` of a row that may get several has their names, best first, between "; ", the
    column `path` of a tree the nodes on the way down with their probabilities.

    A text that a spreadsheet would take for a formula gets a "'" in front. The column `scores`, a
    map from labels to scores, becomes a column `score: LABEL` for each of `labels`, which are the
    keys of every row in their order; where those differ, `labels` is None, it is JSON, as what else
    is nested. A column that has such a name already is called `input_score: LABEL`.
    """
    columns: dict[str, pa.ChunkedArray | pa.Array] = {}
    own = {f"score: {label}" for label in labels or () if "scores" in table.column_names}
    for name, column in zip(table.column_names, table.columns):
        if name == SEVERAL_COLUMN and pa.types.is_list(column.type):
            columns[name] = _names(column)
        elif name == PATH_COLUMN and _is_pairs(column.type):
            columns[name] = _steps(column)
        elif own and name == "scores":
            columns |= _score_columns(column, labels or ())
        else:
            columns[f"input_{name}" if name in own else name] = _flat(column)
    names = [_guarded(pa.array([name]))[0].as_py() for name in columns]
    file.write(BYTE_ORDER_MARK)
    pacsv.write_csv(pa.table(list(map(_guarded, columns.values())), names), file)


def dataset_format(schema: pa.Schema) -> pads.CsvFileFormat:
    """How `pyarrow.dataset` reads some columns of what `write_csv` wrote."""
    return pads.CsvFileFormat(
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            column_types=schema,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def without_guards(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The texts as they were before they were guarded."""
    columns = []
    for column in batch.columns:
        if pa.types.is_string(column.type):
            cut = pc.utf8_slice_codeunits(column, 1)
            guarded = pc.and_(pc.starts_with(column, "'"), _looks_like_formula(column))
            column = pc.if_else(guarded, cut, column)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _score_columns(column: pa.ChunkedArray, labels: Sequence[str]) -> dict[str, pa.Array]:
    array = pa.concat_arrays(column.chunks) if column.num_chunks else column.combine_chunks()
    first_N = array.offsets.to_numpy()[:-1]
    missing_N = np.diff(array.offsets.to_numpy()) == 0  # a row with an error
    return {
        f"score: {label}": array.items.take(pa.array(first_N + i, mask=missing_N))
        for i, label in enumerate(labels)
    }


def _names(column: pa.ChunkedArray) -> pa.Array:
    """The names of each row's labels; a row without any is an empty text, one with an error
    null."""
    rows = column.to_pylist()
    if pa.types.is_struct(column.type.value_type):
        rows = [None if row is None else [one["label"] for one in row] for row in rows]
        return pa.array([None if row is None else SEPARATOR.join(row) for row in rows], pa.string())
    return _flat(column)


def _is_pairs(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)):
        return False
    return [field.name for field in kind.value_type] == ["label", "score"]


def _steps(column: pa.ChunkedArray) -> pa.Array:
    rows = (
        None if row is None else SEPARATOR.join(f"{one['label']} {one['score']:.2f}" for one in row)
        for row in column.to_pylist()
    )
    return pa.array(rows, pa.string())


def _flat(column: pa.ChunkedArray) -> Any:
    """What is nested as JSON, bytes as base64."""
    if pa.types.is_nested(column.type):
        is_map = pa.types.is_map(column.type)
        values = (None if v is None else dict(v) if is_map else v for v in column.to_pylist())
        return pa.array([None if v is None else as_json(v) for v in values], pa.string())
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        raw = column.to_pylist()
        return pa.array([None if v is None else as_text(v) for v in raw], pa.string())
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _guarded(column: Any) -> Any:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    is_formula = pc.and_not(_looks_like_formula(column), pc.match_substring_regex(column, _NUMBER))
    return pc.if_else(is_formula, pc.binary_join_element_wise("'", column, ""), column)


def _looks_like_formula(column: Any) -> Any:
    return pc.match_substring_regex(column, _FORMULA)
