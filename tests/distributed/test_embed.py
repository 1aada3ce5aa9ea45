"""Embedding on Ray Data: complete, incremental, and never with another embedder's vectors."""

import json
import re
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from sce.bulk.corpus import Columns, open_corpus
from sce.bulk.counts import ActorCounts, ErrorLimit
from sce.bulk.output import OutputRun, PartCounts
from sce.distributed import embed as embed_module
from sce.distributed.actors import ActorPool
from sce.distributed.embed import embed_corpus
from sce.distributed.resources import embed_actors, training_workers
from sce.distributed.settings import ResourcesConfig
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.embedder import load_embedder
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import (
    STORE_COLUMNS,
    EmbeddingStore,
    Manifest,
    embedding_column,
    text_hash,
    write_manifest,
)
from sce.errors import ConfigError, DataError, FingerprintMismatch
from tests.tiny_models import build_sentence_transformer

PREPARED = Columns(id="row_id")
TEXTS = [" ".join(["the dog thanked"] * (i % 9 + 1)) + f" {i % 100}" for i in range(200)]

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = build_sentence_transformer(tmp_path_factory.mktemp("model"))
    return EmbedderConfig(kind="sentence_transformers", model=str(folder), device="cpu")


def write_rows(folder, texts, first=0):
    folder.mkdir(exist_ok=True)
    ids = [f"r{i}" for i in range(first, first + len(texts))]
    pq.write_table(pa.table({"row_id": ids, "text": texts}), folder / f"rows-{first:05d}.parquet")


def fill(folder, store, model, columns=PREPARED, prepared=True, **settings):
    def plan():
        return embed_actors(ResourcesConfig(use_gpu=False), default_cpus=0.5)

    corpus = open_corpus([str(folder)])
    limit = ErrorLimit(share=1.0)
    return embed_corpus(corpus, columns, store, model, plan, limit, prepared=prepared, **settings)


def expect(store, model, ids, texts):
    """The store holds these rows and no other, and the vectors are those of the bare embedder."""
    assert sorted(store.read(["row_id"])["row_id"].to_pylist()) == sorted(ids)
    assert len(store.read().schema) >= 4, "the parts have one schema"
    embedded = load_embedder(model).embed(texts)
    np.testing.assert_allclose(store.vectors_for(ids), embedded.vectors, atol=1e-5)
    assert store.manifest.rows == len(ids)
    assert store.manifest.truncated == embedded.truncated.sum()
    on_disk = {str(path.relative_to(store.folder)) for path in store.folder.glob("**/*.parquet")}
    assert on_disk == set(store.manifest.parts)


def figures(summary):
    return tuple(summary[name] for name in ("rows_out", "embedded", "reused", "removed"))


