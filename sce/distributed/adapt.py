"""Sums over a store, round by round: what labels are fitted to a corpus by.

The store is read once. Of a corpus of more rows than a fit needs, those are taken whose ids have
the smallest hashes, so that the choice depends on nothing else. Every round maps their vectors to
sums, which are exact (`sce.adaptation.mixture`) and so the same for every number of workers, size
of blocks and order of the rows. Those of a small store stay in this process; of a larger one in
Ray's object store, and no row passes through the driver but those of a sample of fixed size.
"""

from __future__ import annotations

import logging
import operator
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa

from sce.adaptation.passes import Block, Totals
from sce.bulk.corpus import Columns, Corpus, Shard
from sce.bulk.reading import read_shard
from sce.bulk.sums import add_up_rows, choose_rows, hash_limit, hashes, rows_below
from sce.distributed.one_process import is_small, may_run_here
from sce.distributed.settings import Engine, ResourcesConfig
from sce.distributed.stage import plan_corpus
from sce.embedding.store import EmbeddingStore, embedding_matrix
from sce.errors import DataError

READ_BLOCK_BYTES = 16 * 2**20
SUM_BATCH_ROWS = 16_384
"""Rows that a task adds up before it hands sums on."""
SHOWN_ROWS = 5000
"""Rows whose ids, texts and vectors the report is made from."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShownRows:
    """A sample of the corpus, in order of the hashes of its ids; `texts` are None where the store
    has none. Vectors float32 [S, D]."""

    ids: list[str]
    texts: list[str] | None
    vectors_SD: np.ndarray


class StoreSums:
    """The rows of a store that a fit reads. `add_up` is what `sce.adaptation.fit.Fitter` calls.

    Args:
        columns: of the store: its ids and, where it has them, the texts to show.
        sample_rows: of the fit at most.
        engine: "process" keeps the rows in this one, "ray" on the cluster; "auto" is the first for
            a small store, where there is no cluster.

    Raises:
        DataError: the store cannot be read, or has no row with a vector.
    """

    def __init__(
        self,
        corpus: Corpus,
        store: EmbeddingStore,
        columns: Columns,
        sample_rows: int,
        resources: ResourcesConfig,
        engine: Engine = "auto",
    ) -> None:
        shards = plan_corpus(corpus, columns)
        stored = sum(shard.rows for shard in shards)
        dimension = int(store.manifest.embedder["dimension"])
        choose = partial(
            choose_rows,
            largest=hash_limit(sample_rows, stored),
            dimension=dimension,
            columns=columns,
        )
        started = time.perf_counter()
        self._has_texts = bool(columns.keep)
        small = may_run_here(resources) and is_small(corpus, columns, lambda: shards)
        here = small if engine == "auto" else engine == "process"
        self._rows = (_RowsHere if here else _RowsOnRay)(shards, columns, choose)
        self.rows, self.fitted_rows = stored, self._rows.count
        if not self.fitted_rows:
            raise DataError(f"{store.folder}: it has no row with a vector to fit labels to.")
        log.info(
            "read %s rows of %s in %.1f s",
            f"{self.fitted_rows:,}",
            f"{stored:,}",
            time.perf_counter() - started,
        )

    def add_up(self, function: Callable[[Block], Totals], what: str) -> Totals:
        """`function` of every block of the rows, added up; `what` is what the log calls it."""
        started = time.perf_counter()
        add_up = partial(add_up_rows, function=function)
        # Our own tasks pickled them, in this run.
        pickled = (row for table in self._rows.map(add_up, SUM_BATCH_ROWS) for row in table["sums"])
        total: Totals = reduce(operator.add, (pickle.loads(row.as_py()) for row in pickled))
        log.info("%s: %.1f s", what, time.perf_counter() - started)
        return total

    def shown(self) -> ShownRows:
        """A sample for the report: at most `SHOWN_ROWS`."""
        largest = hash_limit(SHOWN_ROWS, self.fitted_rows)
        # Hashes of the rows that the fit reads lie below its own limit, evenly.
        scale = hash_limit(self.fitted_rows, self.rows) / 2**64
        few = partial(rows_below, largest=min(2**64 - 1, int(largest * scale * 1.2)))
        tables = list(self._rows.map(few, None))
        table = pa.concat_tables([one for one in tables if len(one)] or tables[:1])
        order = np.lexsort((table["id"].to_numpy(zero_copy_only=False), hashes(table["id"])))
        table = table.take(pa.array(order[:SHOWN_ROWS])).combine_chunks()
        texts = table["text"].to_pylist() if self._has_texts else None
        return ShownRows(table["id"].to_pylist(), texts, embedding_matrix(table["vector"]))


class _RowsHere:
    """Chosen rows in the memory of this process."""

    def __init__(
        self, shards: Sequence[Shard], columns: Columns, choose: Callable[[pa.Table], pa.Table]
    ) -> None:
        tables = [choose(table) for shard in shards for table in read_shard(shard, columns)]
        self._table = pa.concat_tables(tables).combine_chunks() if tables else None
        self.count = sum(map(len, tables))

    def map(
        self, function: Callable[[pa.Table], pa.Table], batch_rows: int | None
    ) -> Iterator[pa.Table]:
        """`function` of tables of so many rows, or of any number."""
        assert self._table is not None
        size = batch_rows or len(self._table)
        for start in range(0, len(self._table), size):
            yield function(self._table.slice(start, size).combine_chunks())


class _RowsOnRay:
    """Chosen rows in Ray's object store."""

    def __init__(
        self, shards: Sequence[Shard], columns: Columns, choose: Callable[[pa.Table], pa.Table]
    ) -> None:
        import ray.data

        from sce.distributed.actors import IO_TASK
        from sce.distributed.block_io import ShardSource
        from sce.distributed.session import ensure_ray

        ensure_ray()
        # Of these passes alone; a mistake of the user's is told from a bug by its type.
        self._context = ray.data.DataContext.get_current().copy()
        self._context.enable_progress_bars = False
        self._context.raise_original_map_exception = True
        self._dataset = self._run(
            lambda: (
                ray.data.read_datasource(
                    ShardSource(shards, columns, READ_BLOCK_BYTES),
                    override_num_blocks=len(shards),
                    **IO_TASK,
                )
                .map_batches(choose, batch_format="pyarrow", batch_size=None)
                .materialize()
            )
        )
        self.count = int(self._dataset.count())

    def map(
        self, function: Callable[[pa.Table], pa.Table], batch_rows: int | None
    ) -> Iterator[pa.Table]:
        """`function` of tables of so many rows, or of any number."""

        def work() -> list[pa.Table]:
            mapped = self._dataset.map_batches(
                function, batch_format="pyarrow", batch_size=batch_rows
            )
            return list(mapped.iter_batches(batch_format="pyarrow", batch_size=None))

        yield from self._run(work)

    def _run(self, work: Callable[[], Any]) -> Any:
        """What `work` returns, which has gone through its datasets by then."""
        from ray.data import DataContext
        from ray.exceptions import RayTaskError

        from sce.distributed.actors import cause_of

        try:
            with DataContext.current(self._context):
                return work()
        except RayTaskError as error:
            raise cause_of(error) from None
