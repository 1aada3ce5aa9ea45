"""Where Ray Data reads shards from and writes lines of JSON to.

What stands here runs in Ray's own workers; it loads no more than they need (no torch).
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.datasource import BlockBasedFileDatasink

from sce.bulk.corpus import Columns, Shard
from sce.bulk.reading import BLOCK_ROWS, read_shard


class ShardSource(Datasource):
    """Reads shards, one task each."""

    def __init__(self, shards: Sequence[Shard], columns: Columns, block_bytes: int) -> None:
        super().__init__()
        self._shards = list(shards)
        self._columns = columns
        self._row_bytes = max(1, block_bytes // BLOCK_ROWS)

    def get_name(self) -> str:
        return "ReadShards"

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(shard.rows for shard in self._shards) * self._row_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                partial(read_shard, shard, self._columns),
                BlockMetadata(
                    num_rows=shard.rows,
                    size_bytes=shard.rows * self._row_bytes,
                    input_files=(shard.file.uri,),
                    exec_stats=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for shard in self._shards
        ]


class JSONLinesSink(BlockBasedFileDatasink):
    """One JSON object a line: what JSON has no number for is null, bytes are base64."""

    def __init__(self, path: str, json_columns: Sequence[str], **settings: Any) -> None:
        super().__init__(path, file_format="jsonl", **settings)
        self._json_columns = json_columns

    def write_block_to_file(self, block: BlockAccessor, file: Any) -> None:
        table = block.to_arrow()
        is_map = {f.name for f in table.schema if pa.types.is_map(f.type)}
        for batch in table.to_batches(max_chunksize=1024):
            lines = []
            for row in batch.to_pylist():
                for name in is_map:
                    row[name] = None if row[name] is None else dict(row[name])
                for name in self._json_columns:
                    row[name] = None if row[name] is None else json.loads(row[name])
                lines.append(_to_json(row))
            file.write(("\n".join(lines) + "\n").encode())


def _to_json(row: dict[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, default=_as_text)
    except ValueError:  # a number that JSON has not
        return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False, default=_as_text)


def _as_text(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    """With null for NaN and infinity, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value
