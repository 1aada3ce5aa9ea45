"""Who goes where: keys of texts, deterministic splits, and no text on both sides of a split.

Nothing here depends on the order in which rows arrive or on Python's `hash`: every choice
is a function of (seed, text).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sce.errors import DataError

Size = int | float | Literal["all"]
# The copy of a text that wins where several splits hold it: the most held-out one.
PRECEDENCE = {"train": 0, "validation": 1, "test": 2}
NOT_SAMPLED = "not in the sample"
SPLIT_NOT_USED = "split not used"
REPEATED_IN_TRAIN = "exact repeat in train"
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")


def same_text_in(split: str) -> str:
    """The reason under which a copy is dropped for a held-out one."""
    return f"same text in {split}"


def text_key(text: str) -> bytes:
    """What makes two texts "the same": 16 bytes over the casefolded letters and digits.

    Combining marks count as letters, since in many scripts they are vowels. A text without
    any letter or digit is its own key.
    """
    folded = unicodedata.normalize("NFC", text).casefold()
    if folded.isascii():
        key = _NOT_ALPHANUMERIC.sub("", folded)
    else:
        key = "".join(ch for ch in folded if unicodedata.category(ch)[0] in "LMN")
    return hashlib.blake2b((key or folded).encode(), digest_size=16).digest()


def rank(seed: int, key: bytes) -> bytes:
    """A position in a random order that depends on nothing but the seed and the key."""
    return hashlib.blake2b(b"%d:" % seed + key, digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text. `split` is None until a split is chosen for it. Of a row with any number
    of right `labels`, `label` is all of them in one text: rows are divided by it."""

    dataset: str
    split: str | None
    text: str
    label: str
    label_set: str
    key: bytes
    labels: tuple[str, ...] | None = None

    @property
    def content(self) -> tuple[str, str, str]:
        return self.label_set, self.label, self.text


def assign_splits(
    rows: Sequence[Row],
    sizes: Mapping[str, Size] | None,
    seed: int,
    pinned: Mapping[bytes, str],
    balanced: bool,
    where: str,
) -> tuple[list[Row], Counter[str]]:
    """Choose a split for each row of one dataset.

    A split that the file itself gives stays as it is (sampled down to its size). Rows without
    a split, and train rows where a wanted split has no rows of its own, form a pool that is
    divided by (seed, text), every label in proportion; copies of a text stay together.

    With enough rows the held-out splits are filled first and so have exactly their size.
    Where rows are short, train comes first and test is whatever is left.

    Args:
        sizes: wanted splits: a row count, a fraction of the pool, or "all" (the rest). None
            takes the given splits as they are, all others as train.
        pinned: splits that other datasets chose for the same texts; they are kept to.
        balanced: as many rows of each label, instead of proportional.
        where: the dataset, for messages.

    Returns:
        The rows with a split, and how many were left out for which reason.

    Raises:
        DataError: a wanted split gets no row.
    """
    if sizes is None:
        return [r if r.split else replace(r, split="train") for r in rows], Counter()
    dropped: Counter[str] = Counter()
    present = {row.split for row in rows}
    wanted = [s for s in PRECEDENCE if sizes.get(s, 0) != 0]
    divide_train = any(s not in present for s in wanted)
    pool = [r for r in rows if r.split is None or (r.split == "train" and divide_train)]
    pool_splits = [s for s in wanted if s not in present or (s == "train" and divide_train)]
    result: list[Row] = []
    if pool and not pool_splits:
        dropped[SPLIT_NOT_USED] += len(pool)
        pool = []
    for split in PRECEDENCE:
        if split in pool_splits or split not in present or (split == "train" and divide_train):
            continue
        given = [row for row in rows if row.split == split]
        if split not in wanted:
            dropped[SPLIT_NOT_USED] += len(given)
            continue
        counts = _counts({split: sizes[split]}, len(given))
        chosen, left = _fill(_groups(given, seed), balanced, counts, [split], {})
        result += chosen
        dropped[NOT_SAMPLED] += len(left)
    if pool:
        counts = _counts({s: sizes[s] for s in pool_splits}, len(pool))
        held_out_first = sum(counts.values()) <= len(pool)
        order = pool_splits[::-1] if held_out_first else pool_splits
        chosen, left = _fill(_groups(pool, seed), balanced, counts, order, pinned)
        result += chosen
        for row in left:
            pin = pinned.get(row.key, "train")
            dropped[NOT_SAMPLED if pin == "train" else same_text_in(pin)] += 1
    for split in wanted:
        if not any(row.split == split for row in result):
            raise DataError(
                f"{where}: no rows for the split {split!r} among {len(rows)} rows with sizes "
                f"{dict(sizes)}. Set smaller `sizes` for this source, or leave {split!r} out."
            )
    return result, +dropped


