"""Load on a server, every answer checked."""

import asyncio
import json
import random
import socket
import threading
import time
from collections import Counter
from typing import Any

import aiohttp

TOKEN = "a-token-that-is-long-enough"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
LABELS = ["late delivery", "billing", "praise"]
TEXTS = [f"the {word} number {i} is late" for i in range(40) for word in ("parcel", "invoice")]


class Load:
    """Clients that ask without a pause, in a thread, and check every answer.

    Args:
        allowed: answers that are right, one mapping for each model that may answer.
    """

    def __init__(self, url: str, allowed: list[dict[str, tuple[str, float]]]) -> None:
        self.statuses: Counter[int] = Counter()
        self.wrong: list[Any] = []
        self.answered: list[tuple[float, int]] = []
        self._url, self._allowed = url, allowed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> "Load":
        self._thread.start()
        time.sleep(2)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(self._client(session, random.Random(i)) for i in range(8)))

    async def _client(self, session: aiohttp.ClientSession, dice: random.Random) -> None:
        while not self._stop.is_set():
            texts = dice.sample(TEXTS, 3)
            body = {"texts": texts, "labels": dice.sample(LABELS, 3)}
            url = f"{self._url}/v1/classify"
            try:
                async with session.post(url, json=body, headers=HEADERS) as response:
                    status, content = response.status, await response.read()
            except aiohttp.ClientError:
                status, content = 0, b""
                await asyncio.sleep(0.1)  # nobody listens
            self.statuses[status] += 1
            self.answered.append((time.monotonic(), status))
            if status == 200:
                rows = json.loads(content)["data"]
                given = [(row["label"], row["score"]) for row in rows]
                if not any(self._same(given, [one[t] for t in texts]) for one in self._allowed):
                    self.wrong.append((texts, given))

    @staticmethod
    def _same(given: list[Any], wanted: list[Any]) -> bool:
        return all(a[0] == b[0] and abs(a[1] - b[1]) < 1e-4 for a, b in zip(given, wanted))


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
