"""What a label's vector is made of: by hand, for each version."""

import numpy as np
import pytest
import torch

from sce.labels import LabelSet
from sce.model.encoder import SCEConfig
from sce.model.label_vectors import (
    encode_labels,
    label_texts,
    label_texts_to_keep,
    label_vectors,
    mean_text_vectors,
)

LABELS = LabelSet.parse(
    [
        "billing",
        {"name": "late delivery", "synonyms": ["delay", "slow post"], "description": "came late"},
        {"name": "news/sport", "examples": ["they won", "they lost", "a draw"]},
        {"name": "a {} b", "description": "said", "examples": ["they won"]},
    ]
)
BILLING = ["This text is about billing.", "news about billing", "billing question"]


def text_vectors(texts):
    """A unit vector of its own for each text, the same every time."""
    rows = [np.random.default_rng(list(t.encode())).normal(size=32) for t in texts]
    return (np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def of(text):
    return text_vectors([text])[0].astype(np.float64)


def unit(vector):
    return vector / np.linalg.norm(vector)


def templated(name):
    filled = (f"This text is about {name}.", f"news about {name}", f"{name} question")
    return sum(map(of, filled)) / 3


def phrase(name):
    return (of(name) + templated(name)) / 2


def test_names_stand_in_templates_and_those_of_several_words_half_as_they_are():
    names = LabelSet.parse(["billing", "late delivery", "news/sport"])
    expected = [
        unit(templated("billing")),
        unit(phrase("late delivery")),
        unit(phrase("news/sport")),
    ]
    found_KD = label_vectors(names, text_vectors, 1)
    assert found_KD.dtype == np.float32
    np.testing.assert_allclose(found_KD, expected, atol=1e-6)


def test_a_name_counts_as_much_as_a_synonym_or_the_description():
    expected = phrase("late delivery") + of("delay") + of("slow post") + of("came late")
    np.testing.assert_allclose(label_vectors(LABELS, text_vectors, 1)[1], unit(expected), atol=1e-6)


def test_an_example_weighs_less_the_more_is_said_of_its_label():
    """One part in 4 + m: a name and three examples, a name with a description and one."""
    found_KD = label_vectors(LABELS, text_vectors, 1)
    examples = of("they won") + of("they lost") + of("a draw")
    expected = 5 * unit(phrase("news/sport")) + examples
    np.testing.assert_allclose(found_KD[2], unit(expected), atol=1e-6)
    expected = 6 * unit(phrase("a {} b") + of("said")) + of("they won")
    np.testing.assert_allclose(found_KD[3], unit(expected), atol=1e-6)


def test_version_0_takes_names_as_they_are():
    found_KD = label_vectors(LABELS, text_vectors, 0)
    np.testing.assert_allclose(found_KD[0], of("billing"), atol=1e-6)
    expected = of("late delivery") + of("delay") + of("slow post") + of("came late")
    np.testing.assert_allclose(found_KD[1], unit(expected), atol=1e-6)
    mean = (of("they won") + of("they lost") + of("a draw")) / 3
    expected = of("news/sport") + np.exp(-1 + 0.5 * np.log(3)) * mean
    np.testing.assert_allclose(found_KD[2], unit(expected), atol=1e-6)


@pytest.mark.parametrize("version", [0, 1])
def test_examples_can_be_left_out(version):
    bare = LabelSet.parse(["billing", "late delivery", "news/sport"])
    given = [{"name": name, "examples": ["they won"]} for name in bare.names]
    found_KD = label_vectors(LabelSet.parse(given), text_vectors, version, with_examples=False)
    np.testing.assert_array_equal(found_KD, label_vectors(bare, text_vectors, version))
    means_KD = mean_text_vectors(LabelSet.parse(given).labels, text_vectors, version)
    np.testing.assert_allclose(
        found_KD, means_KD / np.linalg.norm(means_KD, axis=1, keepdims=True), atol=1e-6
    )


@pytest.mark.parametrize("version", [0, 1])
def test_a_label_has_its_vector_in_any_set(version):
    """Alone, among others, in another order: the arithmetic of a label knows no other."""
    found_KD = label_vectors(LABELS, text_vectors, version)
    for k, label in enumerate(LABELS.labels):
        alone = label_vectors(LabelSet((label,)), text_vectors, version)
        np.testing.assert_allclose(alone[0], found_KD[k], atol=1e-6)
    moved = LabelSet(LABELS.labels[::-1])
    np.testing.assert_array_equal(
        label_vectors(LABELS.canonical(), text_vectors, version),
        label_vectors(moved.canonical(), text_vectors, version),
    )


def test_the_model_of_version_1_is_given_whole_vectors_and_of_version_0_their_parts():
    new = encode_labels(LABELS, 1, text_vectors)
    assert new.examples_KD is None
    assert new.example_counts_K is None
    np.testing.assert_array_equal(new.text_KD, label_vectors(LABELS, text_vectors, 1))
    old = encode_labels(LABELS, 0, text_vectors)
    assert old.example_counts_K.tolist() == [0, 0, 3, 1]
    np.testing.assert_allclose(old.examples_KD[3], of("they won"), atol=1e-6)
    for version in (0, 1):
        tokens = encode_labels(LABELS, version, None, lambda names: torch.zeros(len(names), 2))
        assert tokens.text_KD is None
        assert tokens.tokens_KH.shape == (4, 2)


def test_the_texts_that_are_to_be_embedded():
    billing, _, sport, braces = LABELS.labels
    assert label_texts(billing, 0) == ["billing"]
    assert label_texts(billing, 1) == BILLING
    assert label_texts(sport, 1)[3:] == ["news/sport", "they won", "they lost", "a draw"]
    assert label_texts(braces, 1)[1] == "news about a {} b"
    asked = []

    def embed(texts):
        asked.extend(texts)
        return text_vectors(texts)

    for version in (0, 1):
        asked.clear()
        label_vectors(LABELS, embed, version)
        named = {text for label in LABELS.labels for text in label_texts(label, version)}
        assert set(asked) == named <= set(label_texts_to_keep(LABELS.labels))
    assert label_texts_to_keep([billing, billing]) == ["billing", *BILLING]


def test_a_version_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="label_vectors 2 is not known"):
        SCEConfig(label_vectors=2)