@pytest.mark.system
def test_incremental(model, tmp_path, monkeypatch):
    """Interrupted and resumed at first, unchanged, less, then grown, interrupted and resumed."""
    rows, store = tmp_path / "rows", tmp_path / "store"
    ids = [f"r{i}" for i in range(len(TEXTS))]
    write_rows(rows, TEXTS[:100])
    write_rows(rows, TEXTS[100:], 100)
    interrupt(monkeypatch, rows, store, model)
    with pytest.raises(DataError, match="unfinished"):
        EmbeddingStore.open(store)
    opened, done = fill(rows, store, model, commit_rows=50)
    assert figures(done) == (200, 200, 0, 0)
    assert done["embedder"] == opened.manifest.embedder["id"]
    expect(opened, model, ids, TEXTS)

    with monkeypatch.context() as patch:
        patch.setattr(embed_module, "embed_actors", refuse_to_start)
        patch.setattr(embed_module, "run_stage", refuse_to_start)
        manifest = (store / "_manifest.json").read_text()
        assert fill(rows, store, model)[1]["unchanged"]
        write_rows(rows, TEXTS[:100])  # the same rows, written later
        assert figures(fill(rows, store, model)[1]) == (200, 0, 200, 0)
        assert (store / "_manifest.json").read_text() == manifest
        write_rows(rows, TEXTS[100:150], 100)
        opened, less = fill(rows, store, model)
        assert figures(less) == (150, 0, 150, 50)
        expect(opened, model, ids[:150], TEXTS[:150])

    changed = ["refund the order", *TEXTS[1:150], *TEXTS[:50]]
    write_rows(rows, changed[:100])
    write_rows(rows, changed[150:], 150)
    interrupt(monkeypatch, rows, store, model, commit_rows=1)
    assert EmbeddingStore.open(store).read(["row_id"]).num_rows == 150
    with monkeypatch.context() as patch:
        patch.setattr(embed_module, "write_manifest", interrupted_after(0))
        with pytest.raises(KeyboardInterrupt):
            fill(rows, store, model, commit_rows=1)
    with monkeypatch.context() as patch:  # all is embedded
        patch.setattr("sce.distributed.actors._run_part", refuse_to_start)
        opened, grown = fill(rows, store, model, commit_rows=1)
    assert figures(grown) == (200, 51, 149, 1)
    expect(opened, model, ids, changed)
    assert len(opened.read(["place"])["place"].unique()) == 200
    assert not (store / "_lock.json").exists()

    other = model.model_copy(update={"max_tokens": 16})
    with pytest.raises(FingerprintMismatch, match="max_tokens: 64 there, 16 here"):
        fill(rows, store, other)


@pytest.mark.system
def test_a_new_week_in_the_folder_of_a_user(model, tmp_path):
    """Rows with errors stay rows with errors, and a file that comes first moves no other."""
    rows, store = tmp_path / "rows", tmp_path / "store"
    columns = Columns(keep=("topic", "text"))
    rows.mkdir()
    lines = [{"text": text, "topic": "a"} for text in [*TEXTS[:20], "", "the same", "the same"]]
    second = rows / "week-02.jsonl"
    second.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    _, done = fill(rows, store, model, columns, prepared=False)
    assert figures(done) == (24, 24, 0, 0)
    assert done["model_load_seconds"] > 0
    assert done["errors"] == {"text_empty": 1, "line_unreadable": 1}

    (rows / "week-01.jsonl").write_text('{"text": "a new galaxy", "topic": "b"}\n')
    lines[0]["topic"] = "changed"
    second.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    opened, grown = fill(rows, store, model, columns, prepared=False)
    assert figures(grown) == (25, 2, 23, 1)
    assert grown["errors"] == done["errors"]
    table = opened.read().to_pydict()
    assert sorted(zip(table["row_id"], table["topic"]))[:2] == [
        ("week-01.jsonl:1", "b"),
        ("week-02.jsonl:1", "changed"),
    ]
    assert len(set(table["place"])) == len(set(table["row_id"])) == 25
    with pytest.raises(ConfigError, match=r"asked for something else:\n  columns\.keep"):
        fill(rows, store, model, Columns(), prepared=False)


