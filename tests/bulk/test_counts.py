"""How many rows with errors a job may have."""

import pytest

from sce.bulk.counts import ErrorLimit


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        ("100", ErrorLimit(count=100)),
        ("0", ErrorLimit(count=0)),
        (" 1% ", ErrorLimit(share=0.01)),
        ("0.01", ErrorLimit(share=0.01)),
    ],
)
def test_a_count_or_a_share(value, limit):
    assert ErrorLimit.parse(value) == limit


@pytest.mark.parametrize("value", ["", "many", "-1", "1.5", "101%", "inf", "nan", "1e400"])
def test_anything_else_is_refused(value):
    with pytest.raises(ValueError, match="neither a count"):
        ErrorLimit.parse(value)


@pytest.mark.parametrize(
    ("limit", "rows", "errors", "so_far", "in_the_end"),
    [
        ("50%", 4, 2, False, False),
        ("50%", 4, 3, False, True),
        ("50%", 1000, 501, True, True),
        ("100%", 4, 4, False, False),
        ("1%", 99, 1, False, True),
        ("100", 4, 4, False, True),
        ("100", 101, 101, True, True),
        ("100", 400, 100, False, False),
        ("0", 4, 1, True, True),
        ("50%", 0, 0, False, False),
    ],
)
def test_too_many_so_far_and_in_the_end(limit, rows, errors, so_far, in_the_end):
    parsed = ErrorLimit.parse(limit)
    assert parsed.exceeded(rows, errors) == so_far
    assert parsed.exceeded(rows, errors, finished=True) == in_the_end
