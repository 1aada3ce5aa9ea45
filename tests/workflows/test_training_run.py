"""An unfinished training run is neither continued nor thrown away unless asked for."""

import pytest

from sce.errors import ConfigError
from sce.training.settings import ModelConfig
from sce.workflows.experiment import Experiment
from sce.workflows.tracking import Tracker
from sce.workflows.train import _as_begun
from sce.workflows.training_run import TrainingRun

SETTINGS = {"seed": 0, "train": {"epochs": 3}}


def test_a_new_run_then_an_unfinished_one(tmp_path):
    first = TrainingRun.open(tmp_path / "c", SETTINGS, resume=False, restart=False)
    with pytest.raises(ConfigError, match=r"--resume.*--restart"):
        TrainingRun.open(tmp_path / "c", SETTINGS, resume=False, restart=False)
    again = TrainingRun.open(tmp_path / "c", SETTINGS, resume=True, restart=False)
    assert again.run_name == first.run_name
    fresh = TrainingRun.open(tmp_path / "c", SETTINGS, resume=False, restart=True)
    assert fresh.run_name != first.run_name


def test_a_finished_run_gives_way_to_a_new_one(tmp_path):
    state = TrainingRun.open(tmp_path / "c", SETTINGS, resume=False, restart=False)
    (tmp_path / "c" / "old-checkpoint").mkdir()
    state.finished = True
    state.save()
    new = TrainingRun.open(tmp_path / "c", SETTINGS, resume=False, restart=False)
    assert not new.finished
    assert not (tmp_path / "c" / "old-checkpoint").exists()


def test_resuming_with_other_settings_names_the_difference(tmp_path):
    TrainingRun.open(tmp_path / "c", SETTINGS, resume=False, restart=False)
    other = {"seed": 0, "train": {"epochs": 5}}
    with pytest.raises(ConfigError, match=r"train\.epochs: 3 then, 5 now"):
        TrainingRun.open(tmp_path / "c", other, resume=True, restart=False)


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(ConfigError, match="no training run"):
        TrainingRun.open(tmp_path / "c", SETTINGS, resume=True, restart=False)
    with pytest.raises(ConfigError, match="exclude"):
        TrainingRun.open(tmp_path / "c", SETTINGS, resume=True, restart=True)
    assert not (tmp_path / "c").exists()


def test_a_run_that_is_interrupted_says_how_it_goes_on(tmp_path):
    run = TrainingRun.open(tmp_path / "c", SETTINGS, resume=False, restart=False)
    with pytest.raises(KeyboardInterrupt) as stopped, run.recorded(Tracker()):
        raise KeyboardInterrupt
    (note,) = stopped.value.__notes__
    assert str(tmp_path / "c") in note
    assert "--resume" in note
    assert not run.finished


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json: damaged"):
        TrainingRun.open(tmp_path, SETTINGS, resume=True, restart=False)


@pytest.mark.parametrize(
    ("begun", "named", "expected"),
    [({}, {}, 0), ({}, {"label_vectors": 1}, 1), ({"label_vectors": 1}, {}, 1)],
)
def test_a_run_that_began_before_label_vectors_had_versions_keeps_its_own(
    tmp_path, begun, named, expected
):
    """Unless the user names another, which is then refused as a difference."""
    experiment = Experiment(run_dir=tmp_path, model=ModelConfig(prior_scale=3, **named))
    settings = {"model": {"prior_scale": 3.0} | begun}
    TrainingRun.open(experiment.checkpoints_dir, settings, resume=False, restart=False)
    found = _as_begun(experiment)
    assert found.model.label_vectors == expected
    assert found.model.prior_scale == 3


def test_a_run_that_is_not_there_changes_no_setting(tmp_path):
    assert _as_begun(Experiment(run_dir=tmp_path)).model.label_vectors == 1
