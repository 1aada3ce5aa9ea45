"""The report: its figures against a count by hand, its layout, its files."""

import csv
import io

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from scipy.stats import binomtest

from sce.errors import DataError
from sce.evaluation import paper
from sce.evaluation.comparison import brief_tables, build_tables
from sce.evaluation.evaluate import PREDICTIONS
from sce.evaluation.pages import report_html, report_markdown, write_report
from sce.evaluation.plots import build_charts
from sce.evaluation.runs import MethodRuns, Run, common_note, difference, groups_of

RIGHT = {
    "sce": {"bbc": [1, 1, 1, 0], "ag_news": [1, 0, 1, 1], "starter/a": [1, 1], "starter/b": [0, 1]},
    "llama": {"bbc": [1, 0, 0, 0], "ag_news": [0, 1, 0, 1], "starter/a": [1, 0]},
}
COST = {
    "texts_per_second": 50.0,
    "embedded_texts_per_second": 900.0,
    "peak_memory_bytes": 5e8,
    "flops_per_text": 2e9,
    "embedded_flops_per_text": 3e7,
    "rows": 4,
    "device": "cpu",
}
TRAINING = {
    "rows": 1000,
    "epochs": 4,
    "seconds": 20.0,
    "flops": 4e12,
    "embedding_flops": 2e12,
    "trainable_parameters": 85_800_000,
    "workers": "1 on CPU",
}


def run(name, right, kind="sce", seed=0, training=None, note="", order=None):
    tables, results = [], []
    for set_name, hits in right.items():
        size = len(hits)
        dataset = set_name.split("/")[0]
        group = "seen" if dataset == "bbc" else "unseen"
        ids = [f"{set_name}:{i}" for i in range(size)]
        if order:
            ids, hits = [ids[i] for i in order[:size]], [hits[i] for i in order[:size]]
        columns = {
            "method": [name] * size, "set": [set_name] * size, "dataset": [dataset] * size,
            "group": [group] * size, "information": ["all"] * size, "labels": [2] * size,
            "row_id": ids, "target": ["yes"] * size,
            "predicted": ["yes" if hit else "no" for hit in hits],
            "probability": [0.7] * size, "target_probability": [0.5] * size,
        }  # fmt: skip
        tables.append(pa.table(columns, schema=PREDICTIONS))
        figures = {"accuracy": float(np.mean(hits)), "macro_f1": 0.5, "nll": 0.6, "ece": 0.1,
                   "nll_uncalibrated": 0.9, "ece_uncalibrated": 0.2, "flip_rate": 0.25}  # fmt: skip
        results.append({"name": set_name, "dataset": dataset, "group": group, "method": name,
                        "information": "all", name: figures})  # fmt: skip
    described = {"name": name, "kind": kind, "title": "a method", "model": "tiny", "seed": seed,
                 "parameters": 1_500_000, "cost": COST, "note": note}  # fmt: skip
    if training:
        described["training"] = training | {"epoch_seconds": 5.0}
    return Run(described, results, pa.concat_tables(tables))


@pytest.fixture
def methods():
    sce = MethodRuns([run("sce", RIGHT["sce"], training=TRAINING)])
    lora = TRAINING | {"rows": 2000, "seconds": 2000.0, "flops": 4e16, "embedding_flops": 0.0}
    llama = run("llama", RIGHT["llama"], "lora", training=lora, note="random weights")
    return [sce, MethodRuns([llama])]


def table(methods, name):
    return next(t for t in build_tables(methods) if t.name == name)


def test_accuracy_of_a_dataset_is_the_mean_over_its_sets(methods):
    sce, llama = methods
    assert sce.accuracy("bbc").value == 0.75
    assert sce.accuracy("starter (unseen)").value == pytest.approx((1.0 + 0.5) / 2)
    assert llama.accuracy("mind") is None
    assert sce.mean("unseen", "accuracy") == pytest.approx((0.75 + 0.75) / 2)


