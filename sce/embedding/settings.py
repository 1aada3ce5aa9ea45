"""Settings of the text embedder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from sce.config import Section

Kind = Literal["minilm", "mpnet", "sentence_transformers", "jina"]

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MPNET = "sentence-transformers/all-mpnet-base-v2"
JINA = "jinaai/jina-embeddings-v3-hf"
JINA_ADAPTER = "classification"
CHUNK_TOKENS = 128
"""Of a chunk, special tokens included; fewer where the embedder reads fewer."""
MAX_CHUNKS = 4096
"""Of a text: half a million tokens, some forty hours of speech. What is behind is not read, and the
text counts as truncated."""


class EmbedderConfig(Section):
    """Which text embedder to use, and how to run it."""

    kind: Kind = "minilm"
    """`minilm` (all-MiniLM-L6-v2, part of the installation), `mpnet` (all-mpnet-base-v2, five times
    as large, by the extra `base` or from the hub), `sentence_transformers` (any such checkpoint) or
    `jina` (jina-embeddings-v3; CC BY-NC 4.0, not for commercial use)."""
    model: str | None = None
    """Hub id, folder or URI; needed by `sentence_transformers`, the default is known otherwise."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    adapter: str | None = None
    """Task adapter of `jina`, by default `classification`."""
    max_tokens: int | None = Field(default=None, ge=4)
    """Longer texts are truncated and counted. Default: what the checkpoint says (minilm: 256,
    mpnet: 384); never more than the model has positions for."""
    end_token: bool | None = None
    """Put the tokenizer's end-of-text token behind every text, where the tokenizer does not.
    Needed by a checkpoint that pools the last token and whose tokenizer puts nothing there: `true`
    for one that was trained so, as F2LLM was, `false` to pool the text's own last token."""
    prompt: str | None = None
    """Name of one of the checkpoint's prompts (config_sentence_transformers.json), whose text is
    put before every text and label. Default: its default prompt, else the one named
    `classification`, else `query` where passages have one too, else none."""
    prefix: str | None = None
    """The text of a prompt, where the checkpoint states none; "" for none at all."""
    max_batch_tokens: int | None = Field(default=None, ge=16)
    """Tokens in one forward pass, padding included. Default: 4096 on a CPU, 65536 on a GPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The type of weights and activations; vectors are always pooled and normalised in float32.
    `auto`: bfloat16 where the device multiplies it, which is three times as fast on such a
    processor; else float32. Vectors of both are of one embedder and may be mixed; each store says
    which it has."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is a GPU where there is one."""

    @model_validator(mode="after")
    def _check(self) -> EmbedderConfig:
        if self.kind == "sentence_transformers" and not self.model:
            raise ValueError("kind 'sentence_transformers' needs `model`: a hub id or a folder")
        if self.kind != "jina" and self.adapter is not None:
            raise ValueError(f"only kind 'jina' has an adapter; the kind is {self.kind!r}")
        if self.prompt is not None and self.prefix is not None:
            raise ValueError("`prompt` names a prompt and `prefix` is the text of one: give either")
        return self

    @property
    def model_name(self) -> str:
        """The hub id or folder that these settings mean."""
        return self.model or {"minilm": MINILM, "mpnet": MPNET, "jina": JINA}[self.kind]

    @property
    def adapter_name(self) -> str | None:
        return (self.adapter or JINA_ADAPTER) if self.kind == "jina" else None

    @classmethod
    def from_fingerprint(cls, fingerprint: Mapping[str, Any]) -> EmbedderConfig:
        """Settings that load the embedder of a fingerprint, whatever its vectors were computed in.
        A checkpoint that came from a local folder is known by that folder's name alone: set `model`
        to where it lies now."""
        kind = fingerprint["kind"]
        return cls(
            kind=kind,
            model=None if kind in ("minilm", "mpnet") else fingerprint["model"],
            revision=fingerprint["revision"],
            adapter=fingerprint["adapter"],
            end_token=fingerprint.get("end_token") is not None,
            prefix=fingerprint.get("prefix") or "",
            max_tokens=fingerprint["max_tokens"],
        )
