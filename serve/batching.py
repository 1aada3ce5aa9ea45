"""Requests that wait for the device, taken together under a budget.

Ray Serve's own batching closes a batch some milliseconds after its first item, also while the
device is busy: waiting batches stay small. Here a batch is formed when the device is free, of
all that has come until then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchReport:
    """One batch, for the metrics: `cost` in the lane's unit, seconds of the work and of each
    item's wait."""

    lane: str
    items: int
    cost: int
    seconds: float
    waits: list[float]


@dataclass
class _Waiting:
    item: Any
    cost: int
    since: float
    future: asyncio.Future[Any]


@dataclass
class Lane:
    """One kind of work.

    Attributes:
        work: items to as many results, in the device's thread. A result that is an exception is
            raised for its item alone.
        budget: cost of a batch; an item that costs more goes alone.
    """

    name: str
    work: Callable[[list[Any]], Sequence[Any]]
    budget: int
    waiting: deque[_Waiting] = field(default_factory=deque)

    def take(self) -> list[_Waiting]:
        """The next batch: in the order of arrival, without those whose caller has gone."""
        batch: list[_Waiting] = []
        cost = 0
        while self.waiting:
            first = self.waiting[0]
            if first.future.done():
                self.waiting.popleft()
                continue
            if batch and cost + first.cost > self.budget:
                break
            batch.append(self.waiting.popleft())
            cost += first.cost
        return batch


class DeviceQueue:
    """Serves lanes in turn, one batch at a time, in an executor of one thread."""

    def __init__(
        self, executor: Executor, lanes: Sequence[Lane], report: Callable[[BatchReport], None]
    ) -> None:
        self._executor = executor
        self._lanes = {lane.name: lane for lane in lanes}
        self._turns = deque(lanes)
        self._report = report
        self._arrived = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._working_since: float | None = None

    async def submit(self, lane: str, item: Any, cost: int) -> Any:
        """The item's result, or its exception."""
        if self._loop is None:
            self._loop = asyncio.create_task(self._serve())
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._lanes[lane].waiting.append(_Waiting(item, cost, time.perf_counter(), future))
        self._arrived.set()
        return await future

    def close(self) -> None:
        if self._loop is not None:
            self._loop.cancel()

    @property
    def waiting(self) -> int:
        return sum(len(lane.waiting) for lane in self._lanes.values())

    @property
    def working_seconds(self) -> float:
        """How long the batch of now has been with the device."""
        since = self._working_since
        return 0.0 if since is None else time.perf_counter() - since

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self.waiting:
                lane = self._turns[0]
                self._turns.rotate(-1)
                batch = lane.take()
                if batch:
                    try:
                        await self._run(lane, batch)
                    except Exception as error:  # whatever it is, those that come later go on
                        log.exception("a batch of the lane %s was lost", lane.name)
                        for one in batch:
                            if not one.future.done():
                                one.future.set_exception(error)

    async def _run(self, lane: Lane, batch: list[_Waiting]) -> None:
        started = self._working_since = time.perf_counter()
        try:
            results = await self._results(lane, batch)
        finally:
            self._working_since = None
        for one, result in zip(batch, results, strict=True):
            if one.future.done():
                continue
            if isinstance(result, BaseException):
                one.future.set_exception(result)
            else:
                one.future.set_result(result)
        seconds = time.perf_counter() - started
        waits = [started - one.since for one in batch]
        cost = sum(one.cost for one in batch)
        self._report(BatchReport(lane.name, len(batch), cost, seconds, waits))

    async def _results(self, lane: Lane, batch: list[_Waiting]) -> Sequence[Any]:
        """Each item of a batch that fails is tried alone, so that none fails for another."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._executor, lane.work, [one.item for one in batch]
            )
        except Exception as error:
            if len(batch) == 1:
                return [error]
        return [(await self._results(lane, [one]))[0] for one in batch]


def pieces_within(costs_N: np.ndarray, budget: int) -> list[tuple[int, int]]:
    """Ranges of rows that cost no more than the budget together, or one row that does."""
    ends_N = np.cumsum(costs_N)
    pieces = []
    start = 0
    while start < len(costs_N):
        spent = int(ends_N[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends_N, spent + budget, side="right")))
        pieces.append((start, end))
        start = end
    return pieces


def grouped(places: Iterable[int], key: Callable[[int], Any]) -> list[list[int]]:
    """The places whose key is the same, together, in the order in which they came."""
    groups: dict[Any, list[int]] = {}
    for i in places:
        groups.setdefault(key(i), []).append(i)
    return list(groups.values())
