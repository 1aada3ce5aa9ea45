"""The whole path with tiny random models: from label sets of the starter corpus to a measured
artifact. `make quickstart` takes them all."""

import base64
import csv
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from jobs import compare as compare_job
from jobs import evaluate as evaluate_job
from jobs import train_sce as train_job
from sce.datasets import sources
from sce.datasets.starter import read_starter
from sce.embedding.settings import EmbedderConfig
from sce.predictor import Predictor
from sce.workflows.cli import run_job
from sce.workflows.compare import compare
from sce.workflows.evaluate import evaluate
from sce.workflows.experiment import CompareConfig, Experiment
from sce.workflows.train import train
from tests.tiny_models import build_all, build_llama

PASSWORD = "hunter2-of-this-test"
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def call(job, *argv: str) -> int:
    doc = {train: train_job.__doc__, evaluate: evaluate_job.__doc__}[job]
    return run_job(Experiment, job, doc, argv)


@pytest.fixture(scope="module")
def home(ray_session, tmp_path_factory) -> Iterator[Path]:
    """A folder with a configuration and everything that one training run wrote."""
    every = read_starter()
    few = [item for item in every[::16] if not item.unseen]
    few += [item for item in every if item.name == "article_types"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "read_starter", lambda: few)
        yield _trained(tmp_path_factory.mktemp("home"))


def store_of(home: Path) -> str:
    return f"sqlite:///{home}/runs/mlflow.db"


def runs_of(home: Path, kind: str) -> list[Run]:
    client = MlflowClient(store_of(home))
    experiment = client.get_experiment_by_name(f"sce-{kind}")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    return client.search_runs([experiment.experiment_id])


def _trained(home: Path) -> Path:
    models = build_all(home / "models")
    config = yaml.safe_load((CONFIGS / "tiny" / "sce.yaml").read_text())
    config["run_dir"] = str(home / "runs" / "tiny")
    config["embedder"]["model"] = str(models["jina"])
    config["model"]["encoder"] = str(models["roberta"])
    config["data"]["validation_label_sets"] = 3
    config["evaluate"]["pictures"] = True
    config["tracking"] = {"run_name": f"https://me:{PASSWORD}@host/tiny", "uri": store_of(home)}
    (home / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert call(train, "--config", str(home / "tiny.yaml")) == 0
    return home


def test_the_artifact_says_everything_about_itself(home):
    model = home / "runs" / "tiny" / "model"
    names = {p.name for p in model.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= names
    config = json.loads((model / "config.json").read_text())
    assert config["embedder"]["adapter"] == "classification"
    card = (model / "README.md").read_text()
    assert "CC BY-NC" in card
    assert "starter" in card
    assert str(home) not in (model / "config.json").read_text()
    predictor = Predictor.from_pretrained(
        model, EmbedderConfig(kind="jina", model=str(home / "models" / "jina"))
    )
    assert predictor.predict("a text", ["one", "two"])[0].label in ("one", "two")


def test_nothing_that_was_written_has_the_password_of_the_settings(home):
    files = [path for path in (home / "runs").rglob("*") if path.is_file()]
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]
    settings = yaml.safe_load((home / "runs/tiny/config.yaml").read_text())
    assert settings["tracking"]["run_name"] == "https://me:***@host/tiny"


def test_results_hold_both_methods_for_both_kinds_of_information(home):
    results = json.loads((home / "runs/tiny/results/results.json").read_text())
    assert {(r["name"], r["information"]) for r in results} == {
        ("starter/article_types", "name"),
        ("starter/article_types", "all"),
    }
    for result in results:
        assert result["group"].startswith("unseen")
        assert result["sce"]["flip_rate"] == 0.0
        assert 0 <= result["cosine"]["accuracy"] <= 1
        assert result["difference"] == pytest.approx(
            result["sce"]["accuracy"] - result["cosine"]["accuracy"]
        )
    assert len(list((home / "runs/tiny/results/confusion").glob("*.png"))) == 1
    assert (home / "runs/tiny/results/reliability.png").is_file()


def test_mlflow_has_the_training_with_its_figures_its_data_and_its_model(home):
    client = MlflowClient(store_of(home))
    (run,) = runs_of(home, "training")
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "1"
    assert run.data.params["trainable_parameters"].isdigit()
    sections = {name.partition(".")[0] for name in run.data.params}
    assert {"train", "model", "embedder", "augment", "data", "seed"} <= sections
    assert not sections & {"prompted", "evaluate", "resources", "tracking", "resume", "restart"}
    expected = {"loss/train", "accuracy/validation", "epoch_seconds", "embed_seconds"}
    expected |= {"samples_per_second", "accuracy/starter unseen", "accuracy_cosine/starter unseen"}
    assert expected <= set(run.data.metrics)
    assert len(run.data.metrics) < 40
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"config.yaml", "data_counts.json"}
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.tags[0].value) == ("starter", "training")
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert (model.name, model.status) == ("tiny", "READY")
    assert {m.key for m in model.metrics} >= {"accuracy/starter unseen", "ece/starter unseen"}
    kept = Path(model.artifact_location.removeprefix("file://")) / "data" / "weights"
    trained = home / "runs" / "tiny" / "model"
    assert {p.name for p in kept.iterdir()} == {p.name for p in trained.iterdir()}


