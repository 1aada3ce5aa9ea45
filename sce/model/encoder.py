"""The Soft Contextualized Encoder (section 2.2 of the paper) as a transformers model.

    q' = W q + b                                   the query, a soft prompt
    (e_0, e_1 ... e_K) = f(q', h_1 ... h_K)        f: encoder layers without positions
    s_k = logit_scale * e_0 . e_k + prior_scale * cos(q, g_k)
    p = softmax(s)                                 equation 3

With `logit_scale` 1 and no prior this is the paper's equation 3; both are settings of one
model (`SCEConfig`). Two vectors stand for a label: h_k goes through the encoder, g_k lives
in the text embedder's space and serves the cosine prior and, where the labels come from the
text embedder, h_k as well.

Tensor names carry their shape. B rows, K labels, D the embedder's dimension, H the encoder's
width, T = K + 1 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.bert.modeling_bert import BertEncoder
from transformers.models.roberta.modeling_roberta import RobertaEncoder
from transformers.utils import ModelOutput

from sce.model.settings import SCEFields, check_fields
from sce.model.weights import refuse_pickles, without_bars

ENCODERS = {"bert": BertEncoder, "roberta": RobertaEncoder, "xlm-roberta": RobertaEncoder}


class SCEConfig(SCEFields, PreTrainedConfig):
    """Configuration of an `SCEModel`."""

    model_type = "sce"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.query_scale is None:
            self.query_scale = math.sqrt(self.embedding_dim)
        if self.logit_scale is None:
            self.logit_scale = 1 / math.sqrt(self.encoder.get("hidden_size", 768))
        for name in ("example_weight", "calibration", "cosine_calibration", "rejection", "several"):
            setattr(self, name, list(getattr(self, name)))  # as JSON gives them back
        super().__post_init__(**kwargs)
        check_fields(self.encoder, self.label_vectors)


@dataclass
class SCEOutput(ModelOutput):
    """Output of `SCEModel.forward`.

    Attributes:
        loss: mean cross entropy over the rows, or None without targets.
        logits: s_k, float32 [B, K]; -inf where the mask is False. Not calibrated.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class SCEModel(PreTrainedModel):
    """Scores labels for texts that a frozen text embedder has turned into vectors.

    Holds exactly the parameters that the forward pass uses; what is frozen (the token
    dictionary E, the embedding LayerNorm) has `requires_grad` False and stays so.
    """

    config_class = SCEConfig
    config: SCEConfig
    base_model_prefix = "sce"
    main_input_name = "query_embeddings"

    def __init__(self, config: SCEConfig) -> None:
        super().__init__(config)
        encoder_config = AutoConfig.for_model(**config.encoder)
        encoder_config._attn_implementation = "sdpa"
        width = encoder_config.hidden_size
        self.query_adaptor = nn.Linear(config.embedding_dim, width)
        if config.label_source == "embedder":
            self.label_adaptor = nn.Linear(config.embedding_dim, width)
        else:
            self.token_embeddings = nn.Embedding(encoder_config.vocab_size, width)
        if config.token_type:
            self.token_type_embedding = nn.Parameter(torch.zeros(width))
        if config.positions:
            self.position_embeddings = nn.Embedding(encoder_config.max_position_embeddings, width)
        if config.input_norm != "none":
            self.input_norm = nn.LayerNorm(width, eps=encoder_config.layer_norm_eps)
        self.encoder = ENCODERS[config.encoder["model_type"]](encoder_config)
        self.log_logit_scale = nn.Parameter(torch.zeros(()))
        if config.prior_scale > 0:
            self.log_prior_scale = nn.Parameter(torch.zeros(()))
        if self.pools_examples:
            self.example_weight = nn.Parameter(torch.zeros(2))
        if config.several:
            self.several_weight = nn.Parameter(torch.zeros(4))
        self.post_init()
        self.freeze()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is not self:
            return
        config = self.config
        adaptors = [self.query_adaptor]
        if config.label_source == "embedder":
            adaptors.append(self.label_adaptor)
        for adaptor in adaptors:
            if config.adaptor_init == "identity":
                nn.init.eye_(adaptor.weight)
            nn.init.zeros_(adaptor.bias)
        self.log_logit_scale.fill_(math.log(config.logit_scale))
        if config.prior_scale > 0:
            self.log_prior_scale.fill_(math.log(config.prior_scale))
        if self.pools_examples:
            self.example_weight.copy_(torch.tensor(config.example_weight))
        if config.several:
            self.several_weight.copy_(torch.tensor(config.several))

    @torch.no_grad()
    def set_several(self, weights: Sequence[float]) -> None:
        """Answer mode "multi" with these coefficients from now on."""
        self.config.several = list(weights)
        self.several_weight.copy_(torch.tensor(weights))

    @property
    def uses_embedded_labels(self) -> bool:
        """Whether g_k enters the forward pass (as the prior, as h_k, or both)."""
        return self.config.prior_scale > 0 or self.config.label_source == "embedder"

    @property
    def pools_examples(self) -> bool:
        """Whether g_k is pooled here, with a weight of its own for the examples; from version 1
        of the label vectors on it comes pooled."""
        return self.uses_embedded_labels and self.config.label_vectors == 0

    def freeze(self) -> None:
        """Switch off the gradient of everything that the recipe keeps frozen."""
        frozen = {"token_embeddings", "position_embeddings", "token_type_embedding"}
        if self.config.input_norm == "frozen":
            frozen.add("input_norm")
        if not self.config.learn_scales:
            frozen |= {"log_logit_scale", "log_prior_scale"}
        if not self.config.learn_example_weight:
            frozen.add("example_weight")
        for name, parameter in self.named_parameters():
            if name.partition(".")[0] in frozen:
                parameter.requires_grad_(False)

    @torch.no_grad()
    def cast_weights(self, dtype: torch.dtype) -> SCEModel:
        """Run the encoder and what feeds it in `dtype`. The few numbers that scale and weigh
        scores stay float32: bfloat16 would change a prior's weight by up to 1%."""
        for module in self.children():
            module.to(dtype)
        if self.config.token_type:
            self.token_type_embedding.data = self.token_type_embedding.data.to(dtype)
        return self

    @torch.no_grad()
    def load_pretrained_encoder(self, pretrained: Any) -> None:
        """Copy the weights of a `BertModel` or `RobertaModel` of the same width: its first layers,
        and of its embedding block what this model has. It needs at least as many layers."""
        layers: Any = self.encoder.layer
        for mine, theirs in zip(layers, pretrained.encoder.layer[: len(layers)], strict=True):
            mine.load_state_dict(theirs.state_dict())
        embeddings = pretrained.embeddings
        if self.config.token_type:
            self.token_type_embedding.copy_(embeddings.token_type_embeddings.weight[0])
        for name, block in {
            "token_embeddings": embeddings.word_embeddings,
            "position_embeddings": embeddings.position_embeddings,
            "input_norm": embeddings.LayerNorm,
        }.items():
            if hasattr(self, name):
                getattr(self, name).load_state_dict(block.state_dict())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, of safetensors alone; what the recipe keeps frozen is frozen again.
        Raises `InputError`: the weights are in another format."""
        place = pretrained_model_name_or_path
        refuse_pickles(place)
        with without_bars():
            loaded = super().from_pretrained(place, *args, **kwargs | {"use_safetensors": True})
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze()
        return loaded

    def forward(
        self,
        query_embeddings: torch.Tensor,
        label_embeddings: torch.Tensor | None = None,
        label_tokens: torch.Tensor | None = None,
        label_mask: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        example_embeddings: torch.Tensor | None = None,
        example_counts: torch.Tensor | None = None,
        right_labels: torch.Tensor | None = None,
        z_scores: torch.Tensor | None = None,
    ) -> SCEOutput:
        """Score every label for every query.

        A label tensor without the leading B is one set shared by all rows: work on it that
        does not depend on the query is then done once.

        Args:
            query_embeddings: unit vectors of the text embedder, float32 [B, D].
            label_embeddings: mean vectors of the labels' texts, or from version 1 of the label
                vectors on g_k itself, [B, K, D] or [K, D]; needed with a prior or with
                `label_source` "embedder".
            label_tokens: h_k by equation 2 [B, K, H] or [K, H]; needed with `label_source`
                "tokens".
            label_mask: True where a label stands [B, K]; None if nothing is padding.
            targets: index of the right label [B]; -1 in rows in which several may be right.
            right_labels, z_scores: of these rows which are, bool, and the labels' z-scores (see
                `sce.model.background`), [B, K] both; given where there are such rows.
            example_embeddings, example_counts: see `pool_labels`; [(B,) K, D] and [(B,) K]. Of
                version 0 alone.
        """
        g_KD = None
        if self.uses_embedded_labels:
            if label_embeddings is None:
                raise ValueError(
                    "label_embeddings are needed: the model has a prior or embeds labels"
                )
            g_KD = self.pool_labels(label_embeddings, example_embeddings, example_counts)
        query_B1H = self.embed_queries(query_embeddings)
        h_KH = self.embed_labels(g_KD, label_tokens)
        if h_KH.dim() == 2:
            h_KH = h_KH.unsqueeze(0).expand(len(query_embeddings), -1, -1)

        attention_mask = None
        if label_mask is not None:
            query_mask = label_mask.new_ones(len(label_mask), 1)
            attention_mask = torch.cat([query_mask, label_mask], dim=1)[:, None, None, :]
        e_BTH = self.encoder(torch.cat([query_B1H, h_KH], dim=1), attention_mask).last_hidden_state
        logits_BK = self.score(e_BTH, query_embeddings, g_KD)
        if label_mask is not None:
            logits_BK = logits_BK.masked_fill(~label_mask, -torch.inf)

        loss = None
        if targets is not None and right_labels is None:
            loss = nn.functional.cross_entropy(logits_BK, targets)
        elif targets is not None:
            assert z_scores is not None
            assert label_mask is not None
            assert right_labels is not None
            loss = nn.functional.cross_entropy(logits_BK, targets, ignore_index=-1, reduction="sum")
            m_BK = self.several_logits(logits_BK, z_scores, label_mask)
            losses_BK = nn.functional.binary_cross_entropy_with_logits(
                m_BK, right_labels.to(m_BK.dtype), reduction="none"
            )
            mean_B = (losses_BK * label_mask).sum(1) / label_mask.sum(1)
            loss = (loss + (mean_B * (targets < 0)).sum()) / len(targets)
        if loss is not None and self.config.several:
            # In every step's graph, also of a batch without such rows: DDP waits for its gradient.
            loss = loss + 0 * self.several_weight.sum()
        return SCEOutput(loss=loss, logits=logits_BK)

    def several_logits(
        self, logits_BK: torch.Tensor, z_BK: torch.Tensor, mask_BK: torch.Tensor
    ) -> torch.Tensor:
        """Logits of each label for itself, as `sce.model.logistic` has them, [B, K]; of no meaning
        where the mask is False."""
        a, b, c, d = self.several_weight.float().unbind()
        log_count_B1 = mask_BK.sum(1, keepdim=True).float().log()
        s_BK = logits_BK.masked_fill(~mask_BK, 0)
        hidden_BK = z_BK.masked_fill(~mask_BK, -torch.inf)
        z_level_B1 = hidden_BK.logsumexp(1, keepdim=True) - log_count_B1
        s_level_B1 = logits_BK.logsumexp(1, keepdim=True) - log_count_B1
        return a * z_BK - b * z_level_B1 + c + d * (s_BK - s_level_B1)

    def pool_labels(
        self,
        text_KD: torch.Tensor,
        examples_KD: torch.Tensor | None,
        example_counts_K: torch.Tensor | None,
    ) -> torch.Tensor:
        """`pool_labels` with this model's weight of the examples."""
        if self.pools_examples:
            return pool_labels(text_KD, examples_KD, example_counts_K, self.example_weight)
        if examples_KD is not None and self.config.label_vectors:
            raise ValueError("examples are part of label_embeddings in this version of a model")
        weight = torch.tensor(self.config.example_weight, device=text_KD.device)
        return pool_labels(text_KD, examples_KD, example_counts_K, weight)

    def embed_queries(self, query_embeddings: torch.Tensor) -> torch.Tensor:
        """q' as the encoder reads it, [B, 1, H], from unit vectors [B, D]."""
        scaled_BD = query_embeddings * self.config.query_scale
        query_BH = self.query_adaptor(scaled_BD.to(self.query_adaptor.weight.dtype))
        return self._embed_inputs(query_BH.unsqueeze(1), first=0)

    def embed_labels(
        self, g_KD: torch.Tensor | None, label_tokens: torch.Tensor | None
    ) -> torch.Tensor:
        """h_k as the encoder reads it, [..., K, H], from what `pool_labels` gives or, in a model
        with `label_source` "tokens", from the tokens that `forward` takes."""
        dtype = self.query_adaptor.weight.dtype
        if self.config.label_source == "embedder":
            assert g_KD is not None
            h_KH = self.label_adaptor((g_KD * self.config.query_scale).to(dtype))
        elif label_tokens is None:
            raise ValueError("label_tokens are needed: the model reads labels as token means")
        else:
            h_KH = label_tokens.to(dtype)
        return self._embed_inputs(h_KH, first=1)

    def score(
        self, e_BTH: torch.Tensor, query_embeddings: torch.Tensor, g_KD: torch.Tensor | None
    ) -> torch.Tensor:
        """s_k from the encoder's output, [B, K]. Float32 whatever the encoder runs in: half
        precision would blur the prior."""
        with torch.autocast(e_BTH.device.type, enabled=False):
            e_BTH = e_BTH.float()
            logits_BK = torch.einsum("bh,bkh->bk", e_BTH[:, 0], e_BTH[:, 1:])
            logits_BK = logits_BK * self.log_logit_scale.float().exp()
            if self.config.prior_scale > 0:
                assert g_KD is not None
                equation = "bd,kd->bk" if g_KD.dim() == 2 else "bd,bkd->bk"
                cosine_BK = torch.einsum(equation, query_embeddings.float(), g_KD.float())
                logits_BK = logits_BK + cosine_BK * self.log_prior_scale.float().exp()
        return logits_BK

    def _embed_inputs(self, inputs: torch.Tensor, first: int) -> torch.Tensor:
        """What the pretrained embedding block does to an input vector, positions excepted.
        `first` is the place of the first vector, used by the position ablation alone."""
        if self.config.token_type:
            inputs = inputs + self.token_type_embedding
        if self.config.positions:
            places = torch.arange(first, first + inputs.shape[-2], device=inputs.device)
            # RoBERTa's first real position is padding_idx + 1 = 2; harmless for BERT.
            inputs = inputs + self.position_embeddings(places + 2)
        return self.input_norm(inputs) if self.config.input_norm != "none" else inputs


