"""Settings of a language model that is asked which label fits, and of its fine-tuning by LoRA.
Without torch, peft and bitsandbytes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sce.config import Section
from sce.storage import Place
from sce.training.settings import TrainConfig

PromptName = Literal["sentence", "template"]
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Appendix M."""


class PromptedConfig(Section):
    """A language model that is asked which label fits, and how it is run."""

    base: str = "meta-llama/Llama-3.2-1B-Instruct"
    """Hub id, folder or URI of a causal language model whose tokenizer has a chat template."""
    adapter: Place | None = None
    """Folder or URI of LoRA adapters to put on it (`jobs/train_llama.py` writes one); by default
    the model is asked as it is."""
    prompt: PromptName = "template"
    """`template` of appendix G.1, or the `sentence` of appendix D."""
    quantisation: Literal["none", "nf4"] = "none"
    """The weights as they are, or in 4-bit NormalFloat. Adapters keep their own format."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """The type that is computed in. `auto`: bfloat16 on a GPU, float32 on a CPU. bfloat16 has a
    logit of 20 in steps of an eighth: close candidates can tie, and the first is the answer."""
    max_text_tokens: int = Field(1024, ge=1)
    """Longer texts are cut before they go into the prompt, and counted."""
    max_batch_tokens: int | None = Field(None, ge=16)
    """Tokens of a forward pass, padding included. Default: 4096 on a CPU, 16384 on a GPU."""


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
    """How the frozen weights are kept: as 4-bit NormalFloat, or as they are."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """What is computed in; the adapters themselves are float32."""
    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass rather than keep them."""


class LlamaTrainConfig(TrainConfig):
    """How the adapters are fitted. The paper gives micro-batches and accumulation (appendix R);
    learning rate, schedule and epochs are ours, those that are usual for LoRA."""

    micro_batch_size: int = Field(2, ge=1)
    """Samples of one forward pass."""
    accumulation_steps: int = Field(32, ge=1)
    """Micro-batches of an optimiser step, over all workers."""
    batch_size: int = Field(64, ge=1)
    """micro_batch_size * accumulation_steps; not to be set by itself."""
    epochs: int = Field(1, ge=0)
    learning_rate: float = Field(1e-4, gt=0)
    warmup_fraction: float = Field(0.03, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    max_text_tokens: int = Field(1024, ge=1)
    """Longer texts are cut before they go into the prompt."""
    shuffle_labels: bool = True
    """Another order of the labels in every prompt, since the model sees their places."""

    def model_post_init(self, context: object) -> None:
        wanted = self.micro_batch_size * self.accumulation_steps
        if "batch_size" in self.model_fields_set and self.batch_size != wanted:
            raise ValueError(
                f"batch_size: {self.batch_size} is not micro_batch_size * accumulation_steps "
                f"({wanted}); leave it out"
            )
        object.__setattr__(self, "batch_size", wanted)

    @property
    def pass_rows(self) -> int:
        return self.micro_batch_size
