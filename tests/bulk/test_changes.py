"""Two outputs side by side: by hand, against a plain dictionary, at 50,000 rows."""

import io
import json
import re
import time
from collections import Counter
from html import escape

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from sce.bulk.changes import Example, MatchedOutputs, Move, compare_outputs, likely_renames
from sce.bulk.display import CUT, comparison_markdown, headline, one_line, print_comparison
from sce.bulk.matching import _hashes
from sce.errors import DataError

BEFORE = [
    ("a", "billing", 0.9, ""),
    ("b", "billing", 0.8, ""),
    ("c", "delivery", 0.7, ""),
    ("d", None, 0.2, ""),
    ("e", "praise", 0.6, ""),
    ("f", None, None, "text_null"),
    ("only before", "praise", 0.5, ""),
]
AFTER = [
    ("e", "refund", 0.61, ""),
    ("b", "refund", 0.81, ""),
    ("a", "billing", 0.91, ""),
    ("d", "delivery", 0.42, ""),
    ("c", None, 0.3, ""),
    ("f", "billing", 0.5, ""),
    ("g", None, None, "text_empty"),
    ("h", None, 0.1, ""),
]
OLD_SET = ["billing", "delivery", "praise", "never used"]
NEW_SET = ["refund", "billing", "delivery", "fraud", "never used"]


def write(folder, rows, kind="parquet", files=1):
    folder.mkdir(parents=True, exist_ok=True)
    step = -(-len(rows) // files) or 1
    for number, first in enumerate(range(0, max(len(rows), 1), step)):
        part = rows[first : first + step]
        columns = dict(zip(("id", "label", "score", "error"), zip(*part) if part else [()] * 4))
        path = folder / f"part-{number:05d}.{kind}"
        if kind == "parquet":
            types = (pa.string(), pa.string(), pa.float32(), pa.string())
            arrays = [pa.array(v, t) for v, t in zip(columns.values(), types)]
            pq.write_table(pa.table(arrays, list(columns)), path)
        else:
            lines = [json.dumps(dict(zip(columns, row))) + "\n" for row in part]
            path.write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def compared(tmp_path):
    return compare_outputs(
        write(tmp_path / "old", BEFORE),
        write(tmp_path / "new", AFTER, "jsonl"),
        (OLD_SET, NEW_SET),
        texts_of=lambda ids: {id_: f"text of {id_}" for id_ in ids if id_ != "d"},
    )


def test_the_figures_by_hand(compared):
    previous, current = compared.previous, compared.current
    assert (previous.rows, current.rows) == (7, 8)
    assert (compared.rows_compared, compared.rows_with_error) == (5, 1)
    assert (previous.rows_only_here, current.rows_only_here) == (1, 2)
    assert (previous.errors, current.errors) == (1, 1)
    assert compared.rows_moved == 4
    assert compared.share_moved == 4 / 5
    assert previous.null_share == 1 / 6
    assert current.null_share == 2 / 7
    assert compared.rows_moved_from_gone == 1
    assert compared.rows_moved_to_new == 2
    assert {(m.before, m.after): m.rows for m in compared.from_to} == {
        ("billing", "billing"): 1,
        ("billing", "refund"): 1,
        ("delivery", None): 1,
        (None, "delivery"): 1,
        ("praise", "refund"): 1,
    }


def test_labels_that_came_went_and_ran_dry(compared):
    assert compared.exact_labels
    assert compared.new == ("refund", "fraud")
    assert compared.gone == ("praise",)
    assert compared.now_empty == ("fraud",)  # new and empty; "never used" was empty before
    assert dict(compared.previous.counts) == dict(zip(OLD_SET, (2, 1, 2, 0)))
    assert dict(compared.current.counts) == dict(zip(NEW_SET, (2, 2, 1, 0, 0)))
    assert compared.labels == ("refund", "billing", "delivery", "fraud", "never used", "praise")


def test_a_label_that_lost_its_rows_is_empty_if_it_is_in_the_set_and_gone_if_not(tmp_path):
    folders = write(tmp_path / "a", [("1", "x", 1, "")]), write(tmp_path / "b", [("1", "y", 1, "")])
    kept = compare_outputs(*folders, (["x", "y"], ["x", "y"]))
    assert (kept.new, kept.gone, kept.now_empty) == ((), (), ("x",))
    dropped = compare_outputs(*folders, (["x"], ["y"]))
    assert (dropped.new, dropped.gone, dropped.now_empty) == (("y",), ("x",), ())
    unknown = compare_outputs(*folders)
    assert (unknown.new, unknown.gone, unknown.now_empty) == (("y",), ("x",), ())
    assert not unknown.exact_labels
    assert "cannot be told" in comparison_markdown(unknown)
    assert "Gone or empty" in comparison_markdown(unknown)


def test_the_headline_says_how_many_had_to_move(compared):
    assert headline(compared) == (
        "4 of 5 rows in both outputs moved (80.0 %). 2 of them went from label to label, 1 lost "
        "their label, 1 got one. 1 of them had a label that is gone. 2 of them went to a new label."
    )


def test_examples_have_the_scores_of_both_sides_and_the_texts_that_are_known(compared):
    found = {(m.before, m.after): m.examples for m in compared.moves}
    score = lambda x: float(np.float32(x))  # noqa: E731
    assert found["praise", "refund"] == (Example("e", score(0.6), score(0.61), "text of e"),)
    assert found[None, "delivery"] == (Example("d", score(0.2), score(0.42), None),)


def test_the_matrix_has_no_answer_last(compared):
    matrix = comparison_markdown(compared).rpartition("## From (rows) to (columns)")[2]
    rows = [line[2:-2].split(" |") for line in matrix.strip().splitlines()]
    names = ["refund", "billing", "delivery", "fraud", "never used", "praise", "*(no answer)*"]
    assert [cell.strip() for cell in rows[0][1:]] == names
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows[2:]}
    assert list(cells) == names
    assert cells["delivery"] == ["", "", "", "", "", "", "1"]
    assert cells["billing"] == ["1", "1", "", "", "", "", ""]


