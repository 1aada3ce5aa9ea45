"""Where Ray Data reads shards from, and writes what is not Parquet to.

What stands here runs in Ray's own workers; it loads no more than they need (no torch).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ray.data import Datasource, ReadTask
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.datasource import BlockBasedFileDatasink

from sce.bulk.corpus import Columns, Shard
from sce.bulk.reading import BLOCK_ROWS, read_shard
from sce.bulk.table_csv import write_csv
from sce.bulk.table_json import write_jsonl


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
    """One JSON object a line, see `sce.bulk.table_json`."""

    def __init__(self, path: str, json_columns: Sequence[str], **settings: Any) -> None:
        super().__init__(path, file_format="jsonl", **settings)
        self._json_columns = json_columns

    def write_block_to_file(self, block: BlockAccessor, file: Any) -> None:
        write_jsonl(block.to_arrow(), file, self._json_columns)


class CSVSink(BlockBasedFileDatasink):
    """A CSV that spreadsheets open, see `sce.bulk.table_csv`."""

    def __init__(self, path: str, labels: Sequence[str] | None, **settings: Any) -> None:
        super().__init__(path, file_format="csv", **settings)
        self._labels = labels

    def write_block_to_file(self, block: BlockAccessor, file: Any) -> None:
        write_csv(block.to_arrow(), file, self._labels)
