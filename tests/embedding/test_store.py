"""The embedding store: reading, looking up, refusing, and the Arrow columns without copies."""

import json

import numpy as np
import pyarrow as pa
import pytest

from sce.datasets.schema import embeddings_schema
from sce.embedding.fingerprint import EmbedderFingerprint
from sce.embedding.store import (
    EmbeddingStore,
    Manifest,
    embedding_column,
    embedding_matrix,
    text_hash,
    write_part,
)
from sce.embedding.store_update import commit, open_staging, part_name, plan_update, read_source
from sce.errors import DataError, FingerprintMismatch

FINGERPRINT = EmbedderFingerprint(
    "sentence_transformers", "m", None, None, "mean", True, 4, 64, "float32", "aa", "bb"
)


def rows(texts, **columns):
    return pa.table({"row_id": list(texts), "text": list(texts.values()), **columns})


def write(folder, table, passthrough=()):
    """Write a store of made-up vectors, two rows a part."""
    source = read_source(table, "row_id", "text", passthrough)
    old = EmbeddingStore.open(folder) if (folder / "manifest.json").exists() else None
    update = plan_update(old, source)
    staging, parts = open_staging(folder), []
    for first in range(0, update.pending.num_rows, 2):
        block = update.pending.slice(first, 2)
        seeds = [int(h, 16) % 2**32 for h in block["text_hash"].to_pylist()]
        vectors = np.stack([np.random.default_rng(s).random(4, np.float32) for s in seeds])
        others = block.select(passthrough)
        columns = [block["row_id"], block["text_hash"], embedding_column(vectors)]
        columns += [pa.array([False] * len(block)), *others.columns]
        parts.append(part_name())
        schema = embeddings_schema(4, others.schema)
        write_part(staging / parts[-1], pa.Table.from_arrays(columns, schema=schema))
    manifest = Manifest(
        FINGERPRINT.to_dict() | {"id": FINGERPRINT.id}, source.fingerprint, 0, 0, 1.0, 1.0, "", []
    )
    return commit(folder, old, source, update, parts, manifest), update


def test_a_store_reads_back(tmp_path):
    store, _ = write(tmp_path, rows({"a": "x", "b": "yy", "c": "zzz"}, tag=[1, 2, 3]), ("tag",))
    table = store.read().sort_by("row_id")
    assert table.schema == embeddings_schema(4, pa.schema([("tag", pa.int64())]))
    assert table["tag"].to_pylist() == [1, 2, 3]
    assert table["text_hash"].to_pylist() == [text_hash(t) for t in ("x", "yy", "zzz")]
    assert store.manifest.rows == 3
    assert len(store.paths) == 2
    assert store.read(["row_id"]).column_names == ["row_id"]
    with pytest.raises(DataError, match="no column 'nope'"):
        store.read(["nope"])


def test_vectors_come_in_the_order_asked_for(tmp_path):
    store, _ = write(tmp_path, rows({"a": "x", "b": "yy", "c": "zzz"}))
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
    store, _ = write(tmp_path / "s", rows({"a": "x"}))
    (store.folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"unfinished.*again"):
        EmbeddingStore.open(store.folder)


def test_another_version_or_embedder_is_refused(tmp_path):
    store, _ = write(tmp_path, rows({"a": "x"}))
    assert store.require(FINGERPRINT) is store
    other = FINGERPRINT.to_dict() | {"max_tokens": 32}
    with pytest.raises(FingerprintMismatch, match="max_tokens: 64 there, 32 here"):
        store.require(other)
    content = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(DataError, match="format 99"):
        EmbeddingStore.open(tmp_path)


def test_rows_that_go_or_change_leave_the_store(tmp_path):
    texts = {"a": "aaaa", "b": "bbb", "c": "cc", "d": "d"}
    before, _ = write(tmp_path, rows(texts, tag=[1, 2, 3, 4]), ("tag",))
    vector_a = before.vectors_for(["a"])
    changed = rows({"a": "aaaa", "c": "CC", "d": "d"}, tag=[1, 3, 40])
    store, update = write(tmp_path, changed, ("tag",))
    assert update.pending["row_id"].to_pylist() == ["c"]
    assert update.dropped == 2
    table = store.read().sort_by("row_id")
    assert table["row_id"].to_pylist() == ["a", "c", "d"]
    assert table["tag"].to_pylist() == [1, 3, 40]
    np.testing.assert_array_equal(store.vectors_for(["a"]), vector_a)
    assert {p.name for p in tmp_path.glob("part-*")} == set(store.manifest.parts)
    assert plan_update(store, read_source(changed, "row_id", "text", ("tag",))).is_empty


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (rows({}), "no rows"),
        (rows({"a": "x", "b": "  "}), r"row 1 \('b'\) has an empty text; 1 row"),
        (pa.table({"row_id": ["a", "a"], "text": ["x", "y"]}), "'a' .* more than once"),
        (pa.table({"row_id": ["a"]}), "text"),
    ],
)
def test_a_source_that_breaks_the_contract_is_refused(table, message):
    with pytest.raises(DataError, match=message):
        read_source(table, "row_id", "text", ())
