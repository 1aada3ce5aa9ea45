"""Weights in a pickle are refused, wherever a checkpoint is loaded, and code in them never runs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel
from transformers import logging as transformers_logging

from sce.baselines.lora import (
    adapter_weights,
    add_adapters,
    load_base,
    load_chat_tokenizer,
    read_adapters,
)
from sce.baselines.prompted import check_prompted
from sce.baselines.settings import LoraSettings, PromptedConfig
from sce.bulk.request import identify_model
from sce.embedding.embedder import load_embedder
from sce.embedding.settings import EmbedderConfig
from sce.errors import EmbedderError, InputError
from sce.model.encoder import SCEModel
from sce.model.weights import load_weights, refuse_pickles, save_weights
from sce.predictor import Predictor
from sce.training.fresh_model import build_model
from sce.training.settings import ModelConfig
from tests.tiny_bulk import build_models
from tests.tiny_models import build_jina, build_llama, build_roberta, build_sentence_transformer
from tests.training.test_saved_state import Planted

REFUSAL = r"its weights are in {name}.*only \w+\.safetensors is read.*convert it once"


def plant(folder: Path, name: str = "pytorch_model.bin") -> Path:
    """Puts code where the weights were; returns the folder that it would make."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.save({"weight": Planted(folder / "it-ran")}, folder / name)
    return folder / "it-ran"


def test_an_encoder_in_a_pickle_is_refused(tmp_path):
    proof = plant(build_roberta(tmp_path / "roberta"))
    config = ModelConfig(encoder=str(tmp_path / "roberta"), num_layers=None)
    with pytest.raises(InputError, match=REFUSAL.format(name="pytorch_model.bin")):
        build_model(config, {"dimension": 64}, 0.0, 0)
    assert not proof.exists()


def test_an_embedder_or_its_adapter_in_a_pickle_is_refused(tmp_path):
    proof = plant(build_sentence_transformer(tmp_path / "st"))
    with pytest.raises(EmbedderError, match=REFUSAL.format(name="pytorch_model.bin")):
        load_embedder(EmbedderConfig(kind="sentence_transformers", model=str(tmp_path / "st")))
    assert not proof.exists()
    adapter = build_jina(tmp_path / "jina") / "classification"
    (tmp_path / "jina" / "more.safetensors").write_bytes(b"")  # as many as there are folders
    proof = plant(adapter, "adapter_model.bin")
    with pytest.raises(EmbedderError, match=REFUSAL.format(name="adapter_model.bin")):
        load_embedder(EmbedderConfig(kind="jina", model=str(tmp_path / "jina")))
    assert not proof.exists()


def test_a_llama_or_its_adapters_in_a_pickle_are_refused(tmp_path):
    base, adapter = build_llama(tmp_path / "base"), tmp_path / "adapter"
    settings = LoraSettings(rank=2, dtype="float32", quantisation="none")
    model = load_base(base, settings, "cpu")
    add_adapters(model, settings).save_pretrained(adapter)
    proof = plant(adapter, "adapter_model.bin")
    message = REFUSAL.format(name="adapter_model.bin")
    with pytest.raises(InputError, match=message):
        read_adapters(load_base(base, settings, "cpu"), adapter)
    with pytest.raises(InputError, match=message):
        adapter_weights(adapter, "cpu")
    with pytest.raises(InputError, match=message):
        check_prompted(PromptedConfig(base=str(base), adapter=adapter))
    # transformers itself looks for adapters in a model's folder.
    for file in adapter.iterdir():
        file.replace(base / file.name)
    with pytest.raises(InputError, match=message):
        load_base(base, settings, "cpu")
    assert not (base / "it-ran").exists()
    (base / "adapter_model.bin").unlink()
    plant(base)
    message = REFUSAL.format(name="pytorch_model.bin")
    for load in (
        lambda: load_base(base, settings, "cpu"),
        lambda: check_prompted(PromptedConfig(base=str(base))),
    ):
        with pytest.raises(InputError, match=message):
            load()
    assert not proof.exists()
    assert not (base / "it-ran").exists()


def test_a_model_of_ours_in_a_pickle_is_refused_by_every_way(tmp_path):
    build_models(tmp_path, "sce")
    model = tmp_path / "sce"
    proof = plant(model)
    message = REFUSAL.format(name="pytorch_model.bin")
    for load in (SCEModel.from_pretrained, Predictor.from_pretrained, identify_model):
        with pytest.raises(InputError, match=message):
            load(str(model))
    assert not proof.exists()


def test_the_command_of_the_message_makes_a_checkpoint_that_loads(tmp_path):
    folder = build_roberta(tmp_path / "roberta")
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError) as refused:
        refuse_pickles(folder)
    command = re.search(r"python (-c .*)$", str(refused.value))
    assert command
    subprocess.run([sys.executable, *shlex.split(command[1])], check=True)
    loaded = load_weights(AutoModel, folder).state_dict()
    assert all(torch.equal(weights[name], loaded[name]) for name in weights)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"transformers_weights": "adapter_model.bin"}),
        ("model.safetensors.index.json", {"weight_map": {"a": "a.safetensors", "b": "b.bin"}}),
    ],
)
def test_no_file_leads_to_a_pickle(tmp_path, file, content):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"\.bin' as weights"):
        refuse_pickles(tmp_path)


def test_code_that_a_checkpoint_names_is_refused_without_a_question(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "y")
    folder = build_roberta(tmp_path / "roberta")
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    config |= {"model_type": "unheard-of", "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"import os; os.mkdir({str(tmp_path / 'it-ran')!r})")
    with pytest.raises(InputError):
        build_model(ModelConfig(encoder=str(folder), num_layers=None), {"dimension": 64}, 0.0, 0)
    llama = build_llama(tmp_path / "llama")
    settings = json.loads((llama / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Unheard", "auto_map": {"AutoTokenizer": ["code.T", None]}}
    (llama / "tokenizer_config.json").write_text(json.dumps(settings))
    (llama / "code.py").write_text(f"import os; os.mkdir({str(tmp_path / 'it-ran')!r})")
    with pytest.raises(InputError):
        load_chat_tokenizer(llama)
    assert not asked
    assert not (tmp_path / "it-ran").exists()


def test_loading_draws_no_bar_and_leaves_those_of_others(tmp_path, capfd):
    folder = build_roberta(tmp_path / "roberta")
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.enable_progress_bar()
    try:
        AutoModel.from_pretrained(folder)
        assert "Loading weights" in capfd.readouterr().err, "transformers draws one"
        save_weights(load_weights(AutoModel, folder), tmp_path / "again")
        assert not capfd.readouterr().err
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        if not shown:
            transformers_logging.disable_progress_bar()
