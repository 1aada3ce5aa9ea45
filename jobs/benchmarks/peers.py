"""What a user would take instead, for measuring speed: an NLI cross-encoder behind the
transformers zero-shot pipeline, GLiClass, and cosine similarity with sentence-transformers.

The first two have random weights around a backbone of the size of all-MiniLM-L6-v2: speed does
not depend on weights, and accuracy is not measured with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerBase,
    pipeline,
)

from sce.embedding.published import published_folder
from sce.errors import ConfigError

Peer = Callable[[Sequence[str], Sequence[str]], Any]
"""Texts and label names in, answers out."""
GLICLASS_TOKENS = ("<<LABEL>>", "<<SEP>>", "<<EXAMPLE>>")
GLICLASS_ROUTE = "/gliclass"
"""Where GLiClass's own server answers."""
GLICLASS_MAX_TOKENS = 4096
"""Room for a thousand labels and the text behind them."""
NLI_TOKENS = 512
BATCH_ROWS = 32


def nli_pipeline(device: str, dtype: torch.dtype = torch.float32) -> Peer:
    """The transformers zero-shot pipeline over a cross-encoder: one pass a text and label."""
    names = {0: "entailment", 1: "neutral", 2: "contradiction"}
    config = BertConfig.from_pretrained(
        published_folder("minilm"),
        max_position_embeddings=NLI_TOKENS,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    build: Any = pipeline
    classify = build(
        "zero-shot-classification",
        model=BertForSequenceClassification(config).eval().to(dtype),
        tokenizer=AutoTokenizer.from_pretrained(published_folder("minilm")),
        device=device,
    )

    @torch.inference_mode()
    def answer(texts: Sequence[str], labels: Sequence[str]) -> Any:
        return classify(list(texts), list(labels), batch_size=BATCH_ROWS)

    return answer


def gliclass(device: str, dtype: torch.dtype = torch.float32, several: bool = False) -> Peer:
    """GLiClass's uni-encoder and its own pipeline: labels and text in one sequence.

    Args:
        several: any number of labels may be right, by its multi-label path.

    Raises:
        ConfigError: the package is not installed.
    """
    model, tokenizer = _build_gliclass()
    model = model.to(dtype)
    from gliclass import ZeroShotClassificationPipeline

    classify = ZeroShotClassificationPipeline(
        model,
        tokenizer,
        max_classes=1000,
        max_length=GLICLASS_MAX_TOKENS,
        classification_type="multi-label" if several else "single-label",
        device=device,
        progress_bar=False,
    )

    @torch.inference_mode()
    def answer(texts: Sequence[str], labels: Sequence[str]) -> Any:
        threshold = 0.5 if several else 0.0
        return classify(list(texts), list(labels), threshold=threshold, batch_size=BATCH_ROWS)

    return answer


def save_gliclass(folder: Path) -> None:
    """The model of `gliclass` as a folder, for GLiClass's own server.

    Raises:
        ConfigError: the package is not installed.
    """
    model, tokenizer = _build_gliclass()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _build_gliclass() -> tuple[Any, PreTrainedTokenizerBase]:
    try:
        from gliclass import GLiClassModel, GLiClassModelConfig
    except ImportError:
        raise ConfigError(
            "gliclass is not installed: pip install 'soft-contextualized-encoder[peers]'"
        ) from None
    tokenizer = AutoTokenizer.from_pretrained(published_folder("minilm"))
    tokenizer.add_special_tokens({"additional_special_tokens": list(GLICLASS_TOKENS)})
    tokenizer.model_max_length = GLICLASS_MAX_TOKENS
    room = {"vocab_size": len(tokenizer), "max_position_embeddings": GLICLASS_MAX_TOKENS}
    encoder = BertConfig.from_pretrained(published_folder("minilm"), **room)
    class_id, text_id, example_id = map(tokenizer.convert_tokens_to_ids, GLICLASS_TOKENS)
    config = GLiClassModelConfig(
        encoder_config=encoder,
        encoder_model=str(published_folder("minilm")),  # where it looks for an adapter
        class_token_index=class_id,
        text_token_index=text_id,
        example_token_index=example_id,
        architecture_type="uni-encoder",
        max_num_classes=1000,
        prompt_first=True,
    )
    return GLiClassModel(config).eval(), tokenizer


def cosine_similarity(device: str, dtype: torch.dtype = torch.float32) -> Peer:
    """all-MiniLM-L6-v2 by sentence-transformers; texts and labels are embedded at each call."""
    from sentence_transformers import SentenceTransformer, models  # type: ignore[attr-defined]

    word = models.Transformer(str(published_folder("minilm")), max_seq_length=256)
    pooling = models.Pooling(word.get_embedding_dimension(), pooling_mode="mean")
    encoder = SentenceTransformer(modules=[word, pooling, models.Normalize()], device=device)
    encoder.to(dtype)

    def answer(texts: Sequence[str], labels: Sequence[str]) -> Any:
        text_ND = encoder.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        label_KD = encoder.encode(list(labels), convert_to_tensor=True, show_progress_bar=False)
        return (text_ND @ label_KD.T).argmax(1)

    return answer
