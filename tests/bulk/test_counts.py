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
