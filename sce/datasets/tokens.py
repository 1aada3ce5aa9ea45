"""The paper's requirement on label names: one token each (appendix F, note)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sce.labels import LabelSet


def multi_token_labels(label_sets: Iterable[LabelSet], tokenizer: Any) -> dict[str, int]:
    """Labels that are more than one token of a tokenizer, with how many they are.

    A name is tried as it stands and after a space, since byte-level tokenizers (RoBERTa) know
    most words in that form; the shorter counts.

    Args:
        tokenizer: a transformers tokenizer.

    Returns:
        Name -> number of tokens, at least 2, sorted by name; empty if all are single tokens.
    """

    def n_tokens(name: str) -> int:
        forms = (name, f" {name}")
        return min(len(tokenizer.encode(form, add_special_tokens=False)) for form in forms)

    names = sorted({label.key for label_set in label_sets for label in label_set.labels})
    return {name: n for name in names if (n := n_tokens(name)) != 1}
