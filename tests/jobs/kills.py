"""A job that is killed again and again at random moments, and begun again by the same command until
it is through: its driver, one of the processes at work for it, or the raylet of its Ray.

    KILLS=50 KILLS_SEED=1 pytest -m system -k kills_in_a_row -rP

How many, 4 unless `KILLS` says otherwise; the seed is printed. (A name with SCE_ would be taken for
a setting of the job.)
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

REFUSED = "Ray cannot start on this machine"
"""Ray waits half a minute for its own start, which may not do where others take the cores. Then the
job says so, and is begun again."""
KILLS = int(os.environ.get("KILLS", 4))
SEED = int(os.environ.get("KILLS_SEED", random.SystemRandom().randrange(10**6)))


def kill_in_a_row(
    begin: Callable[[int], subprocess.Popen],
    check: Callable[[int], None],
    log: Callable[[int], Path],
    seconds: float,
) -> str:
    """Kill `KILLS` times.

    Args:
        begin: starts the job for an output of this number. An output that is whole before all kills
            are done is followed by the next.
        check: of an output that is whole.
        log: of the job for an output.
        seconds: that an undisturbed run takes; a kill comes within these after the job was begun,
            or after the last kill where it goes on.

    Returns:
        What was killed, in words.
    """
    dice, killed, output, begun, what = random.Random(SEED), Counter[str](), 0, 1, "nothing"
    refused = 0
    print(f"KILLS_SEED={SEED}", flush=True)
    process = begin(output)
    while killed.total() < KILLS:
        may_fail, what = False, "nothing"
        with suppress(subprocess.TimeoutExpired):
            process.wait(dice.uniform(0, seconds))
        if process.poll() is None:
            what = dice.choice(("driver", "worker", "raylet"))
            may_fail = what != "worker"
            killed[what] += _kill(process, what)
            print(f"{killed.total()} {what}", flush=True)
        if process.poll() is not None:
            if not may_fail and process.returncode != 0:
                assert REFUSED in log(output).read_text()[-500:], _told(process, what, log(output))
                refused += 1
            if process.returncode == 0:
                check(output)
                output += 1
            begun += 1
            process = begin(output)
    assert process.wait(300) == 0, _told(process, what, log(output))
    check(output)
    kinds = ", ".join(f"{what} {count}" for what, count in sorted(killed.items()))
    starts = f"{begun} starts" + (f", {refused} of which Ray refused" if refused else "")
    return f"{killed.total()} kills ({kinds}), {starts}, {output + 1} outputs, each whole"


def _told(process: subprocess.Popen, what: str, log: Path) -> str:
    return f"exit {process.returncode}, {what} killed last: {log.read_text()[-8000:]}"


def _kill(process: subprocess.Popen, what: str) -> bool:
    """Whether it was there to be killed. A job without its raylet must end, and not well."""
    if what == "driver":
        process.kill()
        process.wait()
        return True
    found = _found(process.pid, what)
    if found is None:
        return False
    with suppress(psutil.NoSuchProcess):
        print(f"kill {found.name()}", flush=True)
        found.kill()
    if what == "raylet":
        try:
            process.wait(120)
        except subprocess.TimeoutExpired as error:
            raise AssertionError("the job has not noticed that its raylet is gone") from error
    return True


def _found(pid: int, what: str) -> psutil.Process | None:
    """The raylet; or a process that maps or reads blocks, and where none does for some seconds, as
    in a job of short tasks, any process of Ray's actors and tasks. Waits until there is one."""
    began = time.monotonic()
    while time.monotonic() - began < 20:
        with suppress(psutil.NoSuchProcess):
            for one in psutil.Process(pid).children(recursive=True):
                with suppress(psutil.Error):
                    title = " ".join(one.cmdline())
                    at_work = "Map" in title or "Read" in title or time.monotonic() - began > 3
                    if what == "raylet" == one.name() or (
                        what == "worker"
                        and title.startswith("ray::")
                        and "Agent" not in title  # the raylet ends with its agents
                        and at_work
                    ):
                        return one
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return None
        time.sleep(0.05)
    return None
