"""What large requests left behind is given back, and a process that has not grown is left alone."""

import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from serve import memory
from serve.memory import UnusedMemory

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import gc, sys
from serve import memory
gc.disable()
def resident():
    return memory._resident() // 2**20
keeper = memory.UnusedMemory()
keeper.give_back()
before = resident()
for _ in range(3):
    circle = [[float(i) for i in range(3_000_000)]]
    circle.append(circle)
    del circle
peak = resident()
keeper.give_back()
print(before, peak, resident())
"""


@pytest.mark.skipif(not memory._STATM.exists(), reason="needs Linux's /proc")
def test_circles_that_nobody_holds_go_back_to_the_system():
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, peak, after = map(int, done.stdout.split())
    assert peak - before > 200
    assert after - before < 40


def test_a_process_at_work_is_not_held_up_for_nothing(monkeypatch):
    sizes = iter([100, 100, 120, 300, 290, 300, 100, 100])
    collected = []
    monkeypatch.setattr(memory, "_resident", lambda: next(sizes) * 2**20)
    monkeypatch.setattr(gc, "collect", lambda: collected.append(1))
    keeper = UnusedMemory()
    keeper._trim = lambda _: 0
    keeper.give_back()  # the first time, so that it knows
    assert len(collected) == 1
    keeper._not_before = 0
    keeper.give_back()  # 120: hardly grown
    assert len(collected) == 1
    keeper.give_back()  # 300, and 290 stay: in use
    assert len(collected) == 2
    keeper.give_back()  # too soon
    assert len(collected) == 2


def test_where_nobody_calls_a_thread_looks(monkeypatch):
    looked = threading.Event()
    monkeypatch.setattr(UnusedMemory, "give_back", lambda self: looked.set())
    UnusedMemory().watch(every_seconds=0.01)
    assert looked.wait(5)
