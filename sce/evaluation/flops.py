"""What training costs, in operations: the paper's appendices N to S as functions of the letters of
appendix H, and the exact count beside them.

The paper counts a multiplication and addition as one operation, every key and value head as if it
were a query head, and neither the output layer over the vocabulary nor the gradient checkpoints.
The functions that begin with `exact_` count as the hardware does: two operations for a
multiplication and addition, grouped key and value heads as they are, the output layer on request.
Both leave out what is no matrix product, and both count causal attention in full.

Letters: d hidden size, d_ff feed-forward size, n_f1 and n_f2 expanding and contracting layers of a
block, L blocks, m tokens of a sequence, r rank of LoRA, d_ext size of the external embedding, N
samples of an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

LORA_RANK = 180
"""Rank of the paper's LoRA Llama (appendix M)."""


@dataclass(frozen=True)
class Architecture:
    """The letters of appendix H, and what the exact count needs beside them.

    Attributes:
        kv_size: of all key, or all value, heads together; d where they are not grouped.
        vocabulary: rows of the output layer.
    """

    d: int
    d_ff: int
    n_f1: int
    n_f2: int
    blocks: int
    kv_size: int
    vocabulary: int

    @property
    def ffn_layers(self) -> int:
        return self.n_f1 + self.n_f2


ROBERTA_BASE = Architecture(768, 3072, 1, 1, 12, 768, 50_265)
"""Appendix I."""
JINA_V3 = Architecture(1024, 4096, 1, 1, 24, 1024, 250_002)
"""Appendix J."""
LLAMA_1B = Architecture(2048, 8192, 2, 1, 16, 512, 128_256)
"""Appendix L (Llama-3.2-1B)."""


def architecture_of(config: Any) -> Architecture:
    """The letters of a transformers configuration (BERT, RoBERTa, XLM-R, Llama, Qwen, ...)."""
    gated = str(getattr(config, "hidden_act", "gelu")) in ("silu", "swish")
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return Architecture(
        d=config.hidden_size,
        d_ff=config.intermediate_size,
        n_f1=2 if gated else 1,
        n_f2=1,
        blocks=config.num_hidden_layers,
        kv_size=kv_heads * head_size,
        vocabulary=config.vocab_size,
    )


def total(cost: Callable[[float], float], tokens: float, squares: float, samples: int) -> float:
    """Sum of `cost(m)` over samples whose m add up to `tokens` and their squares to `squares`.
    Every cost here is a polynomial of degree two in m."""
    constant, one, two = cost(0), cost(1), cost(2)
    square = (two - 2 * one + constant) / 2
    return samples * constant + tokens * (one - constant - square) + squares * square


def mean(cost: Callable[[float], float], tokens: ArrayLike) -> float:
    """Mean of `cost(m)` over samples of so many tokens each."""
    m_N = np.asarray(tokens, np.float64)
    return total(cost, float(m_N.sum()), float(np.square(m_N).sum()), len(m_N)) / len(m_N)


def forward_block(a: Architecture, m: float) -> float:
    """4md^2 + 2m^2d + m d d_ff (n_f1 + n_f2): table 4."""
    return 4 * m * a.d**2 + 2 * m**2 * a.d + m * a.d * a.d_ff * a.ffn_layers


def backward_block(a: Architecture, m: float) -> float:
    """8md^2 + 4m^2d + 2m d d_ff (n_f1 + n_f2): table 6."""
    return 2 * forward_block(a, m)


def forward_block_lora(a: Architecture, m: float, r: int) -> float:
    """4m(d^2 + 2dr) + 2m^2d + m(d d_ff + dr + d_ff r)(n_f1 + n_f2): table 5."""
    ffn = a.d * a.d_ff + a.d * r + a.d_ff * r
    return 4 * m * (a.d**2 + 2 * a.d * r) + 2 * m**2 * a.d + m * ffn * a.ffn_layers


def backward_block_lora(a: Architecture, m: float, r: int) -> float:
    """4m(d^2 + 4dr) + 4m^2d + m(d d_ff + 2dr + 2d_ff r)(n_f1 + n_f2): table 7."""
    ffn = a.d * a.d_ff + 2 * a.d * r + 2 * a.d_ff * r
    return 4 * m * (a.d**2 + 4 * a.d * r) + 4 * m**2 * a.d + m * ffn * a.ffn_layers


def lora_sample(a: Architecture, m: float, r: int) -> float:
    """Forward and backward of a sample through a model with LoRA: appendix P."""
    return a.blocks * (forward_block_lora(a, m, r) + backward_block_lora(a, m, r))


def encoder_sample(a: Architecture, m: float, d_ext: int) -> float:
    """Forward and backward of a sample through the SCE encoder and its affine map: appendix Q.

    Args:
        m: labels and the query.
    """
    return a.blocks * (forward_block(a, m) + backward_block(a, m)) + 3 * a.d * d_ext


def embedding_sample(a: Architecture, m: float) -> float:
    """Forward of a text through the embedder: appendix Q."""
    return a.blocks * forward_block(a, m)


def mixture_fit(texts: int, labels: int, dimension: int, rounds: Sequence[int]) -> float:
    """Fit of adapted labels to the vectors of a corpus (`sce.adaptation.fit`), of which the paper
    knows nothing: N d^2 for the outer products; 2 N K d for the scores and sums of a posterior,
    over the corpus and its halves, of which two come before the first round and one before every
    other; 5 N K d for the last pass; a system of equations in d for each round and part.

    Args:
        rounds: of each mixture that was fitted.
    """
    posteriors = 2 + sum(one - 1 for one in rounds)
    passes = texts * dimension**2 + (4 * posteriors + 5) * texts * labels * dimension
    return passes + 3 * sum(rounds) * (dimension**3 / 3 + 2 * labels * dimension**2)


def _linears(a: Architecture) -> list[tuple[int, int]]:
    """(d_in, d_out) of every linear layer of a block."""
    attention = [(a.d, a.d), (a.d, a.kv_size), (a.d, a.kv_size), (a.d, a.d)]
    return attention + [(a.d, a.d_ff)] * a.n_f1 + [(a.d_ff, a.d)] * a.n_f2


def lora_parameters(a: Architecture, r: int) -> int:
    """Trainable parameters of LoRA on every linear layer: 126,812,160 in appendix M."""
    return a.blocks * sum(r * (d_in + d_out) for d_in, d_out in _linears(a))


def exact_forward(a: Architecture, m: int, r: int = 0, output_tokens: int = 0) -> int:
    """Operations of a sequence forward.

    Args:
        r: rank of LoRA on every linear layer; 0 for none.
        output_tokens: whose scores over the vocabulary are computed.
    """
    linear = sum(d_in * d_out + r * (d_in + d_out) for d_in, d_out in _linears(a))
    block = m * linear + 2 * m**2 * a.d
    return 2 * (a.blocks * block + output_tokens * a.d * a.vocabulary)


def exact_backward(a: Architecture, m: int, r: int = 0, output_tokens: int = 0) -> int:
    """Operations of a sequence backward, whose input needs gradients; every weight is trained, or
    with `r` those of LoRA alone (and the output layer never). Arguments as in `exact_forward`."""
    passes = 1 if r else 2
    linear = sum(passes * d_in * d_out + 2 * r * (d_in + d_out) for d_in, d_out in _linears(a))
    block = m * linear + 4 * m**2 * a.d
    return 2 * (a.blocks * block + output_tokens * a.d * a.vocabulary)
