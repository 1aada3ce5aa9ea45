"""Faults in the middle of the work, on a cluster of several machines: what happens, how long it
takes to recover, and what is lost.

    make chaos
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.cluster.faults import (
    CLASSIFY,
    EMBED,
    HOME,
    Fault,
    Place,
    a_worker,
    begun,
    ended,
    faulty,
    needed,
    replace,
    same_labels,
    seen,
    served,
    strike,
    whole_output,
    whole_store,
)
from tests.cluster.machines import Machine
from tests.cluster.services import until
from tests.serve.load import Load

pytestmark = needed
DONE = re.compile(r" epoch (\d+)/12 +loss")


@pytest.fixture(scope="module")
def place(tmp_path_factory, request) -> Iterator[Place]:
    with faulty(tmp_path_factory.mktemp("chaos"), request) as made:
        yield made


def test_a_machine_is_killed_while_it_trains(place):
    training = ["jobs/train_sce.py", "--config", f"{HOME}/in/tiny.yaml"]
    training += ["--train.epochs", "12", "--train.patience", "12"]
    training += ["--resources.num-workers", "2", "--resources.cpus-per-worker", "2.5"]
    place.cluster.begin("train", *training)

    def at_work() -> list[Machine]:
        return [one for one in place.cluster.workers if one.processes("ray::RayTrainWorker")]

    seen(place, "train", lambda: len(at_work()) == 2, "training on two machines")
    seen(place, "train", lambda: DONE.search(place.cluster.log("train")), "an epoch")
    time.sleep(place.dice.uniform(0, 2))
    killed, began = at_work()[0], time.monotonic()
    killed.kill()
    done = DONE.findall(place.cluster.log("train"))[-1]
    seconds = ended(place, "train", began)
    assert (HOME / "run" / "model" / "model.safetensors").is_file()
    resumed = re.findall(r"going on after epoch (\d+)", place.cluster.log("train"))[-1]
    said = f"two workers begin anew on those left, after epoch {resumed}"
    lost = f"{int(done) - int(resumed)} of {done} epochs"
    place.faults.append(Fault("machine killed, train", said, seconds, lost))
    replace(place, killed)


def test_a_machine_is_killed_while_it_embeds(place):
    since = begun(place, "embed-0", "jobs/embed.py", *EMBED, "--store", f"{HOME}/out/calm")
    place.undisturbed["embed"] = ended(place, "embed-0", since)
    whole_store("calm")

    begun(place, "embed-1", "jobs/embed.py", *EMBED, "--store", f"{HOME}/out/killed")
    killed, began = a_worker(place), strike(place, "embed-1", place.undisturbed["embed"])
    killed.kill()
    seconds = ended(place, "embed-1", began)
    lost = whole_store("killed", "calm")
    said = f"its rows are embedded by the others (undisturbed {place.undisturbed['embed']:.0f} s)"
    place.faults.append(Fault("machine killed, embed", said, seconds, lost))
    replace(place, killed)


def test_a_machine_is_killed_while_it_classifies(place):
    since = begun(place, "classify-0", "jobs/classify.py", *CLASSIFY, "--output", f"{HOME}/out/c0")
    place.undisturbed["classify"] = ended(place, "classify-0", since)
    begun(place, "classify-1", "jobs/classify.py", *CLASSIFY, "--output", f"{HOME}/out/c1")
    killed, began = a_worker(place), strike(place, "classify-1", place.undisturbed["classify"])
    killed.kill()
    seconds = ended(place, "classify-1", began)
    lost = whole_output("c1")
    assert same_labels("c0", "c1")
    calm = place.undisturbed["classify"]
    said = f"its rows are answered by the others (undisturbed {calm:.0f} s)"
    place.faults.append(Fault("machine killed, classify", said, seconds, lost))
    replace(place, killed)


def test_a_network_is_cut_and_healed(place):
    begun(place, "classify-2", "jobs/classify.py", *CLASSIFY, "--output", f"{HOME}/out/c2")
    cut, began = a_worker(place), strike(place, "classify-2", place.undisturbed["classify"])
    cut.cut()
    time.sleep(20)
    cut.heal()
    seconds = ended(place, "classify-2", began)
    lost = whole_output("c2")
    place.faults.append(
        Fault(
            "network cut for 20 s, classify", "its tasks ask anew for what they need", seconds, lost
        )
    )
    deadline = time.monotonic() + 60
    while place.cluster.alive() != 4 and time.monotonic() < deadline:
        time.sleep(1)
    if place.cluster.alive() != 4:  # declared dead meanwhile: its raylet ends itself
        cut.kill()
        replace(place, cut)


def test_s3_answers_503_and_slowly(place):
    begun(place, "classify-3", "jobs/classify.py", *CLASSIFY, "--output", f"{HOME}/out/c3")
    place.s3.share, place.s3.delay, refused, began = 0.3, 0.2, place.s3.refused, time.monotonic()
    try:
        seconds = ended(place, "classify-3", began)
    finally:
        place.s3.share = place.s3.delay = 0.0
    lost = whole_output("c3")
    said = f"{place.s3.refused - refused} requests refused (30%), others 0.2 s late; asked again"
    place.faults.append(Fault("S3 503 and slow, classify", said, seconds, lost))


def test_mlflow_is_down(place):
    place.tracking.stop()
    began = time.monotonic()
    back = threading.Timer(60, place.tracking.start)
    back.start()
    place.cluster.begin("classify-4", "jobs/classify.py", *CLASSIFY, "--output", f"{HOME}/out/c4")
    state = place.cluster.wait("classify-4", 400)
    log = place.cluster.log("classify-4")
    assert state == "SUCCEEDED", log[-6000:]
    lost = whole_output("c4")
    recorded = "recorded" if "without tracking it" not in log else "not recorded, which is said"
    said = f"answers are written; the run is {recorded}"
    place.faults.append(
        Fault("MLflow and database down for 60 s, classify", said, time.monotonic() - began, lost)
    )
    back.join()


def test_a_machine_is_told_to_end(place):
    """SIGTERM with a grace period, as Kubernetes sends it."""
    begun(place, "classify-5", "jobs/classify.py", *CLASSIFY, "--output", f"{HOME}/out/c5")
    told, began = a_worker(place), strike(place, "classify-5", place.undisturbed["classify"])
    told.terminate()
    seconds = ended(place, "classify-5", began)
    lost = whole_output("c5")
    gone = left(told) - began
    said = f"its rows are answered by the others; its Ray ends after {gone:.0f} s"
    place.faults.append(Fault("SIGTERM to a machine, classify", said, seconds, lost))
    replace(place, told)


def test_a_machine_is_told_to_end_under_load(place, tmp_path):
    url, right = served(place, tmp_path)
    told = place.cluster.workers[1]
    with Load(url, [right]) as clients:
        time.sleep(place.dice.uniform(1, 4))
        told.terminate()
        began = time.monotonic()
        gone = left(told) - began
        time.sleep(10)
    said = f"its replicas are begun elsewhere before it ends, after {gone:.0f} s"
    answered(place, clients, "SIGTERM to a machine, serve", said, began)
    replace(place, told)


def test_a_machine_is_killed_under_load(place, tmp_path):
    url, right = served(place, tmp_path)
    killed = place.cluster.workers[1]
    with Load(url, [right]) as clients:
        time.sleep(place.dice.uniform(1, 4))
        killed.kill()
        began = time.monotonic()
        time.sleep(45)
    answered(place, clients, "machine killed, serve", "the others answer", began)


def left(machine: Machine) -> float:
    """Wait until nothing of Ray is left on it. Returns when that was."""
    until(lambda: not machine.processes("/raylet/raylet"), 90, "the end of its Ray")
    machine.kill()
    return time.monotonic()


def answered(place: Place, clients: Load, name: str, said: str, began: float) -> None:
    """Put what clients saw of the endpoint after a fault into the table: no wrong answer, and right
    ones at the end."""
    bad = [at for at, status in clients.answered if status != 200 and at > began]
    seconds = max(bad) - began if bad else 0.0
    assert not clients.wrong
    assert {status for _, status in clients.answered[-20:]} == {200}
    counts = Counter(clients.statuses)
    said += f"; {counts[200]:,} of 8 clients' requests right"
    lost = f"{counts.total() - counts[200]} requests"
    place.faults.append(Fault(name, said, seconds, lost, counts))