def test_seeds_are_averaged_row_by_row_whatever_their_order():
    first = run("sce", {"bbc": [1, 1, 0, 0]})
    second = run("sce", {"bbc": [1, 0, 0, 1]}, seed=1, order=[3, 1, 0, 2])
    both = MethodRuns([second, first])
    assert both.sets["bbc"].right_N.tolist() == [1.0, 0.5, 0.0, 0.5]
    assert both.sets["bbc"].first_right_N.tolist() == [1, 1, 0, 0]
    other = MethodRuns([first, run("sce", {"bbc": [1, 1]}, seed=1)])
    with pytest.raises(DataError, match="same rows of 'bbc'"):
        _ = other.sets


def test_a_difference_is_counted_on_the_rows_that_both_answered(methods):
    found = difference(*methods, "starter (unseen)")
    assert (found.rows, found.left_out) == (2, 0)
    assert found.value == pytest.approx(0.5)
    found = difference(*methods, "ag_news")
    assert found.value == pytest.approx(0.25)
    assert found.p == pytest.approx(binomtest(2, 3).pvalue)
    a = MethodRuns([run("a", {"bbc": [1, 1, 0]})])
    b = MethodRuns([run("b", {"bbc": [0, 1, 0, 1, 1]})])
    found = difference(a, b, "bbc")
    assert (found.rows, found.left_out) == (3, 2)
    assert found.value == pytest.approx(1 / 3)
    assert difference(a, b, "mnds") is None


def test_table_one_has_the_papers_layout_and_figures(methods):
    rows = table(methods, "table1").rows
    assert [row[0] for row in rows[:10]] == [
        "Unseen datasets", "AriseNews", "AGNews", "Yahoo", "MNDS",
        "Seen datasets", "BBC", "Huffpost", "MIND", "NYTimes",
    ]  # fmt: skip
    assert rows[1][1:] == ["84.66", "62.90", "56.40", ""]
    assert rows[6][1:4] == ["94.60", "55.70", "52.10"]
    assert rows[6][4].startswith("75.0 [")
    assert [row[0] for row in rows[10:]] == ["Other datasets", "starter (unseen), mean of 2 sets"]


def test_means_are_over_the_sets_that_every_method_was_measured_on(methods):
    starter = table(methods, "table2").rows[-1]
    assert starter[0] == "starter (unseen)"  # starter/a alone: one method has no starter/b
    assert [cell[:4] for cell in starter[-2:]] == ["100.", "50.0"]
    sce, llama = (
        next(row for row in rows if row[0] == name)
        for name in ("sce", "llama")
        for rows in [table(methods, "costs").rows]
    )
    seen, unseen = (groups_of(methods).index(g) + 1 for g in ("seen", "unseen"))
    assert (sce[unseen], llama[unseen]) == ("87.5", "50.0")
    assert (sce[seen], llama[seen]) == ("75.0", "25.0")
    said = table(methods, "figures").caption
    assert "seen: 1 set(s) that all were measured on (bbc)" in said
    assert "unseen: 2 set(s) that all were measured on (ag_news, starter (unseen))" in said
    only = MethodRuns([run("other", {"mind": [1, 1]})])
    assert "unseen: no set that all were measured on, not ag_news" in common_note([*methods, only])


def test_table_two_sets_sce_beside_lora(methods):
    found = table(methods, "table2")
    assert found.columns[-2:] == ["sce", "llama"]
    assert found.rows[1][1:3] == ["84.66", "87.92"]
    assert "random weights" in found.note
    assert all("1.5 M parameters" in t.note for t in build_tables(methods))


def test_epochs_and_bound_are_ratios_for_as_many_samples(methods):
    rows = {row[0]: row for row in table(methods, "epochs").rows}
    assert rows["paper: SCE"][2:6] == ["20", "0.006", "4.5e+13", "0.005"]
    assert rows["sce"][2:6] == ["5.0", "0.02", "1e+12", "0.0002"]  # 5 s/1000 over 500 s/2000
    bound = {row[0]: row for row in table(methods, "bound").rows}
    assert bound["paper"][1:] == ["0.049", "0.009", "0.005"]
    one, ten = (1e9 + 2e9) / 5e12, (10e9 + 2e9) / 5e13
    assert bound["sce"][1:] == [f"{one:.3g}", f"{ten:.3g}", "0.0002"]