def pool_labels(
    text_KD: torch.Tensor,
    examples_KD: torch.Tensor | None,
    example_counts_K: torch.Tensor | None,
    example_weight: torch.Tensor,
) -> torch.Tensor:
    """g_k: a label's information as one unit vector.

    Args:
        text_KD: mean over the vectors of name, synonyms and description [..., K, D].
        examples_KD: mean over the vectors of its example texts [..., K, D], 0 where none.
        example_counts_K: number of examples n [..., K].
        example_weight: (a, b) of w(n) = exp(a + b log n), [2] or for each label [..., K, 2].

    Returns:
        Unit vectors [..., K, D]: unit(text) + w(n) * examples, normalised.
    """
    g_KD = nn.functional.normalize(text_KD, dim=-1)
    if examples_KD is None or example_counts_K is None:
        return g_KD
    a, b = example_weight.to(g_KD.dtype).unbind(-1)
    counts_K = example_counts_K.to(g_KD.dtype)
    weight_K = torch.exp(a + b * torch.log(counts_K.clamp(min=1))) * (counts_K > 0)
    return nn.functional.normalize(g_KD + weight_K.unsqueeze(-1) * examples_KD, dim=-1)


def trainable_parameters(model: nn.Module) -> int:
    """Number of parameters with a gradient."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


AutoConfig.register(SCEConfig.model_type, SCEConfig)
AutoModel.register(SCEConfig, SCEModel)
