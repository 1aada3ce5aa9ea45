"""Places by URI, on a real S3 server (moto's): what is whole, what is refused, what is fetched."""

import dataclasses
import fcntl
import json
import os
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from sce.config import JobConfig
from sce.datasets.prepare import DataConfig, PreparedData, prepare_data
from sce.embedding.store import (
    STORE_COLUMNS,
    EmbeddingStore,
    Manifest,
    discard_unnamed,
    embedding_column,
    rewrite_part,
    write_manifest,
)
from sce.errors import ConfigError, DataError, InputError
from sce.storage import (
    Place,
    RemotePath,
    cache,
    fetch,
    fetch_model,
    filesystem_of,
    places,
    replace_folder,
    to_place,
    write_text,
    writing,
)
from sce.workflows.cli import run_job
from sce.workflows.training_run import TrainingRun

BUCKET = "texts"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    with pytest.MonkeyPatch.context() as patch:
        host, port = moto.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield
    moto.stop()
    places._bucket.cache_clear()


@pytest.fixture
def home(request, monkeypatch, tmp_path) -> RemotePath:
    """A folder of this test's own; what is fetched goes to another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return RemotePath(f"s3://{BUCKET}/{request.node.name.partition('[')[0]}")


def names(folder: RemotePath) -> list[str]:
    return [name for name, _, _ in folder.files()]


def test_a_remote_path_reads_as_a_path(home):
    assert to_place("runs/x") == Path("runs/x")
    assert to_place("file:///a%20b") == Path("/a b")
    assert str(to_place("S3://texts//a/b.json/")) == "s3://texts/a/b.json"
    place = home / "a" / "b.json"
    assert (place.name, place.stem, place.suffix, place.parent) == (
        "b.json", "b", ".json", home / "a",
    )  # fmt: skip
    assert RemotePath(f"s3://{BUCKET}").parent.uri == f"s3://{BUCKET}"
    assert pickle.loads(pickle.dumps(place)) == place
    assert not place.exists()
    with pytest.raises(FileNotFoundError):
        place.read_text()
    write_text(place, "ü")
    assert place.read_text() == "ü"
    assert place.is_file()
    assert home.is_dir()
    assert [p.name for p in (home / "a").iterdir()] == ["b.json"]
    place.unlink()
    place.unlink(missing_ok=True)
    assert not place.exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://host/x", "no URI that can be read or written. Allowed: a path, file:// and s3://"),
        ("s3://", "names no bucket"),
        ("s3:///folder", "names no bucket"),
        ("s3://texts/a?region=b", "'\\?' cannot be in the URI"),
        ("s3://texts/../other", "'..' cannot be"),
        ("s3://texts/a b", "' ' cannot be"),
    ],
)
def test_a_uri_that_cannot_be_used_is_refused(uri, message):
    with pytest.raises(DataError, match=message):
        to_place(uri)


def test_credentials_in_a_uri_are_refused_and_not_repeated():
    with pytest.raises(DataError) as refusal:
        to_place("s3://name:secret@texts/a")
    assert "secret" not in str(refusal.value)


class Job(JobConfig):
    run_dir: Place = Path("runs")


def test_a_job_is_refused_before_it_begins(home, capsys):
    begun = []

    def job(config: Job) -> dict[str, str]:
        begun.append(config.run_dir)
        return {"run_dir": str(config.run_dir)}

    assert run_job(Job, job, "", ["--run-dir", "s3://no-such-bucket/runs"]) == 2
    assert "run_dir: 's3://no-such-bucket/runs': there is no bucket" in capsys.readouterr().err
    assert run_job(Job, job, "", ["--run-dir", "s3:/oops://x"]) == 2
    assert begun == []
    assert run_job(Job, job, "", ["--run-dir", str(home)]) == 0
    assert begun == [home]
    write_text(home / "base.yaml", f"run_dir: {home}/configured\n")
    write_text(home / "job.yaml", "include: [base.yaml]\n")
    assert run_job(Job, job, "", ["--config", str(home / "job.yaml")]) == 0
    assert begun[1:] == [home / "configured"]


class Forbidden(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_store_that_refuses_or_does_not_answer_is_named(monkeypatch):
    closed = ThreadingHTTPServer(("127.0.0.1", 0), Forbidden)
    closed.server_close()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.server_port}")
    with pytest.raises(InputError, match=r"run_dir: .*NETWORK_CONNECTION.*AWS_ENDPOINT_URL"):
        RemotePath("s3://nobody-answers/x").check("run_dir")
    guarded = ThreadingHTTPServer(("127.0.0.1", 0), Forbidden)
    threading.Thread(target=guarded.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{guarded.server_port}")
    with pytest.raises(InputError, match=r"run_dir: .*ACCESS_DENIED.*AWS_SECRET_ACCESS_KEY"):
        RemotePath("s3://not-for-you/x").check("run_dir")
    guarded.shutdown()
    guarded.server_close()


def replace(place: Place, contents: dict[str, str], fail: bool = False) -> None:
    with replace_folder(place, "config.json") as folder:
        for name, text in contents.items():
            write_text(folder / name, text)
        if fail:
            raise ZeroDivisionError


def test_a_folder_is_replaced_whole_or_left(home, tmp_path, monkeypatch):
    for place in (tmp_path / "model", home / "model"):
        for text in ("old", "new"):
            replace(place, {"config.json": text, f"sub/{text}.txt": text})
        assert (place / "config.json").read_text() == "new"
        assert not (place / "sub" / "old.txt").exists()
        with pytest.raises(ZeroDivisionError):
            replace(place, {"config.json": "never"}, fail=True)
        assert (place / "config.json").read_text() == "new"
        assert (place / "sub" / "new.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    real = writing.put
    written: list[str] = []

    def die_at_the_third(file: Path, place: Place) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(place.name)
        real(file, place)

    monkeypatch.setattr(writing, "put", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        replace(home / "model", dict.fromkeys(["config.json", "a", "z", "sub/new.txt"], "half"))
    assert "config.json" not in names(home / "model"), "no reader takes this for whole"


def test_what_is_fetched_is_kept_by_content(home, monkeypatch):
    write_text(home / "model" / "config.json", "{}")
    write_text(home / "model" / "sub" / "weights", "1")
    first = fetch(home / "model")
    assert first.name == "model"
    assert (first / "sub" / "weights").read_text() == "1"
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_download", lambda *_: pytest.fail("fetched again"))
        assert fetch(str(home / "model")) == first
    write_text(home / "model" / "sub" / "weights", "2")  # of the same size, in the same second
    assert (fetch(home / "model") / "sub" / "weights").read_text() == "2"
    assert (first / "sub" / "weights").read_text() == "1", "others may be reading it"
    assert fetch(home / "model" / "config.json").read_text() == "{}"
    with pytest.raises(DataError, match="there is nothing"):
        fetch(home / "nothing")
    with pytest.raises(DataError, match=r"no config\.json .*no model"):
        fetch_model(home / "model" / "sub")


def test_a_folder_that_changes_while_it_is_read_is_read_again(home, monkeypatch):
    write_text(home / "a", "old")
    write_text(home / "b", "old")
    real = RemotePath.files
    listed = []

    def changing(self: RemotePath) -> list[tuple[str, int, str]]:
        found = real(self)
        if not listed:
            write_text(home / "a", "new")
            write_text(home / "b", "new")
        listed.append(found)
        return found

    monkeypatch.setattr(RemotePath, "files", changing)
    local = fetch(home)
    assert (local / "a").read_text() == (local / "b").read_text() == "new"
    assert len(listed) == 4, "listed, fetched and found to be another, and again"


def test_prepared_data(home):
    rows = [{"text": f"{word} {i}", "label": word} for i in range(20) for word in ("one", "two")]
    write_text(home / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    source = {"dataset": "custom", "name": "own", "path": str(home / "rows.jsonl")}
    config = DataConfig.model_validate({"sources": [source]})
    manifest = prepare_data(config, home / "data", 0)
    assert (manifest["rows"], manifest["unchanged"]) == (40, False)
    assert prepare_data(config, home / "data", 0)["unchanged"]
    assert PreparedData.load(home / "data").rows.num_rows == 40
    (home / "data" / "manifest.json").unlink()  # as an upload that was cut short leaves it
    with pytest.raises(DataError, match=r"no manifest\.json"):
        PreparedData.load(home / "data")
    assert not prepare_data(config, home / "data", 0)["unchanged"]
    write_text(home / "data" / "mine.txt", "")
    with pytest.raises(ConfigError, match=r"'mine\.txt', which is not prepared data"):
        prepare_data(config, home / "data", 0)


def test_the_state_of_a_run(home):
    first = TrainingRun.open(home / "c", {"seed": 0}, resume=False, restart=False)
    write_text(home / "c" / "run-1" / "checkpoint", "")
    assert TrainingRun.open(home / "c", {"seed": 0}, resume=True, restart=False) == first
    with pytest.raises(ConfigError, match=r"--resume.*--restart"):
        TrainingRun.open(home / "c", {"seed": 0}, resume=False, restart=False)
    TrainingRun.open(home / "c", {"seed": 1}, resume=False, restart=True)
    assert names(home / "c") == ["run.json"]


def test_an_embedding_store(home):
    """Parts that a new manifest no longer names, or none ever did, are gone; a part in their place
    has the rows that stayed."""
    folder = home / "store"
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    ids = pa.array(["r0", "r1", "r2"])
    columns = [ids, ids, embedding_column(vectors), pa.array([False] * 3)]
    manifest = Manifest({"id": "x"}, "y", 3, 0, 0.0, 0.0, "", ["part-0.parquet"])
    write_manifest(folder, manifest)
    filesystem, path = filesystem_of(folder / "part-0.parquet")
    pq.write_table(pa.table(columns, list(STORE_COLUMNS[:4])), path, filesystem=filesystem)
    write_text(folder / "part-of-a-run-that-was-stopped.parquet", "")
    write_text(folder / "part-00000" / "x.parquet", "")
    assert EmbeddingStore.open(folder).read().num_rows == 3

    part = "part-00001/00000.parquet"
    live_N = np.array([True, False, True])
    rewrite_part(folder / "part-0.parquet", folder / "part-00001" / "00000.parquet", live_N, 0)
    write_manifest(folder, dataclasses.replace(manifest, rows=2, parts=[part]))
    discard_unnamed(folder)
    assert names(folder) == ["_manifest.json", part]
    store = EmbeddingStore.open(folder)
    np.testing.assert_array_equal(store.vectors_for(["r2", "r0"]), vectors[[2, 0]])
    with pytest.raises(DataError, match="no embedding store"):
        EmbeddingStore.open(home / "none")


def _thousand_bytes(folder: Path) -> None:
    (folder / "x").write_bytes(bytes(1000))


def test_the_cache_forgets_what_was_used_longest_ago_and_nobody_holds(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(cache.CACHE_BYTES, "2500")
    held: dict[Path, Any] = {}
    monkeypatch.setattr(cache, "_HELD", held)
    made = {}
    for age, name in enumerate("abc"):
        made[name] = cache.cached_folder(name, _thousand_bytes)
        os.utime(tmp_path / "sce" / f"{name}.used", (age, age))
    assert {name for name, path in made.items() if path.exists()} == set("abc")  # all are held
    held.pop(made["a"]).close()
    held.pop(made["b"]).close()
    assert cache.cached_folder("a", pytest.fail) == made["a"]  # used again: no longer the oldest
    held.pop(made["a"]).close()
    cache.cached_folder("d", _thousand_bytes)
    # Of 4,000 bytes those two go that nobody holds and that are oldest: b, then a.
    assert {name for name, path in made.items() if path.exists()} == {"c"}


def test_what_a_killed_process_left_is_cleared_up_and_lost_nothing(tmp_path):
    target = tmp_path / "model"
    left, alive = tmp_path / ".model.new-killed", tmp_path / ".model.new-alive"
    for folder in (left, alive):
        (folder / "new").mkdir(parents=True)
        (folder / "lock").touch()
    (left / "old").mkdir()  # killed after the first renaming: the model is here alone
    (left / "old" / "config.json").write_text("old")
    with open(alive / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with replace_folder(target, "config.json") as new:
            assert (target / "config.json").read_text() == "old"
            (new / "config.json").write_text("new")
    assert (target / "config.json").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"model", alive.name}
