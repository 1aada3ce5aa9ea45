"""Prompted classification with a causal language model (section 2, appendices D and G.1).

A chat prompt names the text and the candidates, and each candidate is scored by how likely the
model is to answer with it: equation 4. One forward pass a text scores every candidate; the prompt
is read once, and the candidates' tokens stand behind it side by side, each seeing the prompt and
itself alone.

Candidates of one token are scored by their next-token logits, as equation 4 has it. Where any
candidate of a set has several tokens, every candidate's score is the mean log-likelihood of its
tokens; for one token that is its logit less a constant, so the softmax is the same.

Shapes: N texts, B of a batch, K labels, M tokens of the longest prompt, S tokens of the labels
behind it, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from pydantic import Field
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from sce.baselines.lora import LoraSettings, load_base, load_chat_tokenizer, read_adapters
from sce.config import Section
from sce.embedders.batching import check_texts
from sce.errors import ConfigError, InputError
from sce.labels import LabelSet

PromptName = Literal["sentence", "template"]

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
"""What Llama-3.2's chat template writes where nobody tells it the date; else every day's prompt
would be another."""
BATCH_TOKENS = {"cpu": 4096, "cuda": 16_384}


class PromptedConfig(Section):
    """A language model that is asked which label fits, and how it is run."""

    base: str = "meta-llama/Llama-3.2-1B-Instruct"
    """Hub id or folder of a causal language model whose tokenizer has a chat template."""
    adapter: Path | None = None
    """Folder of LoRA adapters to put on it (`jobs/train_llama.py` writes one); by default the
    model is asked as it is."""
    prompt: PromptName = "template"
    """`template` of appendix G.1, or the `sentence` of appendix D."""
    quantisation: Literal["none", "nf4"] = "none"
    """Of the weights: as they are, or 4-bit NormalFloat. Adapters keep their own format."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """That is computed in. `auto`: bfloat16 on a GPU, float32 on a CPU."""
    max_text_tokens: int = Field(1024, ge=1)
    """Longer texts are cut before they go into the prompt, and counted."""
    max_batch_tokens: int | None = Field(None, ge=16)
    """Tokens of a forward pass, padding included. Default: 4096 on a CPU, 16384 on a GPU."""


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


@dataclass(frozen=True)
class Prompted:
    """Tokens of a text's prompt, and whether its text was cut."""

    ids: list[int]
    truncated: bool


@dataclass(frozen=True)
class Candidates:
    """A label set as the model reads it: names, and tokens of each as the answer's beginning."""

    names: list[str]
    tokens: list[list[int]]


@dataclass(frozen=True)
class PromptedScores:
    """Scores, float32 [N, K], and whose text was cut, bool [N]."""

    scores_NK: np.ndarray
    truncated_N: np.ndarray


