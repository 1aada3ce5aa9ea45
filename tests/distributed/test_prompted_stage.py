"""Prompting on Ray Data: the answers of one process, in the order of the requests."""

import numpy as np
import pytest
import torch

from sce.baselines.lora import LoraSettings, add_adapters, load_base
from sce.baselines.prompted import PromptedConfig, load_prompted
from sce.distributed.prompted import score_prompts
from sce.distributed.resources import ResourcesConfig
from sce.labels import LabelSet
from tests.tiny_models import build_llama

RESOURCES = ResourcesConfig(use_gpu=False)
TEXTS = [f"{'the river rose overnight ' * (i % 5 + 1)}{i}" for i in range(90)]
LABELS = LabelSet.parse(["late delivery", "a", "billing", "praise and thanks"])
REQUESTS = [
    (TEXTS, LABELS),
    ([], LABELS),
    (TEXTS[:7], LabelSet.parse(LABELS.names[::-1])),
    (TEXTS[3:80], LabelSet.parse(["a", "b"])),
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
    return [classifier.scores(texts, labels) for texts, labels in REQUESTS]


@pytest.mark.usefixtures("ray_session")
def test_the_answers_are_those_of_one_process(folder):
    config = PromptedConfig(base=str(folder / "base"), max_text_tokens=40, max_batch_tokens=2000)
    seen = []
    resources = RESOURCES.model_copy(update={"embed_actors": 2})
    answers = score_prompts(REQUESTS, config, resources, lambda *rows: seen.append(rows))
    for found, wanted in zip(answers.scores, alone(config), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    cut = [load_prompted(config, "cpu").prompt_tokens(t, ["a"]).truncated for t in TEXTS]
    assert answers.truncated == sum(cut) + sum(cut[:7]) + sum(cut[3:80])
    assert 0 < answers.truncated < 174
    assert seen[-1] == (174, 174)
    assert answers.device == "cpu"
    assert answers.texts_per_second == pytest.approx(174 / answers.seconds)
    assert answers.peak_memory_bytes > 50 * 2**20
    assert answers.model_load_seconds > 0
