"""What has been answered so far, added up over the workers of a job, and when to stop it.

Ray keeps a `RowCounter` in an actor; this module loads nothing heavy, so that it stays small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from sce.errors import TooManyErrors

MIN_ROWS_FOR_SHARE = 1000


@dataclass(frozen=True)
class ErrorLimit:
    """How many rows may have errors: a count, or a share of the rows. A share of the rows so far
    counts from 1,000 on, that of all rows whatever their number."""

    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, value: str) -> ErrorLimit:
        """`100` is a count, `1%` and `0.01` are shares. Raises `ValueError` on anything else."""
        number, percent = value.strip().removesuffix("%"), value.strip().endswith("%")
        with suppress(ValueError):
            if not percent and float(number).is_integer() and float(number) >= 0:
                return cls(count=int(float(number)))
            share = float(number) / 100 if percent else float(number)
            if 0 <= share <= 1:
                return cls(share=share)
        raise ValueError(f"{value!r} is neither a count (100) nor a share (1%)")

    def exceeded(self, rows: int, errors: int, finished: bool = False) -> bool:
        """Whether there are too many of them. A job that has `finished` without an answer to any
        row has too many under every limit but 100%."""
        if self.count is not None:
            return errors > self.count or (finished and 0 < rows == errors)
        assert self.share is not None
        return (finished or rows >= MIN_ROWS_FOR_SHARE) and errors > self.share * rows


def _check_limit(value: str) -> str:
    ErrorLimit.parse(value)
    return value


MaxErrors = Annotated[str, BeforeValidator(str), AfterValidator(_check_limit)]
"""A setting that `ErrorLimit.parse` reads."""


@dataclass(frozen=True)
class ActorCounts:
    """Rows answered (again, where a kill undid them), rows by error, when the first block began and
    the last one ended, and how long the slowest model took to load."""

    rows: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    started: float = 0.0
    finished: float = 0.0
    load_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.finished - self.started

    @property
    def rows_per_second(self) -> float:
        return self.rows / max(self.seconds, 1e-3)


class RowCounter:
    """Adds up what the workers say of themselves, each its own totals: nothing is counted twice
    when one asks again, and nothing is lost when the counter is started anew."""

    def __init__(self, limit: ErrorLimit) -> None:
        self._limit = limit
        self._by_actor: dict[str, ActorCounts] = {}

    def report(self, actor: str, work: ActorCounts) -> ActorCounts | None:
        """The totals if they are too many errors, else None."""
        self._by_actor[actor] = work
        total = self.totals()
        return total if self._limit.exceeded(total.rows, sum(total.errors.values())) else None

    def totals(self) -> ActorCounts:
        counts = self._by_actor.values()
        return ActorCounts(
            sum(work.rows for work in counts),
            add_counts(work.errors for work in counts),
            min((work.started for work in counts), default=0.0),
            max((work.finished for work in counts), default=0.0),
            max((work.load_seconds for work in counts), default=0.0),
        )


def add_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sums by word, the largest first."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total.most_common())


def too_many_errors(
    rows: int, errors: Mapping[str, int], lines: Iterable[str] = (), cause: str = ""
) -> TooManyErrors:
    """What a job ends with that is over its limit.

    Args:
        lines: what is wrong with the first bad lines.
        cause: what that most likely comes from.
    """
    listed = ", ".join(f"{code} {count:,}" for code, count in Counter(errors).most_common())
    parts = [f"max_errors: {sum(errors.values()):,} of {rows:,} rows have errors ({listed})."]
    parts += [f"  {line}" for line in lines]
    parts += [cause] if cause else []
    parts.append(
        "If that is as it should be, run again with a higher --max-errors; the rows done are kept."
    )
    return TooManyErrors("\n".join(parts))
