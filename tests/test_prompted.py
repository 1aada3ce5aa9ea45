"""Prompted classification against a plain computation: one sequence a label, one at a time."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sce.baselines.prompted import PromptedClassifier, write_prompt
from sce.errors import ConfigError, DataError, LabelError
from tests.tiny_models import build_roberta

TEXTS = ["the river rose overnight.", "thank you", "the engine will not start in the cold " * 3]
ONE_TOKEN = ["a", "b", "c"]
LABELS = ["late delivery", "a", "billing", "praise and thanks"]
CHAT = (
    "{% for m in messages %}<s>{{ m.role }} {{ date_string }}\n{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    build_roberta(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request, tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=len(tokenizer), initializer_range=0.3,
        attn_implementation=request.param,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def plain_scores(model, prompt_ids: list[int], label_ids: list[list[int]]) -> list[float]:
    """Mean log-likelihood, by a sequence of its own for each label."""
    found = []
    for ids in label_ids:
        whole = torch.tensor([prompt_ids + ids])
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=whole).logits[0].double(), -1)
        first = len(prompt_ids) - 1
        found.append(sum(float(log_p[first + j, t]) for j, t in enumerate(ids)) / len(ids))
    return found


@pytest.mark.parametrize("prompt", ["sentence", "template"])
@pytest.mark.parametrize("labels", [ONE_TOKEN, LABELS])
@pytest.mark.parametrize("batch_tokens", [1, 100_000])
def test_scores_are_those_of_one_sequence_a_label(model, tokenizer, prompt, labels, batch_tokens):
    classifier = PromptedClassifier(model, tokenizer, prompt, max_batch_tokens=batch_tokens)
    scores = classifier.scores(TEXTS, labels)
    label_ids = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in labels]
    for row, text in enumerate(TEXTS):
        prompt_ids = classifier.prompt_tokens(text, labels).ids
        wanted = plain_scores(model, prompt_ids, label_ids)
        np.testing.assert_allclose(scores[row], wanted, atol=1e-4)


def test_labels_of_one_token_have_equation_4(model, tokenizer):
    classifier = PromptedClassifier(model, tokenizer)
    ids = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in ONE_TOKEN]
    assert all(len(one) == 1 for one in ids)
    p_NK = softmax(classifier.scores(TEXTS, ONE_TOKEN).astype(float), axis=1)
    for row, text in enumerate(TEXTS):
        whole = torch.tensor([classifier.prompt_tokens(text, ONE_TOKEN).ids])
        with torch.no_grad():
            z = model(input_ids=whole).logits[0, -1].tolist()
        exp = [math.exp(z[one[0]]) for one in ids]
        np.testing.assert_allclose(p_NK[row], [e / sum(exp) for e in exp], atol=1e-5)


def test_the_conversation_is_the_tokenizers(tokenizer, model):
    classifier = PromptedClassifier(model, tokenizer, "sentence")
    ids = classifier.prompt_tokens("It rained.", ["flood", "sport"]).ids
    message = (
        "Here is a sentence: It rained. Which topic does it belong to from the set "
        "{flood, sport}?\nReturn only the topic."
    )
    wanted = f"<s>user 26 Jul 2024\n{message}</s><s>assistant\n"
    assert ids == tokenizer(wanted, add_special_tokens=False)["input_ids"]


def test_the_template_holds_text_and_categories_once():
    found = write_prompt("template", "It rained {x}.", ["flood", "sport"])
    assert found.count("It rained {x}.") == 1
    assert "## CATEGORIES:\n['flood', 'sport']\n" in found
    assert found.startswith("You are given a text excerpt")


def test_the_order_of_labels_follows_the_user(model, tokenizer):
    classifier = PromptedClassifier(model, tokenizer)
    swapped = classifier.scores(TEXTS, LABELS[::-1])
    for row, text in enumerate(TEXTS):
        ids = classifier.prompt_tokens(text, LABELS[::-1]).ids
        label_ids = [tokenizer(n, add_special_tokens=False)["input_ids"] for n in LABELS[::-1]]
        np.testing.assert_allclose(swapped[row], plain_scores(model, ids, label_ids), atol=1e-4)


def test_a_long_text_is_cut_and_says_so(model, tokenizer):
    classifier = PromptedClassifier(model, tokenizer, max_text_tokens=10)
    long, short = "word " * 200, "word"
    assert classifier.prompt_tokens(long, LABELS).truncated
    assert not classifier.prompt_tokens(short, LABELS).truncated
    cut = classifier.prompt_tokens(long, LABELS).ids
    assert len(cut) <= len(classifier.prompt_tokens("", LABELS).ids) + 12


def test_refusals(model, tokenizer):
    classifier = PromptedClassifier(model, tokenizer)
    with pytest.raises(DataError, match=r"texts\[1\]"):
        classifier.scores(["a", ""], LABELS)
    with pytest.raises(LabelError):
        classifier.scores(["a"], [])
    bare = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    bare.chat_template = None
    with pytest.raises(ConfigError, match="chat template"):
        PromptedClassifier(model, bare)