def test_metrics_are_flat_finite_figures(compared):
    metrics = compared.to_metrics()
    assert metrics["compare/rows_moved"] == 4
    assert metrics["compare/share_moved"] == 0.8
    assert metrics["compare/null_share_before"] == 1 / 6
    assert metrics["compare/labels_new"] == 2
    assert all(type(value) is float for value in metrics.values())


def test_shares_of_nothing_are_neither_a_metric_nor_a_crash(tmp_path):
    rows = [("a", None, None, "text_null")]
    found = compare_outputs(write(tmp_path / "old", rows), write(tmp_path / "new", rows))
    assert (found.rows_compared, found.rows_with_error) == (0, 1)
    assert not {k for k in found.to_metrics() if "share" in k}
    assert "0 of 0 rows" in comparison_markdown(found)
    print_comparison(found, Console(file=io.StringIO()))


names = st.one_of(st.none(), st.sampled_from(["x", "y", "zürich | 日本", "é\n"]))
ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
rows_of = st.dictionaries(
    ids, st.tuples(names, st.sampled_from([0.25, 0.5, None]), st.sampled_from(["", "", "bad"]))
)


@settings(max_examples=40, deadline=None)
@given(rows_of, rows_of, st.sampled_from(["parquet", "jsonl"]), st.integers(1, 3))
def test_it_says_what_a_dictionary_says(tmp_path_factory, old, new, kind, files):
    shared = "shared id"
    old, new = old | {shared: ("x", 0.5, "")}, new | {shared: ("y", 0.5, "")}
    base = tmp_path_factory.mktemp("c")
    folders = [
        write(base / str(i), [(k, *v) for k, v in rows.items()], kind, files)
        for i, rows in enumerate((old, new))
    ]
    found = compare_outputs(*folders)
    both = old.keys() & new.keys()
    good = [k for k in both if not old[k][2] and not new[k][2]]
    pairs = Counter((old[k][0], new[k][0]) for k in good)
    assert {(m.before, m.after): m.rows for m in found.from_to} == pairs
    assert found.rows_compared == len(good)
    assert found.rows_with_error == len(both) - len(good)
    assert found.previous.rows_only_here == len(old) - len(both)
    assert found.current.rows_only_here == len(new) - len(both)
    assert found.rows_moved == sum(n for (a, b), n in pairs.items() if a != b)
    assert found.current.errors == sum(bool(error) for _, _, error in new.values())
    assert found.current.nulls == sum(v[0] is None and not v[2] for v in new.values())
    assert found.previous.counts == Counter(v[0] for v in old.values() if not v[2] and v[0])
    assert [m.rows for m in found.moves] == sorted((m.rows for m in found.moves), reverse=True)
    for move in found.moves:
        assert len(move.examples) == min(move.rows, 3)
        for example in move.examples:
            assert (old[example.id][0], new[example.id][0]) == (move.before, move.after)
            assert example.score_before == old[example.id][1]
            assert example.score_after == new[example.id][1]
    comparison_markdown(found)


