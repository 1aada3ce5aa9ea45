"""Models, stores, outputs and trainings that an earlier version wrote load and continue.

That version's own code writes them here: it is taken out of the repository's history, so in a
shallow clone the tests are skipped.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import EmbeddingStore
from sce.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "9bf5c7b7c54de515fb2ab604d5b839b584f425b5"
"""Of the last version with another layout of the code."""
TEXTS = [f"the team won the cup {i}" for i in range(40)] + [
    f"my parcel is late {i}" for i in range(40)
]
LABELS = ["sport", "parcel", "markets"]

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

WRITE = """
import json, sys
from pathlib import Path
import numpy as np, yaml
from jobs import classify, embed, prepare_data, train_sce
import sce.pipeline, sce.distributed.bulk
from sce.cli import run_job
from sce.experiment import Experiment
from sce.predictor import Predictor
from tests.tiny_models import build_all

home, labels = Path(sys.argv[1]), json.loads(sys.argv[2])
models = build_all(home / "models")
config = yaml.safe_load(Path("configs/tiny/sce.yaml").read_text())
config["embedder"]["model"] = str(models["jina"])
config["model"]["encoder"] = str(models["roberta"])
config["tracking"]["enabled"] = False
config["run_dir"] = str(home / "trained")
(home / "trained.yaml").write_text(yaml.safe_dump(config))
config["run_dir"] = str(home / "interrupted")
(home / "interrupted.yaml").write_text(yaml.safe_dump(config))

def train(name):
    return run_job(Experiment, sce.pipeline.train, "", ["--config", str(home / f"{name}.yaml")])

assert train("trained") == 0
calibrate = sce.pipeline._calibrate
def stop(*arguments):
    raise RuntimeError("interrupted on purpose")
sce.pipeline._calibrate = stop
try:
    train("interrupted")
except RuntimeError:
    pass
sce.pipeline._calibrate = calibrate

common = ["--model", str(home / "trained/model"), "--input", str(home / "texts.jsonl"), "--dtype",
          "float32", "--labels", json.dumps(labels), "--no-tracking.enabled"]
common += ["--embedder.kind", "jina", "--embedder.model", str(models["jina"])]
assert classify.main([*common, "--output", str(home / "answers"), "--return-scores",
                      "--save-embeddings", str(home / "store")]) == 0
sce.distributed.bulk._check_part = stop
for more in (["--output", str(home / "unfinished")],
             ["--output", str(home / "never"), "--save-embeddings", str(home / "half-store")]):
    try:
        classify.main([*common, "--rows-per-file", "20", *more])
    except RuntimeError:
        pass
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with what the earlier version wrote."""
    found = subprocess.run(
        ["git", "-C", str(ROOT), "archive", COMMIT, "sce", "jobs", "serve", "configs", "tests"],
        capture_output=True,
    )
    if found.returncode:
        pytest.skip(f"the history lacks {COMMIT[:7]}: not a whole clone")
    code, home = tmp_path_factory.mktemp("code"), tmp_path_factory.mktemp("home")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(code, filter="data")
    rows = [{"id": f"t{i}", "text": text} for i, text in enumerate(TEXTS)]
    (home / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    subprocess.run(
        [sys.executable, "-c", WRITE, str(home), json.dumps(LABELS)],
        cwd=code,
        env=os.environ | {"PYTHONPATH": str(code)},
        check=True,
    )
    return home


def job(name: str, *argv: str) -> dict:
    """The summary of a job of today's code."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *argv],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def classify(home: Path, *argv: str) -> dict:
    embedder = ("--embedder.kind", "jina", "--embedder.model", str(home / "models/jina"))
    embedder += ("--embedder.dtype", "float32")
    known = ("--model", str(home / "trained/model"), "--dtype", "float32", "--no-tracking.enabled")
    return job("classify", *known, *embedder, "--labels", json.dumps(LABELS), *argv)


