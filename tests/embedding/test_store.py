"""The embedding store: reading, looking up, refusing, and the Arrow columns without copies."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sce.embedding.fingerprint import EmbedderFingerprint
from sce.embedding.store import (
    STORE_COLUMNS,
    EmbeddingStore,
    Manifest,
    discard_unnamed,
    embedding_column,
    embedding_matrix,
    rewrite_part,
    text_hash,
    write_manifest,
)
from sce.errors import DataError, FingerprintMismatch

FINGERPRINT = EmbedderFingerprint(
    "sentence_transformers", "m", None, None, "mean", True, 4, 64, "float32", "aa", "bb"
)


def write(folder, texts, tag=None):
    """Write a store of made-up vectors, two rows a part."""
    ids, tags = list(texts), pa.array(tag or [], pa.int64())
    folder.mkdir(exist_ok=True)
    parts = []
    for first in range(0, len(ids), 2):
        block = ids[first : first + 2]
        hashes = [text_hash(texts[row_id]) for row_id in block]
        seeds = [int(one, 16) % 2**32 for one in hashes]
        vectors = np.stack([np.random.default_rng(s).random(4, np.float32) for s in seeds])
        columns = [pa.array(block), pa.array(hashes), embedding_column(vectors)]
        columns += [pa.repeat(False, len(block)), *([tags[first : first + 2]] if tag else [])]
        parts.append(f"part-{first:032x}.parquet")
        names = [*STORE_COLUMNS[:4], *(["tag"] if tag else [])]
        pq.write_table(pa.table(columns, names), folder / parts[-1])
    made_by = FINGERPRINT.to_dict() | {"id": FINGERPRINT.id}
    write_manifest(folder, Manifest(made_by, "x", len(ids), 0, 1.0, 1.0, "", parts))
    return EmbeddingStore.open(folder)


def test_a_store_reads_back(tmp_path):
    store = write(tmp_path, {"a": "x", "b": "yy", "c": "zzz"}, tag=[1, 2, 3])
    table = store.read().sort_by("row_id")
    assert table.column_names == [*STORE_COLUMNS[:4], "tag"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 4)
    assert table["tag"].to_pylist() == [1, 2, 3]
    assert table["text_hash"].to_pylist() == [text_hash(t) for t in ("x", "yy", "zzz")]
    assert store.manifest.rows == 3
    assert len(store.paths) == 2
    assert store.read(["row_id"]).column_names == ["row_id"]
    with pytest.raises(DataError, match="no column 'nope'"):
        store.read(["nope"])


def test_vectors_come_in_the_order_asked_for(tmp_path):
    store = write(tmp_path, {"a": "x", "b": "yy", "c": "zzz"})
    by_id = dict(zip(store.read()["row_id"].to_pylist(), store.read()["embedding"].to_pylist()))
    vectors = store.vectors_for(["c", "a", "c"])
    np.testing.assert_array_equal(vectors, [by_id["c"], by_id["a"], by_id["c"]])
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(store.vectors_for(pa.chunked_array([["b"]])), [by_id["b"]])
    with pytest.raises(DataError, match=r"lacks 2 of 3 rows, 'q' first"):
        store.vectors_for(["a", "q", "r"])


def test_columns_are_views():
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    column = embedding_column(vectors)
    assert np.shares_memory(embedding_matrix(column), vectors)
    np.testing.assert_array_equal(embedding_matrix(column.slice(1, 2)), vectors[1:])


def test_an_unfinished_or_missing_store_says_so(tmp_path):
    with pytest.raises(DataError, match="no embedding store"):
        EmbeddingStore.open(tmp_path / "nothing")
    store = write(tmp_path / "s", {"a": "x"})
    (store.folder / "_manifest.json").unlink()
    with pytest.raises(DataError, match=r"unfinished.*again"):
        EmbeddingStore.open(store.folder)


def test_another_version_or_embedder_is_refused(tmp_path):
    store = write(tmp_path, {"a": "x"})
    assert store.require(FINGERPRINT) is store
    other = FINGERPRINT.to_dict() | {"max_tokens": 32}
    with pytest.raises(FingerprintMismatch, match="max_tokens: 64 there, 32 here"):
        store.require(other)
    content = json.loads((tmp_path / "_manifest.json").read_text())
    (tmp_path / "_manifest.json").write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(DataError, match=r"another format.*99"):
        EmbeddingStore.open(tmp_path)


def test_a_part_is_rewritten_without_the_rows_that_went(tmp_path):
    """Row group by row group; a part of the first version gets errors and places."""
    store = write(tmp_path, {f"r{i}": str(i) for i in range(2)}, tag=[1, 2])
    source, target = Path(store.paths[0]), tmp_path / "part-00003" / "00000.parquet"
    pq.write_table(pq.read_table(source), source, row_group_size=1)
    rewrite_part(source, target, np.array([False, True]), first_place=7 << 40)
    table = pq.read_table(target)
    assert table.column_names == [*STORE_COLUMNS, "tag"]
    assert table.select(["row_id", "error", "place", "tag"]).to_pylist() == [
        {"row_id": "r1", "error": None, "place": (7 << 40) + 1, "tag": 2}
    ]
    np.testing.assert_array_equal(embedding_matrix(table["embedding"]), store.vectors_for(["r1"]))


def test_what_the_manifest_does_not_name_is_discarded(tmp_path):
    store = write(tmp_path, {"a": "x", "b": "y", "c": "z"})
    named = "part-00000/a.parquet"
    for name in (named, "part-00000/b.parquet", "part-00001/c.parquet", "_staging/d.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "part-cut-short.parquet").write_bytes(b"")
    parts = [*store.manifest.parts, named]
    write_manifest(tmp_path, replace(store.manifest, parts=parts))
    discard_unnamed(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.glob("**/*.parquet")} == set(parts)
    assert not (tmp_path / "_staging").exists()


def test_a_store_is_two_arrays_in_the_order_of_its_input(tmp_path):
    texts = {"c": "x", "a": "yy", "b": "zzz"}
    store = write(tmp_path, texts)
    ids, vectors = store.to_numpy()
    assert ids.tolist() == ["c", "a", "b"]
    assert (vectors.shape, vectors.dtype) == ((3, 4), np.float32)
    np.testing.assert_array_equal(vectors, store.vectors_for(["c", "a", "b"]))
    for part, places in zip(store.manifest.parts, ([2, 0], [1]), strict=True):
        table = pq.read_table(tmp_path / part)
        pq.write_table(table.append_column("place", pa.array(places)), tmp_path / part)
    ids, vectors = EmbeddingStore.open(tmp_path).to_numpy()
    assert ids.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(vectors, store.vectors_for(["a", "b", "c"]))
