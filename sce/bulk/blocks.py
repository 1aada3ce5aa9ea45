"""What is done to the blocks of a bulk job, how large they are, and in which parts they are
committed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from sce.bulk.corpus import Columns, Shard
from sce.bulk.output import OutputFormat
from sce.bulk.reading import BLOCK_ROWS

ROWS_PER_FILE = 65_536
"""Where answers come from vectors. A file is as much as a kill can undo."""
EMBED_ROWS_PER_FILE = {"cpu": BLOCK_ROWS, "cuda": 65_536}
"""Where texts are embedded, which takes longer."""
TEXT_BLOCK_BYTES = 2**20

CHUNKED_ROWS = 256
"""Of texts in chunks at once, and in a row group of their store: 2,000 vectors as a rule, and a
million where each has as many chunks as it may."""

MIN_BATCH_ROWS = 256
"""A worker gets fewer rows at once only where there are no more."""

BlockFunction = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Stage:
    """What is done to every block, and where it goes.

    Attributes:
        make: builds the function where it runs, model and all; pickled, so keep it small.
        rows_per_file: at least; None for a file a block.
        block_bytes: target size of the blocks that are read.
        batch_rows: that the function gets at once.
        counted: the column whose labels are counted, `label` or `labels`; None in a store.
        write_options: of `pyarrow.parquet.write_table`.
        json_columns: that hold JSON text, which JSONL output takes as it is.
        labels: of which CSV has a column each with its score; None where the rows' differ.
    """

    make: Callable[[], BlockFunction]
    columns: Columns
    output_format: OutputFormat
    rows_per_file: int | None
    block_bytes: int
    batch_rows: int = BLOCK_ROWS
    counted: str | None = "label"
    write_options: dict[str, Any] | None = None
    json_columns: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None

    def spread(self, rows: int, workers: int) -> Stage:
        """With blocks and batches so small that each of the workers gets two of `rows` rows: a file
        of a few thousand texts is read as one block otherwise, and one worker has it all."""
        each = max(-(-rows // (2 * workers)), MIN_BATCH_ROWS)
        if workers == 1 or each >= BLOCK_ROWS:
            return self
        # Half of a batch, since rows may be smaller than the 128 bytes that are reckoned with.
        return replace(
            self,
            block_bytes=self.block_bytes * each // BLOCK_ROWS // 2,
            batch_rows=min(self.batch_rows, each),
        )


def split_parts(shards: Sequence[Shard], rows: int) -> list[list[Shard]]:
    """Consecutive shards of at least `rows` rows together, the last part what is left."""
    parts: list[list[Shard]] = [[]]
    size = 0
    for shard in shards:
        if size >= rows:
            parts.append([])
            size = 0
        parts[-1].append(shard)
        size += shard.rows
    return parts
