"""The frozen text embedder g: a text becomes one vector of unit norm.

    embedder = load_embedder(EmbedderConfig())
    vectors_ND = embedder.embed(["first text", "second text"]).vectors

One interface, four kinds: all-MiniLM-L6-v2 (installed with this package), all-mpnet-base-v2, any
sentence-transformers checkpoint, and jina-embeddings-v3 with a task adapter. The weights of
jina-embeddings-v3 are licensed CC BY-NC 4.0: not for commercial use.

Shapes: N texts, B texts in a batch, L tokens, D the embedder's dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer, processors
from torch import nn
from transformers import AutoModel, JinaEmbeddingsV3Model, PreTrainedConfig, PreTrainedModel

from sce.embedding.checkpoint import Checkpoint, resolve_checkpoint
from sce.embedding.chunking import Chunks, cut
from sce.embedding.files import read_json
from sce.embedding.packing import Pack, can_pack, is_packed, pack_attention, packs, padded_states
from sce.embedding.row_checks import as_texts, check_texts
from sce.embedding.settings import CHUNK_TOKENS, MAX_CHUNKS, EmbedderConfig
from sce.embedding.tokenising import (
    CHARS_A_TOKEN,
    MAX_CHARS,
    Batch,
    TokenisedTexts,
    batches,
    beginning,
)
from sce.errors import EmbedderError
from sce.model.arithmetic import choose_dtype
from sce.model.pooling import ChunkVectors
from sce.model.weights import load_weights, without_bars

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens of one forward pass, padding included."""
PIECE_TEXTS = {"cpu": 4096, "cuda": 1024}
"""Texts that are tokenised at a time, and among which batches are formed. Small pieces give more
padding (7% at 1,024 short texts, none at 4,096) and start sooner. A CPU spends half a per cent of
its time on tokens, so padding decides there; a GPU would wait for the first piece."""

_PRODUCTS_ALONE = ("bert", "roberta", "xlm-roberta")
"""On a CPU, models whose attention takes what the linear layers before it give: they are as fast
with the residual stream in float32, and a third as far off (cosines with float32 on the inbox: at
least 0.99995 rather than 0.99989; 4 of 1,699 answers move rather than 11)."""


@dataclass(frozen=True)
class Embedded:
    """Vectors in the order of the texts, float32 [N, D], C-contiguous, of unit norm; and where a
    text was longer than `max_tokens`, bool [N]."""

    vectors: np.ndarray
    truncated: np.ndarray


