"""A frozen causal language model with LoRA adapters, and the loss on its labels (appendix M).

`sce.baselines.lora` has the settings. Frozen weights are stored in 4 bits (nf4).

Shapes: B samples, T tokens of the longest, S of them at the end that are told (label and end).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from sce.errors import ConfigError

if TYPE_CHECKING:
    from sce.baselines.lora import LoraSettings

IGNORED = -100
"""Target of a token that is not told, as `cross_entropy` has it."""
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Appendix M."""


def load_frozen(
    folder: str, settings: LoraSettings, device: str, quantised: bool = True
) -> PreTrainedModel:
    """The model that lies in a folder or on a hub, frozen.

    Args:
        quantised: False to have it unquantised whatever the settings, for merging.

    Raises:
        OSError, ValueError: there is none.
    """
    dtype = getattr(torch, settings.dtype)
    more: dict[str, Any] = {}
    if quantised and settings.quantisation == "nf4":
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map={"": device}, use_safetensors=True, **more
    )
    return model.requires_grad_(False)


def add_adapters(base: PreTrainedModel, settings: LoraSettings) -> PeftModel:
    """Fresh adapters, float32, the only weights that are trained.

    Raises:
        ConfigError: the model has none of the layers.
    """
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


@dataclass(frozen=True)
class Samples:
    """A micro-batch, padded on the left, so that all labels end in the last column.

    Attributes:
        ids_BT: int64.
        mask_BT: int64, 1 at tokens.
        targets_BS: int64, the tokens of label and end of turn; `IGNORED` before them.
    """

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    targets_BS: torch.Tensor

    def to(self, device: torch.device | str) -> Samples:
        return Samples(self.ids_BT.to(device), self.mask_BT.to(device), self.targets_BS.to(device))


def collate(
    prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], end: int, pad: int
) -> Samples:
    """Prompts and the tokens of their right labels as one micro-batch.

    Args:
        end: token of the end of the turn.
    """
    told = [[*ids, end] for ids in labels]
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, told, strict=True)]
    width, last = max(map(len, whole)), max(map(len, told))
    return Samples(
        torch.tensor([[pad] * (width - len(ids)) + ids for ids in whole]),
        torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in whole]),
        torch.tensor([[IGNORED] * (last - len(ids)) + ids for ids in told]),
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
    told_B = (samples.targets_BS != IGNORED).sum(1)
    return (nll_BS.sum(1) / told_B).mean()