def test_examples_do_not_depend_on_the_order_of_the_rows(tmp_path):
    rows = [(f"row {i}", "x", 0.5, "") for i in range(500)]
    moved = [(id_, "y", 0.5, "") for id_, *_ in rows]
    old = write(tmp_path / "old", rows)
    one = compare_outputs(old, write(tmp_path / "one", moved))
    two = compare_outputs(old, write(tmp_path / "two", moved[::-1], "jsonl", files=7))
    assert one.moves[0].examples == two.moves[0].examples
    assert {e.id for e in one.moves[0].examples} != {"row 0", "row 1", "row 2"}


def test_examples_are_of_the_largest_moves_alone(tmp_path):
    targets = [f"to {i:02d}" for i in range(21) for _ in range(5 - i % 5)]
    old = write(tmp_path / "a", [(str(i), "x", 0.5, "") for i in range(len(targets))])
    new = write(tmp_path / "b", [(str(i), to, 0.5, "") for i, to in enumerate(targets)])
    asked = []
    found = compare_outputs(old, new, texts_of=lambda ids: asked.append(ids) or {})
    sizes = [(move.rows, len(move.examples)) for move in found.moves]
    assert sizes == [(5, 3)] * 5 + [(4, 3)] * 4 + [(3, 3)] * 4 + [(2, 2)] * 4 + [(1, 1)] * 3 + [
        (1, 0)
    ]
    assert [len(ids) for ids in asked] == [13 * 3 + 4 * 2 + 3]


