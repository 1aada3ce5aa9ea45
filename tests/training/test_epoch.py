"""Training without Ray: loss falls, workers share a batch exactly, schedule and optimiser."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from sce.labels import LabelSet
from sce.model.encoder import SCEConfig, SCEModel
from sce.training.data import Rows
from sce.training.episodes import EpisodeObjective, EpisodeSampler
from sce.training.epoch import make_optimizer, rate_factor, train_epoch
from sce.training.settings import AugmentConfig, TrainConfig
from tests.training.test_episodes import ENCODER, text_vectors

LABELS = LabelSet.parse([f"label {i}" for i in range(6)])


def episodes(rows: int = 70) -> EpisodeObjective:
    torch.manual_seed(0)
    model = SCEModel(SCEConfig(encoder=ENCODER, embedding_dim=64))
    names = [LABELS.names[i % 6] for i in range(rows)]
    noise = torch.randn(rows, 64, generator=torch.Generator().manual_seed(0))
    # Texts that do not lie near their label's name: there is something to learn.
    queries = torch.from_numpy(text_vectors([f"about {n}" for n in names])) + 0.05 * noise
    queries = torch.nn.functional.normalize(queries, dim=-1).numpy()
    ids, sets = [f"row-{i}" for i in range(rows)], ["set"] * rows
    sampler = EpisodeSampler(
        Rows(ids, sets, names, sets, queries),
        {"set": LABELS},
        text_vectors,
        None,
        AugmentConfig(view_weights={"name": 1}),
        seed=0,
        version=0,
    )
    return EpisodeObjective(model, sampler, torch.device("cpu"))


def test_the_loss_falls():
    objective = episodes()
    config = TrainConfig(epochs=8, batch_size=8, learning_rate=1e-3)
    optimizer = make_optimizer(objective.model, config)
    losses = []
    for epoch in range(8):
        stats = train_epoch(objective, optimizer, config, epoch)
        assert stats.rows == 70
        losses.append(stats.loss_sum / stats.rows)
    assert losses[-1] < 0.3 * losses[0]


def test_the_shares_of_two_workers_add_up_to_the_gradient_of_one():
    """70 rows in batches of 23: the last batch has one row, fewer than there are workers."""
    objective = episodes()
    config = TrainConfig(batch_size=23, learning_rate=1e-3)
    gradients: dict[tuple[int, int], list[torch.Tensor]] = {}

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([p.grad.clone() for g in self.param_groups for p in g["params"]])

    for rank, world_size in ((0, 1), (0, 2), (1, 2)):
        seen: list[list[torch.Tensor]] = []
        trained = copy.deepcopy(objective)
        parameters = [p for p in trained.model.parameters() if p.requires_grad]
        optimizer = Recorder([{"params": parameters, "rate": 0.0}], lr=0.0)
        wide = config.model_copy(update={"max_grad_norm": 1e9})
        train_epoch(trained, optimizer, wide, 0, rank, world_size)
        gradients[rank, world_size] = seen
    assert len(gradients[0, 1]) == 4
    for one, first, second in zip(gradients[0, 1], gradients[0, 2], gradients[1, 2], strict=True):
        for a, b, c in zip(one, first, second, strict=True):
            torch.testing.assert_close((b + c) / 2, a, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_rate_rises_then_decays_to_its_end(decay):
    config = TrainConfig(
        learning_rate=1e-5, final_learning_rate=1e-6, decay=decay, warmup_fraction=0.1
    )
    factors = [rate_factor(step, 100, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(0.1)
    assert all(a < b for a, b in itertools.pairwise(factors[:10]))
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_matrices_alone_decay_and_frozen_parameters_are_left_out():
    model = episodes(6).model
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.5, scale_learning_rate=0.25))
    counted = sum(p.numel() for g in optimizer.param_groups for p in g["params"])
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] == 0.5) == (parameter.dim() > 1 and parameter.numel() > 2)
    assert optimizer.param_groups[2]["rate"] == 0.25


def test_adam_adds_the_decay_to_the_gradient_and_adamw_does_not():
    """One step with a zero gradient: L2 moves a weight by the full rate (Adam normalises it),
    decoupled decay by rate * decay * weight."""
    model = episodes(6).model
    weight = model.query_adaptor.weight
    before = weight.detach().clone()
    for kind, moved in (("adamw", 1e-3 * 1e-2), ("adam", 1e-3)):
        config = TrainConfig(optimizer=kind, learning_rate=1e-3, weight_decay=1e-2)
        with torch.no_grad():
            weight.copy_(before)
        optimizer = make_optimizer(model, config)
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        assert float(before[0, 0] - weight.detach()[0, 0]) == pytest.approx(moved, rel=1e-2)


def test_bfloat16_training_stays_near_float32():
    losses = []
    for precision in ("float32", "bfloat16"):
        objective = episodes()
        config = TrainConfig(batch_size=8, learning_rate=1e-3, precision=precision)
        optimizer = make_optimizer(objective.model, config)
        stats = train_epoch(objective, optimizer, config, 0)
        losses.append(stats.loss_sum / stats.rows)
        assert objective.model.query_adaptor.weight.dtype == torch.float32
    assert math.isclose(*losses, rel_tol=0.02)
    assert np.isfinite(losses).all()
