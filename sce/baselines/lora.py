"""LoRA fine-tuning of a causal language model to answer with the label (section 3.3, appendix M).

A sample is the prompt of `sce.baselines.prompted`, the right label and the end of the turn; the
loss is on the label and the end of the turn alone. Frozen weights are stored in 4 bits (nf4).

Shapes: B samples, T tokens of the longest, S answer tokens (label and end of turn) of the longest,
V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sce.baselines.settings import LoraSettings
from sce.errors import ConfigError, InputError
from sce.model.weights import ADAPTER, load_weights, refuse_pickles
from sce.storage import Place, fetch_model

IGNORED = -100
"""Target of a token without a loss, as `cross_entropy` has it."""
_TOKENIZER_FILES = ["*.json", "*.jinja", "*.model"]
_ADAPTER_FILES = ["*.json", "*.safetensors"]
_HUB_TIMEOUT_SECONDS = 5


def load_base(
    path: str | Path, settings: LoraSettings, device: str, quantised: bool = True
) -> PreTrainedModel:
    """The frozen model in a folder, at a URI or on a hub; with `quantised` False as it is, whatever
    the settings, for merging. Raises `InputError` where there is none."""
    dtype = getattr(torch, settings.dtype)
    options: dict[str, Any] = {"device_map": {"": device}, "dtype": dtype}
    if quantised and settings.quantisation == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    try:
        model = load_weights(AutoModelForCausalLM, fetch_model(path), **options)
    except (OSError, ValueError) as error:
        raise InputError(f"no language model at {str(path)!r}: {error}") from error
    return model.requires_grad_(False)


def load_chat_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Raises `InputError` where there is none, `ConfigError` where it has no end of turn."""
    try:
        folder = _folder_of(path, _TOKENIZER_FILES)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"no tokenizer at {str(path)!r}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{path}: its tokenizer has no token for the end of a turn.")
    return tokenizer


def _folder_of(place: str | Place, patterns: list[str]) -> str:
    """A checkpoint's folder on this machine; of a hub's the files of these patterns alone."""
    folder = fetch_model(place)
    if Path(folder).is_dir():
        return folder
    # One question and not one a file: a hub that cannot be reached is known in seconds.
    return snapshot_download(folder, allow_patterns=patterns, etag_timeout=_HUB_TIMEOUT_SECONDS)


def add_adapters(base: PreTrainedModel, settings: LoraSettings) -> PeftModel:
    """Fresh adapters, float32, the only weights that are trained. Raises `ConfigError` where the
    model has none of the layers."""
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or settings.rank,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
    )
    try:
        model = get_peft_model(base, config, autocast_adapter_dtype=True)
    except ValueError as error:
        raise ConfigError(f"targets: {error}") from None
    if settings.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    base.config.use_cache = False
    assert isinstance(model, PeftModel)
    return model


def read_adapters(base: PreTrainedModel, adapter: str | Place) -> PeftModel:
    """The model with saved adapters on it, not to be trained further. Raises `InputError` where
    there are none in safetensors, or they are for another model."""
    try:
        folder = _folder_of(adapter, _ADAPTER_FILES)
        _need_adapters(folder)
        return PeftModel.from_pretrained(base, folder)
    except (OSError, ValueError) as error:
        raise InputError(f"no adapters at {str(adapter)!r}: {error}") from error
    except RuntimeError as error:  # torch's word for weights of another size, a line for each
        reason = " ".join(str(error).split("\n")[:2])
        raise InputError(f"the adapters at {str(adapter)!r} do not fit: {reason}") from error


def adapter_weights(folder: str | Path, device: str) -> dict[str, torch.Tensor]:
    """The weights of saved adapters. Raises `InputError` where there are none in safetensors."""
    _need_adapters(folder)
    return load_peft_weights(str(folder), device=device)


def _need_adapters(folder: str | Path) -> None:
    """peft itself would take a pickle, and ask a hub where there is neither."""
    refuse_pickles(folder)
    if not (Path(folder) / ADAPTER).is_file():
        raise InputError(f"no adapters at {str(folder)!r}: no {ADAPTER} there.")


def merge(base: PreTrainedModel, adapter: str | Place) -> PreTrainedModel:
    """An unquantised model with the adapters in its weights. Raises as `read_adapters`, and
    `InputError` where a merged weight would not be a number."""
    model = read_adapters(base, adapter)
    try:
        merged = model.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    except ValueError as error:
        raise InputError(f"the adapters at {str(adapter)!r} cannot be merged: {error}") from error
    assert isinstance(merged, PreTrainedModel)
    return merged.eval()


@dataclass(frozen=True)
class Samples:
    """A micro-batch, int64, padded on the left, so that all labels end in the last column; the
    targets are the tokens of label and end of turn, and `IGNORED` before them."""

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    targets_BS: torch.Tensor

    def to(self, device: torch.device | str) -> Samples:
        return Samples(self.ids_BT.to(device), self.mask_BT.to(device), self.targets_BS.to(device))


def collate(
    prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], end: int, pad: int
) -> Samples:
    """Prompts, the tokens of their right labels, and the end of the turn, as one micro-batch."""
    answers = [[*ids, end] for ids in labels]
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    width, last = max(map(len, whole)), max(map(len, answers))
    return Samples(
        torch.tensor([[pad] * (width - len(ids)) + ids for ids in whole]),
        torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in whole]),
        torch.tensor([[IGNORED] * (last - len(ids)) + ids for ids in answers]),
    )


def label_loss(model: torch.nn.Module, samples: Samples) -> torch.Tensor:
    """Mean negative log-likelihood of the tokens of labels and ends of turns; of every sample the
    mean over its own tokens first, so that a long label weighs no more than a short one.

    Scores over the vocabulary are computed for those tokens alone.
    """
    mask_BT = samples.mask_BT
    last = samples.targets_BS.shape[1]
    logits_BSV = model(
        input_ids=samples.ids_BT,
        attention_mask=mask_BT,
        position_ids=(mask_BT.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=last + 1,
        use_cache=False,
    ).logits[:, :-1]
    nll_BS = torch.nn.functional.cross_entropy(
        logits_BSV.float().transpose(1, 2), samples.targets_BS, ignore_index=IGNORED,
        reduction="none",
    )  # fmt: skip
    answer_B = (samples.targets_BS != IGNORED).sum(1)
    return (nll_BS.sum(1) / answer_B).mean()
