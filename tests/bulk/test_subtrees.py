"""Two outputs of trees: what moved with its node is the same label as before."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sce.bulk.changes import compare_outputs
from sce.bulk.display import comparison_markdown
from sce.bulk.output import RUN_FILE
from sce.bulk.subtrees import moved_subtrees, renamed_below
from sce.errors import ConfigError, DataError
from sce.workflows.answer_changes import report_changes
from sce.workflows.bulk_input import read_input
from sce.workflows.bulk_settings import ClassifyConfig


def write(folder, labels):
    folder.mkdir(parents=True)
    columns = {
        "id": [str(i) for i in range(len(labels))],
        "label": pa.array(labels, pa.string()),
        "score": pa.array([0.5] * len(labels), pa.float32()),
        "error": [""] * len(labels),
    }
    pq.write_table(pa.table(columns), folder / "part-00000.parquet")
    return folder


def compare(tmp_path, before, after, *sets):
    folders = write(tmp_path / "old", before), write(tmp_path / "new", after)
    return compare_outputs(
        *folders, sets or (sorted({*before} - {None}), sorted({*after} - {None}))
    )


def pairs(found):
    return [(one.before, one.after, one.labels) for one in moved_subtrees(found, "/")]


def test_a_node_that_was_renamed_takes_its_labels_along(tmp_path):
    before = ["delivery/late", "delivery/lost/abroad", "billing/refund", "delivery"]
    after = ["shipping/late", "shipping/lost/abroad", "billing/refund", "shipping"]
    (found,) = moved_subtrees(compare(tmp_path, before, after), "/")
    assert (found.before, found.after) == ("delivery", "shipping")
    assert found.labels == {old: new for old, new in zip(before, after) if old != new}
    assert (found.rows, found.rows_followed) == (3, 3)


def test_a_node_that_hangs_elsewhere_is_named_itself(tmp_path):
    before = ["delivery/late", "delivery/lost", "orders/open"]
    after = ["orders/delivery/late", "orders/delivery/lost", "orders/open"]
    ((old, new, labels),) = pairs(compare(tmp_path, before, after))
    assert (old, new, len(labels)) == ("delivery", "orders/delivery", 2)


def test_a_leaf_alone_moves_if_its_rows_say_so(tmp_path):
    before = ["billing/refund"] * 3 + ["billing/invoice", "orders/open"]
    moved = ["orders/refund"] * 2 + ["billing/invoice"] * 2 + ["orders/open"]
    assert pairs(compare(tmp_path / "a", before, moved)) == [
        ("billing/refund", "orders/refund", {"billing/refund": "orders/refund"})
    ]
    # A name that many parents have: its rows went elsewhere.
    by_chance = ["billing/invoice"] * 2 + ["orders/refund", "billing/invoice", "orders/open"]
    assert pairs(compare(tmp_path / "b", before, by_chance)) == []


def test_without_rows_one_name_alone_is_no_subtree(tmp_path):
    rows = ["x/y"]
    old, new = ["x/y", "a/p", "a/q", "b/p"], ["x/y", "c/p", "c/q"]
    ((before, after, labels),) = pairs(compare(tmp_path / "a", rows, rows, old, new))
    assert (before, after, labels) == ("a", "c", {"a/p": "c/p", "a/q": "c/q"})
    assert pairs(compare(tmp_path / "b", rows, rows, ["x/y", "a/p"], ["x/y", "c/p"])) == []


def test_each_label_comes_from_one(tmp_path):
    before = ["a/p", "a/q", "b/p", "b/q"]
    after = ["c/p", "c/q", "c/p", "c/q"]
    found = moved_subtrees(compare(tmp_path, before, after), "/")
    assert [one.before for one in found] == ["a"]  # two merged: one of them is followed


def test_a_renamed_node_renames_what_is_below_it():
    old = ["delivery", "delivery/late", "delivery/lost", "delivery/gone", "deliverance"]
    new = ["shipping", "shipping/late", "posted/lost", "deliverance"]
    renamed = {"delivery": "shipping", "delivery/lost": "posted/lost"}
    assert renamed_below(renamed, old, new, "/") == {
        "delivery": "shipping",
        "delivery/late": "shipping/late",
        "delivery/lost": "posted/lost",
    }
    only_leaves = ["delivery/late"], ["shipping/late"]
    assert renamed_below({"delivery": "shipping"}, *only_leaves, "/") == {
        "delivery/late": "shipping/late"
    }
    # What names nothing is left for the check that says so.
    assert renamed_below({"nowhere": "x"}, *only_leaves, "/") == {"nowhere": "x"}


def test_the_report_follows_the_subtree_and_counts_the_rest(tmp_path):
    before = ["delivery/late", "delivery/lost", "billing/refund", None]
    after = ["shipping/late", "billing/refund", "billing/refund", None]
    sets = ["billing/refund", "delivery/late", "delivery/lost"], [
        "billing/refund", "shipping/late", "shipping/lost",
    ]  # fmt: skip
    old, new = write(tmp_path / "old", before), write(tmp_path / "new", after)
    asked = (str(old), sets[0], {}), (str(new), sets[1]), lambda ids: {}, None
    flat, _, said = report_changes(*asked)
    assert (flat.rows_moved, len(flat.new)) == (2, 2)
    assert "moved_subtrees" not in said
    # One of two rows followed: not most of them.
    assert report_changes(*asked, "/")[0].subtrees == ()
    after[1] = "shipping/lost"
    new = write(tmp_path / "newer", after)
    asked = (str(old), sets[0], {}), (str(new), sets[1]), lambda ids: {}, None
    found, report, said = report_changes(*asked, "/")
    assert (found.rows_moved, found.new, found.gone) == (0, (), ())
    assert said["moved_subtrees"] == {"delivery": "shipping"}
    assert 'Moved: "delivery" to "shipping" (2 label(s), 2 of 2 rows as before)' in report
    assert "Renamed" not in report
    again = compare_outputs(old, new, sets, renamed=found.renamed)
    assert comparison_markdown(again).count("Renamed: ") == 2
    assert (again.from_to, again.previous, again.current) == (
        found.from_to, found.previous, found.current,
    )  # fmt: skip


def test_a_rename_to_nothing_is_refused(tmp_path):
    old, new = write(tmp_path / "old", ["a/p"]), write(tmp_path / "new", ["b/p"])
    renamed = renamed_below({"a": "c"}, ["a/p"], ["b/p"], "/")
    with pytest.raises(DataError, match="'a' to 'c', which the current labels have not"):
        compare_outputs(old, new, (["a/p"], ["b/p"]), renamed=renamed)


@pytest.mark.parametrize(
    ("labels", "renamed", "said"),
    [
        ("shipping: [late]\nbilling: [refund]\n", "delivery=shipping", None),
        ("shipping: [late]\nbilling: [refund]\n", "delivery/late=shipping/late", None),
        ("shipping: [late]\nbilling: [refund]\n", "deliver=shipping", "'deliver' is none of the"),
        ("- shipping/late\n- billing/refund\n", "delivery=shipping", "'delivery' is none of the"),
    ],
)
def test_a_node_may_be_renamed_where_the_labels_are_a_tree(tmp_path, labels, renamed, said):
    old = write(tmp_path / "old", ["delivery/late"])
    summary = {"label_names": ["delivery/late", "billing/refund"]}
    run = {"request": {}, "parts": {}, "summary": summary, "seconds": 1.0}
    (old / RUN_FILE).write_text(json.dumps(run))
    (tmp_path / "labels.yaml").write_text(labels)
    (tmp_path / "in.jsonl").write_text('{"text": "hello"}\n')
    config = ClassifyConfig(
        model="m",
        input=[str(tmp_path / "in.jsonl")],
        labels_file=tmp_path / "labels.yaml",
        compare_to=old,
        renamed=[renamed],
        output=tmp_path / "new",
    )
    if said is None:
        assert read_input(config).previous[2] == dict([renamed.split("=")])
    else:
        with pytest.raises(ConfigError, match=said):
            read_input(config)


LEAVES = ["billing/refund", "billing/invoice", "delivery/late", "delivery/lost"]
TREE = [*LEAVES, "billing", "delivery"]
FLAT = ["refund", "invoice", "late", "lost"]


def changes(tmp_path, before, after, old, new):
    """Of two outputs, each with a tree's labels or those of a flat set."""
    folders, separators = [], []
    for name, labels, known in (("old", before, old), ("new", after, new)):
        folder = write(tmp_path / name, labels)
        separators.append("/" if known == TREE else None)
        summary = {"label_names": known} | ({"separator": "/"} if known == TREE else {})
        run = {"request": {"columns": {}}, "parts": {}, "summary": summary, "seconds": 1.0}
        (folder / RUN_FILE).write_text(json.dumps(run))
        folders.append(str(folder))
    asked = (folders[0], old, {}), (folders[1], new), lambda ids: {}, None, separators[1]
    return report_changes(*asked)