class TextEmbedder:
    """A loaded embedder. Build it with `load_embedder`; safe to call from several threads."""

    on_batch: ClassVar[Callable[[int], None]] = staticmethod(lambda texts: None)
    """Called with the number of texts of each batch that any embedder of this process has embedded:
    for those who show how far a long job is."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        checkpoint: Checkpoint,
        max_batch_tokens: int,
    ) -> None:
        self.fingerprint = checkpoint.fingerprint
        self.licence = checkpoint.licence
        self.device = model.device
        self._model = model
        self._tokenizer = tokenizer
        self._pad_id = model.config.pad_token_id or 0  # masked, so any id of the vocabulary does
        self._max_batch_tokens = max_batch_tokens

    @property
    def dimension(self) -> int:
        """D."""
        return self.fingerprint.dimension

    @property
    def packs(self) -> bool:
        """Whether texts go through it without padding."""
        return is_packed(self._model)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self._model.parameters())

    @property
    def architecture(self) -> PreTrainedConfig:
        """The configuration of the model: its layers and their sizes."""
        return self._model.config

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Embed texts, a list or a column; batches are formed by length, the order of the answer is
        the input's.

        A vector does not depend on its neighbours: on a CPU not by a bit for models that take texts
        without padding (`sce.embedding.packing`), elsewhere within 1e-5 in float32 and a cosine of
        0.9999 in bfloat16. While a piece of the texts goes through the model, a thread tokenises
        the next. Raises `DataError` with the position of a text that is empty, not a text or not
        Unicode.
        """
        texts = as_texts(texts)
        check_texts(texts)
        vectors_ND = np.empty((len(texts), self.dimension), np.float32)
        truncated_N = np.zeros(len(texts), bool)
        for piece_P, tokens in self._tokenised(texts):
            truncated_N[piece_P] = tokens.truncated
            vectors_ND[piece_P] = self.embed_tokens(tokens)
        return Embedded(vectors_ND, truncated_N)

    def _tokenised(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, TokenisedTexts]]:
        """Positions of a piece of the texts, and its tokens; the next piece is tokenised in the
        meantime."""

        def read(piece_P: np.ndarray) -> TokenisedTexts:
            return self._tokenise([texts[i] for i in piece_P.tolist()])

        # By characters: near enough to the number of tokens that little is padded in a piece.
        order_N = np.argsort([-len(text) for text in texts], kind="stable")
        size = PIECE_TEXTS.get(self.device.type, PIECE_TEXTS["cuda"])
        pieces = [order_N[i : i + size] for i in range(0, len(texts), size)]
        if len(pieces) == 1:  # a thread would take as long as the tokens of a short text
            yield order_N, read(order_N)
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenise") as thread:
            coming = thread.submit(read, order_N[:size])
            for piece_P, next_P in pairwise([*pieces, order_N[:0]]):
                tokens = coming.result()
                coming = thread.submit(read, next_P)
                yield piece_P, tokens

    def tokenise(self, texts: Sequence[str]) -> TokenisedTexts:
        """First step of `embed`, in one call of the tokenizer. Raises `DataError` like it."""
        check_texts(texts)
        return self._tokenise(texts)

    def _tokenise(self, texts: Sequence[str]) -> TokenisedTexts:
        prefix = self.fingerprint.prefix
        given = texts if prefix is None else [prefix + text for text in texts]
        chars = CHARS_A_TOKEN * self.fingerprint.max_tokens
        heads = [beginning(text, chars) for text in given]
        encodings = self._tokenizer.encode_batch_fast(heads)
        for i, (head, text) in enumerate(zip(heads, given)):
            if len(head) < min(len(text), MAX_CHARS) and not encodings[i].overflowing:
                encodings[i] = self._tokenizer.encode(text[:MAX_CHARS])
        ids = [encoding.ids for encoding in encodings]
        lengths_N = np.fromiter(map(len, ids), np.int64, len(ids))
        truncated_N = np.zeros(len(ids), bool)
        for place in np.flatnonzero(lengths_N == self.fingerprint.max_tokens):
            truncated_N[place] = bool(encodings[place].overflowing)
        truncated_N |= np.fromiter((len(text) > MAX_CHARS for text in given), bool, len(given))
        flat = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths_N.sum()))
        return TokenisedTexts(flat, lengths_N, truncated_N)

    def chunk(
        self, texts: Sequence[str], max_tokens: int = CHUNK_TOKENS, max_chunks: int = MAX_CHUNKS
    ) -> Chunks:
        """Where to cut texts into chunks that `embed` reads whole (`sce.embedding.chunking`).

        Args:
            max_tokens: of a chunk, special ones included; at most those that the embedder reads.
            max_chunks: of a text.
        """
        check_texts(texts)
        most = min(max_tokens, self.fingerprint.max_tokens)
        return cut(texts, self._encode_whole, max(1, most - self._special_tokens), max_chunks)

    def embed_chunks(
        self, texts: Sequence[str], max_chunks: int = MAX_CHUNKS
    ) -> tuple[ChunkVectors, np.ndarray]:
        """The vectors of the chunks of texts, and which of the texts have more than `max_chunks`,
        bool [N]; raises as `embed`. Equal chunks are embedded once."""
        texts = as_texts(texts)
        chunks = self.chunk(texts, max_chunks=max_chunks)
        places: dict[str, int] = {}
        place_C = [places.setdefault(text, len(places)) for text in chunks.texts(texts)]
        embedded = self.embed(list(places))
        vectors = ChunkVectors(embedded.vectors[place_C], chunks.counts_N, chunks.spans_C2)
        truncated_N = chunks.truncated_N.copy()
        np.logical_or.at(truncated_N, chunks.owners, embedded.truncated[place_C])
        return vectors, truncated_N

    def _encode_whole(self, texts: list[str]) -> list[Encoding]:
        return self._whole_tokenizer.encode_batch(texts, add_special_tokens=False)

    @cached_property
    def _whole_tokenizer(self) -> Tokenizer:
        """The tokenizer without truncation."""
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.no_truncation()
        return tokenizer

    @cached_property
    def _special_tokens(self) -> int:
        """That stand in every text beside its own, the prefix's among them."""
        (alone,) = self._encode_whole(["a"])
        return len(self._tokenizer.encode((self.fingerprint.prefix or "") + "a")) - len(alone)

    def embed_tokens(self, tokens: TokenisedTexts, padded: bool = False) -> np.ndarray:
        """Second step of `embed`: float32 [N, D] for texts that are tokenised; `padded` as if this
        model could not do without padding."""
        vectors_ND = np.empty((len(tokens), self.dimension), np.float32)
        formed: Iterable[Batch | Pack] = (
            packs(tokens, self._max_batch_tokens)
            if self.packs and not padded
            else batches(tokens, self._max_batch_tokens, self._pad_id)
        )
        for batch in formed:
            vectors_ND[batch.positions] = embed_batch(self._model, batch, self.fingerprint.pooling)
            TextEmbedder.on_batch(len(batch.positions))
        return vectors_ND


