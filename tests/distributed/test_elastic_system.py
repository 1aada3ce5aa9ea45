"""A training that may have fewer workers, a node for each: one is lost, and one joins."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from ray.cluster_utils import Cluster

from sce.distributed.workers import RESIZE_SECONDS
from tests.tiny_models import build_all

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 80
EPOCH = re.compile(rf"epoch (\d+)/{EPOCHS}  loss (\S+)")

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]


@pytest.fixture
def home(tmp_path) -> Path:
    models = build_all(tmp_path / "models")
    rows = [
        {"text": f"{words} {i}", "label": label, "split": split}
        for i, split in enumerate(["train"] * 100 + ["validation"] * 4 + ["test"] * 4)
        for label, words in (("flood", "river rain"), ("praise", "thank you"), ("car", "motor"))
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = yaml.safe_load((ROOT / "configs" / "tiny" / "sce.yaml").read_text())
    source = {"dataset": "custom", "name": "own", "path": str(tmp_path / "own.jsonl")}
    config |= {"data": {"sources": [source]}, "shared_dir": str(tmp_path / "shared")}
    config["embedder"]["model"] = str(models["jina"])
    config["model"]["encoder"] = str(models["roberta"])
    # Without dropout the losses do not depend on which worker trains which rows.
    config["train"] = {"epochs": EPOCHS, "batch_size": 8, "patience": EPOCHS, "dropout": 0.0}
    config["resources"] = {"num_workers": 2, "min_workers": 1, "cpus_per_worker": 2}
    config["evaluate"] = {"pictures": False, "bootstrap_samples": 100, "flip_shuffles": 1}
    config["tracking"] = {"enabled": False}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


class Training:
    """`jobs/train_sce.py` on the cluster, its lines read one by one."""

    def __init__(self, home: Path, name: str, address: str) -> None:
        command = [sys.executable, "jobs/train_sce.py", "--config", str(home / "tiny.yaml")]
        self.lines: list[str] = []
        self.losses: dict[int, float] = {}
        self._process = subprocess.Popen(
            [*command, "--run-dir", str(home / name)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "RAY_ADDRESS": address, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    @property
    def epoch(self) -> int:
        """The last one that was told of."""
        return max(self.losses, default=0)

    def read(self, epoch: int) -> None:
        """On to the line of this epoch, or to the end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)
            if found := EPOCH.search(line):
                self.losses[int(found[1])] = float(found[2])
                if int(found[1]) >= epoch:
                    return

    def finish(self) -> None:
        self.read(EPOCHS + 1)
        assert self._process.wait(60) == 0, "".join(self.lines)[-5000:]

    def resumed(self) -> list[int]:
        """After which epochs it went on."""
        found = re.findall(r"going on after epoch (\d+)", "".join(self.lines))
        return [int(epoch) for epoch in found]


def workers() -> int:
    """How many train now: processes that the nodes of this test's cluster began."""
    count = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, IndexError):
            count += process.cmdline()[0].startswith("ray::RayTrainWorker")
    return count


def test_a_node_is_lost_and_another_joins(home):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    cluster.wait_for_nodes()
    try:
        began = time.monotonic()
        calm = Training(home, "calm", cluster.address)
        calm.finish()
        undisturbed = time.monotonic() - began
        disturbed = Training(home, "disturbed", cluster.address)
        disturbed.read(5)
        counts = [workers()]
        began = time.monotonic()
        cluster.remove_node(nodes[1], allow_graceful=False)
        disturbed.read(disturbed.epoch + 2)
        lost = time.monotonic() - began
        counts.append(workers())
        cluster.add_node(num_cpus=2)
        began = time.monotonic()
        while workers() < 2 and disturbed.epoch < EPOCHS - 1:
            disturbed.read(disturbed.epoch + 1)
        joined = time.monotonic() - began
        counts.append(workers())
        disturbed.finish()
    finally:
        cluster.shutdown()
    print(f"undisturbed {undisturbed:.0f} s; workers {counts}: two epochs trained {lost:.0f} s")
    print(f"after a node was lost, another joined within {joined:.0f} s of its start")
    print(f"went on after epochs {disturbed.resumed()}; epoch, loss undisturbed, disturbed:")
    for epoch, loss in calm.losses.items():
        print(f"{epoch:3} {loss:.4f} {disturbed.losses[epoch]:.4f}")
    assert counts == [2, 1, 2]
    assert joined < RESIZE_SECONDS + 60
    assert len(disturbed.resumed()) >= 2
    assert disturbed.losses == pytest.approx(calm.losses, abs=1e-3)
