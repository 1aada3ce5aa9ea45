"""What identifies an embedder, so that vectors of two embedders are never mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from typing import Any

from sce.errors import FingerprintMismatch

_NOT_DECIDING = ("kind", "model", "revision", "dtype")
_ID_DTYPE = "float32"
"""That ids are made with. In earlier versions it was the embedder's own, by default this."""


@dataclass(frozen=True)
class EmbedderFingerprint:
    """Everything that decides the vectors of an embedder, the names it goes by, and what they were
    computed in.

    `kind`, `model` and `revision` only name the checkpoint; the hashes identify it. So the
    same files have the same `id` on every machine, wherever they lie. Nor does `dtype` count: a
    vector of all-MiniLM-L6-v2 in bfloat16 has a cosine of at least 0.99995 with that in float32.

    Attributes:
        model: hub id, or the base name of a local folder.
        revision: commit on the hub, where it is known.
        pooling: "mean", "cls" or "lasttoken".
        normalised: vectors have unit norm (always true).
        dtype: "float32" or "bfloat16"; "auto" where no vector was computed yet; of a store that was
            written in both, "bfloat16, float32".
        weights_sha256: of the safetensors files, the adapter's among them.
        end_token: that the embedder puts behind every text; None where the tokenizer alone
            decides.
        prefix: that the embedder puts before every text; None for none. Both are missing in what
            was written before there were any.
    """

    kind: str
    model: str
    revision: str | None
    adapter: str | None
    pooling: str
    normalised: bool
    dimension: int
    max_tokens: int
    dtype: str
    weights_sha256: str
    tokenizer_sha256: str
    end_token: str | None = None
    prefix: str | None = None

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits, equal for equal vectors."""
        return self._hash(_ID_DTYPE)

    def is_known_as(self, other: str) -> bool:
        """Whether an id is this embedder's, also as earlier versions wrote it."""
        return other in (self.id, self._hash("bfloat16"))

    def _hash(self, dtype: str) -> str:
        content = json.dumps(self._deciding() | {"dtype": dtype}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EmbedderFingerprint:
        """Inverse of `to_dict`; a key "id" is ignored. Raises `FingerprintMismatch`: a field is
        missing, so nothing can be compared."""
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]
        if missing:
            raise FingerprintMismatch(
                f"an embedder fingerprint lacks {', '.join(missing)}: it was written by another "
                "version of this software."
            )
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    def __str__(self) -> str:
        adapter = f" + {self.adapter}" if self.adapter else ""
        return f"{self.model}{adapter} ({self.id})"

    def _deciding(self) -> dict[str, Any]:
        found = {name: value for name, value in asdict(self).items() if name not in _NOT_DECIDING}
        for name in ("end_token", "prefix"):
            if found[name] is None:  # the ids of embedders without one stay what they were
                del found[name]
        return found


def check_fingerprint(
    expected: EmbedderFingerprint | Mapping[str, Any],
    actual: EmbedderFingerprint | Mapping[str, Any],
    what: str,
) -> None:
    """Refuse to mix the vectors of two embedders: the one that made `what` ("the model", "the
    store data/embeddings") and the one in use. Raises `FingerprintMismatch`, which names both and
    every field that differs."""
    made, used = (
        f if isinstance(f, EmbedderFingerprint) else EmbedderFingerprint.from_dict(f)
        for f in (expected, actual)
    )
    if made.id == used.id:
        return
    theirs, ours = made._deciding(), used._deciding()
    lines = [
        f"  {name}: {theirs.get(name)!r} there, {ours.get(name)!r} here"
        for name in theirs | ours
        if theirs.get(name) != ours.get(name)
    ]
    raise FingerprintMismatch(
        f"{what} was made with the embedder {made}, but the one in use is {used}. "
        "Their vectors cannot be mixed:\n" + "\n".join(lines)
    )