@pytest.mark.system
def test_prepared_rows_that_changed_meanwhile_are_begun_anew(model, tmp_path):
    rows, store = tmp_path / "rows", tmp_path / "store"
    write_rows(rows, TEXTS[:20])
    asked = {"job": "embed", "embedder": "another", "input": [], "columns": {}}
    OutputRun(str(store), asked).commit_part(0, PartCounts(rows=30))
    (store / "part-00000").mkdir()
    (store / "part-00000" / "x.parquet").write_bytes(b"")
    (store / "part-of-an-earlier-version.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match="input: new"):
        fill(rows, store, model, prepared=False)
    opened, done = fill(rows, store, model)
    assert figures(done) == (20, 20, 0, 0)
    expect(opened, model, [f"r{i}" for i in range(20)], TEXTS[:20])


@pytest.mark.system
def test_a_store_of_the_first_version_goes_on(model, tmp_path, monkeypatch):
    """Its parts lay in the folder itself, without places and errors."""
    rows, store = tmp_path / "rows", tmp_path / "store"
    write_rows(rows, TEXTS[:60])
    store.mkdir()
    for first in range(0, 60, 30):
        texts = TEXTS[first : first + 30]
        vectors = load_embedder(model).embed(texts).vectors
        ids = pa.array([f"r{i}" for i in range(first, first + 30)])
        hashes = pa.array(map(text_hash, texts), pa.string())
        columns = [ids, hashes, embedding_column(vectors), pa.repeat(False, 30)]
        part = pa.table(columns, list(STORE_COLUMNS[:4]))
        pq.write_table(part, store / f"part-{first:032x}.parquet")
    fingerprint = embedder_fingerprint(model)
    parts = sorted(path.name for path in store.glob("*.parquet"))
    manifest = Manifest(
        fingerprint.to_dict() | {"id": fingerprint.id}, "x", 60, 0, 2.0, 30.0, "", parts
    )
    write_manifest(store, manifest)
    with monkeypatch.context() as patch:
        patch.setattr(embed_module, "embed_actors", refuse_to_start)
        opened, done = fill(rows, store, model)
    assert figures(done) == (60, 0, 60, 0)
    assert asdict(opened.manifest) == asdict(manifest)

    write_rows(rows, [*TEXTS[:10], *TEXTS[20:60], "a new galaxy"])
    texts = {f"r{i}": text for i, text in enumerate([*TEXTS[:10], *TEXTS[20:60], "a new galaxy"])}
    opened, done = fill(rows, store, model)
    assert done["rows_out"] == 51
    expect(opened, model, list(texts), list(texts.values()))
    assert len(opened.read(["place"])["place"].unique()) == 51


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"row_id": [], "text": []}, "no rows"),
        (
            {"row_id": ["a", "b"], "text": ["x", " "]},
            r"row 1 \('b'\) .* the text is empty or blank; 1 row\(s\) of 2",
        ),
        ({"row_id": ["a", None], "text": ["x", "y"]}, r"row 1 .* the id column is null; 1 row"),
        ({"row_id": ["a", "a"], "text": ["x", "y"]}, r"'a' stands more than once"),
        ({"row_id": ["a"]}, "no column 'text'"),
    ],
)
def test_prepared_rows_that_break_the_contract_are_refused(model, tmp_path, table, message):
    schema = pa.schema([(name, pa.string()) for name in table])
    pq.write_table(pa.table(table, schema=schema), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=message):
        fill(tmp_path / "rows.parquet", tmp_path / "store", model)
    assert not (tmp_path / "store" / "_manifest.json").exists()


def refuse_to_start(*_args, **_kwargs):
    raise AssertionError("an actor would start")


def interrupt(monkeypatch, rows, store, model, commit_rows=50):
    """Stop a run from the keyboard when one part of it is committed."""
    with monkeypatch.context() as patch:
        again = interrupted_after(1, OutputRun.commit_part)
        patch.setattr(OutputRun, "commit_part", again)
        with pytest.raises(KeyboardInterrupt) as stopped:
            fill(rows, store, model, commit_rows=commit_rows)
    (note,) = stopped.value.__notes__
    assert re.search(rf"\d+ of \d+ rows are kept in {re.escape(str(store))}; the same", note)


def interrupted_after(calls, function=None):
    """`function`, interrupted when it is called once more than so many times."""
    left = iter(range(calls))

    def run(*args, **kwargs):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return run


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


def test_totals_are_asked_for_again_where_their_actor_is_restarted():
    pool = ActorPool(embed_actors(ResourcesConfig()), ErrorLimit(count=0))
    assert pool.totals() == ActorCounts()
    asked = [pool._counter.totals.remote() for _ in range(1000)]
    ray.kill(pool._counter, no_restart=False)
    assert ray.get(asked) == [ActorCounts()] * len(asked)
    ray.kill(pool._counter)