@torch.inference_mode()
def embed_batch(model: Any, batch: Batch | Pack, pooling: str) -> np.ndarray:
    """One forward pass, pooling, normalisation; float32 [B, D], unit norm."""
    if isinstance(batch, Pack):
        hidden_BLD, lengths_B1 = padded_states(model, batch)
    else:
        mask_BL = torch.from_numpy(batch.attention_mask).to(model.device)
        ids_BL = torch.from_numpy(batch.input_ids).to(model.device)
        hidden_BLD = model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        lengths_B1 = mask_BL.sum(dim=1, keepdim=True)
    if pooling == "cls":
        pooled_BD = hidden_BLD[:, 0].float()
    elif pooling == "lasttoken":
        rows_B = torch.arange(len(hidden_BLD), device=hidden_BLD.device)
        pooled_BD = hidden_BLD[rows_B, lengths_B1[:, 0] - 1].float()
    else:
        columns_L = torch.arange(hidden_BLD.shape[1], device=hidden_BLD.device)
        tokens_BL1 = (columns_L < lengths_B1)[:, :, None]
        pooled_BD = (hidden_BLD.float() * tokens_BL1).sum(dim=1) / lengths_B1
    return torch.nn.functional.normalize(pooled_BD, dim=1).cpu().numpy()


def load_embedder(config: EmbedderConfig) -> TextEmbedder:
    """Load the text embedder that `config` describes, ready to embed. Raises `EmbedderError`: not
    there, not reachable, damaged, of an unsupported design, or the device is missing."""
    checkpoint = resolve_checkpoint(config)
    device = choose_device(config.device)
    try:
        dtype = choose_dtype(config.dtype, device)
        with without_bars():
            model = _load_model(config, checkpoint, dtype, device)
        tokenizer = _load_tokenizer(checkpoint)
    except (OSError, ValueError, KeyError) as error:
        raise EmbedderError(
            f"the embedder {config.model_name!r} cannot be loaded from {checkpoint.folder}: {error}"
        ) from error
    computed_in = str(dtype).removeprefix("torch.")
    return TextEmbedder(
        model.eval().requires_grad_(False).to(device),  # type: ignore[arg-type]
        tokenizer,
        replace(checkpoint, fingerprint=replace(checkpoint.fingerprint, dtype=computed_in)),
        config.max_batch_tokens or BATCH_TOKENS[device],
    )


def _load_model(
    config: EmbedderConfig, checkpoint: Checkpoint, dtype: torch.dtype, device: str
) -> PreTrainedModel:
    loader: Any = JinaEmbeddingsV3Model if config.kind == "jina" else AutoModel
    kind = read_json(checkpoint.folder / "config.json").get("model_type")
    products = dtype == torch.bfloat16 and device == "cpu" and kind in _PRODUCTS_ALONE
    model, report = load_weights(
        loader,
        checkpoint.folder,
        dtype=torch.float32 if products else dtype,
        local_files_only=True,
        output_loading_info=True,
    )
    missing = [key for key in report["missing_keys"] if "pooler" not in key]
    if missing:
        raise EmbedderError(
            f"{checkpoint.folder}: {len(missing)} weights are missing, first {min(missing)!r}."
        )
    model.config.use_cache = False  # a decoder would keep keys and values for texts to come
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # it reads [CLS] for a head that this embedder does not have
    if checkpoint.adapter_folder is not None:
        name = checkpoint.adapter_folder.name
        model.load_adapter(
            str(checkpoint.folder),
            adapter_name=name,
            adapter_kwargs={"subfolder": name, "local_files_only": True},
        )
        model.set_adapter(name)
    if products:
        _multiply_in_bfloat16(model)
    if can_pack(model.config.model_type, device):
        pack_attention(model)
    return model


def _multiply_in_bfloat16(model: PreTrainedModel) -> None:
    """Let the linear layers, and attention between them, compute in bfloat16; the sums of the
    residual stream and the layer norms stay in float32."""

    def narrow(layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (arguments[0].to(torch.bfloat16), *arguments[1:])

    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.to(torch.bfloat16)
            layer.register_forward_pre_hook(narrow)


def _load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer without padding, truncating at the embedder's length."""
    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    end = checkpoint.fingerprint.end_token
    if end is not None:
        number = tokenizer.token_to_id(end)
        if number is None:
            raise EmbedderError(f"{checkpoint.folder}: its tokenizer does not know {end!r}.")
        behind = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, number)])
        before = tokenizer.post_processor
        steps = [behind] if before is None else [before, behind]
        tokenizer.post_processor = processors.Sequence(steps)  # type: ignore[assignment]
    tokenizer.no_padding()
    tokenizer.enable_truncation(checkpoint.fingerprint.max_tokens)
    return tokenizer


def choose_device(device: str) -> str:
    """ "cpu" or "cuda", from a setting that may be "auto": a GPU where there is one. Raises
    `EmbedderError`: the GPU that was asked for is missing."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise EmbedderError("device: 'cuda', but this machine has no usable GPU.")
    return device