def test_mlflow_has_its_measurement_beside_those_of_other_methods(home):
    (training,) = runs_of(home, "training")
    client = MlflowClient(store_of(home))
    run = client.get_run(training.data.tags["evaluation_run"])
    assert run.info.run_id in [one.info.run_id for one in runs_of(home, "evaluation")]
    assert (run.data.tags["measured"], run.data.tags["method"]) == ("test", "tiny")
    names = set(run.data.metrics)
    groups = {f"{f}_by_name/unseen" for f in ("accuracy", "macro_f1", "nll", "ece", "flip_rate")}
    assert groups | {"accuracy/starter unseen", "texts_per_second"} <= names
    assert len(names) < 40
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"results", "config.yaml", "label_sets.csv"} <= artifacts
    table = client.download_artifacts(run.info.run_id, "label_sets.csv")
    rows = list(csv.DictReader(Path(table).read_text().splitlines()))
    assert [row["group"] for row in rows] == ["unseen by name", "unseen"]
    assert {row["set"] for row in rows} == {"starter/article_types"}
    (data,) = run.inputs.dataset_inputs
    assert json.loads(data.dataset.profile)["label_sets"] == 1
    assert run.inputs.model_inputs[0].model_id == training.outputs.model_outputs[0].model_id


def test_own_rows_are_measured_alone_or_beside_named_sets(home, tmp_path, capsys):
    mine = tmp_path / "mine.jsonl"
    rows = [{"text": f"text number {i}", "label": ("odd", "even")[i % 2]} for i in range(50)]
    mine.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--config", str(home / "tiny.yaml"), "--evaluate.labelled", str(mine)]
    config = yaml.safe_load((home / "tiny.yaml").read_text())
    config["evaluate"]["sets"] = []
    (home / "own.yaml").write_text(yaml.safe_dump(config))
    for file, sets in (("own.yaml", ["mine"]), ("tiny.yaml", ["mine", "starter/article_types"])):
        argv[1] = str(home / file)
        assert call(evaluate, *argv) == 0
        summary = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        results = json.loads((Path(summary["results"]) / "results.json").read_text())
        assert sorted({r["name"] for r in results}) == sets
        assert [r["rows"] for r in results if r["group"] == "own"] == [50]
    argv[1] = str(home / "own.yaml")
    assert call(evaluate, *argv, "--evaluate.rows-per-set", "20") == 0
    summary = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    (result,) = json.loads((Path(summary["results"]) / "results.json").read_text())
    assert result["rows"] == 20
    assert (home / "runs/tiny/results/results.json").exists(), "those of the training stay"


