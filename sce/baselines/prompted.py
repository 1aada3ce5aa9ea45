"""Prompted classification with a causal language model (section 2, appendices D and G.1).

A chat prompt names the text and the candidates, and each candidate is scored by how likely the
model is to answer with it: equation 4. One forward pass a text scores every candidate; the prompt
is read once, and the candidates' tokens stand behind it side by side, each seeing the prompt and
itself alone. What all prompts begin with (the template up to the text) is read once for all.

Candidates of one token are scored by their next-token logits, as equation 4 has it. Where any
candidate of a set has several tokens, every candidate's score is the mean log-likelihood of its
tokens; for one token that is its logit less a constant, so the softmax is the same.

Shapes: N texts, B of a batch, K labels, P tokens that all prompts begin with, M tokens of the
longest prompt after them, S tokens of the labels behind it, T = M + S, A tokens of all labels,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    DynamicCache,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer

from sce.baselines.lora import load_base, load_chat_tokenizer, read_adapters
from sce.baselines.settings import LoraSettings, PromptedConfig, PromptName
from sce.embedding.row_checks import check_texts
from sce.errors import ConfigError, InputError
from sce.labels import LabelSet
from sce.model.weights import ADAPTER, refuse_pickles
from sce.storage import fetch_model

SENTENCE = """\
Here is a sentence: {text}. Which topic does it belong to from the set {{{labels}}}?
Return only the topic."""
"""Appendix D."""
TEMPLATE = """\
You are given a text excerpt and a list of categories.
Your task is to select the best category from the list of categories to classify the given text \
excerpt.

### Note:
Your selected category for the text excerpt must match exactly -case, plural/singular, and \
spelling-with one of the options in the CATEGORIES list. Use the category string exactly as it \
appears in CATEGORIES.

## TEXT_EXCERPT:
{text}

## CATEGORIES:
{labels}

## SCHEMA:
SelectedCategory

### Note: Your output must strictly be a single token which is the category selected from the list \
of categories. Do not give verbose reasonings giving explanations around it. Do not give python \
reasoning. Just a single token output. Now generate the output.
"""
"""Appendix G.1, its line breaks within sentences apart, which are those of the page."""

DATE = "26 Jul 2024"
"""The date that Llama-3.2's chat template writes where none is given; with today's, every day's
prompt would be another."""
BATCH_TOKENS = {"cpu": 4096, "cuda": 16_384}
LOGITS_BYTES = 2**29
"""The most memory of a batch's scores over the vocabulary, in float32."""
MIN_SHARED_TOKENS = 16
"""A shorter beginning is not worth a pass of its own."""


def write_prompt(name: PromptName, text: str, labels: Sequence[str]) -> str:
    """The user's message. The paper does not say how the list is written: here the set of
    appendix D with commas, the categories of G.1 as a Python list."""
    if name == "sentence":
        return SENTENCE.format(text=text.rstrip("."), labels=", ".join(labels))
    return TEMPLATE.format(text=text, labels=list(labels))


def label_tokens(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> list[list[int]]:
    """Tokens of each label as the beginning of the model's answer.

    Raises:
        ConfigError: two labels have the same tokens; names both.
    """
    found = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in labels]
    seen: dict[tuple[int, ...], str] = {}
    for name, ids in zip(labels, found, strict=True):
        other = seen.setdefault(tuple(ids), name)
        if other is not name or not ids:
            raise ConfigError(f"labels: {other!r} and {name!r} have the same tokens.")
    return found


class Prompt(NamedTuple):
    """The tokens of a text's prompt, and whether its text was cut."""

    ids: list[int]
    truncated: bool


