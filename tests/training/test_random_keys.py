"""Random numbers that follow from (seed, epoch, row id) alone."""

import numpy as np
from scipy import stats

from sce.training.random_keys import permutation, row_keys, some_places, uniforms

KEYS = row_keys([f"row-{i}" for i in range(20_000)])


def test_numbers_do_not_depend_on_which_rows_are_drawn_together():
    whole = uniforms(1, 2, "x", KEYS, 3)
    some = np.array([5, 17, 19_999])
    np.testing.assert_array_equal(uniforms(1, 2, "x", KEYS[some], 3), whole[some])


def test_seed_epoch_stream_and_column_give_independent_uniforms():
    columns = [
        *uniforms(0, 0, "x", KEYS, 2).T,
        uniforms(1, 0, "x", KEYS)[:, 0],
        uniforms(0, 1, "x", KEYS)[:, 0],
        uniforms(0, 0, "y", KEYS)[:, 0],
    ]
    for column in columns:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    correlation = np.corrcoef(columns)
    assert np.abs(correlation - np.eye(len(columns))).max() < 0.03


def test_the_permutation_follows_the_rows_not_their_places():
    order = permutation(3, 1, KEYS)
    assert sorted(order) == list(range(len(KEYS)))
    moved = np.random.default_rng(0).permutation(len(KEYS))
    np.testing.assert_array_equal(KEYS[order], KEYS[moved][permutation(3, 1, KEYS[moved])])
    assert (permutation(3, 2, KEYS) != order).any()


def test_some_places_are_the_same_rows_in_any_order():
    ids = [f"row-{i}" for i in range(50)]
    places = some_places(ids, 10)
    assert places.tolist() == sorted(set(places.tolist()))
    assert len(places) == 10
    turned = ids[::-1]
    assert {ids[i] for i in places} == {turned[i] for i in some_places(turned, 10)}
    assert some_places(ids, 50).tolist() == some_places(ids, None).tolist() == list(range(50))
    assert places.tolist() != some_places(ids, 10, seed=1).tolist()
