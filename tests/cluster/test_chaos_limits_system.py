"""Faults of a cluster whose head keeps what it knows in Redis: the head killed, disks and object
stores that are full, a machine killed while labels are adapted.

    make chaos
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest

from sce.adaptation.artefact import FACTS_FILE, WEIGHTS_FILE
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.storage import open_input, put
from sce.training.fresh_model import build_model
from sce.training.settings import ModelConfig
from tests.cluster import faults
from tests.cluster.faults import HOME, TRAINED, Fault, Place, needed
from tests.cluster.inputs import LABELS
from tests.cluster.services import until
from tests.serve.load import Load

DISK_MB = 400
STORE = "limits"
ADAPT = ["jobs/adapt.py", *TRAINED, "--labels", json.dumps(LABELS)]
ADAPT += ["--trust", "bold"]

pytestmark = [
    *needed,
    pytest.mark.skipif(
        shutil.which("redis-server") is None, reason="redis-server is not installed (apt)"
    ),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, request) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("limits")
    with faults.faulty(folder, request, workers=2, with_redis=True) as made:
        embedder = EmbedderConfig(kind="jina", model=str(folder / "jina"), dtype="float32")
        config = ModelConfig(encoder=str(folder / "roberta"), adaptor_init="normal")
        fresh = build_model(config, embedder_fingerprint(embedder).to_dict(), 0.0, seed=0)
        fresh.model.save_pretrained(folder / "model")
        for file in (folder / "model").rglob("*"):
            if file.is_file():
                put(file, HOME / "run" / "model" / str(file.relative_to(folder / "model")))
        yield made


def test_the_disk_of_a_machine_is_full(place):
    small = place.cluster.add_worker(DISK_MB)
    place.cluster.workers.append(small)
    until(lambda: place.cluster.alive() == 4, 120, "the machine with a small disk")
    job = ["jobs/embed.py", *faults.EMBED, "--store", f"{HOME}/out/{STORE}"]
    place.cluster.begin("embed", *job, "--resources.embed-actors", "3")
    cached = small.folder / "cache"
    until(lambda: any(cached.rglob("*.safetensors")), 180, "an actor on the small machine")
    time.sleep(place.dice.uniform(1, 4))
    with suppress(OSError), (small.folder / "filled").open("wb") as file:
        while True:
            file.write(bytes(2**20))
    assert shutil.disk_usage(small.folder).free < 2**20
    seconds = faults.ended(place, "embed", time.monotonic())
    lost = faults.whole_store(STORE)
    said = f"none of {DISK_MB} MB left: actors there work on"
    place.faults.append(Fault("disk of a machine full, embed", said, seconds, lost))
    small.kill()
    place.cluster.workers.remove(small)
    until(lambda: place.cluster.alive() == 3, 120, "two machines")


def test_a_machine_is_killed_while_labels_are_adapted(place):
    source = ["--input", f"{HOME}/out/{STORE}", "--output"]

    def made(name: str) -> list[bytes]:
        files = (WEIGHTS_FILE, FACTS_FILE)
        return [open_input(HOME / "out" / name / file).read() for file in files]

    began = time.monotonic()
    place.cluster.begin("adapt-0", *ADAPT, *source, f"{HOME}/out/adapted-0")
    undisturbed = faults.ended(place, "adapt-0", began)
    place.cluster.begin("adapt-1", *ADAPT, *source, f"{HOME}/out/adapted-1")
    killed, began = faults.a_worker(place), faults.strike(place, "adapt-1", undisturbed)
    killed.kill()
    seconds = faults.ended(place, "adapt-1", began)
    assert made("adapted-0") == made("adapted-1")
    said = f"the others go on (undisturbed {undisturbed:.0f} s)"
    place.faults.append(Fault("machine killed, adapt", said, seconds, "0 bytes differ"))
    faults.replace(place, killed)


def test_object_stores_are_nearly_full(place):
    """Machines whose store is the smallest that Ray takes, most of it held by somebody else."""
    for machine in list(place.cluster.workers):
        machine.kill()
        place.cluster.workers.remove(machine)
        small = place.cluster.add_worker(None, "--object-store-memory", str(80 * 10**6))
        place.cluster.workers.append(small)
    until(lambda: place.cluster.alive() == 3, 120, "machines with small stores")
    holder = (
        "import ray, time, numpy as np; ray.init()\n"
        "@ray.remote(num_cpus=0, scheduling_strategy='SPREAD')\n"
        "class Holder:\n"
        "  def hold(self): self.kept = ray.put(np.zeros(60_000_000, np.uint8)); return 1\n"
        "held = [Holder.remote() for _ in range(2)]\n"
        "ray.get([one.hold.remote() for one in held]); print('all held', flush=True)\n"
        "time.sleep(600)"
    )
    place.cluster.begin("holder", "-c", holder)
    until(lambda: "all held" in place.cluster.log("holder"), 90, "objects that fill the stores")
    began = time.monotonic()
    output = f"{HOME}/out/nearly"
    place.cluster.begin("nearly", "jobs/classify.py", *faults.CLASSIFY, "--output", output)
    seconds = faults.ended(place, "nearly", began)
    lost = faults.whole_output("nearly")
    place.cluster.stop("holder")
    said = "60 of 80 MB held on each machine: blocks are spilled to disk"
    place.faults.append(Fault("object stores nearly full, classify", said, seconds, lost))


def test_the_head_is_killed_and_another_takes_its_place(place, tmp_path):
    url, right = faults.served(place, tmp_path)
    # The endpoint's replicas leave less than a CPU for an actor.
    job = ["jobs/classify.py", *faults.CLASSIFY, "--resources.cpus-per-embed-actor", "0.5"]
    job += ["--output", f"{HOME}/out/head"]
    faults.begun(place, "head-0", *job)  # its driver is on the head, and ends with it
    with Load(url, [right]) as clients:
        time.sleep(place.dice.uniform(1, 4))
        place.cluster.head.kill()
        began = time.monotonic()
        time.sleep(10)
        place.cluster.head.empty_disk()
        place.cluster.head.boot()
        place.cluster.start_head()
        until(lambda: place.cluster.alive() == 3, 120, "all machines at the new head")
        seconds = time.monotonic() - began
        time.sleep(20)
        count = len(clients.answered)
        time.sleep(5)
        assert len(clients.answered) > count
    assert not clients.wrong
    assert {status for _, status in clients.answered[-20:]} == {200}
    again = time.monotonic()
    place.cluster.begin("head-1", *job)
    resumed = faults.ended(place, "head-1", again)
    lost = faults.whole_output("head")
    lost += f", {sum(n for status, n in clients.statuses.items() if status != 200)} requests"
    said = (
        f"replicas answer all the while ({clients.statuses[200]:,} right); a job whose driver was"
        f" there ends, and the same command goes on ({resumed:.0f} s)"
    )
    place.faults.append(
        Fault("head killed, another after 10 s", said, seconds, lost, Counter(clients.statuses))
    )
