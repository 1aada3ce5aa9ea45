"""`jobs/embed.py` on a prepared folder: both stores, the closing JSON, the exit codes."""

import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sce.datasets.schema import LABEL_SETS, ROWS
from sce.embedding.store import EmbeddingStore, text_hash
from sce.model.label_vectors import NAME_TEMPLATES
from tests.tiny_models import build_sentence_transformer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / "run" / "data"
    folder.mkdir(parents=True)
    rows = [
        ("r1", "d", "train", "The team won the cup.", "sport", "news"),
        ("r2", "d", "test", "Markets rose on Thursday.", "money", "news"),
    ]
    columns = [list(column) for column in zip(*rows)]
    pq.write_table(pa.table(columns, schema=ROWS), folder / "rows.parquet")
    labels = [
        {
            "name": "Cafe\u0301",
            "synonyms": ["coffee"],
            "description": "",
            "examples": ["An espresso."],
        },
        {"name": "money", "synonyms": [], "description": "markets", "examples": ["coffee"]},
    ]
    sets = [{"label_set": "news", "dataset": "d", "domain": "news", "labels": labels}]
    table = pa.Table.from_pylist(sets, schema=LABEL_SETS)
    pq.write_table(table, folder / "label_sets.parquet")
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.mark.system
def test_rows_and_label_texts_are_embedded(ray_session, data_dir, tmp_path, capsys):
    model = build_sentence_transformer(tmp_path / "model")
    settings = ["--embedder.kind", "sentence_transformers", "--embedder.model", str(model)]
    assert job().main(["--run-dir", str(data_dir.parent), *settings]) == 0
    done = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (done["rows"]["embedded"], done["labels"]["embedded"]) == (2, 11)
    assert done["labels"]["fingerprint"] == done["rows"]["fingerprint"]
    out = data_dir.parent / "embeddings"
    assert sorted(EmbeddingStore.open(out / "rows").read()["row_id"].to_pylist()) == ["r1", "r2"]
    labels = EmbeddingStore.open(out / "labels").read(["row_id", "text"]).to_pylist()
    expected = {"Caf\u00e9", "coffee", "An espresso.", "money", "markets"}
    names = ("Caf\u00e9", "money")
    expected |= {template.format(name) for template in NAME_TEMPLATES for name in names}
    assert {row["text"] for row in labels} == expected
    assert all(row["row_id"] == text_hash(row["text"]) for row in labels)

    assert job().main(["--run-dir", str(data_dir.parent), *settings]) == 0
    again = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {name: (one["rows"], one["embedded"], one["reused"]) for name, one in again.items()} == {
        "rows": (2, 0, 2),
        "labels": (11, 0, 11),
    }


def test_without_data_the_job_says_what_to_run(tmp_path, capsys):
    assert job().main(["--run-dir", str(tmp_path)]) == 2
    assert "jobs/prepare_data.py" in capsys.readouterr().err
    assert not (tmp_path / "embeddings").exists()


def job():
    spec = importlib.util.spec_from_file_location("embed_job", ROOT / "jobs" / "embed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
