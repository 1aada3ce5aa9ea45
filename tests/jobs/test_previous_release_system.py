"""What the previous release wrote, this one reads: a store, adapted labels, an output, a model.

That release's own code writes them here: it is taken out of the repository's history, so in a
shallow clone the tests are skipped. At a release, `RELEASE` becomes its commit. What lies further
back is test_written_before_system's.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sce.datasets.starter import read_starter
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import EmbeddingStore, embedding_matrix
from sce.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]
RELEASE = "8ca22be"
LABELS = ["late delivery", "billing", "praise"]

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

MODEL = """
import sys
from jobs.benchmarks.inputs import write_model
from sce.embedding.settings import EmbedderConfig
from pathlib import Path
write_model(Path(sys.argv[1]), EmbedderConfig())
"""


def run(code: Path, home: Path, *argv: str) -> dict:
    """A job of the code in a folder. Returns its summary."""
    done = subprocess.run(
        [sys.executable, str(code / "jobs" / f"{argv[0]}.py"), *argv[1:], "--no-tracking.enabled"],
        cwd=home,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(code)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with what the previous release wrote."""
    found = subprocess.run(
        ["git", "-C", str(ROOT), "archive", RELEASE, "sce", "jobs", "serve", "configs"],
        capture_output=True,
    )
    if found.returncode:
        pytest.skip(f"the history lacks {RELEASE}: not a whole clone")
    code, home = tmp_path_factory.mktemp("code"), tmp_path_factory.mktemp("home")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(code, filter="data")
    texts = [text for one in read_starter() for text, _ in one.examples][:600]
    rows = [{"id": f"t{i}", "text": text} for i, text in enumerate(texts)]
    (home / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = os.environ | {"PYTHONPATH": str(code)}
    subprocess.run(
        [sys.executable, "-c", MODEL, str(home / "model")], cwd=code, env=environment, check=True
    )
    labels = ("--labels", json.dumps(LABELS))
    run(code, home, "embed", "--input", "texts.jsonl", "--store", "store")
    run(code, home, "adapt", "--model", "model", "--input", "store", *labels, "--output", "adapted")
    run(code, home, "classify", *asked_of_sce("sce"))
    run(code, home, "classify", *asked_of_adapted("by-adapted"))
    return home


def asked_of_sce(output: str) -> list[str]:
    names = ["--labels", json.dumps(LABELS), "--return-scores"]
    return ["--model", "model", "--input", "store", "--output", output, *names]


def asked_of_adapted(output: str) -> list[str]:
    return ["--input", "store", "--labels-file", "adapted", "--output", output, "--return-scores"]


def answers(folder: Path) -> dict[str, dict]:
    tables = [pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
    return {row["id"]: row for table in tables for row in table.to_pylist()}


@pytest.mark.parametrize(
    ("old", "asked"), [("sce", asked_of_sce), ("by-adapted", asked_of_adapted)]
)
def test_a_store_a_model_and_adapted_labels_answer_as_they_did(home, old, asked):
    found = run(ROOT, home, "classify", *asked(f"{old}-now"), "--compare-to", old)
    assert found["rows_out"] == 600
    before, now = answers(home / old), answers(home / f"{old}-now")
    assert before.keys() == now.keys()
    for key, row in before.items():
        assert now[key]["label"] == row["label"], key
        assert dict(now[key]["scores"]) == pytest.approx(dict(row["scores"]), abs=1e-6)
    assert found["comparison"]["compare/rows_moved"] == 0


def test_finished_outputs_and_stores_are_known_as_such(home):
    assert run(ROOT, home, "classify", *asked_of_sce("sce"))["unchanged"] is True
    assert run(ROOT, home, "classify", *asked_of_adapted("by-adapted"))["unchanged"] is True
    found = run(ROOT, home, "embed", "--input", "texts.jsonl", "--store", "store")
    assert found["unchanged"] is True


def test_python_gives_the_same_answers(home):
    predictor = Predictor.from_pretrained(home / "model", EmbedderConfig())
    store = EmbeddingStore.open(home / "store")
    store.require(predictor.embedder.fingerprint)
    table = store.read(["row_id", "embedding"])
    found = predictor.predict(embeddings=embedding_matrix(table["embedding"]), labels=LABELS)
    old = answers(home / "sce")
    for row_id, answer in zip(table["row_id"].to_pylist(), found):
        assert answer.score == pytest.approx(old[row_id]["score"], abs=0.006)
