"""The settings of a language model that is asked which label fits.

They stand apart from `sce.baselines.prompted`, so that a job which has the settings need not load
peft and bitsandbytes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sce.config import Section
from sce.storage import Place

PromptName = Literal["sentence", "template"]


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
