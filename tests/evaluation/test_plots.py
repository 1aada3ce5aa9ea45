"""Pictures hold what they should, stay small, touch nothing global; tables read right."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from sce.evaluation import plots, report
from sce.evaluation.metrics import reliability
from sce.evaluation.thresholds import choose_threshold, precision_coverage


def make_result(name, group, difference, rows=200, labels=4):
    sce = {
        "accuracy": 0.80,
        "accuracy_low": 0.74,
        "accuracy_high": 0.85,
        "macro_f1": 0.777,
        "nll": 0.61,
        "nll_uncalibrated": 0.92,
        "ece": 0.031,
        "ece_uncalibrated": 0.122,
        "flip_rate": 0.0,
    }
    return {
        "name": name,
        "group": group,
        "rows": rows,
        "labels": labels,
        "sce": sce,
        "cosine": {**sce, "accuracy": 0.80 - difference},
        "difference": difference,
        "difference_low": difference - 0.03,
        "difference_high": difference + 0.03,
        "mcnemar_p": 0.01,
    }


def png_size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


@pytest.mark.parametrize(
    ("size", "counted", "named"), [(3, True, 3), (40, False, 40), (150, False, None)]
)
def test_confusion_figure_by_size(tmp_path, size, counted, named):
    matrix = np.random.default_rng(0).integers(0, 50, size=(size, size))
    names = [f"$label_{i} with a name that is far too long for a plot" for i in range(size)]
    figure = plots.confusion_figure(matrix, names, "numbers")
    axes = figure.axes[0]
    assert len(axes.texts) == np.count_nonzero(matrix) * counted
    shown = [t.get_text() for t in axes.get_yticklabels()]
    if named is not None:
        assert len(shown) == named
        assert all(s.startswith("$label_") and len(s) <= 28 for s in shown)
    shares = axes.images[0].get_array()
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    path = plots.save(figure, tmp_path / "deep" / "confusion.png")
    assert path.stat().st_size < 300_000
    assert min(png_size(path)) > 300


def test_rows_without_a_target_stay_empty_and_sizes_must_agree():
    figure = plots.confusion_figure([[0, 0], [1, 3]], ["a", "日本 😀"])
    assert figure.axes[0].images[0].get_array().tolist() == [[0.0, 0.0], [0.25, 0.75]]
    with pytest.raises(ValueError, match="3 names"):
        plots.confusion_figure([[1]], ["a", "b", "c"])


@pytest.mark.parametrize(("target", "said"), [(0.7, "chosen"), (0.95, "best, below target")])
def test_precision_coverage_figure_marks_the_choice(tmp_path, target, said):
    curve = precision_coverage([0.9, 0.8, 0.8, 0.8, 0.5], [0, 1, 1, 1, 0])
    choice = choose_threshold(curve, target)
    axes = plots.precision_coverage_figure(curve, choice, "$cost").axes[0]
    line, goal, mark = axes.lines
    assert line.get_xdata().tolist() == pytest.approx([1.0, 0.8, 0.2])
    assert line.get_ydata().tolist() == pytest.approx([0.6, 0.75, 0.0])
    assert set(goal.get_ydata()) == {target}
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == pytest.approx((0.8, 0.75))
    assert mark.get_label() == f"{said}: threshold 0.8"
    png_size(plots.save(axes.figure, tmp_path / "p.png"))


def test_a_long_curve_is_drawn_by_some_of_its_points_with_both_ends():
    score_N = np.linspace(0, 1, 30_000)
    curve = precision_coverage(score_N, score_N > 0.5)
    line = plots.precision_coverage_figure(curve, choose_threshold(curve, 0.9)).axes[0].lines[0]
    assert len(line.get_xdata()) == plots.MAX_CURVE_POINTS
    assert line.get_xdata()[0] == 1.0
    assert line.get_xdata()[-1] == pytest.approx(1 / 30_000)


def test_save_lowers_the_resolution_to_fit(tmp_path):
    figure = plots.confusion_figure(np.eye(100, dtype=int), [str(i) for i in range(100)])
    free = plots.save(figure, tmp_path / "a.png").stat().st_size
    tight = plots.save(figure, tmp_path / "b.png", max_bytes=free - 1).stat().st_size
    assert tight < free


def test_drawing_leaves_pyplot_alone():
    code = (
        "import sys; from sce.evaluation import plots; f = plots.confusion_figure([[1]], ['a']); "
        "plots.save(f, sys.argv[1]); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, "/dev/null"], check=False)
    assert done.returncode == 0


def test_headline_and_verdicts_count_wins_losses_and_ties():
    results = [make_result(f"s{i}", "own", d) for i, d in enumerate((0.1, 0.1, -0.1, 0.01))]
    assert [report.verdict(r) for r in results] == [1, 1, -1, 0]
    sentence = report.headline(results)
    assert "on 2 of 4 line(s), loses on 1, no clear difference on 1" in sentence
    assert "not compared" in report.headline([{"name": "x", "group": "own"}])


def test_large_groups_are_one_row_unless_all_are_asked_for():
    own = make_result("mine", "own", 0.0)
    unseen = [make_result(f"u{i}", "unseen", 0.01 * i, labels=3 + i) for i in range(24)]
    short = report.lines([*unseen, own])
    assert [r["name"] for r in short] == ["mine", "unseen: mean of 24 sets"]
    mean = short[1]
    assert mean["rows"] == 24 * 200
    assert mean["labels"] == "3–26"
    assert mean["difference"] == pytest.approx(0.115)
    assert mean["cosine"]["accuracy"] == pytest.approx(0.685)
    assert mean["difference_low"] < 0.115 < mean["difference_high"]
    assert len(report.lines([*unseen, own], show_all=True)) == 26


def test_a_set_of_an_unusual_group_is_named_with_its_group():
    results = [make_result("news", group, 0.1) for group in ("seen by name", "seen")]
    rows = report.to_markdown(results).strip().splitlines()[4:]
    assert [row.split(" | ")[0] for row in rows] == ["| news (seen)", "| news (seen by name)"]
    many = [make_result(f"u{i}", "unseen by name", 0.1) for i in range(9)]
    assert "| unseen by name: mean of 9 sets (unseen by name) |" in report.to_markdown(many)


def test_markdown_and_terminal_say_the_same():
    results = [make_result("a|b [bold]", "seen", 0.1), {"name": "bare", "group": "own", "rows": 5,
               "labels": 2, "sce": {"accuracy": 0.4}}]  # fmt: skip
    markdown = report.to_markdown(results)
    lines = markdown.strip().splitlines()
    assert lines[0] == report.headline(results)
    assert lines[4] == "| bare | 5 | 2 | 40.0 | – | – | – | – | – | – | – |"
    assert lines[5] == (
        "| a\\|b [bold] (seen) | 200 | 4 | 80.0 [74.0, 85.0] | 70.0 | +10.0 [+7.0, +13.0] "
        "| SCE better | 0.777 | 0.92 → 0.61 | 0.122 → 0.031 | 0.0 |"
    )
    for width in (200, 80):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(report.to_table(results, wide=width >= report.WIDE_CHARS))
        text = console.export_text()
        assert report.headline(results) in " ".join(text.split())
        interval = "80.0 [74.0, 85.0]" if width == 200 else "74.0–85.0"
        for cell in ("a|b [bold]", "80.0", interval, "+10.0 [+7.0, +13.0]", "[low, high]"):
            assert cell in text
        assert ("0.92 → 0.61" in text) == (width == 200)


def test_a_reliability_diagram_has_a_line_a_method_with_its_error(tmp_path):
    bins = reliability([0.1, 0.2, 0.9, 0.95], [0, 1, 1, 1])
    axes = plots.reliability_figure({"SCE": (0.0314, bins), "cosine": (0.2, bins[:1])}).axes[0]
    diagonal, sce, cosine = axes.lines
    assert diagonal.get_xdata().tolist() == diagonal.get_ydata().tolist() == [0, 1]
    assert sce.get_xdata().tolist() == pytest.approx([0.1, 0.2, 0.925])
    assert sce.get_ydata().tolist() == [0.0, 1.0, 1.0]
    assert (sce.get_label(), cosine.get_label()) == ("SCE: ECE 0.031", "cosine: ECE 0.200")
    png_size(plots.save(axes.figure, tmp_path / "r.png"))
