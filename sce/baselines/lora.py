"""LoRA fine-tuning of a causal language model to answer with the label (section 3.3, appendix M).

A sample is the prompt of `sce.baselines.prompted`, the right label and the end of the turn; the
loss is on the label and the end of the turn alone (`sce.baselines.adapters`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download
from peft import PeftModel
from pydantic import Field
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sce.baselines.adapters import (
    LINEARS,
    load_frozen,
)
from sce.config import Section
from sce.errors import ConfigError, InputError
from sce.storage import Place, fetch_model

_TOKENIZER_FILES = ["*.json", "*.jinja", "*.model"]
_HUB_TIMEOUT_SECONDS = 5


class LoraSettings(Section):
    """The adapters, and how the weights below them are kept."""

    rank: int = Field(default=180, ge=1)
    """126,812,160 parameters on Llama-3.2-1B: appendix M."""
    alpha: float | None = Field(default=None, gt=0)
    """The adapters' output is scaled by alpha / rank. The paper does not say; the default is the
    rank, a scale of 1, so that another rank needs no other learning rate."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Before the adapters. The paper does not say."""
    targets: tuple[str, ...] = LINEARS
    """Linear layers with adapters."""
    quantisation: Literal["nf4", "none"] = "nf4"
    """Of the frozen weights: 4-bit NormalFloat, or as they are."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """That is computed in; the adapters themselves are float32."""
    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass rather than keep them."""


def load_base(
    path: str | Path, settings: LoraSettings, device: str, quantised: bool = True
) -> PreTrainedModel:
    """The frozen model.

    Args:
        quantised: False to have it unquantised whatever the settings, for merging.

    Raises:
        InputError: there is none at `path`.
    """
    try:
        return load_frozen(fetch_model(path), settings, device, quantised)
    except (OSError, ValueError) as error:
        raise InputError(f"no language model at {str(path)!r}: {error}") from error


def load_chat_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Raises `InputError` where there is none, `ConfigError` where it has no end of turn."""
    try:
        folder = fetch_model(path)
        if not Path(folder).is_dir():
            # One question and not one a file: that a hub cannot be reached is told in seconds.
            folder = snapshot_download(
                folder, allow_patterns=_TOKENIZER_FILES, etag_timeout=_HUB_TIMEOUT_SECONDS
            )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"no tokenizer at {str(path)!r}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{path}: its tokenizer has no token for the end of a turn.")
    return tokenizer


def read_adapters(base: PreTrainedModel, adapter: str | Place) -> PeftModel:
    """The model with saved adapters on it, not to be trained further.

    Raises:
        InputError: there are no adapters at `adapter`, or they are for another model.
    """
    try:
        return PeftModel.from_pretrained(base, fetch_model(adapter))
    except (OSError, ValueError) as error:
        raise InputError(f"no adapters at {str(adapter)!r}: {error}") from error
    except RuntimeError as error:  # torch's word for weights of another size, a line for each
        reason = " ".join(str(error).split("\n")[:2])
        raise InputError(f"the adapters at {str(adapter)!r} do not fit: {reason}") from error


def merge(base: PreTrainedModel, adapter: str | Place) -> PreTrainedModel:
    """An unquantised model with the adapters in its weights.

    Raises:
        InputError: as `read_adapters`; also where a merged weight would not be a number.
    """
    model = read_adapters(base, adapter)
    try:
        merged = model.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    except ValueError as error:
        raise InputError(f"the adapters at {str(adapter)!r} cannot be merged: {error}") from error
    assert isinstance(merged, PreTrainedModel)
    return merged.eval()