def test_methods_without_training_are_measured_on_the_same_rows_and_compared(home, tmp_path):
    llama = build_llama(home / "models" / "llama")
    config = yaml.safe_load((home / "tiny.yaml").read_text())
    config["shared_dir"] = config["run_dir"]
    config["evaluate"] |= {"flip_rows": 8, "calibration_rows": 16, "pictures": False}
    for method in ("similarity", "prompted"):
        mine = config | {"name": f"tiny-{method}", "method": method}
        mine["run_dir"] = str(home / "runs" / method)
        mine["prompted"] = {"base": str(llama), "max_text_tokens": 32}
        mine["evaluate"] = config["evaluate"] | {"note": "random weights"}
        (home / f"{method}.yaml").write_text(yaml.safe_dump(mine))
        assert call(evaluate, "--config", str(home / f"{method}.yaml")) == 0
    output = home / "runs" / "compare"
    recorded = ("--tracking.uri", store_of(home))
    argv = ("--output", str(output), "--no-tracking.system-metrics", *recorded)
    assert run_job(CompareConfig, compare, compare_job.__doc__, argv) == 0
    rows = list(csv.DictReader((output / "figures.csv").open()))
    assert [r["method"] for r in rows] == ["tiny", "tiny-similarity", "tiny-prompted"]
    assert [float(r["flips"]) for r in rows[:2]] == [0, 0]
    assert all(float(r["texts/s"].replace(",", "")) > 0 for r in rows)
    left_out = list(csv.DictReader((output / "differences.csv").open()))
    assert {r["only one"] for r in left_out} == {"0"}
    assert "random weights" in (output / "compare.md").read_text()

    client = MlflowClient(store_of(home))
    experiment = client.get_experiment_by_name("sce-evaluation")
    packed = experiment.tags["mlflow.sharedViewState.methods"]
    view = json.loads(zlib.decompress(base64.b64decode(packed.removeprefix("deflate;"))))
    runs = client.search_runs([experiment.experiment_id], view["searchFilter"])
    assert len(runs) >= 3
    drawn = {c["metricKey"] for c in view["compareRunCharts"] if c["type"] == "BAR"}
    assert drawn <= {metric for run in runs for metric in run.data.metrics}


def test_a_comparison_of_nothing_says_what_there_is(home, capsys):
    argv = ("--output", str(home / "runs" / "none"), "--methods", '["no-such-method"]')
    argv += ("--tracking.uri", store_of(home))
    assert run_job(CompareConfig, compare, compare_job.__doc__, argv) == 2
    assert "tiny" in capsys.readouterr().err
    argv = ("--tracking.uri", f"sqlite:///{home}/elsewhere/mlflow.db")
    assert run_job(CompareConfig, compare, compare_job.__doc__, argv) == 2
    assert "elsewhere/mlflow.db" in capsys.readouterr().err
    assert not (home / "elsewhere").exists()


BAD_DATA = '[{"dataset": "custom", "name": "mine", "path": "%s"}]'


@pytest.mark.parametrize(
    ("job", "argv", "message"),
    [
        (train, ["--train.epochs", "-1"], "train.epochs"),
        (train, ["--embedder.max-tokens", "64"], "max_tokens: 128 there, 64 here"),
        (train, ["--train.learning-rate", "0.5", "--resume"], "train.learning_rate"),
        (train, ["--resources.num-workers", "500"], "500 workers"),
        (train, ["--evaluate.model", "other"], "evaluate.model"),
        (train, ["--model.encoder", "no/such-encoder"], "no/such-encoder"),
        (train, ["--tracking.uri", "file:///tmp/x"], "sqlite"),
        (train, ["--data.sources", BAD_DATA % "nowhere.jsonl"], "nowhere.jsonl"),
        (train, ["--evaluate.labelled", "nowhere.jsonl"], "nowhere.jsonl"),
        (evaluate, ["--evaluate.sets", "no-such-set"], "no-such-set"),
        (evaluate, ["--evaluate.labelled", "nowhere.jsonl"], "nowhere.jsonl"),
        (evaluate, ["--evaluate.corpus", "nowhere"], "no embedding store at 'nowhere'"),
        (evaluate, ["--evaluate.model", "nowhere"], "no model in"),
    ],
)
def test_wrong_input_is_exit_code_2_and_leaves_the_model_as_it_was_and_no_run(
    home, capsys, job, argv, message
):
    recorded = len(runs_of(home, "training")), len(runs_of(home, "evaluation"))
    model = home / "runs" / "tiny" / "model" / "model.safetensors"
    before = model.stat().st_mtime_ns
    assert call(job, "--config", str(home / "tiny.yaml"), *argv) == 2
    assert message in capsys.readouterr().err
    assert model.stat().st_mtime_ns == before
    assert recorded == (len(runs_of(home, "training")), len(runs_of(home, "evaluation")))


def test_a_model_of_another_embedder_is_refused(home, capsys):
    other = home / "models" / "sentence_transformer"
    argv = ["--embedder.kind", "sentence_transformers", "--embedder.model", str(other)]
    argv += ["--embedder.adapter", "null"]
    assert call(evaluate, "--config", str(home / "tiny.yaml"), *argv) == 2
    assert "embedder" in capsys.readouterr().err
