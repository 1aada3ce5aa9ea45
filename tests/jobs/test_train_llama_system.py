"""`jobs/train_llama.py` on a tiny Llama: two workers, 4 bits, resume, adapters alone, merging."""

import json
import os
from pathlib import Path

import pytest
from peft import PeftModel

from sce.baselines.lora import load_base, load_chat_tokenizer, merge
from sce.baselines.prompted import PromptedClassifier
from sce.baselines.settings import LoraSettings
from sce.labels import LabelSet
from sce.workflows.cli import run_job
from sce.workflows.experiment import LlamaExperiment
from sce.workflows.train_llama import train_llama
from tests.tiny_models import build_llama

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

SET = LabelSet.parse(["flood", "engine trouble", "praise"])
WORDS = {"flood": "river water rain", "engine trouble": "car motor smoke", "praise": "thank you"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    build_llama(folder / "base")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = []
    for i in range(48):
        label = SET.names[i % 3]
        split = "test" if i >= 45 else "validation" if i >= 36 else "train"
        rows.append({"text": f"{WORDS[label]} {i}", "label": label, "split": split})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(folder, data, home, *flags) -> int:
    source = json.dumps([{"dataset": "custom", "path": str(data), "name": "own"}])
    argv = ["--base", os.path.relpath(folder / "base"), "--run-dir", str(home)]
    argv += ["--data.sources", source]
    argv += ["--prompt", "sentence", "--lora.rank", "4", "--lora.dtype", "float32"]
    argv += ["--train.micro-batch-size", "2", "--train.accumulation-steps", "4"]
    argv += ["--train.learning-rate", "0.01", "--train.patience", "20", "--no-tracking.enabled"]
    argv += ["--resources.use-gpu", "false", *flags]
    return run_job(LlamaExperiment, train_llama, "", argv)


def summary(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def texts_and_labels(data):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def test_two_workers_in_4_bits(ray_session, folder, data, tmp_path, capsys):
    flags = ["--train.epochs", "16", "--resources.num-workers", "2", "--merge"]
    assert call(folder, data, tmp_path, *flags) == 0
    found = summary(capsys)
    assert found["validation_accuracy"] == 1.0
    assert found["train_loss"] < 1
    adapter = Path(found["adapter"])
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in adapter.iterdir()
    }
    assert not list(adapter.glob("model*.safetensors"))

    texts, labels = texts_and_labels(data)
    settings = LoraSettings(rank=4, dtype="float32")
    tokenizer = load_chat_tokenizer(folder / "base")
    model = PeftModel.from_pretrained(load_base(folder / "base", settings, "cpu"), adapter)
    scores = PromptedClassifier(model, tokenizer, "sentence").scores(texts, SET)
    right = [SET.names[k] == label for k, label in zip(scores.argmax(1), labels, strict=True)]
    assert sum(right) / len(right) > 0.9
    (measured,) = json.loads((Path(found["results"]) / "results.json").read_text())
    assert measured["rows"] == 3
    assert measured["prompted"]["accuracy"] == pytest.approx(sum(right[45:]) / 3)
    cost = json.loads((Path(found["results"]) / "methods.json").read_text())["prompted"]["training"]
    assert cost["epochs"] == 16
    assert cost["trainable_parameters"] == 4 * sum(
        sum(m.weight.shape)
        if not hasattr(m.weight, "quant_state")
        else sum(m.weight.quant_state.shape)
        for name, m in load_base(folder / "base", settings, "cpu").named_modules()
        if name.endswith("_proj")
    )
    # Random weights lose much to 4 bits, so the merged model may answer otherwise; but what was
    # measured is what was written.
    plain = load_base(folder / "base", settings, "cpu", quantised=False)
    written = load_base(found["merged"], settings, "cpu", quantised=False)
    one, other = (
        PromptedClassifier(m, tokenizer, "sentence").scores(texts, SET)
        for m in (merge(plain, adapter), written)
    )
    assert one == pytest.approx(other, abs=1e-4)
    validation = one[39:].argmax(1)
    share = sum(SET.names[k] == label for k, label in zip(validation, labels[39:])) / 9
    assert found["merged_accuracy"] == pytest.approx(share, abs=1e-4)


def test_resume_ends_where_an_undisturbed_run_ends(
    ray_session,
    folder,
    data,
    tmp_path,
    capsys,
):
    """Cut by patience: the rates follow from the epochs planned."""
    flags = ["--train.epochs", "3", "--lora.quantisation", "none"]
    assert call(folder, data, tmp_path / "whole", *flags) == 0
    whole = summary(capsys)
    assert call(folder, data, tmp_path / "cut", *flags) == 0
    state = tmp_path / "cut" / "checkpoints" / "run.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"finished": False}))
    assert call(folder, data, tmp_path / "cut", *flags) == 2
    assert "--resume" in capsys.readouterr().err
    assert call(folder, data, tmp_path / "cut", *flags, "--resume", "--seed", "1") == 2
    assert "seed" in capsys.readouterr().err
    assert call(folder, data, tmp_path / "cut", *flags, "--resume") == 0
    assert summary(capsys)["validation_accuracy"] == whole["validation_accuracy"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--base", "nowhere/at/all"], "no tokenizer at"),
        (["--train.batch-size", "7"], "leave it out"),
    ],
)
def test_wrong_input_is_said(ray_session, folder, data, tmp_path, capsys, flags, message):
    assert call(folder, data, tmp_path, *flags) == 2
    assert message in capsys.readouterr().err