def test_ids_may_be_numbers_in_a_parquet_file(tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    dictionary = pa.array(["x", None]).dictionary_encode()
    columns = {"id": [7, 8], "label": dictionary, "score": [0.5, 0.5], "error": ["", None]}
    pq.write_table(pa.table(columns), old / "a.parquet")
    new = write(tmp_path / "new", [("7", "x", 1, ""), ("8", "2024-01-01", 1, "")], "jsonl")
    found = compare_outputs(old, new)
    assert found.rows_compared == 2
    assert (found.moves[0].before, found.moves[0].after) == (None, "2024-01-01")
    assert found.moves[0].examples == (Example("8", 0.5, 1.0, None),)


def test_files_are_found_to_the_bottom_and_by_uri_but_for_hidden_ones(tmp_path):
    old = write(tmp_path / "_runs" / "old", BEFORE[:3])  # only what is inside counts
    write(old / "deep" / "er", BEFORE[3:5], "jsonl")
    (old / "empty.jsonl").write_text("\n")
    for hidden in ("_temporary", ".cache"):
        write(old / hidden, BEFORE)
    (old / "summary.json").write_text("{}")
    (old / "_log.jsonl").write_text("{}")
    found = compare_outputs(old.as_uri(), write(tmp_path / "new", AFTER))
    assert found.previous.rows == 5
    assert found.rows_compared == 5


def test_a_long_line_is_read(tmp_path):
    folder = write(tmp_path / "old", [("a", "x", 1, "")])
    new = tmp_path / "new"
    new.mkdir()
    row = {"id": "a", "text": "x" * 3_000_000, "label": "y", "score": 1, "error": ""}
    (new / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert compare_outputs(folder, new).rows_moved == 1


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("side", [0, 1])
def test_an_id_that_stands_twice_is_named_with_its_folder(tmp_path, kind, side):
    rows = [(f"id {i}", "x", 0.5, "") for i in range(50)]
    folders = [write(tmp_path / name, rows, kind) for name in ("old", "new")]
    write(folders[side], [*rows, ("id 17", "y", 0.1, "")], kind, files=4)
    with pytest.raises(DataError, match="the id 'id 17' stands twice") as caught:
        compare_outputs(*folders)
    assert str(folders[side]) in str(caught.value)


def test_what_is_wrong_is_said(tmp_path):
    good = write(tmp_path / "good", BEFORE)
    with pytest.raises(DataError, match=r"compare_to: nothing at '.*nowhere'"):
        compare_outputs(tmp_path / "nowhere", good)
    (tmp_path / "bare" / "_x").mkdir(parents=True)
    with pytest.raises(DataError, match=r"compare_to: nothing to read at '.*bare'\. Allowed: "):
        compare_outputs(good, tmp_path / "bare")
    pq.write_table(pa.table({"key": ["a"], "label": ["x"]}), tmp_path / "key.parquet")
    with pytest.raises(DataError, match=r"parquet: has no column 'id'\. It has: key, l"):
        compare_outputs(good, tmp_path / "key.parquet")
    with pytest.raises(DataError, match="no id in common"):
        compare_outputs(good, write(tmp_path / "other", [("z", "x", 0.5, "")]))
    with pytest.raises(DataError, match="no id in common"):
        compare_outputs(good, write(tmp_path / "none", []))
    with pytest.raises(DataError, match="'praise' stands in the rows, but not among the 2 labels"):
        compare_outputs(good, good, (["billing", "delivery"], OLD_SET))
    with pytest.raises(DataError, match="s3x"):
        compare_outputs("s3x://b/c", good)


def test_a_row_without_an_id_is_in_no_other_output(tmp_path):
    unread = (None, None, None, "line_unreadable")
    old = write(tmp_path / "old", [("a", "x", 1.0, ""), unread, unread])
    new = write(tmp_path / "new", [("a", "y", 1.0, ""), unread])
    found = compare_outputs(old, new)
    assert (found.rows_compared, found.rows_moved) == (1, 1)
    assert (found.previous.rows_only_here, found.current.rows_only_here) == (2, 1)


def test_renamed_labels_have_not_moved_and_likely_ones_are_found(tmp_path):
    rows = [(str(i), "Refunds" if i < 8 else "praise", 0.5, "") for i in range(12)]
    now = {"Refunds": "refund", "praise": "thanks"}
    old = write(tmp_path / "old", rows)
    new = write(tmp_path / "new", [(i, now[label], s, e) for i, label, s, e in rows])
    sets = (["Refunds", "praise"], ["refund", "thanks"])
    plain = compare_outputs(old, new, sets)
    assert plain.rows_moved == 12
    # Both went over whole, but only one is alike.
    cosines = np.array([[0.9, 0.1], [0.1, 0.2]])
    assert likely_renames(plain, lambda gone, new: cosines) == [("Refunds", "refund")]
    renamed = compare_outputs(old, new, sets, renamed={"Refunds": "refund"})
    assert (renamed.rows_moved, renamed.new, renamed.gone) == (4, ("thanks",), ("praise",))
    assert 'Renamed: "Refunds" to "refund"' in comparison_markdown(renamed)
    with pytest.raises(DataError, match="'nowhere', which the current labels have not"):
        compare_outputs(old, new, sets, renamed={"Refunds": "nowhere"})


def test_every_row_that_moved_is_written(tmp_path):
    old = write(tmp_path / "old", BEFORE)
    new = write(tmp_path / "new", AFTER)
    matched = MatchedOutputs.read(old, new)
    moved = matched.write_moved(tmp_path / "x" / "moved.parquet")
    table = pq.read_table(tmp_path / "x" / "moved.parquet")
    assert table.num_rows == moved == matched.compared().rows_moved
    before, after = ({row[0]: row for row in rows} for rows in (BEFORE, AFTER))
    for row in table.to_pylist():
        assert row["label_before"] == before[row["id"]][1]
        assert row["label_after"] == after[row["id"]][1]
        assert row["label_before"] != row["label_after"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"id": "a", "score": 1, "error": ""}\n', "has no column 'label'. It has: id, score"),
        ('{"id": "a",\n', "has no column 'id'"),
        ("[1]\n", "has no column 'id'"),
        ('{"id": "a", "label": "x", "score": 1, "error": ""}\n[1]\n', "cannot be read"),
        ('{"id": "a", "label": 1, "score": 1, "error": ""}\n', "cannot be read"),
    ],
)
def test_a_bad_jsonl_file_is_named(tmp_path, text, said):
    good = write(tmp_path / "good", BEFORE)
    bad = write(tmp_path / "bad", BEFORE, "jsonl")
    (bad / "zz.jsonl").write_text(text)
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        compare_outputs(good, bad)
    assert "zz.jsonl" in str(caught.value)