def answers(output: Path) -> dict[str, dict]:
    parts = [*output.glob("part-*.parquet"), *output.glob("part-*/*.parquet")]  # as they once lay
    tables = [pq.read_table(path) for path in sorted(parts)]
    return {row["place"]: row for table in tables for row in table.to_pylist()}


def test_a_model_and_a_store_answer_as_they_did(home):
    store = EmbeddingStore.open(home / "store")
    table = store.read(["place", "embedding"])
    vectors_ND = np.array(table["embedding"].to_pylist(), np.float32)

    predictor = Predictor.from_pretrained(
        home / "trained/model",
        EmbedderConfig(kind="jina", model=str(home / "models/jina"), dtype="float32"),
    )
    store.require(predictor.embedder.fingerprint)
    old = answers(home / "answers")
    for place, found in zip(
        table["place"].to_pylist(), predictor.predict(embeddings=vectors_ND, labels=LABELS)
    ):
        assert found.label == old[place]["label"]
        assert found.score == pytest.approx(old[place]["score"], abs=1e-6)
    texts = predictor.embedder.embed(TEXTS).vectors
    np.testing.assert_allclose(vectors_ND[np.argsort(table["place"])], texts, atol=1e-5)


def test_a_finished_output_and_store_are_known_as_such(home):
    found = classify(
        home,
        "--input",
        str(home / "texts.jsonl"),
        "--return-scores",
        "--output",
        str(home / "answers"),
        "--save-embeddings",
        str(home / "store"),
    )
    assert found["unchanged"] is True
    found = job(
        "embed",
        "--input",
        str(home / "texts.jsonl"),
        "--store",
        str(home / "store"),
        "--embedder.kind",
        "jina",
        "--embedder.model",
        str(home / "models/jina"),
    )
    assert found["unchanged"] is True


def test_the_store_serves_other_labels_and_is_compared_with(home):
    found = classify(
        home,
        "--input",
        str(home / "store"),
        "--output",
        str(home / "week2"),
        "--compare-to",
        str(home / "answers"),
    )
    assert found["rows_out"] == len(TEXTS)


def test_an_unfinished_output_goes_on(home):
    found = classify(
        home,
        "--input",
        str(home / "texts.jsonl"),
        "--rows-per-file",
        "20",
        "--output",
        str(home / "unfinished"),
    )
    assert found["rows_out"] == len(TEXTS)
    assert found["rows_this_run"] == 0, "the rows that were answered are not answered again"
    old, new = answers(home / "answers"), answers(home / "unfinished")
    assert {place: row["label"] for place, row in new.items()} == {
        place: row["label"] for place, row in old.items()
    }


def test_an_unfinished_store_goes_on(home):
    found = job(
        "embed",
        "--input",
        str(home / "texts.jsonl"),
        "--store",
        str(home / "half-store"),
        "--embedder.kind",
        "jina",
        "--embedder.model",
        str(home / "models/jina"),
    )
    assert found["rows_out"] == len(TEXTS)


def test_prepared_data_and_its_vectors_are_taken_as_they_are(home):
    before = EmbeddingStore.open(home / "trained/embeddings/labels").manifest.rows
    found = job("embed", "--config", str(home / "trained.yaml"))
    assert found["rows"]["embedded"] == 0
    assert found["rows"]["reused"] == found["rows"]["rows"]
    # A model of today reads names in templates as well.
    assert found["labels"]["reused"] == before
    texts = EmbeddingStore.open(home / "trained/embeddings/labels").read(["text"])["text"]
    assert found["labels"]["embedded"] == len(texts) - before > 0


def test_an_interrupted_training_goes_on(home):
    found = job("train_sce", "--config", str(home / "interrupted.yaml"), "--resume")
    assert json.loads((home / "interrupted/model/config.json").read_text())["label_vectors"] == 0
    assert found["best_epoch"] in (0, 1)
    name = "model/model.safetensors"
    assert (home / "interrupted" / name).read_bytes() == (home / "trained" / name).read_bytes()


def test_a_trained_model_is_measured(home):
    found = job("evaluate", "--config", str(home / "trained.yaml"))
    assert found["sets"] == 2
