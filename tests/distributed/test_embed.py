"""Embedding on Ray Data: complete, incremental, and never with another embedder's vectors."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sce.distributed import embed as embed_module
from sce.distributed.embed import embed_to_store
from sce.distributed.resources import ResourcesConfig, embed_actors, training_workers
from sce.embedding.embedder import load_embedder
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import EmbeddingStore
from sce.errors import ConfigError, DataError, FingerprintMismatch
from tests.tiny_models import build_sentence_transformer

RESOURCES = ResourcesConfig(use_gpu=False)

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    folder = build_sentence_transformer(tmp_path_factory.mktemp("model"))
    return EmbedderConfig(kind="sentence_transformers", model=str(folder), device="cpu")


def rows(texts):
    return pa.table({"row_id": [f"r{i}" for i in range(len(texts))], "text": texts})


def texts(count):
    return [
        " ".join(["the dog thanked"] * (i % 9 + 1)) + f" {i % (count // 2)}" for i in range(count)
    ]


def refuse_to_start(*_args, **_kwargs):
    raise AssertionError("an actor would start")


def test_incremental(embedder, tmp_path, monkeypatch):
    written = texts(600)
    pq.write_table(rows(written), tmp_path / "rows.parquet")
    store = tmp_path / "store"
    done = embed_to_store([tmp_path / "rows.parquet"], store, embedder, RESOURCES)
    assert (done["rows"], done["embedded"], done["reused"]) == (600, 600, 0)
    opened = EmbeddingStore.open(store)
    assert sorted(opened.read(["row_id"])["row_id"].to_pylist()) == sorted(
        rows(written)["row_id"].to_pylist()
    )
    expected = load_embedder(embedder).embed(written)
    ids = rows(written)["row_id"]
    np.testing.assert_allclose(opened.vectors_for(ids), expected.vectors, atol=1e-5)
    assert opened.manifest.truncated == done["truncated"] == expected.truncated.sum()
    assert opened.manifest.embedder["id"] == done["fingerprint"]

    with monkeypatch.context() as patch:
        patch.setattr(embed_module, "embed_actors", refuse_to_start)
        manifest = (store / "manifest.json").read_text()
        again = embed_to_store(rows(written), store, embedder, RESOURCES)
        assert (again["rows"], again["embedded"], again["reused"]) == (600, 0, 600)
        assert (store / "manifest.json").read_text() == manifest
        less = embed_to_store(rows(written[:500]), store, embedder, RESOURCES)
        assert (less["rows"], less["embedded"], less["removed"]) == (500, 0, 100)

    changed = ["refund the order", *written[1:500], "a new galaxy"]
    grown = embed_to_store(rows(changed), store, embedder, RESOURCES)
    assert (grown["rows"], grown["embedded"], grown["reused"]) == (501, 2, 499)
    opened = EmbeddingStore.open(store)
    assert opened.read().num_rows == 501
    expected = load_embedder(embedder).embed(changed).vectors
    found = opened.vectors_for(rows(changed)["row_id"])
    np.testing.assert_allclose(found, expected, atol=1e-5)

    other = embedder.model_copy(update={"max_tokens": 16})
    with pytest.raises(FingerprintMismatch, match="max_tokens: 64 there, 16 here"):
        embed_to_store(rows(changed), store, other, RESOURCES)


def test_what_an_interrupted_run_left_is_not_in_the_store(embedder, tmp_path, monkeypatch):
    store = tmp_path / "store"
    with monkeypatch.context() as patch:

        def die(*_args, **_kwargs):
            raise KeyboardInterrupt

        patch.setattr(embed_module, "commit", die)
        with pytest.raises(KeyboardInterrupt):
            embed_to_store(rows(texts(20)), store, embedder, RESOURCES)
    assert list(store.glob("_staging/part-*"))
    with pytest.raises(DataError, match="unfinished"):
        EmbeddingStore.open(store)
    (store / "part-of-a-commit-cut-short.parquet").write_bytes(b"")
    done = embed_to_store(rows(texts(20)), store, embedder, RESOURCES)
    opened = EmbeddingStore.open(store)
    assert done["embedded"] == opened.read().num_rows == 20
    assert sorted(str(p) for p in store.glob("**/*.parquet")) == sorted(opened.paths)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embed_actors": 50}, r"50 actors with 1 CPUs.*the cluster has 4 CPUs and 0 GPUs"),
        ({"gpus_per_embed_actor": 1}, "1 GPUs each, but the cluster has"),
        ({"use_gpu": True}, "use_gpu is true"),
        ({"accelerator_type": "A100"}, "'A100' is not in the cluster"),
    ],
)
def test_more_than_the_cluster_has_is_refused_at_once(settings, message):
    with pytest.raises(ConfigError, match=message):
        embed_actors(ResourcesConfig(**settings))


def test_the_cpu_is_shared_out():
    plan = embed_actors(ResourcesConfig())
    assert (plan.actors, plan.num_cpus, plan.num_gpus, plan.threads) == (1, 1, 0, 4)
    assert embed_actors(ResourcesConfig(embed_actors=2)).threads == 2
    workers = training_workers(ResourcesConfig(num_workers=2))
    assert (workers.count, workers.use_gpu, workers.threads) == (2, False, 2)
    with pytest.raises(ConfigError, match="100 workers"):
        training_workers(ResourcesConfig(num_workers=100))
