"""An epoch of LoRA fine-tuning: the step's gradient, whoever computes it; what is drawn."""

import threading

import pytest
import torch

from sce.baselines.llama_training import LlamaObjective, LlamaRows
from sce.baselines.lora import add_adapters, load_base, load_chat_tokenizer
from sce.baselines.prompted import PromptedClassifier
from sce.baselines.settings import LlamaTrainConfig, LoraSettings
from sce.labels import LabelSet
from sce.training.epoch import make_optimizer, train_epoch
from tests.tiny_models import build_llama

SETTINGS = LoraSettings(rank=4, dtype="float32", quantisation="none", gradient_checkpointing=False)
SET = LabelSet.parse(["flood", "engine trouble", "praise"])
WORDS = {"flood": "river water rain", "engine trouble": "car motor smoke", "praise": "thank you"}
ROWS = LlamaRows(
    [f"r{i}" for i in range(25)],
    [f"{WORDS[SET.names[i % 3]]} {i}" for i in range(25)],
    [SET.names[i % 3] for i in range(25)],
    ["s"] * 25,
    {"s": SET},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    build_llama(folder / "base")
    return folder


def fresh(folder, config):
    torch.manual_seed(0)
    tokenizer = load_chat_tokenizer(folder / "base")
    model = add_adapters(load_base(folder / "base", SETTINGS, "cpu"), SETTINGS)
    classifier = PromptedClassifier(model, tokenizer, "sentence")
    objective = LlamaObjective(classifier, ROWS, config, seed=3)
    return model, classifier, objective, make_optimizer(model, config)


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def train(folder, micro, accumulation, workers, epochs=1, rate=3e-3):
    config = LlamaTrainConfig(
        micro_batch_size=micro, accumulation_steps=accumulation, learning_rate=rate, epochs=epochs
    )
    made = [fresh(folder, config) for _ in range(workers)]
    losses = [0.0] * workers
    barrier, shared = threading.Barrier(workers), [None] * workers

    def run(rank: int) -> None:
        _, _, objective, optimizer = made[rank]

        def reduce(gradients) -> None:
            shared[rank] = gradients
            barrier.wait(60)
            sums = [torch.stack(some).sum(0) for some in zip(*shared, strict=True)]
            barrier.wait(60)
            for gradient, total in zip(gradients, sums, strict=True):
                gradient.copy_(total)

        for epoch in range(epochs):
            stats = train_epoch(objective, optimizer, config, epoch, rank, workers, reduce)
        losses[rank] = stats.loss_sum

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made, sum(losses) / len(ROWS)


@pytest.mark.parametrize(("micro", "accumulation", "workers"), [(1, 8, 1), (2, 4, 2), (3, 3, 1)])
def test_a_step_is_the_same_however_it_is_cut(folder, micro, accumulation, workers):
    """25 rows in steps of 8: the last has one row, fewer than there are workers."""
    size = micro * accumulation
    ((one, *_),), _ = train(folder, size, 1, 1)
    made, _ = train(folder, micro, accumulation, workers)
    for model, *_ in made:
        torch.testing.assert_close(weights(model), weights(one), atol=2e-5, rtol=1e-3)


def test_the_loss_goes_down_and_the_labels_are_learned(folder):
    _, first = train(folder, 4, 2, 1)
    ((_, classifier, *_),), last = train(folder, 8, 1, 1, epochs=12, rate=2e-2)
    assert last < 0.3 * first
    found = classifier.scores(ROWS.texts, SET).argmax(1)
    assert [SET.names[k] for k in found] == ROWS.labels


def test_what_is_drawn_follows_from_seed_epoch_and_row(folder):
    config = LlamaTrainConfig()
    _, _, objective, _ = fresh(folder, config)
    one = objective.samples(0, [0, 5])
    again = objective.samples(0, [5, 0])
    assert sorted(map(tuple, one.ids_BT.tolist())) == sorted(map(tuple, again.ids_BT.tolist()))
    orders = {tuple(objective.samples(epoch, [0]).ids_BT[0].tolist()) for epoch in range(8)}
    assert len(orders) > 2
    _, _, fixed, _ = fresh(folder, LlamaTrainConfig(shuffle_labels=False))
    assert len({tuple(fixed.samples(e, [0]).ids_BT[0].tolist()) for e in range(8)}) == 1


def test_the_batch_size_follows_from_its_parts():
    assert LlamaTrainConfig().batch_size == 64
    assert LlamaTrainConfig(micro_batch_size=4, accumulation_steps=8).batch_size == 32
    with pytest.raises(ValueError, match="leave it out"):
        LlamaTrainConfig(batch_size=7)
