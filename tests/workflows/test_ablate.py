"""What an ablation trains, and the table that comes of it."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from sce.config import load_config
from sce.errors import ConfigError
from sce.evaluation.evaluate import PREDICTIONS
from sce.evaluation.runs import MethodRuns, Run
from sce.workflows.ablate import _is_done, ablation_table, resolve
from sce.workflows.experiment import Ablation, Experiment
from sce.workflows.train import CONFIG_FILE, saved_settings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def ablation(tmp_path: Path, **settings) -> Ablation:
    file = tmp_path / "ablation.yaml"
    file.write_text(yaml.safe_dump({"name": "base", "run_dir": str(tmp_path / "runs"), **settings}))
    return load_config(Ablation, ["--config", str(file)], "job", "")


def test_a_variant_changes_what_it_names_and_nothing_else(tmp_path):
    variants = {
        "no prior": {"model": {"prior_scale": 0}, "seeds": [5]},
        "short": {"train": {"epochs": 1}, "shared_dir": str(tmp_path / "own")},
    }
    train = {"epochs": 4, "learning_rate": 3e-4}
    found = resolve(ablation(tmp_path, seeds=[0, 1], variants=variants, train=train))
    assert [(one.name, one.seed) for one in found] == [
        ("base no prior", 5), ("base short", 0), ("base short", 1)
    ]  # fmt: skip
    prior, short, _ = found
    assert (prior.model.prior_scale, short.model.prior_scale) == (0, 20)
    assert (prior.train.epochs, short.train.epochs) == (4, 1)
    assert prior.train.learning_rate == short.train.learning_rate == 3e-4
    assert prior.data_dir == tmp_path / "runs" / "data"
    assert short.data_dir == tmp_path / "own" / "data"
    assert len({one.home for one in found}) == 3
    assert all(one.restart and type(one) is Experiment for one in found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"epoch": 1}}, r"variants\.x: .*\n  train\.epoch: no such setting"),
        ({"name": "y"}, r"variants\.x\.name: not a setting of a variant"),
        ({"variants": {}}, r"variants\.x\.variants: not a setting of a variant"),
        ({"seeds": [1, 1]}, r"variants\.x\.seeds: \[1, 1\] is no list of different seeds"),
        ({"seeds": 1}, r"variants\.x\.seeds: 1 is no list"),
    ],
)
def test_a_wrong_variant_is_refused_before_anything_is_trained(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        resolve(ablation(tmp_path, variants={"x": changes}))


def test_the_shipped_ablation_is_of_the_shipped_recipe(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    config = load_config(Ablation, ["--config", "configs/news/ablation.yaml"], "job", "")
    recipe = load_config(Experiment, ["--config", "configs/news/paper_recipe.yaml"], "job", "")
    first = resolve(config)[0]
    for part in ("model", "augment", "train"):
        assert getattr(first, part) == getattr(recipe, part), part
    assert {one.data_dir.name for one in resolve(config)} == {"data"}


def test_what_is_trained_with_the_same_settings_is_not_trained_again(tmp_path):
    (one,) = resolve(ablation(tmp_path))
    assert not _is_done(one)
    one.checkpoints_dir.mkdir(parents=True)
    state = {"settings": {}, "run_name": "run", "finished": True}
    (one.checkpoints_dir / "run.json").write_text(json.dumps(state))
    (one.home / CONFIG_FILE).write_text(yaml.safe_dump(saved_settings(one)))
    assert _is_done(one)
    (other,) = resolve(ablation(tmp_path, train={"epochs": 9}))
    assert other.home == one.home
    assert not _is_done(other)


def run_of(name: str, seed: int, right: int) -> Run:
    rows = [
        {"method": "sce", "set": "a", "dataset": "a", "group": "unseen", "information": "all",
         "labels": 2, "row_id": str(i), "target": "yes", "predicted": "yes" if i < right else "no",
         "probability": 0.5, "target_probability": 0.5}
        for i in range(10)
    ]  # fmt: skip
    result = {"name": "a", "dataset": "a", "group": "unseen", "information": "all", "method": "sce"}
    result |= {"sce": {"accuracy": right / 10}, "cosine": {"accuracy": 0.3}}
    training = {"seconds": 10.0 * (seed + 1), "epochs": 2 + seed}
    described = {"name": name, "kind": "sce", "seed": seed, "training": training}
    return Run(described, [result], pa.Table.from_pylist(rows, PREDICTIONS))


def test_the_table_has_the_range_over_seeds_and_the_interval_of_one():
    several = MethodRuns([run_of("several", 0, 5), run_of("several", 1, 7)])
    table = ablation_table([several, MethodRuns([run_of("one", 0, 10)])])
    assert table.columns == ["variant", "seeds", "a", "s", "epochs"]
    assert [list(row) for row in table.rows] == [
        ["cosine similarity", "", "30.0", "", ""],
        ["several", "2", "60.0 (50.0 to 70.0)", "15", "2/3"],
        ["one", "1", "100.0 [100.0, 100.0]", "10", "2"],
    ]
