"""Splits depend on seed and text alone, and no text stands on both sides of one."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sce.datasets.splits import PRECEDENCE, Row, assign_splits, keep_apart, text_key
from sce.errors import DataError

SIZES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def row(text, label="a", split=None, dataset="d", label_set="s"):
    return Row(dataset, split, text, label, label_set, text_key(text))


def split_rows(rows, sizes, seed=0, pinned=None, balanced=False):
    return assign_splits(rows, sizes, seed, pinned or {}, balanced, "source 'd'")


def test_text_key_ignores_case_space_and_punctuation_only():
    assert text_key("Hello,  World!") == text_key("hello world")
    assert text_key("STRASSE") == text_key("straße")
    assert text_key("cafe\u0301") == text_key("CAFÉ")
    assert text_key("world 1") != text_key("world 2")
    assert text_key("👍") != text_key("👎")
    assert text_key("कि") != text_key("की")  # Devanagari vowel signs are combining marks


rows_of_words = st.lists(
    st.tuples(st.sampled_from("abcdefghij"), st.sampled_from("xyz")), min_size=15, max_size=60
)


@given(rows_of_words, st.integers(-5, 5), st.randoms())
@settings(max_examples=60)
def test_splits_do_not_depend_on_order_and_never_straddle(pairs, seed, rng):
    rows = [row(text, label) for text, label in pairs]
    shuffled = list(rows)
    rng.shuffle(shuffled)
    try:
        first, _ = split_rows(rows, SIZES, seed)
    except DataError:
        with pytest.raises(DataError):
            split_rows(shuffled, SIZES, seed)
        return
    second, _ = split_rows(shuffled, SIZES, seed)
    as_set = lambda rs: Counter((r.split, r.content) for r in rs)  # noqa: E731
    assert as_set(first) == as_set(second)
    splits = {}
    for r in first:
        assert splits.setdefault(r.key, r.split) == r.split


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"), st.sampled_from("xy"), st.sampled_from(list(PRECEDENCE)),
            st.sampled_from(["one", "two"]),
        ),
        max_size=40,
    )
)  # fmt: skip
def test_keep_apart(items):
    rows = [row(t, lab, split, dataset=ds) for t, lab, split, ds in items]
    kept, dropped = keep_apart(rows)
    assert len(kept) + sum(sum(c.values()) for c in dropped.values()) == len(rows)
    by_key = {}
    for r in kept:
        assert by_key.setdefault(r.key, r.split) == r.split
    test = Counter(r.content for r in rows if r.split == "test")
    assert Counter(r.content for r in kept if r.split == "test") == test
    train = [r.content for r in kept if r.split == "train"]
    assert len(train) == len(set(train))


def test_enough_rows_give_exact_sizes_and_labels_in_proportion():
    rows = [row(f"text {i}", "rare" if i % 10 == 0 else "common") for i in range(1000)]
    chosen, dropped = split_rows(rows, {"train": 500, "validation": 100, "test": 200})
    assert Counter(r.split for r in chosen) == {"train": 500, "validation": 100, "test": 200}
    assert dropped == {"not in the sample": 200}
    rare = Counter(r.split for r in chosen if r.label == "rare")
    assert rare["train"] == pytest.approx(50, abs=2)
    assert rare["validation"] == pytest.approx(10, abs=2)
    assert rare["test"] == pytest.approx(20, abs=2)


def test_short_rows_fill_train_first_and_balanced_takes_equal_numbers():
    rows = [row(f"text {i}") for i in range(100)]
    chosen, _ = split_rows(rows, {"train": 70, "validation": 20, "test": 70})
    assert Counter(r.split for r in chosen) == {"train": 70, "validation": 20, "test": 10}
    rows = [row(f"text {i}", "rare" if i < 20 else "common") for i in range(500)]
    chosen, _ = split_rows(rows, {"test": 30}, balanced=True)
    assert Counter(r.label for r in chosen) == {"rare": 15, "common": 15}


def test_repeats_take_no_room_in_train():
    rows = [row(f"text {i % 50}") for i in range(100)]
    chosen, _ = split_rows(rows, {"train": 50})
    kept, dropped = keep_apart(chosen)
    assert len(kept) == 50
    assert dropped["d"] == {"exact repeat in train": 50}


def test_a_given_split_stays_and_train_feeds_the_missing_one():
    rows = [row(f"train {i}", split="train") for i in range(40)]
    rows += [row(f"test {i}", split="test") for i in range(10)]
    chosen, _ = split_rows(rows, {"train": 30, "validation": 10, "test": "all"})
    assert Counter(r.split for r in chosen) == {"train": 30, "validation": 10, "test": 10}
    assert all(r.text.startswith("test") == (r.split == "test") for r in chosen)
    chosen, dropped = split_rows(rows, {"test": 4})
    assert Counter(r.split for r in chosen) == {"test": 4}
    assert dropped == {"split not used": 40, "not in the sample": 6}


def test_choices_of_other_datasets_are_kept_to():
    rows = [row(f"text {i}") for i in range(100)]
    pinned = {text_key(f"text {i}"): "test" for i in range(30)}
    chosen, dropped = split_rows(rows, {"train": "all", "validation": 10, "test": 10}, 0, pinned)
    assert Counter(r.split for r in chosen) == {"train": 60, "validation": 10, "test": 10}
    assert all(r.split == "test" for r in chosen if r.key in pinned)
    assert sum(dropped.values()) == 20


def test_seeds_differ():
    rows = [row(f"text {i}") for i in range(100)]
    tests = [
        frozenset(r.text for r in split_rows(rows, SIZES, seed)[0] if r.split == "test")
        for seed in range(3)
    ]
    assert len(set(tests)) == 3


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match=r"no rows for the split 'test'.*sizes"):
        split_rows([row("a"), row("b")], {"train": 2, "test": 1})
