"""The forward pass of an `SCEModel` for inference: the same weights, less work.

What no text changes is computed once for a set of labels: their vectors, their queries, keys
and values in the first layer, and, where a set serves many rows, most of their first attention.
Without positions a label of the first layer sees the text through one term alone. With lse_k
the log of its softmax denominator over the labels, o_k what it reads from them and s_k0 its
score for the text,

    alpha_k = sigmoid(s_k0 - lse_k)          out_k = o_k + alpha_k (v_0 - o_k)      (a head)

which is exact. The output projection W is linear, so W o_k is computed once as well, a head at
a time, and a row pays for W v_0 and for sums over the heads.

Tensor names carry their shape: B rows, K labels, D the embedder's dimension, H the encoder's
width, T = K + 1 tokens, A attention heads, P = H / A, F the width inside the feed-forward block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import GELUActivation

from sce.model.encoder import SCEModel

LONG_SEQUENCE = 128
"""From this many tokens on torch's attention kernel beats two batched products on a CPU; at 3 to
10 tokens it takes three times as long."""


@dataclass(frozen=True)
class EncodedLabels:
    """Labels as the first layer reads them: input vectors, and their queries (divided by sqrt(P)),
    keys and values there; and what a set gains that serves many rows."""

    h_KH: torch.Tensor
    qkv_K3H: torch.Tensor
    shared: SharedSet | None


@dataclass(frozen=True)
class SharedSet:
    """The first layer's attention among the labels of one set.

    Attributes:
        q_APK, k_APK, v_AKP: their queries, keys and values by head.
        lse_A1K: log of the softmax denominators, float32.
        read_KAH: W o_k by head, where W is the output projection.
        base_KH: h_k + W o_k + the projection's bias.
    """

    q_APK: torch.Tensor
    k_APK: torch.Tensor
    v_AKP: torch.Tensor
    lse_A1K: torch.Tensor
    read_KAH: torch.Tensor
    base_KH: torch.Tensor


class FastEncoder:
    """`SCEModel.forward` up to the encoder's output, for a model without positions.

    Holds copies of some weights (queries, keys and values in one matrix); the model's must not
    change afterwards.
    """

    def __init__(self, model: SCEModel) -> None:
        self.model = model
        self._layers = [_Layer(layer) for layer in model.encoder.layer]  # type: ignore[union-attr]

    def encode_labels(self, h_KH: torch.Tensor, shared: bool) -> EncodedLabels:
        """Labels from their input vectors; `shared` for a set that serves many rows."""
        layer = self._layers[0]
        qkv_K3H = layer.qkv(h_KH)
        return EncodedLabels(h_KH, qkv_K3H, layer.share(h_KH, qkv_K3H) if shared else None)

    def contextualise(
        self, query_BH: torch.Tensor, labels: EncodedLabels, ids_BK: torch.Tensor | None
    ) -> torch.Tensor:
        """The encoder's output e, [B, T, H], the text first.

        Args:
            query_BH: q' as the first layer reads it.
            ids_BK: each row's labels as places in `labels`; None for all of a shared set.
        """
        first, *rest = self._layers
        if ids_BK is None:
            assert labels.shared is not None
            x_BTH = first.forward_shared(query_BH, labels.shared)
        else:
            x_BTH = torch.cat([query_BH[:, None], labels.h_KH[ids_BK]], dim=1)
            qkv_BT3H = torch.cat([first.qkv(query_BH)[:, None], labels.qkv_K3H[ids_BK]], dim=1)
            x_BTH = first.forward(x_BTH, qkv_BT3H)
        for layer in rest:
            x_BTH = layer.forward(x_BTH, layer.qkv(x_BTH))
        return x_BTH


class _Layer:
    """One BERT or RoBERTa layer (they are alike)."""

    def __init__(self, layer: Any) -> None:
        attention, output = layer.attention.self, layer.attention.output
        self.heads: int = attention.num_attention_heads
        self.head_width: int = attention.attention_head_size
        scale = self.head_width**-0.5  # into the queries' weights, so that no pass multiplies
        parts = (attention.query, attention.key, attention.value)
        scales = (scale, 1.0, 1.0)
        self._qkv = torch.cat([(p.weight.detach() * s) for p, s in zip(parts, scales)])
        self._qkv_bias = torch.cat([(p.bias.detach() * s) for p, s in zip(parts, scales)])
        self._out = output.dense
        self._attention_norm = output.LayerNorm
        self._inner = layer.intermediate.dense
        self._activation = layer.intermediate.intermediate_act_fn
        self._outer = layer.output.dense
        self._output_norm = layer.output.LayerNorm
        self._fused = _fused_products(self._inner.weight) and isinstance(
            self._activation, GELUActivation
        )
        weight_AHP = self._out.weight.detach().view(-1, self.heads, self.head_width)
        self._out_APH = weight_AHP.permute(1, 2, 0).contiguous()

    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        """Queries (divided by sqrt(P)), keys and values, [..., 3H]."""
        if self._fused:
            return torch.ops.mkldnn._linear_pointwise(x, self._qkv, self._qkv_bias, "none", [], "")
        return functional.linear(x, self._qkv, self._qkv_bias)

    def forward(self, x_BTH: torch.Tensor, qkv_BT3H: torch.Tensor) -> torch.Tensor:
        """The layer on whole rows."""
        x_BTH = self._add_product(self._out, self._attend(qkv_BT3H), x_BTH)
        return self._feed_forward(self._attention_norm(x_BTH))

    def share(self, h_KH: torch.Tensor, qkv_K3H: torch.Tensor) -> SharedSet:
        """See `SharedSet`. In float32 whatever the model runs in."""
        q_APK, k_APK, v_APK = (
            part.reshape(len(h_KH), self.heads, self.head_width).permute(1, 2, 0).contiguous()
            for part in qkv_K3H.chunk(3, dim=1)
        )
        v_AKP = v_APK.transpose(1, 2).contiguous()
        lse, read = [], []
        # A head at a time: with thousands of labels all heads' K x K scores would not fit.
        for q_PK, k_PK, v_KP, out_PH in zip(q_APK, k_APK, v_AKP, self._out_APH, strict=True):
            scores_KK = q_PK.T.float() @ k_PK.float()
            lse_K = torch.logsumexp(scores_KK, dim=1)
            o_KP = torch.exp(scores_KK - lse_K[:, None]) @ v_KP.float()
            lse.append(lse_K)
            read.append(o_KP @ out_PH.float())
        read_KAH = torch.stack(read, dim=1)
        base_KH = h_KH.float() + read_KAH.sum(1) + self._out.bias.float()
        return SharedSet(
            q_APK,
            k_APK,
            v_AKP,
            torch.stack(lse)[:, None],
            read_KAH.to(h_KH.dtype),
            base_KH.to(h_KH.dtype),
        )

    def forward_shared(self, query_BH: torch.Tensor, labels: SharedSet) -> torch.Tensor:
        """The layer on rows that share a set, [B, T, H]."""
        rows, width = query_BH.shape
        q_ABP, k_ABP, v_ABP = (
            self.qkv(query_BH)
            .view(rows, 3, self.heads, self.head_width)
            .permute(1, 2, 0, 3)
            .contiguous()
        )
        # The text reads the labels and itself, as in any attention.
        self_AB1 = (q_ABP * k_ABP).sum(2, keepdim=True)
        p_ABT = torch.cat([self_AB1, torch.bmm(q_ABP, labels.k_APK)], dim=2).softmax(2)
        out_ABP = torch.baddbmm(p_ABT[:, :, :1] * v_ABP, p_ABT[:, :, 1:], labels.v_AKP)
        out_BH = out_ABP.permute(1, 0, 2).reshape(rows, width)
        x_BTH = query_BH.new_empty(rows, labels.base_KH.shape[0] + 1, width)
        torch.add(self._out(out_BH), query_BH, out=x_BTH[:, 0])
        # A label reads o_k + alpha_k (v_0 - o_k): W o_k is in `base_KH`, W v_0 is `seen_BAH`, and
        # what alpha_k takes away of W o_k is `less_KBH`; the products sum over the heads.
        alpha_ABK = torch.sigmoid(torch.bmm(k_ABP, labels.q_APK) - labels.lse_A1K)
        alpha_ABK = alpha_ABK.to(query_BH.dtype)
        seen_BAH = torch.bmm(v_ABP, self._out_APH).transpose(0, 1).contiguous()
        less_KBH = torch.bmm(alpha_ABK.permute(2, 1, 0), labels.read_KAH)
        x_BKH = torch.bmm(alpha_ABK.permute(1, 2, 0), seen_BAH)
        x_BKH -= less_KBH.transpose(0, 1)
        torch.add(x_BKH, labels.base_KH, out=x_BTH[:, 1:])
        return self._feed_forward(self._attention_norm(x_BTH))

    def _feed_forward(self, x_BTH: torch.Tensor) -> torch.Tensor:
        if self._fused:
            inner_BTF = torch.ops.mkldnn._linear_pointwise(
                x_BTH, self._inner.weight, self._inner.bias, "gelu", [], "none"
            )
        else:
            inner_BTF = self._activation(self._inner(x_BTH))
        return self._output_norm(self._add_product(self._outer, inner_BTF, x_BTH))

    def _add_product(self, dense: nn.Linear, x: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """The sum dense(x) + to, in one kernel where there is one."""
        if self._fused:
            return torch.ops.mkldnn._linear_pointwise.binary(x, to, dense.weight, dense.bias, "add")
        return dense(x).add_(to)

    def _attend(self, qkv_BT3H: torch.Tensor) -> torch.Tensor:
        """What each token reads, heads side by side, [B, T, H]."""
        rows, tokens, _ = qkv_BT3H.shape
        parts = qkv_BT3H.view(rows, tokens, 3, self.heads, self.head_width)
        if qkv_BT3H.is_cuda or tokens > LONG_SEQUENCE:
            q_BATP, k_BATP, v_BATP = parts.permute(2, 0, 3, 1, 4)
            out_BATP = functional.scaled_dot_product_attention(q_BATP, k_BATP, v_BATP, scale=1.0)
            return out_BATP.transpose(1, 2).reshape(rows, tokens, -1)
        # Keys before queries: torch's softmax is slow over a short last dimension.
        q_CTP, k_CTP, v_CTP = parts.permute(2, 0, 3, 1, 4).reshape(3, -1, tokens, self.head_width)
        p_CTT = torch.bmm(k_CTP, q_CTP.transpose(1, 2)).softmax(1)
        out_CTP = torch.bmm(p_CTT.transpose(1, 2), v_CTP)
        out_BATP = out_CTP.view(rows, self.heads, tokens, self.head_width)
        return out_BATP.transpose(1, 2).reshape(rows, tokens, -1)


def _fused_products(weight: torch.Tensor) -> bool:
    """Whether products come with their activation or sum in one kernel of oneDNN, which is 4 to 8%
    faster in all. torch's compiler calls these operators; a torch without them does as well."""
    fast = torch.cpu._is_avx512_supported()
    if weight.dtype != torch.float32:
        fast = weight.dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
    return weight.device.type == "cpu" and fast and hasattr(torch.ops.mkldnn, "_linear_pointwise")
