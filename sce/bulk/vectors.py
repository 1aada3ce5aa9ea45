"""One block of rows in, one block of an embedding store out."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from sce.bulk.corpus import Columns
from sce.bulk.pending import RowFacts
from sce.bulk.reading import kept_columns
from sce.embedding.embedder import TextEmbedder
from sce.embedding.store import STORE_COLUMNS, embedding_column


class BlockEmbedder:
    """Turns blocks that `read_shard` made into rows of an embedding store.

    A row with an error is kept with it, and with a vector of zeros: who classifies from the
    store gets as many rows as went into it.
    """

    def __init__(self, embedder: TextEmbedder, columns: Columns) -> None:
        self._embedder = embedder
        self._columns = columns

    def __call__(self, block: pa.Table) -> pa.Table:
        facts = RowFacts.of(block, self._columns)
        good_N = facts.errors.good()
        vectors_GD, truncated_N = embed_good(self._embedder, block["text"], good_N)
        vectors_ND = np.zeros((len(good_N), self._embedder.dimension), np.float32)
        vectors_ND[good_N] = vectors_GD
        return pa.table(
            {
                "row_id": facts.row_id,
                "text_hash": facts.text_hash,
                "embedding": embedding_column(vectors_ND),
                "truncated": pa.array(truncated_N),
                "error": pa.array(facts.errors.codes_N, pa.string()),
                "place": block["place"],
            }
            | kept_columns(block, STORE_COLUMNS)
        )


def embed_good(
    embedder: TextEmbedder, texts: pa.ChunkedArray, good_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the good rows [G, D], and of every row whether its text was cut [N]."""
    truncated_N = np.zeros(len(good_N), bool)
    good_texts = texts.filter(pa.array(good_N)).combine_chunks()
    vectors_GD, truncated_N[good_N] = embed_distinct(embedder, good_texts)
    return vectors_GD, truncated_N


def embed_distinct(embedder: TextEmbedder, texts_G: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [G, D], and whether the text was cut [G]. A text that several rows share is embedded
    once."""
    encoded = texts_G.dictionary_encode()
    if not len(encoded):
        return np.empty((0, embedder.dimension), np.float32), np.zeros(0, bool)
    embedded = embedder.embed(encoded.dictionary.to_pylist())
    code_G = encoded.indices.to_numpy()
    truncated_G = embedded.truncated[code_G]
    if len(encoded.dictionary) == len(code_G):
        return embedded.vectors, truncated_G
    return embedded.vectors[code_G], truncated_G
