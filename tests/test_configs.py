"""The shipped configurations: they load, and they say truly which settings are the paper's."""

import importlib
import re
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    LoggingConfig,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from sce.baselines.settings import LINEARS
from sce.config import load_config
from sce.evaluation.paper import PAPER_SETTINGS, paper_settings
from sce.workflows.experiment import Experiment, LlamaExperiment
from serve.settings import ServeConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SERVE = CONFIGS / "serve.yaml"
LLAMA = CONFIGS / "paper" / "llama.yaml"
LLAMAS = sorted(CONFIGS.rglob("llama.yaml"))
ABLATION = CONFIGS / "news" / "ablation.yaml"
FILES = sorted(set(CONFIGS.rglob("*.yaml")) - {SERVE, ABLATION, *LLAMAS})


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_a_shipped_configuration_loads(path):
    experiment = load_config(Experiment, ["--config", str(path)], "job", "")
    assert experiment.data.sources
    written = experiment.model_dump(mode="json")
    again = Experiment(**written)
    assert again.model_dump() == experiment.model_dump()


@pytest.mark.parametrize("path", LLAMAS, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_a_llama_shares_the_data_of_the_experiment_beside_it(path):
    experiment = load_config(LlamaExperiment, ["--config", str(path)], "job", "")
    sce = load_config(Experiment, ["--config", str(path.with_name("sce.yaml"))], "job", "")
    assert (experiment.data, experiment.data_dir) == (sce.data, sce.data_dir)


def test_the_papers_llama_has_what_the_paper_states():
    experiment = load_config(LlamaExperiment, ["--config", str(LLAMA)], "job", "")
    assert (experiment.lora.rank, experiment.lora.quantisation) == (180, "nf4")
    assert experiment.lora.targets == LINEARS
    assert (experiment.train.micro_batch_size, experiment.train.accumulation_steps) == (2, 32)
    assert experiment.train.batch_size == 64
    sce = load_config(Experiment, ["--config", str(CONFIGS / "paper" / "sce.yaml")], "job", "")
    assert experiment.data.sources == sce.data.sources


def test_the_papers_configuration_has_every_setting_that_the_paper_states():
    path = CONFIGS / "paper" / "sce.yaml"
    experiment = load_config(Experiment, ["--config", str(path)], "job", "")
    expected = set(PAPER_SETTINGS) - {"augment.view_weights"} | {"augment.view_weights.synonym"}
    assert set(paper_settings(experiment.model_dump(mode="json"))) == expected
    names = [source.dataset for source in experiment.data.sources]
    assert names == ["bbc", "huffpost", "mind", "nytimes", "yahoo", "ag_news", "arise", "mnds"]
    assert experiment.embedder.kind == "jina"
    assert experiment.embedder.adapter_name == "classification"


BASELINES = {
    "f2llm": ("similarity", "codefuse-ai/F2LLM-1.7B"),
    "jina_similarity": ("similarity", None),
    "llama_template": ("prompted", "template"),
    "llama_sentence": ("prompted", "sentence"),
}


@pytest.mark.parametrize("name", BASELINES)
def test_the_papers_baselines_are_measured_on_the_data_of_its_experiment(name):
    path = CONFIGS / "paper" / f"{name}.yaml"
    experiment = load_config(Experiment, ["--config", str(path)], "job", "")
    sce = load_config(Experiment, ["--config", str(CONFIGS / "paper" / "sce.yaml")], "job", "")
    method, what = BASELINES[name]
    assert experiment.method == method
    assert experiment.data == sce.data
    shares = name != "f2llm"  # its vectors are others, and vectors lie beside the data
    assert (experiment.data_dir == sce.data_dir) == shares
    assert what == (
        experiment.embedder.model if method == "similarity" else experiment.prompted.prompt
    )
    if name == "jina_similarity":
        assert experiment.embedder == sce.embedder
    assert f"jobs/evaluate.py --config configs/paper/{name}.yaml" in path.read_text()
    stems = {p.stem for p in (CONFIGS / "paper").glob("*.yaml")}
    assert stems == {"data", "sce", "llama", *BASELINES}


def test_every_line_of_the_papers_configurations_says_whose_it_is():
    parts = ("model", "augment", "train")
    for path, sections in (
        (CONFIGS / "paper" / "sce.yaml", parts),
        (CONFIGS / "news" / "paper_recipe.yaml", parts),
        (LLAMA, ("lora", "train")),
    ):
        text = path.read_text()
        for section in sections:
            block = text.split(f"\n{section}:\n")[1]
            for line in block.splitlines():
                if not line.startswith(" "):
                    break
                if "view_weights" not in line:
                    assert "# P" in line or "# O" in line, line


def test_data_lies_in_one_folder_which_a_setting_moves(monkeypatch):
    monkeypatch.setenv("SCE_DATA__FOLDER", "/elsewhere")
    for path in FILES:
        text = path.read_text()
        elsewhere = [x for x in text.splitlines() if "../" in x and not x.startswith("include:")]
        assert not elsewhere, f"{path} names a folder outside the repository"
        assert "/" not in " ".join(re.findall(r"path: (\S+)", text)), path
        experiment = load_config(Experiment, ["--config", str(path)], "job", "")
        assert experiment.data.folder == "/elsewhere"
    monkeypatch.delenv("SCE_DATA__FOLDER")
    for name in ("news", "paper"):
        path = CONFIGS / name / "sce.yaml"
        assert load_config(Experiment, ["--config", str(path)], "job", "").data.folder == "data"


def test_the_quickstart_is_the_defaults():
    experiment = load_config(
        Experiment, ["--config", str(CONFIGS / "quickstart" / "sce.yaml")], "job", ""
    )
    given = set(yaml.safe_load((CONFIGS / "quickstart" / "sce.yaml").read_text()))
    assert given == {"name", "run_dir", "data"}
    assert experiment.model == Experiment().model


def uncommented(text: str) -> str:
    """With the settings that stand there as examples."""
    lines = []
    for line in text.splitlines():
        bare = line.lstrip().removeprefix("# ")
        example = line.lstrip().startswith("# ") and (": " in bare or bare.rstrip().endswith(":"))
        lines.append(line.replace("# ", "", 1) if example and line.startswith(" ") else line)
    return "\n".join(lines)


@pytest.mark.parametrize("with_examples", [False, True])
def test_the_configuration_of_the_endpoint_has_only_keys_that_ray_and_we_know(with_examples):
    """Ray itself takes keys that it does not know in silence."""
    text = SERVE.read_text(encoding="utf-8")
    content = yaml.safe_load(uncommented(text) if with_examples else text)
    ServeDeploySchema.model_validate(content)
    assert set(content) <= set(ServeDeploySchema.model_fields)
    assert set(content["http_options"]) <= set(HTTPOptionsSchema.model_fields)
    assert set(content["logging_config"]) <= set(LoggingConfig.model_fields)
    (app,) = content["applications"]
    assert set(app) <= set(ServeApplicationSchema.model_fields)
    config = ServeConfig.model_validate(app["args"])
    names = {"gateway", *(f"model-{name}" for name in config.named_models())}
    for deployment in app.get("deployments", []):
        assert deployment["name"] in names
        assert set(deployment) <= set(DeploymentSchema.model_fields)
    module, _, function = app["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert ("deployments" in app) == with_examples


def test_the_inbox_is_measured_by_the_model_of_the_quickstart():
    inbox, sce = (
        load_config(Experiment, ["--config", str(CONFIGS / "quickstart" / name)], "job", "")
        for name in ("inbox.yaml", "sce.yaml")
    )
    assert inbox.measured_model == sce.model_dir == sce.measured_model
    assert inbox.embedder == sce.embedder
    assert [source.dataset for source in inbox.data.sources] == ["inbox"]
    assert not {inbox.results_dir, inbox.data_dir} & {sce.results_dir, sce.data_dir}
    assert "hard corpus" in inbox.evaluate.caption
