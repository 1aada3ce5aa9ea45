"""Prompted classification against a plain computation: one sequence a label, one at a time."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MistralConfig
from transformers import MistralForCausalLM as Mistral

from sce.baselines import prompted
from sce.baselines.prompted import PromptedClassifier
from sce.errors import ConfigError, DataError, LabelError
from tests.tiny_models import build_roberta

TEXTS = ["the river rose overnight.", "thank you", "the engine will not start in the cold " * 3]
ONE_TOKEN = ["a", "b", "c"]
LABELS = ["late delivery", "a", "billing", "praise and thanks"]
CHAT = (
    "{% for m in messages %}<s>{{ m.role }} {{ date_string }}\n{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
LLAMA_CHAT = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: {{ date_string }}\n\n<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""What Llama-3.2's does with one message of the user."""


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


def written_by_hand(prompt: str, text: str, labels: list[str]) -> str:
    """Llama-3.2's conversation with the paper's prompt, from the paper and Meta's documents."""
    if prompt == "sentence":  # appendix D
        message = (
            f"Here is a sentence: {text.removesuffix('.')}. Which topic does it belong to from the "
            f"set {{{', '.join(labels)}}}?\nReturn only the topic."
        )
    else:  # appendix G.1
        lines = [
            "You are given a text excerpt and a list of categories.",
            "Your task is to select the best category from the list of categories to classify the "
            "given text excerpt.",
            "",
            "### Note:",
            "Your selected category for the text excerpt must match exactly -case, "
            "plural/singular, and spelling-with one of the options in the CATEGORIES list. Use the "
            "category string exactly as it appears in CATEGORIES.",
            "",
            "## TEXT_EXCERPT:",
            text,
            "",
            "## CATEGORIES:",
            "[" + ", ".join(f"'{label}'" for label in labels) + "]",
            "",
            "## SCHEMA:",
            "SelectedCategory",
            "",
            "### Note: Your output must strictly be a single token which is the category selected "
            "from the list of categories. Do not give verbose reasonings giving explanations "
            "around it. Do not give python reasoning. Just a single token output. Now generate "
            "the output.",
        ]
        message = "\n".join(lines)
    return (
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{message}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.fixture(scope="module")
def llama_tokenizer(tokenizer):
    again = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    again.chat_template = LLAMA_CHAT
    return again


@pytest.mark.parametrize("prompt", ["sentence", "template"])
def test_the_conversation_is_the_papers_in_the_models_words(model, llama_tokenizer, prompt):
    classifier = PromptedClassifier(model, llama_tokenizer, prompt)
    for text in ["It rained {x}.", *TEXTS]:
        wanted = written_by_hand(prompt, text, ["flood", "sport"])
        ids = classifier.prompt_tokens(text, ["flood", "sport"]).ids
        assert ids == llama_tokenizer._tokenizer.encode(wanted, add_special_tokens=False).ids
        assert ids.count(llama_tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("prompt", ["sentence", "template"])
def test_labels_of_one_token_have_equation_4(model, llama_tokenizer, prompt):
    p_NK = softmax(
        PromptedClassifier(model, llama_tokenizer, prompt).scores(TEXTS, ONE_TOKEN).astype(float),
        axis=1,
    )
    encode = llama_tokenizer._tokenizer.encode
    tokens = [encode(name, add_special_tokens=False).ids for name in ONE_TOKEN]
    assert all(len(ids) == 1 for ids in tokens)
    for row, text in enumerate(TEXTS):
        whole = encode(written_by_hand(prompt, text, ONE_TOKEN), add_special_tokens=False).ids
        with torch.no_grad():
            z = model(input_ids=torch.tensor([whole])).logits[0, -1].tolist()
        exp = [math.exp(z[ids[0]]) for ids in tokens]
        np.testing.assert_allclose(p_NK[row], [e / sum(exp) for e in exp], atol=1e-5)


def widths(model, work) -> list[tuple[int, int]]:
    """Rows and columns of the model's passes during `work`."""
    seen = []
    hook = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    work()
    hook.remove()
    return seen


def test_what_prompts_begin_with_is_read_once(model, tokenizer):
    classifier = PromptedClassifier(model, tokenizer, max_batch_tokens=100_000)
    prompts = [classifier.prompt_tokens(text, ONE_TOKEN).ids for text in TEXTS]
    alike = [len(set(column)) == 1 for column in zip(*prompts, strict=False)]
    shared = alike.index(False)
    assert shared > 50
    longest = max(map(len, prompts))
    found = widths(model, lambda: classifier.scores(TEXTS, ONE_TOKEN))
    assert found == [(1, shared), (len(TEXTS), longest - shared)]
    one = widths(model, lambda: classifier.scores(TEXTS[:1], ONE_TOKEN))
    assert one == [(1, len(prompts[0]))]


def test_equal_texts_are_scored_alike(model, tokenizer):
    classifier = PromptedClassifier(model, tokenizer)
    scores = classifier.scores([TEXTS[0]] * 3, LABELS)
    np.testing.assert_allclose(scores, classifier.scores(TEXTS[:1], LABELS).repeat(3, 0), atol=1e-5)


def test_a_model_with_another_cache_reads_every_prompt_whole(tokenizer):
    torch.manual_seed(0)
    config = MistralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=len(tokenizer), initializer_range=0.3,
        sliding_window=4096,
    )  # fmt: skip
    model = Mistral(config).eval()
    classifier = PromptedClassifier(model, tokenizer)
    seen = widths(model, lambda: classifier.scores(TEXTS, LABELS))
    ids = [classifier.prompt_tokens(text, LABELS).ids for text in TEXTS]
    assert max(columns for _, columns in seen) > max(map(len, ids))
    tokens = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in LABELS]
    wanted = [plain_scores(model, prompt, tokens) for prompt in ids]
    np.testing.assert_allclose(classifier.scores(TEXTS, LABELS), wanted, atol=1e-4)


def test_batches_keep_the_memory_of_their_logits(model, tokenizer, monkeypatch):
    classifier = PromptedClassifier(model, tokenizer, max_batch_tokens=100_000)
    wanted = classifier.scores(TEXTS, LABELS)
    behind = sum(len(ids) - 1 for ids in classifier.label_tokens(LABELS))
    monkeypatch.setattr(prompted, "LOGITS_BYTES", 2 * (1 + behind) * len(tokenizer) * 4)
    seen = widths(model, lambda: classifier.scores(TEXTS, LABELS))
    assert [rows for rows, _ in seen[1:]] == [2, 1]
    np.testing.assert_allclose(classifier.scores(TEXTS, LABELS), wanted, atol=1e-5)


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
