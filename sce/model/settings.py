"""What an SCE model is made of, in plain values: `SCEConfig` and the settings of a training have
these fields. Without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

ENCODER_TYPES = ("bert", "roberta", "xlm-roberta")
LABEL_VECTORS = 1
"""The newest version of what makes a label's vector g_k; all are in `sce.model.label_vectors`."""
SHORTLIST_ABOVE = 200
"""With more labels than this, only a shortlist of them is contextualised."""
SHORTLIST_SIZE = 100
"""M: how many labels of a larger set are contextualised. On unions of training label sets a
shortlist of 100 is 4 times as fast at 300 labels and 15 times at 875; 94 to 96% of the answers
stay, and as many of the others become right as wrong (25.0 to 25.5%, 16.0 to 16.5% accuracy).
Shorter ones lose no accuracy there either, but their probabilities are further off. On the test
rows of clinc150, an unseen set of 150 labels (`jobs/benchmark.py shortlist`, one run): 67.3%
accuracy exact and with 100 candidates, 67.2% with 50, 67.4% with 25; 99.6, 98.6 and 98.2% of the
answers stay."""
EXACT = 2**62
"""As `shortlist_above`: contextualise every label of every set."""


@dataclass(kw_only=True)
class SCEFields:
    """Fields of the configuration of an `SCEModel`.

    Attributes:
        encoder: configuration of the BERT or RoBERTa encoder as a dictionary, with
            `num_hidden_layers` the number of layers kept.
        embedding_dim: D, the width of the text embedder's vectors.
        label_source: where h_k comes from. "tokens": the mean over the label's rows of the
            frozen token-embedding dictionary E (equation 2). "embedder": the text embedder's
            vector of the label through an affine map of its own.
        input_norm: whether query and labels pass the pretrained embedding LayerNorm. The
            pretrained layers never saw anything else than its output, so the default applies
            it; "frozen" because it belongs to the frozen dictionary, and so that the
            trainable parameters are exactly those that the paper counts (appendix Q).
        token_type: whether query and labels receive the pretrained token-type vector 0, a
            constant that every input of the pretrained layers carried. Frozen.
        positions: add the pretrained position embeddings. Breaks the invariance to label
            order on purpose; for ablations alone.
        query_scale: multiplies the unit-norm embeddings before the affine maps. None is
            sqrt(D), a root mean square of one: a unit-norm vector through a fresh affine map
            is drowned by the LayerNorm's bias.
        logit_scale: multiplies e_0 . e_k. None is 1/sqrt(H): dot products of LayerNormed
            vectors reach tens. The paper has 1.
        learn_scales: train `logit_scale` and `prior_scale` (as logarithms).
        prior_scale: weight of cos(q, g_k) at the start; 0 switches the prior off.
        label_vectors: version of what makes g_k (`sce.model.label_vectors`); 0 where a model
            says none, as those do that were written before there were versions.
        example_weight: of version 0: (a, b) of w(n) = exp(a + b log n), the weight of the mean
            of n example texts beside the rest of a label's information in g_k.
        learn_example_weight: train a and b.
        adaptor_init: "identity" starts the affine maps as (a slice of) the identity,
            "normal" as transformers initialises linear layers.
        calibration: (a, b) of T(K) = exp(a + b log K), fitted after training, and the fewest and
            the most labels that it was fitted on (`sce.model.calibration`); the calibrated
            probabilities are softmax(s / T(K)).
        cosine_calibration: the same of the cosine baseline, for comparisons.
        rejection: coefficients of the probability that no label fits (`sce.model.rejection`); none
            in models written before there was one.
        several: (a, b, c, d) of mode "multi" (`sce.model.logistic`), of a model that was trained on
            rows with several right labels; none in others, whose encoder takes no part in it.
        label_prefix_space: tokenise a label with a leading space, as the tokenizer sees a
            word inside a sentence ("tokens" only; makes most RoBERTa labels one token).
        embedder: fingerprint of the text embedder that the model was trained with.
    """

    encoder: dict[str, Any] = field(default_factory=lambda: {"model_type": "bert"})
    embedding_dim: int = 384
    label_source: Literal["tokens", "embedder"] = "embedder"
    input_norm: Literal["none", "frozen", "trained"] = "frozen"
    token_type: bool = True
    positions: bool = False
    query_scale: float = None  # type: ignore[assignment]  # filled below, never None
    logit_scale: float = None  # type: ignore[assignment]
    learn_scales: bool = True
    prior_scale: float = 20.0
    label_vectors: int = 0
    example_weight: Sequence[float] = (-1.0, 0.5)
    learn_example_weight: bool = True
    adaptor_init: Literal["identity", "normal"] = "identity"
    calibration: Sequence[float] = (0.0, 0.0)
    cosine_calibration: Sequence[float] = (0.0, 0.0)
    rejection: Sequence[float] = ()
    several: Sequence[float] = ()
    label_prefix_space: bool = True
    embedder: dict[str, Any] | None = None


def check_fields(encoder: Mapping[str, Any], label_vectors: int) -> None:
    """Raises `ValueError`: this version of the software has no such encoder, or no such vectors."""
    if encoder["model_type"] not in ENCODER_TYPES:
        raise ValueError(
            f"encoder type {encoder['model_type']!r} is not supported; one of "
            f"{', '.join(ENCODER_TYPES)}"
        )
    if label_vectors not in range(LABEL_VECTORS + 1):
        raise ValueError(
            f"label_vectors {label_vectors!r} is not known; versions are 0 to {LABEL_VECTORS}"
        )
