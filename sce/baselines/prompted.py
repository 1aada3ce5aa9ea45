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
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sce.embedders.batching import check_texts
from sce.errors import ConfigError
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


def write_prompt(name: PromptName, text: str, labels: Sequence[str]) -> str:
    """The user's message. The paper does not say how the list is written: here the set of
    appendix D with commas, the categories of G.1 as a Python list."""
    if name == "sentence":
        return SENTENCE.format(text=text.rstrip("."), labels=", ".join(labels))
    return TEMPLATE.format(text=text, labels=list(labels))


@dataclass(frozen=True)
class Prompted:
    """Tokens of a text's prompt, and whether its text was cut."""

    ids: list[int]
    truncated: bool


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
        if not tokenizer.chat_template:
            raise ConfigError(f"{tokenizer.name_or_path}: this tokenizer has no chat template.")
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
        """Tokens of each label as the beginning of the model's answer.

        Raises:
            ConfigError: two labels have the same tokens; names both.
        """
        found = [self._tokenizer(name, add_special_tokens=False)["input_ids"] for name in labels]
        seen: dict[tuple[int, ...], str] = {}
        for name, ids in zip(labels, found, strict=True):
            other = seen.setdefault(tuple(ids), name)
            if other is not name or not ids:
                raise ConfigError(f"labels: {other!r} and {name!r} have the same tokens.")
        return found

    def scores(self, texts: Sequence[str], labels: Any) -> np.ndarray:
        """Mean log-likelihoods of the labels' tokens, float32 [N, K], in the order of `labels`,
        which is also their order in the prompt: the model is not invariant to it.

        Raises:
            DataError, LabelError: see there.
            ConfigError: two labels have the same tokens.
        """
        check_texts(texts)
        label_set = LabelSet.parse(labels)
        names = label_set.names
        answers = self.label_tokens(names)
        prompts = [self.prompt_tokens(text, names).ids for text in texts]
        scores_NK = np.empty((len(texts), len(names)), np.float32)
        for rows_B in self._batches(prompts, sum(map(len, answers)) - len(answers)):
            batch = [prompts[i] for i in rows_B]
            scores_NK[rows_B] = self._score(batch, answers).float().cpu().numpy()
        return scores_NK

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