@dataclass(frozen=True)
class Candidates:
    """A label set as the model reads it; tensors are int64, on the model's device.

    Attributes:
        behind_S: tokens that are read behind the prompt: of every label all but the last.
        depth_S: their places in their labels.
        allowed_SS: bool, who of them sees whom: a label's own tokens, up to itself.
        columns_A: where each token of each label is predicted: 0 at the prompt's last token, then
            at the S behind it.
        tokens_A, owners_A: each token of each label, and its label.
    """

    names: list[str]
    behind_S: torch.Tensor
    depth_S: torch.Tensor
    allowed_SS: torch.Tensor
    columns_A: torch.Tensor
    tokens_A: torch.Tensor
    owners_A: torch.Tensor
    counts_K: torch.Tensor

    @classmethod
    def of(cls, names: list[str], tokens: list[list[int]], device: torch.device) -> Candidates:
        """The labels `names` with their tokens, as `label_tokens` gives them."""
        counts_K = torch.tensor([len(ids) for ids in tokens])
        owners_A = torch.repeat_interleave(torch.arange(len(tokens)), counts_K)
        depth_A = torch.arange(len(owners_A)) - (counts_K.cumsum(0) - counts_K)[owners_A]
        tokens_A = torch.tensor([token for ids in tokens for token in ids])
        goes_on_A = depth_A < counts_K[owners_A] - 1
        owner_S, depth_S = owners_A[goes_on_A], depth_A[goes_on_A]
        # A label's token is predicted by the one before it, its first by the prompt's last.
        columns_A = torch.where(depth_A == 0, 0, goes_on_A.cumsum(0) - goes_on_A.long())
        same_SS = owner_S[:, None] == owner_S[None, :]
        allowed_SS = same_SS & (depth_S[:, None] >= depth_S[None, :])
        tensors = (tokens_A[goes_on_A], depth_S, allowed_SS, columns_A, tokens_A, owners_A)
        return cls(names, *(tensor.to(device) for tensor in (*tensors, counts_K)))


class _SharedLayer(DynamicLayer):
    """Keys and values of tokens that every row of a batch begins with. Remembers no others, so
    that one cache serves all batches."""

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        assert layer.keys is not None
        assert layer.values is not None
        self._shared = (layer.keys, layer.values)
        self.lazy_initialization(*self._shared)
        self.keys, self.values = self._shared

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = (len(key_states), -1, -1, -1)
        keys, values = self._shared
        return (
            torch.cat([keys.expand(rows), key_states], dim=-2),
            torch.cat([values.expand(rows), value_states], dim=-2),
        )


class PromptedScores(NamedTuple):
    """Answers to N texts: mean log-likelihoods of the labels' tokens, float32, whose text was cut,
    and tokens that were read, of prompt and candidates, int64."""

    scores_NK: np.ndarray
    truncated_N: np.ndarray
    tokens_N: np.ndarray


