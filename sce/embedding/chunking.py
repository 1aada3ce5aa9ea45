"""Long texts as chunks that the embedder reads whole.

A text that is longer than the embedder reads becomes several of about the same length, each ending
with a sentence where one ends near enough, else between words, else between tokens; each begins a
little before the one ahead of it ends. A sentence ends at a line break, at `。！？`, and at `.!?…`
before white space: abbreviations end one too, which costs nothing but a cut in its middle. A chunk
is a text as any other to the embedder, so batches mix those of several texts.

Shapes: N texts, C chunks of all of them, T tokens of a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding

from sce.embedding.settings import CHUNK_TOKENS, MAX_CHUNKS

OVERLAP = 1 / 8
"""Of a chunk that the next one repeats at most."""
SHORTEST = 3 / 4
"""Of the length that chunks are to have: a sentence that ends earlier does not end a chunk."""
WINDOW_CHARS = 2**16
"""Of a text that are tokenised at a time: offsets take ten times the memory of the text. Of a chunk
at most, however few its tokens are."""
PIECE_TEXTS = 256

_SENTENCE_END = re.compile(r"""[.!?…]["'”’»)\]]*\s+|[。！？][」』”’）]*\s*|\s*\n\s*""")
_INSIDE, _WORD, _SENTENCE = 0, 1, 2


def chunking(max_tokens: int) -> dict[str, int | float]:
    """All that decides where an embedder that reads so many tokens has its texts cut."""
    tokens = min(CHUNK_TOKENS, max_tokens)
    return {"version": 1, "tokens": tokens, "overlap": OVERLAP, "most": MAX_CHUNKS}


Encode = Callable[[list[str]], Sequence[Encoding]]
"""Texts to tokens with their offsets in characters, none cut, without special tokens."""


@dataclass(frozen=True)
class Chunks:
    """Where N texts are cut.

    Attributes:
        spans_C2: int64, the first character of each chunk and the one behind its last, in its text;
            one text's after another's.
        counts_N: int64, how many each text has, at least one.
        truncated_N: bool, the text is longer than `MAX_CHUNKS` chunks.
    """

    spans_C2: np.ndarray
    counts_N: np.ndarray
    truncated_N: np.ndarray

    @property
    def owners(self) -> np.ndarray:
        """Which text each chunk is of."""
        return np.repeat(np.arange(len(self.counts_N)), self.counts_N)

    def take(self, rows_G: np.ndarray) -> Chunks:
        """Of these texts, in ascending order."""
        mine_C = np.isin(self.owners, rows_G)
        return Chunks(self.spans_C2[mine_C], self.counts_N[rows_G], self.truncated_N[rows_G])

    def texts(self, texts: Sequence[str]) -> Iterator[str]:
        """The chunks of the texts that were cut."""
        for owner, (start, end) in zip(self.owners.tolist(), self.spans_C2.tolist()):
            yield texts[owner][start:end]


def cut(
    texts: Sequence[str], encode: Encode, max_tokens: int, max_chunks: int = MAX_CHUNKS
) -> Chunks:
    """Chunks of at most `max_tokens` tokens (without the special ones), `max_chunks` a text; the
    same for a text whatever its neighbours. A text that fits is one chunk, whole."""
    spans: list[np.ndarray] = []
    truncated_N = np.zeros(len(texts), bool)
    fits = [text.isascii() and len(text) <= max_tokens for text in texts]
    long = [i for i, fit in enumerate(fits) if not fit]
    firsts: dict[int, Encoding] = {}
    for row, (text, fit) in enumerate(zip(texts, fits)):
        if fit:
            spans.append(np.array([[0, len(text)]]))
            continue
        if row not in firsts:  # several at once: the tokenizer has threads
            ahead, long = long[:PIECE_TEXTS], long[PIECE_TEXTS:]
            windows = [texts[i][: _window_end(texts[i], 0)] for i in ahead]
            firsts = dict(zip(ahead, encode(windows)))
        offsets_T2, read = _offsets(text, firsts.pop(row), encode, max_tokens * max_chunks)
        if len(offsets_T2) <= max_tokens and read == len(text) <= WINDOW_CHARS:
            spans.append(np.array([[0, len(text)]]))
            continue
        found_C2 = _fitting(text, _spans(text, offsets_T2, read, max_tokens), encode, max_tokens)
        truncated_N[row] = read < len(text) or len(found_C2) > max_chunks
        spans.append(found_C2[:max_chunks])
    counts_N = np.array([len(one) for one in spans], np.int64)
    joined = np.concatenate([np.zeros((0, 2), np.int64), *spans])
    return Chunks(joined, counts_N, truncated_N)


