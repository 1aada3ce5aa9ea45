"""LoRA fine-tuning at tiny size: the loss, what is trained, 4 bits, adapters saved and merged."""

import pytest
import torch
from peft import PeftModel

from sce.baselines.lora import (
    add_adapters,
    collate,
    label_loss,
    load_base,
    load_chat_tokenizer,
    merge,
)
from sce.baselines.prompted import PromptedClassifier
from sce.baselines.settings import LoraSettings
from sce.errors import ConfigError, InputError
from tests.tiny_models import build_llama

TEXTS = ["the river rose overnight", "the engine will not start", "thank you so much", "it rained"]
LABELS = ["flood", "engine trouble", "praise"]
RIGHT = [0, 1, 2, 0]
SETTINGS = LoraSettings(rank=4, dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    build_llama(folder / "base")
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_chat_tokenizer(folder / "base")


def samples_of(model, tokenizer):
    classifier = PromptedClassifier(model, tokenizer, "sentence")
    prompts = [classifier.prompt_tokens(text, LABELS).ids for text in TEXTS]
    answers = classifier.label_tokens(LABELS)
    labels = [answers[k] for k in RIGHT]
    return prompts, labels, collate(prompts, labels, tokenizer.eos_token_id, 1)


def test_the_loss_is_on_label_and_end_of_turn_alone(folder, tokenizer):
    model = load_base(folder / "base", SETTINGS, "cpu", quantised=False)
    *_, samples = samples_of(model, tokenizer)
    encode = tokenizer._tokenizer.encode
    rows = []
    for text, right in zip(TEXTS, RIGHT, strict=True):
        message = (
            f"Here is a sentence: {text}. Which topic does it belong to from the set "
            "{flood, engine trouble, praise}?\nReturn only the topic."
        )
        prompt = encode(f"<s>{message}</s><s>", add_special_tokens=False).ids
        told = encode(f"{LABELS[right]}</s>", add_special_tokens=False).ids
        with torch.no_grad():
            z = model(torch.tensor([prompt + told])).logits[0].double()
        nll = 0.0
        for place, token in enumerate(told, len(prompt) - 1):
            nll += float(torch.log(torch.exp(z[place] - z[place].max()).sum()))
            nll += float(z[place].max() - z[place, token])
        rows.append(nll / len(told))
    with torch.no_grad():
        assert float(label_loss(model, samples)) == pytest.approx(sum(rows) / len(rows), abs=1e-4)


def test_padding_changes_nothing(folder, tokenizer):
    model = load_base(folder / "base", SETTINGS, "cpu", quantised=False)
    prompts, labels, samples = samples_of(model, tokenizer)
    end = tokenizer.eos_token_id
    with torch.no_grad():
        alone = [
            float(label_loss(model, collate([prompt], [label], end, 1)))
            for prompt, label in zip(prompts, labels, strict=True)
        ]
        together = float(label_loss(model, samples))
    assert together == pytest.approx(sum(alone) / len(alone), abs=1e-4)


@pytest.mark.parametrize(
    ("quantisation", "checkpointing"), [("nf4", True), ("none", True), ("none", False)]
)
def test_training_saving_reloading_and_merging(
    folder, tokenizer, tmp_path, quantisation, checkpointing
):
    settings = SETTINGS.model_copy(
        update={"quantisation": quantisation, "gradient_checkpointing": checkpointing}
    )
    torch.manual_seed(1)
    base = load_base(folder / "base", settings, "cpu")
    quantised = {type(m).__name__ for m in base.modules()} & {"Linear4bit"}
    assert bool(quantised) == (quantisation == "nf4")
    model = add_adapters(base, settings)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    _, _, samples = samples_of(model, tokenizer)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    model.train()
    losses = []
    for _ in range(20):
        loss = label_loss(model, samples)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    classifier = PromptedClassifier(model, tokenizer, "sentence")
    scores = classifier.scores(TEXTS, LABELS)
    assert scores.argmax(1).tolist() == RIGHT

    model.save_pretrained(tmp_path / "adapter")
    saved = sum(f.stat().st_size for f in (tmp_path / "adapter").glob("*.safetensors"))
    assert saved < 1.2 * sum(4 * p.numel() for p in model.parameters() if p.requires_grad) + 10_000
    again = PeftModel.from_pretrained(
        load_base(folder / "base", settings, "cpu"), tmp_path / "adapter"
    )
    reloaded = PromptedClassifier(again, tokenizer, "sentence").scores(TEXTS, LABELS)
    assert reloaded == pytest.approx(scores, abs=1e-4)

    plain = load_base(folder / "base", settings, "cpu", quantised=False)
    merged = PromptedClassifier(merge(plain, tmp_path / "adapter"), tokenizer, "sentence")
    assert merged.scores(TEXTS, LABELS).argmax(1).tolist() == RIGHT
    if quantisation == "none":
        assert merged.scores(TEXTS, LABELS) == pytest.approx(scores, abs=1e-3)


def test_refusals(folder, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        load_base(tmp_path / "nowhere", SETTINGS, "cpu")
    base = load_base(folder / "base", SETTINGS, "cpu", quantised=False)
    with pytest.raises(InputError, match="no adapters"):
        merge(base, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="targets"):
        add_adapters(base, SETTINGS.model_copy(update={"targets": ("no_such",)}))
