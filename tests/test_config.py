"""Settings: file, then environment, then command line; every mistake refused with its place."""

import pytest

from sce.config import JobConfig, Section, Verbatim, load_config
from sce.errors import ConfigError
from sce.workflows.cli import run_job


class Train(Section):
    epochs: int = 3
    learning_rate: float = 1e-4
    keep_all: bool = True


class Job(JobConfig):
    name: str = "x"
    run_dir: str = "runs"
    dry_run: bool = False
    train: Train = Train()


def load(*argv: str) -> Job:
    return load_config(Job, argv, "job", "A job.")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("train: {epochs: 5, learning_rate: 1e-6}\n")
    return str(path)


def test_the_later_source_wins(file, monkeypatch):
    assert load().train.epochs == 3
    assert load("--config", file).train.epochs == 5
    monkeypatch.setenv("SCE_TRAIN__EPOCHS", "7")
    assert load("--config", file).train.epochs == 7
    assert load("--config", file, "--train.epochs", "9").train.epochs == 9


def test_a_rate_written_as_yaml_reads_as_text_is_a_number(file):
    assert load("--config", file).train.learning_rate == 1e-6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trian: {}", "trian: no such setting"),
        ("train: {epocs: 1}", r"train\.epocs: no such setting"),
        ("train: {epochs: many}", r"train\.epochs: .*'many'"),
        ("[1, 2]", "must hold a mapping"),
        ("a: [", "cannot read"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load("--config", str(path))


def test_a_group_that_is_given_as_one_value_is_refused_with_how_it_is_given():
    with pytest.raises(ConfigError, match=r"^train: a group .* --train\.NAME VALUE"):
        load("--train", "some/folder")


def test_a_missing_file_is_refused():
    with pytest.raises(ConfigError, match=r"no file 'nowhere\.yaml'"):
        load("--config", "nowhere.yaml")


@pytest.mark.parametrize("variable", ["SCE_TRIAN__EPOCHS", "SCE_TRAIN__EPOCS"])
def test_a_misspelt_variable_is_refused(monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ConfigError, match="no such setting"):
        load()


SERVICE_LINKS = {
    "SCE_SERVICE_HOST": "10.0.0.1",
    "SCE_SERVICE_PORT": "80",
    "SCE_SERVICE_PORT_HTTP": "80",
    "SCE_PORT": "tcp://10.0.0.1:80",
    "SCE_PORT_80_TCP": "tcp://10.0.0.1:80",
    "SCE_PORT_80_TCP_PROTO": "tcp",
    "SCE_PORT_80_TCP_PORT": "80",
    "SCE_PORT_80_TCP_ADDR": "10.0.0.1",
    "SCE_ENDPOINT_SERVICE_HOST": "10.0.0.1",
    "SCE_ENDPOINT_PORT": "udp://10.0.0.1:80",
}
"""What Kubernetes sets for services named `sce` and `sce-endpoint`."""


def test_the_service_links_of_kubernetes_are_no_settings(monkeypatch):
    for name, value in SERVICE_LINKS.items():
        monkeypatch.setenv(name, value)
    from serve.settings import ServeConfig

    assert load_config(ServeConfig, [], "x", "x").port == 8000
    monkeypatch.setenv("SCE_PORT", "8123")  # a setting
    assert load_config(ServeConfig, [], "x", "x").port == 8123
    monkeypatch.setenv("SCE_ENDPOINT_HOST", "10.0.0.1")
    with pytest.raises(ConfigError, match="SCE_ENDPOINT_HOST"):
        load_config(ServeConfig, [], "x", "x")


def test_a_misspelt_flag_ends_with_exit_code_2():
    with pytest.raises(SystemExit) as stopped:
        load("--train.epocs", "1")
    assert stopped.value.code == 2


def test_flags_are_spelt_with_hyphens():
    job = load("--run-dir", "a_b", "--dry-run", "--train.learning-rate=0.1", "--no-train.keep-all")
    assert (job.run_dir, job.dry_run, job.train.learning_rate) == ("a_b", True, 0.1)
    assert not job.train.keep_all


@pytest.mark.parametrize(
    ("flag", "name"),
    [("--run_dir", "--run-dir"), ("--train.learning_rate=1", "--train.learning-rate")],
)
def test_the_spelling_with_underscores_is_refused_with_the_other(flag, name, capsys):
    assert run_job(Job, lambda job: {}, "A job.", [flag, "1"]) == 2
    assert f"{name}." in capsys.readouterr().err


def test_an_included_file_is_taken_key_by_key_and_the_including_one_wins(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "base.yaml").write_text("name: base\ntrain: {epochs: 5, learning_rate: 1e-6}\n")
    (tmp_path / "parts" / "more.yaml").write_text("include: [../base.yaml]\nname: more\n")
    path = tmp_path / "config.yaml"
    path.write_text("include: [parts/more.yaml]\ntrain: {epochs: 7}\n")
    job = load("--config", str(path))
    assert (job.name, job.train.epochs, job.train.learning_rate) == ("more", 7, 1e-6)
    assert load("--config", str(path), "--train.epochs", "9").train.epochs == 9


@pytest.mark.parametrize(
    ("include", "other", "message"),
    [
        ("[other.yaml]", "trian: {}", "trian: no such setting"),
        ("[other.yaml]", "include: [config.yaml]", r"'config\.yaml' includes itself"),
        ("[other.yaml]", "include: [./../{folder}/other.yaml]", "includes itself"),
        ("[nowhere.yaml]", "", r"no file 'nowhere\.yaml'"),
        ("other.yaml", "", "include must be a list"),
        ("[3]", "", "include must be a list"),
    ],
)
def test_a_wrong_include_is_refused(tmp_path, include, other, message):
    (tmp_path / "other.yaml").write_text(other.replace("{folder}", tmp_path.name))
    path = tmp_path / "config.yaml"
    path.write_text(f"include: {include}\n")
    with pytest.raises(ConfigError, match=message):
        load("--config", str(path))


class Names(JobConfig):
    """Settings with a list of what users name."""

    labels: Verbatim = []
    keep_columns: Verbatim = []
    counts: list[int] = []


@pytest.mark.parametrize(
    ("flags", "labels"),
    [
        (["--labels", "Invoices, billing and refunds"], ["Invoices, billing and refunds"]),
        (["--labels", "[bug]", "--labels", "[question]"], ["[bug]", "[question]"]),
        (["--labels=late delivery, lost parcel"], ["late delivery, lost parcel"]),
        (["--labels", '"quoted" label'], ['"quoted" label']),
        (["--labels", "{curly}", "--labels", '5" screen'], ["{curly}", '5" screen']),
        (["--labels", "[P1] outage", "--labels", "true"], ["[P1] outage", "true"]),
        (["--labels", "null", "--labels", "-x"], ["null", "-x"]),
        (["--labels", '["a, b", "[c]", "5\\" screen"]'], ["a, b", "[c]", '5" screen']),
        (["--labels", "[1]"], ["[1]"]),
        (["--labels", "[]"], []),
        (["--labels", '["a"]', "--labels", "b"], ['["a"]', "b"]),
    ],
)
def test_what_users_name_is_taken_to_the_letter(flags, labels):
    found = load_config(Names, [*flags, "--counts", "1,2"], "x", "x")
    assert (found.labels, found.counts, found.keep_columns) == (labels, [1, 2], [])


def test_one_name_with_commas_is_remarked(caplog):
    load_config(Names, ["--keep-columns", "a,b"], "x", "x")
    assert "--keep-columns: 'a,b' is one, commas and all" in caplog.text
    caplog.clear()
    load_config(Names, ["--labels", '["a,b"]', "--keep-columns", "a"], "x", "x")
    assert not caplog.text


def test_a_flag_without_its_value_ends_with_exit_code_2():
    with pytest.raises(SystemExit) as exit:
        load_config(Names, ["--labels"], "x", "x")
    assert exit.value.code == 2


def test_a_key_that_stands_twice_in_a_file_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("train:\n  epochs: 1\n  seed: 2\n  epochs: 3\n")
    with pytest.raises(ConfigError, match="'epochs' stands twice, in lines 2 and 4"):
        load_config(JobConfig, ["--config", str(tmp_path / "x.yaml")], "prog", "")


def test_the_bound_of_the_cache_is_of_every_program_and_no_setting_of_one(monkeypatch):
    monkeypatch.setenv("SCE_CACHE_BYTES", "1000")
    assert load_config(JobConfig, [], "job", "A job.").umask
    monkeypatch.setenv("SCE_CACHE_BYTE", "1000")
    with pytest.raises(ConfigError, match="SCE_CACHE_BYTE: no such setting"):
        load_config(JobConfig, [], "job", "A job.")