def _window_end(text: str, start: int) -> int:
    """Behind the white space that a window from `start` ends at; `WINDOW_CHARS` without any."""
    end = start + WINDOW_CHARS
    if end >= len(text):
        return len(text)
    last = max(text.rfind(" ", start, end), text.rfind("\n", start, end))
    return last + 1 if last >= start else end


def _offsets(
    text: str, first: Encoding, encode: Encode, most_tokens: int
) -> tuple[np.ndarray, int]:
    """Where each token stands, int64 [T, 2], and up to which character the text was read: all of
    it, or as much as `most_tokens` tokens need."""
    end = _window_end(text, 0)
    found, count = [_as_array(first)], len(first)
    while end < len(text) and count <= most_tokens:
        start, end = end, _window_end(text, end)
        (more,) = encode([text[start:end]])
        found.append(_as_array(more) + start)
        count += len(more)
    return np.concatenate(found), end


def _as_array(encoding: Encoding) -> np.ndarray:
    return np.array(encoding.offsets, np.int64).reshape(-1, 2)


def _spans(text: str, offsets_T2: np.ndarray, read: int, max_tokens: int) -> np.ndarray:
    """The chunks of a text that is longer than one, int64 [C, 2]."""
    starts_T, ends_T = offsets_T2.T
    total = len(starts_T)
    if not total:  # nothing but what the tokenizer leaves out
        return np.array([[0, min(read, WINDOW_CHARS)]])
    breaks_T = _breaks(text, starts_T, ends_T, read)
    overlap = int(max_tokens * OVERLAP)
    count = max(1, -(-(total - overlap) // (max_tokens - overlap)))
    # Of equal length as far as they go: each counts the same where scores are pooled.
    aim = min(max_tokens, -(-(total + (count - 1) * overlap) // count) + overlap)
    spans, first = [], 0
    while True:
        by_chars = int(np.searchsorted(ends_T, starts_T[first] + WINDOW_CHARS, "right"))
        most = max(first + 1, min(first + aim, by_chars))
        if most >= total:
            spans.append((starts_T[first], ends_T[-1]))
            break
        least = first + int((most - first) * SHORTEST)
        end = _last(breaks_T, least + 1, most)
        spans.append((starts_T[first], ends_T[end - 1]))
        back = min(overlap, int((end - first) * OVERLAP))
        first = max(first + 1, _first(breaks_T, end - back, end))
    found_C2 = np.array(spans, np.int64)
    found_C2[0, 0] = 0  # white space at both ends is of the text too
    if ends_T[-1] == found_C2[-1, 1] and read - found_C2[-1, 0] <= WINDOW_CHARS:
        found_C2[-1, 1] = read
    return found_C2


def _breaks(text: str, starts_T: np.ndarray, ends_T: np.ndarray, read: int) -> np.ndarray:
    """What each token begins: a sentence, a word or neither."""
    ends = np.array([m.end() for m in _SENTENCE_END.finditer(text, 0, read)], np.int64)
    passed_T = np.searchsorted(ends, starts_T, "right")
    before_T = np.concatenate([[0], ends_T[:-1]])
    breaks_T = np.where(starts_T > before_T, _WORD, _INSIDE)
    breaks_T[np.diff(passed_T, prepend=0) > 0] = _SENTENCE
    return breaks_T


def _last(breaks_T: np.ndarray, least: int, most: int) -> int:
    """The token from `least` to `most` before which to cut: the last of the best kind."""
    part = breaks_T[least : most + 1]
    return least + len(part) - 1 - int(part[::-1].argmax()) if len(part) else most


def _first(breaks_T: np.ndarray, least: int, end: int) -> int:
    """The token from `least` on where the chunk behind one that ends at `end` begins: the first of
    the best kind."""
    part = breaks_T[least : end + 1]
    return least + int(part.argmax())


def _fitting(text: str, spans_C2: np.ndarray, encode: Encode, max_tokens: int) -> np.ndarray:
    """The same chunks, those halved that alone have more tokens than in their text, as may be where
    a word is cut."""
    encoded = [
        found
        for first in range(0, len(spans_C2), PIECE_TEXTS)
        for found in encode([text[a:b] for a, b in spans_C2[first : first + PIECE_TEXTS].tolist()])
    ]
    if all(len(one) <= max_tokens for one in encoded):
        return spans_C2
    found: list[np.ndarray] = []
    for (start, end), one in zip(spans_C2.tolist(), encoded):
        if len(one) <= max_tokens or end - start < 2:
            found.append(np.array([[start, end]]))
            continue
        middle = (start + end) // 2
        halves = [half for half in ((start, middle), (middle, end)) if text[slice(*half)].strip()]
        found.append(_fitting(text, np.array(halves, np.int64), encode, max_tokens))
    return np.concatenate(found)
