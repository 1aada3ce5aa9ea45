"""One block of rows in, one block of an embedding store out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sce.bulk.answering import Vectors
from sce.bulk.corpus import Columns
from sce.bulk.pending import RowFacts
from sce.bulk.reading import BLOCK_ROWS, kept_columns
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import STORE_NAMES, chunk_columns, computed_in, embedding_column
from sce.model.options import Scoring

PIECE_ROWS = {"cpu": 512}
"""A vector's last bits depend on the batch it was in. The pieces of a corpus of one block are those
that stores were made of from the beginning, so that its vectors are the same in every bit."""


class BlockEmbedder:
    """Turns blocks that `read_shard` made into rows of an embedding store. A row with an error is
    kept with it, and with a vector of zeros: who classifies from the store gets every row."""

    def __init__(self, embedder: EmbedderConfig, columns: Columns, chunks: bool = False) -> None:
        from sce.embedding.embedder import load_embedder

        self._embedder = load_embedder(embedder)
        self._columns, self._chunks = columns, chunks

    def __call__(self, block: pa.Table) -> pa.Table:
        facts = RowFacts.of(block, self._columns)
        vectors_ND = np.zeros((block.num_rows, self._embedder.dimension), np.float32)
        truncated_N = np.zeros(block.num_rows, bool)
        chunks: dict[str, pa.Array] = {}
        if self._chunks:
            good_N = facts.errors.good()
            texts_G = block["text"].filter(pa.array(good_N)).to_pylist()
            found, truncated_N[good_N] = self._embedder.embed_chunks(texts_G)
            vectors_ND[good_N] = found.mean_vectors()
            chunks = chunk_columns(found, good_N)
        for rows_P in () if self._chunks else self._pieces(block["text"], facts):
            texts_P = block["text"].take(pa.array(rows_P)).combine_chunks()
            vectors_ND[rows_P], truncated_N[rows_P] = embed_distinct(self._embedder, texts_P)
        found = pa.table(
            {
                "row_id": facts.row_id,
                "text_hash": facts.text_hash,
                "embedding": embedding_column(vectors_ND),
                "truncated": pa.array(truncated_N),
                "error": pa.array(facts.errors.codes_N, pa.string()),
                "place": block["place"],
            }
            | chunks
            | kept_columns(block, STORE_NAMES)
        )
        return computed_in(found, self._embedder.fingerprint.dtype)

    def _pieces(self, texts: pa.ChunkedArray, facts: RowFacts) -> Iterator[np.ndarray]:
        """Rows without errors that are embedded together: the longest texts first, so that little
        is padded, and equal ones side by side."""
        sizes = pa.table({"length": pc.utf8_length(texts), "hash": facts.text_hash})
        order_N = pc.sort_indices(sizes, [("length", "descending"), ("hash", "ascending")])
        rows_G = order_N.filter(pa.array(facts.errors.good()).take(order_N)).to_numpy()
        size = PIECE_ROWS.get(self._embedder.device.type, BLOCK_ROWS)
        yield from (rows_G[first : first + size] for first in range(0, len(rows_G), size))


class TextVectors:
    """Texts to vectors [N, D], by an embedder that is loaded where this is made."""

    def __init__(self, embedder: EmbedderConfig) -> None:
        from sce.embedding.embedder import load_embedder

        self._embedder = load_embedder(embedder)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self._embedder.embed(texts).vectors


def embed_distinct(embedder: Any, texts_G: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [G, D] of a `TextEmbedder`, and whether the text was cut [G]. A text that several
    rows share is embedded once."""
    encoded = texts_G.dictionary_encode()
    embedded = embedder.embed(encoded.dictionary.to_pylist())
    code_G = encoded.indices.to_numpy()
    return embedded.vectors[code_G], embedded.truncated[code_G]


def embed_for(embedder: Any, texts_G: pa.Array, scoring: Scoring) -> tuple[Vectors, np.ndarray]:
    """As `embed_distinct`; the vectors of chunks where the scoring pools them."""
    if scoring.pooling is None:
        return embed_distinct(embedder, texts_G)
    found: tuple[Vectors, np.ndarray] = embedder.embed_chunks(texts_G.to_pylist())
    return found
