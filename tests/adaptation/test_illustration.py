"""What is shown of a fit: the right rows, whatever the order, and rows worth asking about."""

import numpy as np
import pytest

from sce.adaptation.illustration import MAX_SAMPLE_ROWS, QUESTIONS, SHOWN_TEXTS, illustrate
from sce.errors import InputError
from tests.tiny_adapted import WIDTH, adapted_labels, label_vectors, rows_around, unit

NAMES = ["news", "cats", "rain", "food"]


def moved_fit(a_label=20):
    """Four labels, of which "cats" has taken the place that "rain" had by its own vector."""
    own_KD = label_vectors(4)
    new_KD = own_KD.copy()
    new_KD[1], new_KD[2] = own_KD[2], -unit(own_KD.sum(0))
    x_ND = rows_around(own_KD, a_label)
    ids = [f"row{i:03d}" for i in range(len(x_ND))]
    texts = [f"text {i}" for i in range(len(x_ND))]
    return adapted_labels(NAMES, new_KD), ids, texts, x_ND, own_KD


def same(one, other):
    assert one.names == other.names
    assert one.typical == other.typical
    assert one.moved == other.moved
    assert one.to_label == other.to_label
    for name in ("points_S2", "answers_S", "old_places_K2", "new_places_K2"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_typical_and_moved_rows_are_those_of_their_labels():
    adapted, ids, texts, x_ND, own_KD = moved_fit()
    found = illustrate(adapted, ids, texts, x_ND, own_KD)
    assert found.names == sorted(NAMES)
    assert len(found) == 80
    answers_N = adapted.scores(x_ND).argmax(1)
    before_N = (x_ND @ own_KD.T).argmax(1)
    p_NK = adapted.probabilities(x_ND)
    for name, examples in found.typical.items():
        k = NAMES.index(name)
        assert len(examples) == SHOWN_TEXTS
        for identity, text, probability in examples:
            i = ids.index(identity)
            assert (answers_N[i], text) == (k, texts[i])
            assert probability == p_NK[i, k]
    assert len(found.moved["cats"]) == SHOWN_TEXTS
    assert {row.from_label for row in found.moved["cats"]} == {"rain"}
    for name, rows in found.moved.items():
        for row in rows:
            i = ids.index(row.id)
            assert NAMES[before_N[i]] == row.from_label != name
            assert NAMES[answers_N[i]] == name


def test_the_most_typical_row_is_the_one_in_the_middle():
    own_KD = label_vectors(3)
    x_ND = rows_around(own_KD, 9)
    x_ND[4] = unit(x_ND[:9].sum(0))
    ids = [str(i) for i in range(27)]
    found = illustrate(adapted_labels(NAMES[:3], own_KD), ids, None, x_ND, own_KD)
    assert found.typical["news"][0].id == "4"
    assert found.typical["news"][0].text is None


def test_neither_the_order_of_rows_nor_that_of_labels_matters():
    adapted, ids, texts, x_ND, own_KD = moved_fit()
    found = illustrate(adapted, ids, texts, x_ND, own_KD)
    order = np.random.default_rng(3).permutation(80)
    shuffled = [[rows[i] for i in order] for rows in (ids, texts)]
    same(found, illustrate(adapted, *shuffled, x_ND[order], own_KD))
    other = adapted_labels(NAMES[::-1], adapted.weight_KD[::-1] / 20)
    same(found, illustrate(other, ids, texts, x_ND, own_KD[::-1]))


def test_places_of_the_plane():
    adapted, ids, texts, x_ND, own_KD = moved_fit()
    found = illustrate(adapted, ids, texts, x_ND, own_KD)
    assert found.points_S2.shape == (80, 2)
    np.testing.assert_allclose(found.points_S2.mean(0), 0, atol=1e-9)
    names = found.names
    middle_2 = found.points_S2[found.answers_S == names.index("food")].mean(0)
    spread = found.points_S2.std()
    assert np.linalg.norm(found.new_places_K2[names.index("food")] - middle_2) < spread / 10
    assert np.isfinite(found.old_places_K2).all()
    gone = names.index("rain")  # its weight points away from every row
    assert np.isnan(found.new_places_K2[gone]).all()
    assert "rain" not in found.typical


@pytest.mark.parametrize(("labels", "a_label"), [(2, 1), (2, 9), (3, 1), (4, 2), (1, 3)])
def test_few_rows_and_few_labels(labels, a_label):
    own_KD = label_vectors(labels)
    x_ND = rows_around(own_KD, a_label)
    ids = [str(i) for i in range(len(x_ND))]
    found = illustrate(adapted_labels(NAMES[:labels], own_KD), ids, ids, x_ND, own_KD)
    assert np.isfinite(found.points_S2).all()
    assert set(found.typical) == set(NAMES[:labels])
    assert len(found.to_label) <= len(x_ND)
    assert (labels == 1) == (not found.to_label)


def test_one_row():
    own_KD = label_vectors(4)
    found = illustrate(adapted_labels(NAMES, own_KD), ["a"], ["x"], own_KD[2:3], own_KD)
    assert found.typical == {"rain": [("a", "x", pytest.approx(1.0, abs=1e-2))]}
    assert [(q.id, q.answer) for q in found.to_label] == [("a", "rain")]


def test_no_row():
    own_KD = label_vectors(4)
    found = illustrate(adapted_labels(NAMES, own_KD), [], None, np.empty((0, WIDTH)), own_KD)
    assert len(found) == 0
    assert (found.typical, found.moved, found.to_label) == ({}, {}, [])
    assert found.points_S2.shape == (0, 2)
    assert found.old_places_K2.shape == (4, 2)


def test_doubtful_rows_are_asked_about_once_a_text_and_not_twice():
    own_KD = label_vectors(4)
    sure_ND = rows_around(own_KD, 30, spread=0.05)
    between_ND = unit(own_KD[[0]] + own_KD[[1]] + rows_around(own_KD, 3, 5)[:10] * 0.8)
    x_ND = np.concatenate([sure_ND, between_ND, between_ND])
    ids = [f"{i:03d}" for i in range(len(x_ND))]
    texts = [f"t{i}" for i in range(120)] + [f"Between {i}" for i in range(10)]
    texts += [f"between  {i}" for i in range(10)]
    adapted = adapted_labels(NAMES, own_KD)
    asked = illustrate(adapted, ids, texts, x_ND, own_KD).to_label
    assert len(asked) <= QUESTIONS
    assert asked[0].text.startswith("Between")  # the copy with the lower id
    assert {asked[0].answer, asked[0].second} == {"news", "cats"}
    assert not any(q.text.startswith("between ") for q in asked)
    known = asked[0].text.upper()
    again = illustrate(adapted, ids, texts, x_ND, own_KD, labelled_texts=[known]).to_label
    assert asked[0].text not in {q.text for q in again}


def test_labels_with_few_sure_rows_are_asked_about():
    """ "food" is nobody's answer: the row nearest to what it says is among those asked about."""
    own_KD = label_vectors(4)
    weight_KD = own_KD.copy()
    weight_KD[3] = -own_KD[3]
    x_ND = np.concatenate([rows_around(own_KD[:3], 20), unit(own_KD[[0]] + 0.7 * own_KD[[3]])])
    ids = [f"{i:03d}" for i in range(61)]
    asked = illustrate(adapted_labels(NAMES, weight_KD), ids, None, x_ND, own_KD).to_label
    assert asked[0].id == ids[int((x_ND @ own_KD[3]).argmax())]
    assert asked[0].second == "food"


def test_200_labels():
    own_KD = unit(np.random.default_rng(0).normal(size=(200, WIDTH)))
    names = [f"label {k}" for k in range(200)]
    x_ND = rows_around(own_KD, 5, spread=0.1)
    ids = [str(i) for i in range(1000)]
    found = illustrate(adapted_labels(names, own_KD), ids, None, x_ND, own_KD)
    assert len(found.to_label) == QUESTIONS
    assert len({q.id for q in found.to_label}) == QUESTIONS
    assert found.names == sorted(names)


@pytest.mark.parametrize("wrong", ["ids", "texts", "rows"])
def test_what_does_not_belong_together_is_refused(wrong):
    adapted, ids, texts, x_ND, own_KD = moved_fit()
    if wrong == "rows":
        ids = ["a"] * (MAX_SAMPLE_ROWS + 1)
        texts, x_ND = None, np.zeros((len(ids), WIDTH), np.float32)
    ids, texts = (ids[1:], texts) if wrong == "ids" else (ids, texts)
    texts = texts[1:] if wrong == "texts" else texts
    with pytest.raises(InputError, match=r"illustrate: .* at most 5,000"):
        illustrate(adapted, ids, texts, x_ND, own_KD)