class PromptedClassifier:
    """Scores candidates; never generates text.

    Args:
        model: a causal language model, which is put into evaluation mode.
        max_text_tokens: longer texts are cut before they go into the prompt.
        max_batch_tokens: of a forward pass, padding included; None for the device's default.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: PromptName = "template",
        max_text_tokens: int = 1024,
        max_batch_tokens: int | None = None,
    ) -> None:
        _need_chat_template(tokenizer, tokenizer.name_or_path)
        self.model, self.tokenizer = model.eval(), tokenizer
        self._prompt, self._max_text_tokens = prompt, max_text_tokens
        self._max_batch_tokens = max_batch_tokens or BATCH_TOKENS[model.device.type]

    def prompt_tokens(self, text: str, labels: Sequence[str]) -> Prompt:
        """The conversation up to where the model's answer begins."""
        return self._prompts([text], labels)[0]

    def label_tokens(self, labels: Sequence[str]) -> list[list[int]]:
        """Tokens of each label as the beginning of the model's answer. Raises `ConfigError`."""
        return label_tokens(self.tokenizer, labels)

    def scores(self, texts: Sequence[str], labels: Any) -> np.ndarray:
        """Mean log-likelihoods of the labels' tokens, float32 [N, K], in the order of `labels`,
        which is also their order in the prompt: the model is not invariant to it.

        Raises:
            DataError: a text is empty, or not a text.
            LabelError: the labels are no label set.
            ConfigError: two labels have the same tokens.
        """
        check_texts(texts)
        return self.answer(texts, self.candidates(labels)).scores_NK

    def candidates(self, labels: Any) -> Candidates:
        """A label set read once, to score many texts with it. Raises as `scores`."""
        names = LabelSet.parse(labels).names
        return Candidates.of(names, self.label_tokens(names), self.model.device)

    def answer(self, texts: Sequence[str], candidates: Candidates) -> PromptedScores:
        """Score texts, none of them empty, with a label set that was read before."""
        prompts = self._prompts(texts, candidates.names)
        tokens = [prompt.ids for prompt in prompts]
        shared, cache = self._read_shared(tokens)
        rest = [ids[shared:] for ids in tokens]
        scores_NK = np.empty((len(texts), len(candidates.names)), np.float32)
        for rows_B in self._batches(rest, len(candidates.behind_S)):
            batch = [rest[i] for i in rows_B]
            scores_NK[rows_B] = self._score(batch, candidates, shared, cache).cpu().numpy()
        return PromptedScores(
            scores_NK,
            np.array([prompt.truncated for prompt in prompts], bool),
            np.array([len(ids) + len(candidates.behind_S) for ids in tokens], np.int64),
        )

    def _prompts(self, texts: Sequence[str], labels: Sequence[str]) -> list[Prompt]:
        if not texts:
            return []
        limit = self._max_text_tokens
        whole, cut = [], []
        for text, ids in zip(texts, self._encode(texts), strict=True):
            cut.append(len(ids) > limit)
            text = str(self.tokenizer.decode(ids[:limit])) if cut[-1] else text
            message = {"role": "user", "content": write_prompt(self._prompt, text, labels)}
            whole.append(
                self.tokenizer.apply_chat_template(
                    [message], add_generation_prompt=True, date_string=DATE, tokenize=False
                )
            )
        return [Prompt(*one) for one in zip(self._encode(whole), cut, strict=True)]

    def _encode(self, texts: Sequence[Any]) -> list[list[int]]:
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return found

    @torch.inference_mode()
    def _read_shared(self, prompts: Sequence[list[int]]) -> tuple[int, DynamicCache | None]:
        """How many tokens the prompts begin with together, and their keys and values; (0, None)
        where that is not worth it, or not to be had of this kind of model."""
        if len(prompts) < 2:
            return 0, None
        # Between the first and the last in the order of lists stand all others: what these two
        # begin with, all begin with.
        least, most = min(prompts), max(prompts)
        differs = (i for i, pair in enumerate(zip(least, most, strict=False)) if pair[0] != pair[1])
        # Of every prompt at least one token is left, which predicts the first of a label.
        shared = min(next(differs, len(least)), min(map(len, prompts)) - 1)
        if shared < MIN_SHARED_TOKENS:
            return 0, None
        ids_1P = torch.tensor([prompts[0][:shared]], device=self.model.device)
        read = self.model(input_ids=ids_1P, use_cache=True, logits_to_keep=1).past_key_values
        if not isinstance(read, DynamicCache):
            return 0, None
        plain = [layer for layer in read.layers if type(layer) is DynamicLayer]
        if len(plain) < len(read.layers):
            return 0, None
        cache = DynamicCache()
        cache.layers = [_SharedLayer(layer) for layer in plain]
        return shared, cache

    def _batches(self, prompts: Sequence[list[int]], behind: int) -> Iterator[list[int]]:
        """Positions of prompts of similar length, the longest first."""
        row_bytes = (1 + behind) * self.model.config.get_text_config().vocab_size * 4
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        start = 0
        while start < len(order):
            width = len(prompts[order[start]]) + behind
            end = start + max(1, min(self._max_batch_tokens // width, LOGITS_BYTES // row_bytes))
            yield order[start:end]
            start = end

    @torch.inference_mode()
    def _score(
        self,
        prompts: Sequence[list[int]],
        candidates: Candidates,
        shared: int,
        cache: DynamicCache | None,
    ) -> torch.Tensor:
        """Mean log-likelihoods, float32 [B, K], one pass for all.

        Args:
            prompts: without the `shared` tokens that `cache` holds.
        """
        device, width = self.model.device, max(map(len, prompts))
        behind_S, rows = candidates.behind_S, len(prompts)
        pad = self.tokenizer.pad_token_id or 0
        padded = [[pad] * (width - len(ids)) + ids for ids in prompts]
        ids_BM = torch.tensor(padded, device=device)
        ids_BT = torch.cat([ids_BM, behind_S.expand(rows, -1)], dim=1)
        lengths_B = torch.tensor([len(ids) for ids in prompts], device=device)
        pads_B = width - lengths_B
        prompt_BM = (torch.arange(width, device=device) - pads_B[:, None]).clamp(min=0)
        behind_BS = lengths_B[:, None] + candidates.depth_S
        positions_BT = shared + torch.cat([prompt_BM, behind_BS], dim=1)
        logits_BXV = self.model(
            input_ids=ids_BT,
            attention_mask=_mask(pads_B, width, candidates.allowed_SS, shared, self.model.dtype),
            position_ids=positions_BT,
            logits_to_keep=1 + len(behind_S),
            past_key_values=cache,
            use_cache=cache is not None,
        ).logits.float()
        norm_BX = logits_BXV.logsumexp(dim=-1)
        columns_A = candidates.columns_A
        found_BA = logits_BXV[:, columns_A, candidates.tokens_A] - norm_BX[:, columns_A]
        sums_BK = found_BA.new_zeros(rows, len(candidates.names))
        return sums_BK.index_add_(1, candidates.owners_A, found_BA) / candidates.counts_K


def _mask(
    pads_B: torch.Tensor, width: int, allowed_SS: torch.Tensor, shared: int, dtype: torch.dtype
) -> torch.Tensor:
    """The mask of attention, [B, 1, T, P + T], to be added to its logits.

    Every token sees the shared beginning, one of the prompt what stands before it there, one of a
    label the prompt and its own label up to itself. Padding sees itself, so that no row of the
    softmax is empty.
    """
    total = width + len(allowed_SS)
    allowed_TT = torch.ones(total, total, dtype=torch.bool, device=pads_B.device).tril()
    allowed_TT[width:, width:] = allowed_SS
    columns_T = torch.arange(total, device=pads_B.device)
    real_BT = columns_T >= pads_B[:, None]
    itself_TT = columns_T[:, None] == columns_T
    allowed_BTT = (allowed_TT & real_BT[:, None, :]) | itself_TT
    mask_BTT = torch.zeros(allowed_BTT.shape, dtype=dtype, device=pads_B.device)
    mask_BTT.masked_fill_(~allowed_BTT, torch.finfo(dtype).min)
    return torch.nn.functional.pad(mask_BTT, (shared, 0))[:, None]


def check_prompted(config: PromptedConfig) -> tuple[PreTrainedTokenizerBase, PretrainedConfig]:
    """The tokenizer and configuration of a model that is there: its weights are not loaded.

    Raises:
        InputError: there is no language model, or there are no adapters.
        ConfigError: the tokenizer has no chat template.
    """
    tokenizer = load_chat_tokenizer(config.base)
    _need_chat_template(tokenizer, config.base)
    base = fetch_model(config.base)
    try:
        refuse_pickles(base)
        model_config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"no language model at {config.base!r}: {error}") from error
    if Path(base).is_dir() and not any(Path(base).glob("*.safetensors")):
        raise InputError(f"no language model at {config.base!r}: no *.safetensors file in it.")
    if config.adapter is not None:
        if isinstance(config.adapter, Path):
            refuse_pickles(config.adapter)
        for name in ("adapter_config.json", ADAPTER):
            if not (config.adapter / name).is_file():
                raise InputError(f"no adapters at {str(config.adapter)!r}: no {name} there.")
    return tokenizer, model_config


def load_prompted(config: PromptedConfig, device: Literal["cpu", "cuda"]) -> PromptedClassifier:
    """Load what a configuration describes, ready to score. Raises as `check_prompted`, and
    `InputError` where the adapters do not fit."""
    tokenizer = load_chat_tokenizer(config.base)
    auto: Literal["bfloat16", "float32"] = "bfloat16" if device == "cuda" else "float32"
    dtype = auto if config.dtype == "auto" else config.dtype
    settings = LoraSettings(quantisation=config.quantisation, dtype=dtype)
    model = load_base(config.base, settings, device)
    if config.adapter is not None:
        model = read_adapters(model, config.adapter)  # type: ignore[assignment]
    return PromptedClassifier(
        model, tokenizer, config.prompt, config.max_text_tokens, config.max_batch_tokens
    )


def parameter_count(model: torch.nn.Module) -> int:
    """Parameters of a model, adapters included, each weight of 4 bits as one."""
    if isinstance(model, PeftModel):
        return int(model.get_nb_trainable_parameters()[1])
    assert isinstance(model, PreTrainedModel)
    return int(model.num_parameters())


def _need_chat_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    if not tokenizer.chat_template:
        raise ConfigError(f"{name}: this tokenizer has no chat template.")
