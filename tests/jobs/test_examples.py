"""The examples of jobs/examples that need no server run, on a model of the default embedder."""

import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from jobs.examples import analyst, research
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.model.weights import save_weights
from sce.training.fresh_model import build_model
from sce.training.settings import ModelConfig

EXAMPLES = Path(__file__).resolve().parents[2] / "jobs" / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The quickstart's model before its first step."""
    folder = tmp_path_factory.mktemp("model")
    fingerprint = embedder_fingerprint(EmbedderConfig()).to_dict()
    save_weights(build_model(ModelConfig(), fingerprint, 0.0, seed=0).model, folder)
    return str(folder)


def test_an_analyst_has_a_table_of_two_taxonomies(model, tmp_path, capsys):
    file = tmp_path / "answers.csv"
    settings = ["--model", model, "--rows", "12", "--threshold", "0.2", "--output", str(file)]
    assert analyst.main(settings) == 0
    table = pd.read_csv(file)
    assert list(table)[:3] == ["id", "text", "topic"]
    assert len(table) == 12
    assert set(table["department"].dropna()) <= {
        "shipping", "quality", "money", "shop floor", "web team", "compliments",
    }  # fmt: skip
    assert table.loc[table["topic"].notna(), "topic_score"].min() >= 0.2
    assert "To look at first:" in capsys.readouterr().out


def test_a_researcher_has_two_methods_side_by_side(model, capsys):
    assert research.main(["--model", model, "--rows", "3"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("15 texts, 4 labels")
    assert [line.split()[:2] for line in lines] == [
        [method, carried] for carried in ("names", "descriptions") for method in ("cosine", "SCE")
    ]
    for line in lines:
        accuracy, flips = line.split()[2], line.split()[5]
        assert 0 <= float(accuracy.rstrip("%")) <= 100
        assert flips == "0.0%", "the order of the labels makes no difference"


def test_an_example_is_started_as_it_says_and_shadows_no_module():
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert re.search(rf"^    .*python jobs/examples/{path.name}", text, re.M), path
        assert path.stem not in sys.stdlib_module_names
