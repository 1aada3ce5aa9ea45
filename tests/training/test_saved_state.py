"""The state of a training as a file: the same when it is read, and never code."""

import os
import pickle

import numpy as np
import pytest
import torch

from sce.errors import ConfigError
from sce.training.epoch import make_optimizer, random_state, restore_random_state
from sce.training.saved_state import read_state, write_state
from sce.training.settings import TrainConfig


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_that_was_planted_in_the_state_does_not_run(tmp_path, how):
    file, proof = tmp_path / "training_state.pt", tmp_path / "it-ran"
    state = {"epoch": 1, "random": Planted(proof)}
    if how == "torch":
        torch.save(state, file)
    else:
        file.write_bytes(pickle.dumps(state, protocol=2))
    with pytest.raises(ConfigError, match=r"training_state\.pt.*it wants to call .*--restart"):
        read_state(file, ["epoch"])
    assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no more", b"\x80\x02."])
def test_a_damaged_state_is_refused(tmp_path, content):
    file = tmp_path / "training_state.pt"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read as plain data"):
        read_state(file, ["epoch"])


def test_a_state_of_an_earlier_version_is_refused_with_what_to_do(tmp_path):
    file = tmp_path / "training_state.pt"
    torch.save({"epoch": 1, "random": [{"numpy": np.random.get_state()}]}, file)
    with pytest.raises(ConfigError, match=r"by an earlier version.*--restart"):
        read_state(file, ["epoch"])
    torch.save({"epoch": 1}, file)
    with pytest.raises(ConfigError, match="it has no 'best'"):
        read_state(file, ["epoch", "best"])


def test_optimizer_and_random_numbers_go_on_bit_for_bit(tmp_path):
    torch.manual_seed(1)
    np.random.seed(1)
    np.random.normal()  # leaves a second number in the generator
    model = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(model, TrainConfig())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"epoch": 3, "best": np.float64(0.1), "optimizer": optimizer.state_dict()}
    write_state(state | {"random": [random_state()]}, tmp_path / "x.pt")
    drawn = torch.rand(5), np.random.normal(size=5)
    found = read_state(tmp_path / "x.pt", ["epoch", "best", "optimizer", "random"])
    restore_random_state(found["random"][0])
    assert torch.equal(drawn[0], torch.rand(5))
    assert np.array_equal(drawn[1], np.random.normal(size=5))
    assert type(found["best"]) is float
    other = make_optimizer(model, TrainConfig())
    other.load_state_dict(found["optimizer"])
    mine, theirs = optimizer.state_dict(), other.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    for key, values in mine["state"].items():
        assert all(torch.equal(values[name], theirs["state"][key][name]) for name in values)


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    with pytest.raises(TypeError, match="a ndarray"):
        write_state({"x": np.zeros(3)}, tmp_path / "x.pt")
