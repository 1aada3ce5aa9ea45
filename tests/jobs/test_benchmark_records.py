"""How benchmarks measure in turn, what they write down, and what a later run makes of it."""

import json
import re
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from jobs.benchmarks import records
from jobs.benchmarks.records import Benchmark, Measured, compare, machine, report, run_benchmark
from jobs.benchmarks.rounds import Figure, figure_tables, in_turn
from sce.config import load_config
from sce.errors import ConfigError


class ABenchmark(Benchmark):
    """Settings of a benchmark."""

    rows: int = 10
    rounds: int = 3


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a benchmark whose rate is given; exit code."""
    monkeypatch.setattr(records, "machine", lambda device: dict(MACHINE))

    def run(rates, *flags):
        def measure(config):
            return Measured(figures(rates, "more"), {"encoder": "float32"})

        return run_benchmark("a", ABenchmark, measure, "", ["--no-tracking.enabled", *flags])

    return run


def test_the_first_figures_are_metrics_and_all_of_them_artifacts(monkeypatch, own_store, capsys):
    monkeypatch.setattr(records, "machine", lambda device: dict(MACHINE))
    many = {f"column {i}": Figure.of([1.0, 3.0, 2.0], "s") for i in range(50)}
    measured = Measured({"texts a second": {"row": many}})
    assert run_benchmark("many", ABenchmark, lambda config: measured, "", []) == 0
    client = MlflowClient(f"sqlite:///{own_store}")
    experiment = client.get_experiment_by_name("sce-benchmarks")
    (run,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'many'")
    assert len(run.data.metrics) == 40
    assert run.data.metrics["texts a second / row / column 0"] == 2
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"figures.md", "record.json"}
    assert "column 49" in capsys.readouterr().out


MACHINE = {"processor": "P", "cores": 2, "threads": 2, "versions": {"torch": "1"}, "commit": "c"}


def figures(values, better):
    return {"table": {"row": {"column": Figure.of(values, "s", better)}}}


def record(values, better="more", **changed):
    plain = records._plain(Figure.of(values, "s", better))
    found = {"machine": MACHINE, "arithmetic": {"encoder": "float32"}, "figures": {"one": plain}}
    return found | changed


def test_a_round_goes_through_the_sides_and_back():
    order = []

    def side(name):
        order.append(name)
        return float(len(order))

    turns = in_turn({name: lambda name=name: side(name) for name in "ABC"}, 2)
    assert "".join(order) == "ABCCBAABCCBA"
    # What drifts evenly is as much one side's as the other's.
    assert turns.ratio("A", "B").values == (1.0, 1.0)
    assert turns.figure("A", "s").values == (1, 6, 7, 12)
    assert len(in_turn({"A": lambda: 1.0}, 3, and_back=False).figure("A", "s").values) == 3


def test_a_table_shows_median_and_spread():
    table = figure_tables({"title": {
        "one": {"rows/s": Figure.of([1500, 1000, 3000], "rows/s"), "beside": "as printed"},
        "two": {"rows/s": Figure.of(0.25, "rows/s")},
    }})  # fmt: skip
    assert table.splitlines()[0] == "| title | rows/s | beside |"
    assert "| one | 1,500 (1,000–3,000) | as printed |" in table
    assert "| two | 0.25 |  |" in table


@pytest.mark.parametrize(
    ("then", "now", "better", "word", "too_slow"),
    [
        ([10, 11, 12], [11, 12, 13], "more", "", False),
        ([10, 11, 12], [7, 8, 9], "more", "SLOWER", True),
        ([10, 11, 12], [7, 8, 10], "more", "", False),  # the spreads meet
        ([10.0, 10.1], [9.8, 9.9], "more", "slower, within the tolerance", False),
        ([10, 11], [12, 13], "more", "faster", False),
        ([10, 11, 12], [14, 15, 16], "less", "SLOWER", True),
        ([10, 11, 12], [7, 8, 9], "less", "faster", False),
    ],
)
def test_slower_is_beyond_the_spreads_and_the_tolerance(then, now, better, word, too_slow):
    table, found = compare(record(then, better), record(now, better), tolerance=0.1)
    assert found == (["one"] if too_slow else [])
    assert table.splitlines()[-1].split("|")[-2].strip() == word


def test_of_another_machine_nothing_is_said():
    other = record([1.0], machine=MACHINE | {"processor": "Q", "threads": 1})
    table, found = compare(record([10.0]), other, tolerance=0.1)
    assert found == []
    assert "Another processor: P then, Q now." in table
    assert "Another number of threads: 2 then, 1 now." in table
    assert "nothing here says" in table


def test_what_else_differs_is_said_and_judged():
    on = MACHINE | {"versions": {"torch": "2", "ray": "3"}, "commit": "d"}
    other = record([1.0], machine=on, arithmetic={"encoder": "bfloat16"})
    other["figures"]["two"] = other["figures"]["one"]
    table, found = compare(record([10.0]), other, tolerance=0.1)
    assert found == ["one"]
    assert "Arithmetic: encoder float32 then, bfloat16 now." in table
    assert "Versions: torch 1 then, 2 now; ray None then, 3 now." in table
    assert "Commit c then, d now." in table
    assert re.search(r"\| two \|  \| .* \| new \|", table)
    assert re.search(r"\| two \| .* \| gone \|", compare(other, record([10.0]), 0.1)[0])


def test_a_slower_run_is_an_exit_code(run, tmp_path, capsys):
    file = str(tmp_path / "then.json")
    assert run([10.0, 11.0, 12.0], "--record", file) == 0
    assert "P (2 threads of 2); encoder in float32; python" not in capsys.readouterr().out
    assert run([10.5, 11.0, 11.5], "--against", file) == 0
    assert run([5.0, 5.1], "--against", file, "--rounds", "1") == 1
    said = capsys.readouterr().out
    assert "| table / row / column | 11 (10–12) s | 5.05 (5–5.1) s | 0.459 | SLOWER |" in said
    assert json.loads(said.splitlines()[-1])["too_slow"] == ["table / row / column"]
    assert run([5.0], "--against", file, "--tolerance", "0.6") == 0


def test_another_size_or_benchmark_is_refused(run, tmp_path, capsys):
    file = tmp_path / "then.json"
    assert run([1.0], "--record", str(file)) == 0
    assert run([1.0], "--against", str(file), "--rows", "20") == 2
    assert "of another size: rows 10 then, 20 now" in capsys.readouterr().err
    config = load_config(ABenchmark, ["--against", str(file)], "b", "")
    with pytest.raises(ConfigError, match="of the benchmark 'a', and this is 'b'"):
        report("b", config, lambda _: pytest.fail("measured first"))
    for content in ("", "[]", '{"format": 2}', '{"format": 1}'):
        file.write_text(content)
        assert run([1.0], "--against", str(file)) == 2
        assert "no record of a benchmark" in capsys.readouterr().err
    assert run([1.0], "--record", str(tmp_path / "no" / "x.json")) == 2
    assert "no file in a folder that exists" in capsys.readouterr().err


def test_the_machine_is_named():
    found = machine()
    assert found["processor"]
    assert found["threads"] >= 1
    assert {"python", "torch", "transformers", "ray"} <= set(found["versions"])
    assert re.fullmatch(r"[0-9a-f]{12,}(-dirty)?", found["commit"] or "0" * 12)


def test_without_git_there_is_no_commit(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(records, "subprocess", SimpleNamespace(
        run=absent, SubprocessError=records.subprocess.SubprocessError))  # fmt: skip
    assert machine()["commit"] is None
