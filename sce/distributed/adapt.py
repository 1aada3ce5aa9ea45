"""Sums over a store, round by round, on Ray Data: what labels are fitted to a corpus by.

The store is read once. Of a corpus of more rows than a fit needs, those are taken whose ids have
the smallest hashes, so that the choice depends on nothing else. Their vectors stay in Ray's object
store; every round maps them to sums, which are exact (`sce.adaptation.mixture`) and so the same for
every number of workers, size of blocks and order of the rows. No row passes through the driver but
those of a sample of fixed size.
"""

from __future__ import annotations

import logging
import operator
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataContext
from ray.exceptions import RayTaskError

from sce.adaptation.passes import Block, Totals
from sce.bulk.corpus import Columns, Corpus
from sce.bulk.sums import add_up_rows, choose_rows, hash_limit, hashes, rows_below
from sce.distributed.actors import IO_TASK, cause_of
from sce.distributed.block_io import ShardSource
from sce.distributed.session import ensure_ray
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

    Raises:
        DataError: the store cannot be read, or has no row with a vector.
    """

    def __init__(
        self, corpus: Corpus, store: EmbeddingStore, columns: Columns, sample_rows: int
    ) -> None:
        ensure_ray()
        shards = plan_corpus(corpus, columns)
        stored = sum(shard.rows for shard in shards)
        dimension = int(store.manifest.embedder["dimension"])
        choose = partial(
            choose_rows,
            largest=hash_limit(sample_rows, stored),
            dimension=dimension,
            columns=columns,
        )
        # Of these passes alone; a mistake of the user's is told from a bug by its type.
        self._context = DataContext.get_current().copy()
        self._context.enable_progress_bars = False
        self._context.raise_original_map_exception = True
        started = time.perf_counter()
        self._has_texts = bool(columns.keep)
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
        self.rows, self.fitted_rows = stored, int(self._dataset.count())
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

        def work() -> Totals:
            mapped = self._dataset.select_columns(["vector"]).map_batches(
                partial(add_up_rows, function=function),
                batch_format="pyarrow",
                batch_size=SUM_BATCH_ROWS,
            )
            # Our own tasks pickled them, in this run.
            parts = (pickle.loads(row["sums"]) for row in mapped.iter_rows())
            return reduce(operator.add, parts)

        total: Totals = self._run(work)
        log.info("%s: %.1f s", what, time.perf_counter() - started)
        return total

    def shown(self) -> ShownRows:
        """A sample for the report: at most `SHOWN_ROWS`."""
        largest = hash_limit(SHOWN_ROWS, self.fitted_rows)
        # Hashes of the rows that the fit reads lie below its own limit, evenly.
        scale = hash_limit(self.fitted_rows, self.rows) / 2**64
        few = partial(rows_below, largest=min(2**64 - 1, int(largest * scale * 1.2)))

        def work() -> list[pa.Table]:
            found = self._dataset.map_batches(few, batch_format="pyarrow", batch_size=None)
            return list(found.iter_batches(batch_format="pyarrow"))

        tables = self._run(work)
        table = pa.concat_tables([one for one in tables if len(one)] or tables[:1])
        order = np.lexsort((table["id"].to_numpy(zero_copy_only=False), hashes(table["id"])))
        table = table.take(pa.array(order[:SHOWN_ROWS])).combine_chunks()
        texts = table["text"].to_pylist() if self._has_texts else None
        return ShownRows(table["id"].to_pylist(), texts, embedding_matrix(table["vector"]))

    def _run(self, work: Callable[[], Any]) -> Any:
        """What `work` returns, which has gone through its datasets by then."""
        try:
            with DataContext.current(self._context):
                return work()
        except RayTaskError as error:
            raise cause_of(error) from None