def test_a_damaged_parquet_file_is_named(tmp_path):
    good = write(tmp_path / "good", BEFORE)
    bad = write(tmp_path / "bad", BEFORE)
    (bad / "zz.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"zz\.parquet: not readable as Parquet"):
        compare_outputs(good, bad)


EVIL = "a|b\nc `d` <b>*[x](y)*</b> \x1b[2J \\"


def test_markdown_shows_names_and_texts_to_the_letter(tmp_path):
    old = write(tmp_path / "old", [("i|d", EVIL, 0.5, ""), ("2", "(no answer)", 0.5, "")])
    new = write(tmp_path / "new", [("i|d", "[red]new_label_", 0.5, ""), ("2", None, 0.5, "")])
    found = compare_outputs(old, new, texts_of=lambda ids: {"i|d": "word " * 100})
    markdown = comparison_markdown(found)
    html = MarkdownIt("commonmark").enable("table").render(markdown)
    cells = re.findall(r"<td.*?>(.*?)</td>", html)
    shown = escape(" ".join(EVIL.split()).replace("\x1b", "�"), quote=False)
    assert cells.count(shown) == 4  # in the moves, an example, the counts and the matrix
    assert cells.count("[red]new_label_") == 4
    assert cells.count("(no answer)") == 4  # a name like any other
    assert cells.count("<em>(no answer)</em>") == 3
    assert "i|d" in cells
    assert "<th>from \\ to</th>" in html
    assert "word \\[…\\] |" in markdown
    assert max(map(len, markdown.splitlines())) < 400
    console = Console(width=200, record=True, file=io.StringIO())
    print_comparison(found, console)
    text = console.export_text()
    assert "a|b c `d` <b>*[x](y)*</b> �[2J \\" in text
    assert "[red]new_label_" in text
    assert "\x1b[2J" not in text


def test_what_is_cut_ends_in_a_mark():
    assert one_line("x" * 60) == "x" * 60
    assert one_line("x" * 61) == "x" * 60 + CUT
    assert one_line("a\r\n\tb ") == "a b"


@pytest.mark.parametrize(("labels", "has_matrix"), [(15, True), (16, False)])
def test_a_matrix_is_shown_of_few_labels(tmp_path, labels, has_matrix):
    rows = [(str(i), f"label {i}", 0.5, "") for i in range(labels)]
    turned = [(id_, rows[i - 1][1], 0.5, "") for i, (id_, *_) in enumerate(rows)]
    found = compare_outputs(write(tmp_path / "old", rows), write(tmp_path / "new", turned))
    assert ("## From (rows) to (columns)" in comparison_markdown(found)) == has_matrix
    assert "## Largest moves" in comparison_markdown(found)


def test_many_labels_are_cut_with_a_word_about_it(tmp_path):
    rows = [(str(i), f"label {i % 100:03d}", 0.5, "") for i in range(300)]
    moved = [(id_, "all", 0.5, "") for id_, *_ in rows]
    found = compare_outputs(write(tmp_path / "old", rows), write(tmp_path / "new", moved))
    markdown = comparison_markdown(found)
    assert "## Largest moves (20 of 100)" in markdown
    assert "the 40 of 101 that changed most" in markdown
    assert "and 60 more" in markdown
    console = Console(width=100, record=True, file=io.StringIO())
    print_comparison(found, console)
    assert "Largest moves (10 of 100)" in console.export_text()


def test_equal_outputs_have_no_moves(tmp_path):
    folder = write(tmp_path / "old", BEFORE)
    found = compare_outputs(folder, folder)
    assert found.moves == ()
    assert found.share_moved == 0
    assert found.from_to[0] == Move("billing", "billing", 2)
    assert "0 of 6 rows in both outputs moved (0.0 %)." in comparison_markdown(found)


def test_hashes_tell_strings_apart_wherever_they_stand_in_a_block():
    texts = ["", "a", "b", "ab", "ba", "a\0", "\0a", "é", "a" * 5000, "a" * 4999 + "b"]
    array = pa.array(["xyz", *texts])
    hash_2N = _hashes(array.slice(1))
    assert len({tuple(pair) for pair in hash_2N.T.tolist()}) == len(texts)
    for i, text in enumerate(texts):
        np.testing.assert_array_equal(_hashes(pa.array([text]))[:, 0], hash_2N[:, i])
    assert len(np.unique(_hashes(pa.array(map(str, range(50_000))))[0])) == 50_000


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_many_rows_take_seconds(tmp_path, kind):
    rows = 50_000
    rng = np.random.default_rng(0)
    id_N = [f"{i:08x}-1111-2222-3333-444444444444" for i in range(rows)]
    before_N, after_N = rng.integers(0, 50, rows), rng.integers(0, 50, rows)
    after_N[: rows // 2] = before_N[: rows // 2]
    order = rng.permutation(rows)

    def rows_in(order, label_N):
        return [(id_N[i], f"label {label_N[i]}", 0.5, "") for i in order]

    old = write(tmp_path / "old", rows_in(range(rows), before_N), kind, files=3)
    new = write(tmp_path / "new", rows_in(order, after_N), kind, files=5)
    start = time.perf_counter()
    found = compare_outputs(old, new)
    seconds = time.perf_counter() - start
    assert found.rows_compared == rows
    assert found.rows_moved == (before_N != after_N).sum()
    pairs = Counter(zip(before_N.tolist(), after_N.tolist()))
    from_to = {(move.before, move.after): move.rows for move in found.from_to}
    assert from_to["label 3", "label 4"] == pairs[3, 4]
    assert seconds < 10