def test_published_figures_are_of_the_same_datasets():
    assert list(paper.ACCURACY) == [*paper.UNSEEN, *paper.SEEN]
    methods = {paper.SCE, paper.LLAMA, paper.F2LLM, paper.LORA}
    assert all(set(row) == methods for row in paper.ACCURACY.values())


def test_what_is_written_holds_every_table_and_chart(methods, tmp_path):
    tables, charts = build_tables(methods), build_charts(methods)
    assert set(charts) == {"accuracy", "training_compute", "inference_cost", "label_counts"}
    written = write_report("Methods", tables, charts, tmp_path, "compare")
    text = written["markdown"].read_text()
    html = written["html"].read_text()
    for one in tables:
        assert f"## {one.title}" in text
        assert (tmp_path / f"{one.name}.csv").exists()
        assert one.note in text
    assert html.count("<svg") == len(charts)
    assert "http" not in html.split("<svg")[0]
    assert {p.stem for p in (tmp_path / "charts").iterdir()} == set(charts)
    for line in text.splitlines():
        if line.startswith("| ") and "table1" not in line:
            assert line.count("|") > 2


def test_cells_are_escaped_and_headings_become_a_column(methods):
    first = table(methods, "table1")
    parsed = list(csv.reader(io.StringIO(first.to_csv())))
    assert parsed[0][:2] == ["group", "dataset"]
    assert [row[0] for row in parsed[1:5]] == ["Unseen datasets"] * 4
    assert len({len(row) for row in parsed}) == 1
    bad = MethodRuns([run("a|<b>", {"bbc": [1, 0]})])
    assert "a\\|<b>" in report_markdown("Methods", build_tables([bad]))
    assert "a|&lt;b&gt;" in report_html("Methods", build_tables([bad]), {})


def test_adapted_labels_have_the_cost_of_their_fit_and_no_epoch(methods):
    adapted = run("sce adapted", RIGHT["sce"], "adapted")
    adapted.described["fit"] = {"rows": 1699.0, "seconds": 0.5, "flops": 5.7e8}
    every = [*methods, MethodRuns([adapted])]
    (row,) = table(every, "fits").rows
    assert row == ["sce adapted", "1,699", "0.5", "5.7e+08", "3e+07"]
    costs = {row[0]: row[-3:] for row in table(every, "costs").rows}
    assert costs["sce adapted"] == ["5.7e+08", "2e+09", "3e+07"]
    assert costs["sce"][0] == "6e+12"
    assert table(every, "table1").columns[-2:] == ["sce", "sce adapted"]
    assert [row[0] for row in table(every, "differences").rows] == ["llama"] * 3 + [
        "sce adapted"
    ] * 3
    assert all(row[0] != "sce adapted" for row in table(every, "epochs").rows)
    assert not [t for t in build_tables(methods) if t.name == "fits"], "nothing was adapted"
    build_charts(every)


def on_screen(methods):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*brief_tables(methods), sep="\n")
    return console.export_text()


def of_the_user(one, *names):
    for result in one.results:
        result["own"] = result["name"] in names
    return one


def test_a_screen_has_the_rows_of_the_user_first():
    right = RIGHT["sce"] | {"tickets": [1, 1, 0, 1]}
    every = [of_the_user(run("sce", right), "tickets"), run("llama", RIGHT["llama"])]
    methods = [MethodRuns([one]) for one in every]
    lines = on_screen(methods).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 40
    headings = ("tickets, your rows", "bbc", "starter (unseen)")
    places = [next(i for i, line in enumerate(lines) if word in line) for word in headings]
    assert places == sorted(places)
    assert "75.0 [" in lines[places[0] + 1]
    first = next(t for t in build_tables(methods) if t.name == "table1").rows
    assert first[:2] == [["Your datasets"], ["tickets", "", "", "", first[1][4], ""]]


def test_what_does_not_fit_a_screen_are_means():
    right = {f"set{i}": [1, 0] for i in range(20)} | {"bbc": [1, 1]}
    methods = [MethodRuns([run(name * 30, right)]) for name in "abc"]
    lines = on_screen(methods).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 40
    assert any("│unseen datasets, mean of 20 set(s)" in line for line in lines)
    assert any("│seen datasets, mean of 1 set(s)" in line for line in lines)