def test_a_flat_label_is_the_leaf_of_its_name_and_may_stop_above_it(tmp_path):
    before = ["refund", "refund", "invoice", "late", "late", "lost", "lost"]
    after = [
        "billing", "billing/refund", "billing", "delivery", "delivery", "delivery/late", "delivery",
    ]  # fmt: skip
    found, report, said = changes(tmp_path, before, after, FLAT, TREE)
    assert (found.gone, found.new) == ((), ("billing", "delivery"))
    assert said["moved_subtrees"]["refund"] == "billing/refund"
    assert (found.rows_moved, found.rows_to_above, found.rows_from_above) == (6, 5, 0)
    assert "5 of them stopped at a node above their label" in report
    assert said["compare/rows_to_above"] == 5


def test_a_flat_label_may_be_a_node_of_the_tree(tmp_path):
    before, flat = ["refund", "delivery", "delivery", "delivery"], ["refund", "invoice", "delivery"]
    after = ["billing/refund", "delivery/late", "delivery", "billing"]
    found, _, _ = changes(tmp_path, before, after, flat, TREE)
    assert found.gone == ()
    assert (found.rows_moved, found.rows_from_above) == (2, 1)


def test_a_leaf_is_the_flat_label_of_its_name(tmp_path):
    before = ["billing", "billing/refund", "delivery/late", "delivery", "delivery"]
    after = ["refund", "refund", "late", "lost", "late"]
    found, _, _ = changes(tmp_path / "a", before, after, TREE, FLAT)
    assert (found.gone, found.new) == (("billing", "delivery"), ())
    assert found.rows_moved == 3


def test_stopping_above_speaks_neither_for_nor_against_a_move(tmp_path):
    before = ["delivery/late"] * 4 + ["billing/refund"]
    after = ["shipping"] * 3 + ["shipping/late", "billing/refund"]
    assert pairs(compare(tmp_path, before, after)) == [
        ("delivery", "shipping", {"delivery/late": "shipping/late"})
    ]