class PromptedClassifier:
    """Scores candidates; never generates text.

    Args:
        model: a causal language model, in evaluation mode.
        tokenizer: with a chat template.
        prompt: which of the paper's.
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
        self.model = model.eval()
        self.prompt = prompt
        self._tokenizer = tokenizer
        self._max_text_tokens = max_text_tokens
        self._max_batch_tokens = (
            max_batch_tokens or BATCH_TOKENS["cuda" if model.device.type == "cuda" else "cpu"]
        )

    def prompt_tokens(self, text: str, labels: Sequence[str]) -> Prompted:
        """The conversation up to where the model's answer begins."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        truncated = len(ids) > self._max_text_tokens
        if truncated:
            text = str(self._tokenizer.decode(ids[: self._max_text_tokens]))
        message = {"role": "user", "content": write_prompt(self.prompt, text, labels)}
        whole: Any = self._tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, date_string=DATE, tokenize=False
        )
        encoded: list[int] = self._tokenizer(whole, add_special_tokens=False)["input_ids"]
        return Prompted(encoded, truncated)

    def label_tokens(self, labels: Sequence[str]) -> list[list[int]]:
        """As the function of that name."""
        return label_tokens(self._tokenizer, labels)

    def scores(self, texts: Sequence[str], labels: Any) -> np.ndarray:
        """Mean log-likelihoods of the labels' tokens, float32 [N, K], in the order of `labels`,
        which is also their order in the prompt: the model is not invariant to it.

        Raises:
            DataError, LabelError: see there.
            ConfigError: two labels have the same tokens.
        """
        check_texts(texts)
        return self.answer(texts, self.candidates(labels)).scores_NK

    def candidates(self, labels: Any) -> Candidates:
        """Read a label set once, to score many texts with it. Raises as `scores`."""
        names = LabelSet.parse(labels).names
        return Candidates(names, self.label_tokens(names))

    def answer(self, texts: Sequence[str], candidates: Candidates) -> PromptedScores:
        """`scores` for a label set that was read before; says which texts were cut."""
        prompts = [self.prompt_tokens(text, candidates.names) for text in texts]
        tokens = [prompt.ids for prompt in prompts]
        answers = candidates.tokens
        scores_NK = np.empty((len(texts), len(answers)), np.float32)
        for rows_B in self._batches(tokens, sum(map(len, answers)) - len(answers)):
            batch = [tokens[i] for i in rows_B]
            scores_NK[rows_B] = self._score(batch, answers).float().cpu().numpy()
        return PromptedScores(scores_NK, np.array([p.truncated for p in prompts], bool))

    def _batches(self, prompts: Sequence[list[int]], behind: int) -> Iterator[list[int]]:
        """Positions of prompts of similar length, the longest first."""
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        start = 0
        while start < len(order):
            width = len(prompts[order[start]]) + behind
            end = start + max(1, self._max_batch_tokens // width)
            yield order[start:end]
            start = end

    @torch.inference_mode()
    def _score(self, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> torch.Tensor:
        """Mean log-likelihoods [B, K], one pass for all."""
        device, width = self.model.device, max(map(len, prompts))
        behind = [token for ids in answers for token in ids[:-1]]  # what must be read to go on
        owner_S = torch.tensor([k for k, ids in enumerate(answers) for _ in ids[:-1]])
        depth_S = torch.tensor([j for ids in answers for j in range(len(ids) - 1)])
        lengths_B = torch.tensor([len(ids) for ids in prompts])
        pads_B = width - lengths_B
        pad = self._tokenizer.pad_token_id or 0
        ids_BT = torch.tensor([[pad] * (width - len(ids)) + ids + behind for ids in prompts])
        columns_M = torch.arange(width)
        prompt_BM = (columns_M - pads_B[:, None]).clamp(min=0)
        behind_BS = lengths_B[:, None] + depth_S[None, :].long()
        positions_BT = torch.cat([prompt_BM, behind_BS], dim=1)
        allowed_BTT = _allowed(pads_B, width, owner_S.long(), depth_S.long())
        mask = torch.zeros(allowed_BTT.shape, dtype=self.model.dtype)
        mask.masked_fill_(~allowed_BTT, torch.finfo(self.model.dtype).min)
        logits_BXV = self.model(
            input_ids=ids_BT.to(device),
            attention_mask=mask[:, None].to(device),
            position_ids=positions_BT.to(device),
            logits_to_keep=1 + len(behind),
            use_cache=False,
        ).logits
        log_p_BXV = torch.log_softmax(logits_BXV.float(), dim=-1)
        # Token j of label k is told by the column of the token before it: the prompt's last, or
        # the label's own.
        places, tokens, owners, next_column = [], [], [], 1
        for k, ids in enumerate(answers):
            for j, token in enumerate(ids):
                places.append(0 if j == 0 else next_column + j - 1)
                tokens.append(token)
                owners.append(k)
            next_column += len(ids) - 1
        found_BT = log_p_BXV[:, places, tokens]
        sums_BK = torch.zeros(len(prompts), len(answers), device=found_BT.device)
        sums_BK.index_add_(1, torch.tensor(owners, device=found_BT.device), found_BT)
        return sums_BK / torch.tensor([len(ids) for ids in answers], device=found_BT.device)


def _allowed(
    pads_B: torch.Tensor, width: int, owner_S: torch.Tensor, depth_S: torch.Tensor
) -> torch.Tensor:
    """Who may look at whom, bool [B, T, T], T = M + S: the prompt back to its beginning, a label's
    token at the prompt and its own label's tokens up to itself. Padding looks at itself, so that
    no row of the softmax is empty."""
    total = width + len(owner_S)
    allowed_TT = torch.zeros(total, total, dtype=torch.bool)
    allowed_TT[:width, :width] = torch.ones(width, width, dtype=torch.bool).tril()
    allowed_TT[width:, :width] = True
    same = owner_S[:, None] == owner_S[None, :]
    allowed_TT[width:, width:] = same & (depth_S[:, None] >= depth_S[None, :])
    real_BT = torch.arange(total)[None, :] >= pads_B[:, None]
    return (allowed_TT[None] & real_BT[:, None, :]) | torch.eye(total, dtype=torch.bool)[None]


def check_prompted(config: PromptedConfig) -> PreTrainedTokenizerBase:
    """See, without loading weights, whether the model of a configuration is there.

    Returns:
        Its tokenizer.

    Raises:
        InputError: there is no language model, or there are no adapters.
        ConfigError: the tokenizer has no chat template.
    """
    tokenizer = load_chat_tokenizer(config.base)
    _need_chat_template(tokenizer, config.base)
    try:
        AutoConfig.from_pretrained(config.base)
    except (OSError, ValueError) as error:
        raise InputError(f"no language model at {config.base!r}: {error}") from error
    if Path(config.base).is_dir() and not any(Path(config.base).glob("*.safetensors")):
        raise InputError(f"no language model at {config.base!r}: no *.safetensors file in it.")
    if config.adapter is not None:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (config.adapter / name).is_file():
                raise InputError(f"no adapters at {str(config.adapter)!r}: no {name} there.")
    return tokenizer


def load_prompted(config: PromptedConfig, device: Literal["cpu", "cuda"]) -> PromptedClassifier:
    """Load what a configuration describes, ready to score.

    Raises:
        InputError, ConfigError: as `check_prompted`; also where the adapters do not fit.
    """
    tokenizer = load_chat_tokenizer(config.base)
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
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
