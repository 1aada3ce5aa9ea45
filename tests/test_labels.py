"""Label sets: every form that users write, every mistake that they make."""

import time
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sce.errors import LabelError
from sce.labels import Label, LabelSet, only_names, parse_labels
from sce.storage.documents import unique_keys

NAMES = st.lists(
    st.text(alphabet="abcé e\u0301 Ωz", min_size=1, max_size=6).filter(str.strip), min_size=1
)


@pytest.mark.parametrize(
    "value",
    [
        ["flood", "fire"],
        ("flood", "fire"),
        {"flood": "water where it should not be", "fire": None},
        [{"name": "flood", "synonyms": ["deluge"], "examples": ["the river rose"]}, "fire"],
        [Label("flood"), Label("fire", description="burning")],
    ],
)
def test_every_accepted_form_gives_the_names_in_order(value):
    assert LabelSet.parse(value).names == ["flood", "fire"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "empty"),
        ("flood", "str is not a label set"),
        (5, "int is not a label set"),
        (["flood", " "], r"labels\[1\].*empty"),
        (["a", "b", "a "], "positions 0 and 2"),
        (["e\u0301", "é"], "positions 0 and 1"),
        ([{"name": "a", "synonym": ["b"]}], "unknown field 'synonym'"),
        ([{"description": "b"}], r"labels\[0\]\.name"),
        ([{"name": "a", "examples": "one"}], "list of texts"),
        ([{"name": "a", "examples": [""]}], r"examples\[0\].*empty"),
        (["x" * 201], "201 characters"),
        (["a", 3], r"labels\[1\].*int"),
        (["\ud800"], "surrogate"),
    ],
)
def test_a_mistake_is_named_with_its_place(value, message):
    with pytest.raises(LabelError, match=message):
        LabelSet.parse(value)


def nested(depth):
    value = "a"
    for _ in range(depth):
        value = [value]
    return value


MILLION = 1_000_000


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (nested(100), r"labels\[0\]\[0\]: a label is a name or an object"),
        (nested(100_000), r"labels\[0\]\[0\]: a label is a name or an object"),
        ([{"name": nested(100_000)}], r"labels\[0\]\.name: a text is needed"),
        ({"a": {"name": nested(100_000)}}, "'a' has another name inside"),
        ([str(i) for i in range(MILLION)], "more than 100,000 labels"),
        ([[str(i) for i in range(MILLION)]], r"labels\[0\]: more than 100,000 labels"),
        ({str(i): None for i in range(MILLION)}, "more than 100,000 labels"),
        (map(str, count()), "more than 100,000 labels"),
        ([{"name": "a", "synonyms": ["b"] * MILLION}], r"synonyms: 1,000,000 texts"),
        ([{"name": "a", "examples": ["b"] * MILLION}], r"examples: 1,000,000 texts, at most"),
        ([dict.fromkeys(range(MILLION))], "unknown field 0"),
        ([{"x" * MILLION: 1}], "unknown field 'xx"),
        ([["a"] * MILLION, 3], "more than 100,000 labels"),
    ],
    ids=range(13),
)
def test_what_is_far_too_large_or_deep_is_refused_at_once_and_in_few_words(value, message):
    started = time.monotonic()
    with pytest.raises(LabelError, match=message) as refused:
        parse_labels(value)
    assert time.monotonic() - started < 1
    assert len(str(refused.value)) < 400


def test_an_object_with_many_keys_is_searched_for_a_repeated_one_in_linear_time():
    pairs = [(str(i), i) for i in range(MILLION)]
    started = time.monotonic()
    assert len(unique_keys(pairs)) == MILLION
    with pytest.raises(LabelError, match=r"'999999' stands twice.* 999999 and 1000000"):
        unique_keys([*pairs, pairs[-1]])
    assert time.monotonic() - started < 5


@settings(max_examples=30)
@given(NAMES, st.randoms())
def test_canonical_order_and_fingerprint_do_not_depend_on_the_users_order(names, random):
    try:
        first = LabelSet.parse(names)
    except LabelError:
        return
    random.shuffle(names)
    second = LabelSet.parse(names)
    assert [lb.key for lb in first.canonical().labels] == [
        lb.key for lb in second.canonical().labels
    ]
    assert first.fingerprint == second.fingerprint
    assert [first.names[i] for i in first.canonical_order] == first.canonical().names


def test_the_fingerprint_sees_all_information():
    bare = LabelSet.parse(["a", "b"])
    richer = LabelSet.parse([{"name": "a", "description": "x"}, "b"])
    assert bare.fingerprint != richer.fingerprint
    assert only_names(richer) == bare


def test_a_name_is_found_however_it_is_composed_and_a_missing_one_is_named():
    label_set = LabelSet.parse(["café", "bar"])
    assert label_set.index("cafe\u0301 ") == 0
    with pytest.raises(LabelError, match=r"'pub' is not in its label set: 'café', 'bar'"):
        label_set.index("pub")