def keep_apart(rows: Iterable[Row]) -> tuple[list[Row], dict[str, Counter[str]]]:
    """Drop what stands on both sides of a split, over all datasets, and repeats within train.

    Of a text that occurs in several splits the copies in test win over those in validation
    and those over train, so a test set never loses a row.

    Returns:
        The rows that stay, and for each dataset how many were dropped for which reason.
    """
    rows = list(rows)
    best: dict[bytes, str] = {}
    for row in rows:
        split = row.split or "train"
        if PRECEDENCE[split] >= PRECEDENCE[best.get(row.key, split)]:
            best[row.key] = split
    kept: list[Row] = []
    dropped: dict[str, Counter[str]] = defaultdict(Counter)
    seen: set[tuple[str, str, str]] = set()
    for row in rows:
        if best[row.key] != row.split:
            dropped[row.dataset][same_text_in(best[row.key])] += 1
        elif row.split == "train" and row.content in seen:
            dropped[row.dataset][REPEATED_IN_TRAIN] += 1
        else:
            seen.add(row.content)
            kept.append(row)
    return kept, dict(dropped)


@dataclass(slots=True)
class _Group:
    """All rows of a pool with the same text key: they go to one split together."""

    key: bytes
    rows: list[Row]
    label: tuple[str, str]


def _groups(rows: Sequence[Row], seed: int) -> list[_Group]:
    """In the random order of the seed."""
    by_key: dict[bytes, list[Row]] = defaultdict(list)
    for row in rows:
        by_key[row.key].append(row)
    groups = [
        _Group(key, members, min((r.label_set, r.label) for r in members))
        for key, members in by_key.items()
    ]
    return sorted(groups, key=lambda group: (rank(seed, group.key), group.key))


def _in_order(groups: Sequence[_Group], step: Mapping[tuple[str, str], float]) -> list[_Group]:
    at: Counter[tuple[str, str]] = Counter()
    places = []
    for group in groups:
        places.append((at[group.label] + 0.5) * step[group.label])
        at[group.label] += 1
    return [groups[i] for i in sorted(range(len(groups)), key=places.__getitem__)]


def _fill(
    left: list[_Group],
    balanced: bool,
    counts: Mapping[str, int],
    order: Sequence[str],
    pinned: Mapping[bytes, str],
) -> tuple[list[Row], list[Row]]:
    """Fill the splits of a pool one after the other; (rows with their split, rows left)."""
    totals = Counter(group.label for group in left)
    # The step between two groups of a label in the common order: small for a frequent
    # label, so that each prefix holds the labels in proportion; equal when balanced.
    step = {label: 1.0 if balanced else 1.0 / n for label, n in totals.items()}
    chosen: list[Row] = []
    for split in order:
        room = counts[split]
        taken: set[bytes] = set()
        eligible = [g for g in left if _may_go(split, pinned.get(g.key), order)]
        # Of each label, texts that can go nowhere else are taken before free ones.
        eligible.sort(key=lambda group: group.key not in pinned)
        for group in _in_order(eligible, step):
            # Exact repeats leave train later, so they take no room there.
            size = len({r.content for r in group.rows}) if split == "train" else len(group.rows)
            if size > room:
                continue
            taken.add(group.key)
            chosen += [replace(row, split=split) for row in group.rows]
            room -= size
            if room == 0:
                break
        left = [group for group in left if group.key not in taken]
    return chosen, [row for group in left for row in group.rows]


def _may_go(split: str, pin: str | None, order: Sequence[str]) -> bool:
    # A dataset that is only held out may take a text that another one trains on: the other
    # one loses it (`keep_apart`).
    return pin is None or pin == split or (pin == "train" and "train" not in order)


def _counts(sizes: Mapping[str, Size], n_rows: int) -> dict[str, int]:
    """Row counts from counts, fractions and "all" over a pool of `n_rows`."""
    counts: dict[str, int] = {}
    for split in sorted(sizes, key=lambda s: -PRECEDENCE[s]):
        size = sizes[split]
        if size == "all":
            continue
        if isinstance(size, float):
            size = max(1, round(size * n_rows))
            if split == "train":
                size = max(1, min(size, n_rows - sum(counts.values())))
        counts[split] = int(size)
    rest = max(0, n_rows - sum(counts.values()))
    for split, size in sizes.items():
        if size == "all":
            counts[split], rest = rest, 0
    return counts
