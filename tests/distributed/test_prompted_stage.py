"""Prompting on Ray Data: the answers of one process, in the order of the requests."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers

from sce.baselines.lora import add_adapters, load_base, merge
from sce.baselines.prompted import load_prompted, parameter_count
from sce.baselines.settings import LoraSettings, PromptedConfig
from sce.distributed import prompted as stage
from sce.distributed.prompted import score_prompts
from sce.distributed.settings import ResourcesConfig
from sce.errors import ConfigError, DataError, InputError
from sce.evaluation.evaluate import Request
from sce.labels import LabelSet
from tests.tiny_models import build_llama

RESOURCES = ResourcesConfig(use_gpu=False)
TEXTS = [f"{'the river rose overnight ' * (i % 5 + 1)}{i}" for i in range(90)]
UPPER_LOWER = LabelSet.parse(["US", "us"])
LABELS = LabelSet.parse(["late delivery", "a", "billing", "praise and thanks"])
REQUESTS = [
    Request(TEXTS, None, LABELS),
    Request([], None, LABELS),
    Request(TEXTS[:7], None, LabelSet.parse(LABELS.names[::-1])),
    Request(TEXTS[3:80], None, LabelSet.parse(["a", "b"])),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    build_llama(folder / "base")
    settings = LoraSettings(rank=4, dtype="float32", quantisation="none")
    torch.manual_seed(1)
    model = add_adapters(load_base(folder / "base", settings, "cpu"), settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero in a fresh adapter, which would change nothing
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "adapter")
    return folder


def alone(config):
    classifier = load_prompted(config, "cpu")
    return [classifier.scores(request.texts, request.label_set) for request in REQUESTS]


@pytest.mark.system
@pytest.mark.usefixtures("ray_session")
def test_the_answers_are_those_of_one_process(folder):
    config = PromptedConfig(base=str(folder / "base"), max_text_tokens=40, max_batch_tokens=2000)
    resources = RESOURCES.model_copy(update={"embed_actors": 2})
    answers = score_prompts(REQUESTS, config, resources)
    for found, wanted in zip(answers.scores, alone(config), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    classifier = load_prompted(config, "cpu")
    cut = [classifier.prompt_tokens(t, ["a"]).truncated for t in TEXTS]
    assert answers.truncated == sum(cut) + sum(cut[:7]) + sum(cut[3:80])
    assert 0 < answers.truncated < 174
    wanted = [
        len(classifier.prompt_tokens(text, request.label_set.names).ids)
        + sum(len(ids) - 1 for ids in classifier.label_tokens(request.label_set.names))
        for request in REQUESTS
        for text in request.texts
    ]
    assert sorted(answers.tokens_N.tolist()) == sorted(wanted)
    assert (answers.cost.device, answers.cost.rows) == ("cpu", 174)
    assert answers.cost.texts_per_second > 0
    assert answers.cost.peak_memory_bytes > 50 * 2**20
    assert answers.parameters == sum(p.numel() for p in classifier.model.parameters())


@pytest.mark.system
@pytest.mark.usefixtures("ray_session")
def test_adapters_change_the_answers_or_are_refused_as_what_they_are(folder):
    config = PromptedConfig(
        base=str(folder / "base"), adapter=folder / "adapter", prompt="sentence"
    )
    answers = score_prompts(REQUESTS, config, RESOURCES)
    without = alone(config.model_copy(update={"adapter": None}))
    for found, wanted, bare in zip(answers.scores, alone(config), without, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert not len(found) or np.abs(found - bare).max() > 0.1
    classifier = load_prompted(config.model_copy(update={"adapter": None}), "cpu")
    base = classifier.model
    lora = load_file(folder / "adapter" / "adapter_model.safetensors")
    tokens = classifier.label_tokens(LABELS.names)
    weights = sum(p.numel() for p in base.parameters())
    assert answers.parameters == weights + sum(w.numel() for w in lora.values())
    merged = merge(base, folder / "adapter")  # no layer of adapters, no batch, no cache
    for row in range(3):
        prompt = classifier.prompt_tokens(TEXTS[row], LABELS.names).ids
        for k, ids in enumerate(tokens):
            with torch.no_grad():
                log_p = merged(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            wanted = sum(float(log_p[len(prompt) - 1 + j, t]) for j, t in enumerate(ids))
            assert answers.scores[0][row, k] == pytest.approx(wanted / len(ids), abs=1e-4)
    save_file({k: w[:, :-1].contiguous() for k, w in lora.items()}, folder / "other.safetensors")
    other = shutil.copytree(folder / "adapter", folder / "other")
    (folder / "other.safetensors").replace(other / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"do not fit.*size mismatch"):
        score_prompts(REQUESTS, config.model_copy(update={"adapter": other}), RESOURCES)


def test_four_bits_are_loaded_and_counted_as_weights(folder):
    config = PromptedConfig(base=str(folder / "base"), dtype="float32")
    whole, small = (
        load_prompted(config.model_copy(update={"quantisation": q}), "cpu") for q in ("none", "nf4")
    )
    kinds = {type(module).__name__ for module in small.model.modules()}
    assert "Linear4bit" in kinds
    assert parameter_count(small.model) == parameter_count(whole.model)
    near = small.scores(TEXTS[:2], LABELS) - whole.scores(TEXTS[:2], LABELS)
    assert 0 < np.abs(near).max() < 3


def refuse_to_start(*_args, **_kwargs):
    raise AssertionError("Ray would start")


@pytest.fixture(scope="module")
def broken(folder):
    """Copies of the model with something amiss each."""
    for name in ("bare", "silent", "lower"):
        shutil.copytree(folder / "base", folder / name)
    (folder / "bare" / "model.safetensors").unlink()
    (folder / "silent" / "chat_template.jinja").unlink()
    tokenizer = Tokenizer.from_file(str(folder / "lower" / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(folder / "lower" / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    ("base", "adapter", "request_", "error", "message"),
    [
        ("no/such-model", None, None, InputError, "no tokenizer at 'no/such-model'"),
        ("/no/such/folder", None, None, InputError, "no tokenizer at '/no/such/folder'"),
        ("{}/bare", None, None, InputError, "no .*safetensors"),
        ("{}/silent", None, None, ConfigError, "no chat template"),
        ("{}/base", "/nowhere", None, InputError, "no adapters at '/nowhere'"),
        ("{}/base", "{}/base", None, InputError, "no adapter_config.json"),
        ("{}/base", None, Request([], None, LABELS), DataError, "no text"),
        (
            "{}/base",
            None,
            Request(["a", " "], None, LABELS),
            DataError,
            r"request 0: texts\[1\].*empty",
        ),
        ("{}/lower", None, Request(["a"], None, UPPER_LOWER), ConfigError, "'US' and 'us'"),
    ],
)
def test_what_is_amiss_is_said_before_ray_starts(
    broken, monkeypatch, base, adapter, request_, error, message
):
    monkeypatch.setattr(stage, "embed_actors", refuse_to_start)
    config = PromptedConfig(
        base=base.format(broken), adapter=adapter and Path(adapter.format(broken))
    )
    with pytest.raises(error, match=message):
        score_prompts([request_ or REQUESTS[0]], config, RESOURCES)
