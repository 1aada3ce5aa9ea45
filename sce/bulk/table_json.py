"""Rows as lines of JSON: what JSON has no number for is null, bytes are base64."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Any, BinaryIO

import pyarrow as pa


def write_jsonl(table: pa.Table, file: BinaryIO, json_columns: Sequence[str]) -> None:
    """Write one object a line. The `json_columns` hold JSON text, which is taken as it is."""
    is_map = {f.name for f in table.schema if pa.types.is_map(f.type)}
    for batch in table.to_batches(max_chunksize=1024):
        lines = []
        for row in batch.to_pylist():
            for name in is_map:
                row[name] = None if row[name] is None else dict(row[name])
            for name in json_columns:
                row[name] = None if row[name] is None else json.loads(row[name])
            lines.append(as_json(row))
        file.write(("\n".join(lines) + "\n").encode())


def as_json(value: Any) -> str:
    """The JSON text of a value."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=as_text)
    except ValueError:  # a number that JSON has not
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=as_text)


def as_text(value: Any) -> str:
    """Bytes as base64; of what else JSON has no form for, such as times, its text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    """With null for NaN and infinity, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value
