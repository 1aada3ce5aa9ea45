"""One folder for all sources: whole or not at all, the same every time, nothing straddling."""

import gzip
import json
from collections import Counter, defaultdict

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

import sce.datasets.prepared as prepared
from sce.datasets.prepare import DataConfig, PreparedData, SourceConfig, prepare_data
from sce.datasets.schema import LABEL_SETS, ROWS
from sce.datasets.splits import text_key
from sce.errors import ConfigError, DataError, LabelError


def custom(path, **settings):
    return SourceConfig(**{"dataset": "custom", "name": "mine", "path": str(path), **settings})


def run(tmp_path, *sources, seed=0, out="out", **settings):
    config = DataConfig(sources=list(sources), **settings)
    manifest = prepare_data(config, tmp_path / out, seed)
    return manifest, PreparedData.load(tmp_path / out)


def some_rows(n=60, labels=("a", "b", "c")):
    return [{"text": f"text number {i}", "label": labels[i % len(labels)]} for i in range(n)]


def columns(table, *names):
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def test_custom_rows_in_fractions_with_labels_found(tmp_path, jsonl):
    manifest, data = run(tmp_path, custom(jsonl(some_rows(), "rows.jsonl.gz")))
    assert manifest["counts"] == {"mine": {"train": 48, "validation": 6, "test": 6}}
    assert data.rows.schema == ROWS
    assert data.label_sets["mine"].names == ["a", "b", "c"]
    assert data.seen_label_sets == {"mine"}
    assert data.select("test").num_rows == 6
    assert data.select("test", seen=False).num_rows == 0
    assert data.select(datasets=["mine"]).num_rows == 60
    assert data.domains == {"mine": "custom"}
    with pytest.raises(ConfigError, match="no dataset 'other'"):
        data.select(datasets=["other"])
    with pytest.raises(ConfigError, match="no split 'dev'"):
        data.select("dev")


def test_rerun_is_unchanged_and_file_order_does_not_matter(tmp_path, jsonl):
    rows = some_rows()
    path = jsonl(rows)
    first, data = run(tmp_path, custom(path))
    again, _ = run(tmp_path, custom(path))
    assert (first["unchanged"], again["unchanged"]) == (False, True)
    assert first["created"] == again["created"]
    jsonl(rows[::-1])
    shuffled, other = run(tmp_path, custom(path), out="other")
    assert shuffled["fingerprint"] == first["fingerprint"] == data.fingerprint
    assert other.rows == data.rows
    seed_1, _ = run(tmp_path, custom(path), seed=1, out="seed1")
    assert seed_1["fingerprint"] != first["fingerprint"]


def test_row_ids_are_unique_and_made_of_the_content(tmp_path, jsonl):
    rows = [{"text": "same", "label": "a", "split": "test"}] * 3
    rows += [{"text": "other", "label": "b", "split": "train"}]
    _, data = run(tmp_path, custom(jsonl(rows)))
    ids = data.rows["row_id"].to_pylist()
    assert len(set(ids)) == 4
    same = sorted(i for i, text in columns(data.rows, "row_id", "text") if text == "same")
    assert same[1:] == [f"{same[0]}-2", f"{same[0]}-3"]
    assert len(same[0]) == len("mine-") + 16


def test_a_text_in_test_is_taken_out_of_every_train_split(tmp_path, jsonl):
    train = [{"text": t, "label": "a", "split": "train"} for t in ("One!", "two", "two", "three")]
    test = [{"text": "ONE", "label": "b"}, {"text": "one", "label": "b"}]
    manifest, data = run(
        tmp_path,
        custom(jsonl(train, "train.jsonl"), name="first"),
        custom(jsonl(test, "test.jsonl"), name="second", sizes={"test": "all"}),
    )
    assert manifest["dropped"]["first"] == {"same text in test": 1, "exact repeat in train": 1}
    assert manifest["counts"] == {"first": {"train": 2}, "second": {"test": 2}}
    assert data.select(seen=False)["dataset"].unique().to_pylist() == ["second"]


def test_label_sets_from_file_column_and_candidates(tmp_path, jsonl):
    labels = tmp_path / "labels.yaml"
    labels.write_text("- name: a\n  synonyms: [alpha]\n  description: first\n- b\n- c\n")
    _, data = run(tmp_path, custom(jsonl(some_rows()), labels=str(labels)))
    assert data.label_sets["mine"].labels[0].synonyms == ("alpha",)

    rows = [{**r, "label_set": "x" if i % 2 else "y"} for i, r in enumerate(some_rows())]
    _, data = run(
        tmp_path, custom(jsonl(rows), labels={"x": ["a", "b", "c"], "y": ["c", "b", "a"]})
    )
    assert data.label_sets["mine/y"].names == ["c", "b", "a"]

    rows = [
        {"text": f"t{i}", "labels": ["a"], "all_labels": ["a", "b"] if i % 2 else ["b", "a"]}
        for i in range(20)
    ]
    _, data = run(tmp_path, custom(jsonl(rows)))
    assert [s.names for s in data.label_sets.values()] == [["a", "b"]]

    path = jsonl([{"text": "t", "label": "a", "label_set": "x"}])
    with pytest.raises(DataError, match=r"no labels for the label set 'x'.*it holds y"):
        run(tmp_path, custom(path, labels={"y": ["a"]}))
    with pytest.raises(LabelError, match="a mapping from those names"):
        run(tmp_path, custom(path, labels=["a"]))


def test_other_column_names_and_files_for_each_split(tmp_path):
    for name, n in (("train", 6), ("dev", 2), ("test", 3)):
        lines = "".join(f"title {name} {i},body,{'xy'[i % 2]}\n" for i in range(n))
        (tmp_path / f"{name}.csv").write_text("title,body,topic\n" + lines)
    shape = {"text_columns": ["title", "body"], "label_column": "topic"}
    manifest, data = run(
        tmp_path,
        custom(
            tmp_path / "train.csv", validation_path=str(tmp_path / "dev.csv"),
            test_path=str(tmp_path / "test.csv"), **shape,
        ),
    )  # fmt: skip
    assert manifest["counts"]["mine"] == {"train": 6, "validation": 2, "test": 3}
    assert "title dev 0 body" in data.rows["text"].to_pylist()
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.csv").rename(folder / f"{name}.csv")
    again, _ = run(tmp_path, custom(folder, **shape), out="again")
    assert again["fingerprint"] == manifest["fingerprint"]


@pytest.mark.parametrize(
    ("rows", "settings", "error", "message"),
    [
        ([{"text": "x", "label": "z"}], {"labels": ["a", "b"]}, DataError,
         r"rows.jsonl:1: the label 'z' is not in the label set: 'a', 'b'"),
        ([{"text": "x", "label": "a"}], {"labels": ["a", "a"]}, LabelError, "stands twice"),
        ([{"text": "x", "label": "a"}], {"labels": "none.yaml"}, DataError, "none.yaml: no such"),
        ([{"text": "", "label": "a"}], {}, DataError, "rows.jsonl:1: text is empty"),
        ([{"text": "x", "label": "a", "all_labels": ["b"]}], {}, DataError, "'a' is not in the"),
        ([{"text": "x", "label": "a"}], {"split_column": "part"}, DataError,
         "no column part. Its columns: text, label"),
        ([], {}, DataError, "no row is left"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_and_leaves_nothing(tmp_path, jsonl, rows, settings, error, message):
    path = jsonl(rows)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        run(tmp_path, custom(path, **settings))
    assert sorted(tmp_path.iterdir()) == before


def test_skip_bad_rows_counts_them(tmp_path, jsonl):
    rows = [*some_rows(), {"text": "", "label": "a"}, {"text": "x", "label": "z"}, {"text": "y"}]
    path = jsonl(rows)
    path.write_bytes(path.read_bytes() + b"{broken\n")
    manifest, data = run(tmp_path, custom(path, labels=["a", "b", "c"], skip_bad_rows=True))
    assert data.rows.num_rows == 60
    assert manifest["dropped"]["mine"] == {
        "empty text": 1,
        "label not in its label set": 1,
        "missing column": 1,
        "unreadable line": 1,
    }


def test_a_failed_write_keeps_the_old_folder(tmp_path, jsonl, monkeypatch):
    path = jsonl(some_rows())
    first, _ = run(tmp_path, custom(path))
    jsonl(some_rows(70))

    def full(*_args, **_kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepared.json, "dumps", full, raising=True)
        with pytest.raises(OSError, match="No space"):
            prepared.write_prepared(
                tmp_path / "out", ROWS.empty_table(), LABEL_SETS.empty_table(), {}
            )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "rows.jsonl"]
    assert PreparedData.load(tmp_path / "out").fingerprint == first["fingerprint"]
    second, data = run(tmp_path, custom(path))
    assert second["fingerprint"] != first["fingerprint"]
    assert data.rows.num_rows == 70


def test_a_tampered_folder_is_written_anew_and_other_files_are_not_removed(tmp_path, jsonl):
    path = jsonl(some_rows())
    first, data = run(tmp_path, custom(path))
    pq.write_table(data.rows.slice(1), tmp_path / "out/rows.parquet")
    second, data = run(tmp_path, custom(path))
    assert not second["unchanged"]
    assert data.rows.num_rows == 60
    (tmp_path / "out/precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"precious.txt.*not prepared data"):
        run(tmp_path, custom(path))
    assert first["fingerprint"] == second["fingerprint"]


def test_loading_something_else_says_so(tmp_path):
    with pytest.raises(DataError, match="not a prepared data folder"):
        PreparedData.load(tmp_path)
    for name in prepared.FILES:
        (tmp_path / name).write_bytes(b"?")
    with pytest.raises(DataError, match="damaged prepared data folder"):
        PreparedData.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "bcc"}, "allowed: starter, inbox, custom, bbc"),
        ({"dataset": "custom"}, "needs a path"),
        ({"dataset": "starter", "path": "x"}, "does not take path"),
        ({"dataset": "bbc", "labels": ["a"]}, "labels is for dataset custom"),
        ({"dataset": "bbc", "sizes": {"train": 1.5}}, "fraction"),
        ({"dataset": "bbc", "sizes": {"train": 0.9, "test": 0.2}}, "more than 1"),
        ({"dataset": "bbc", "sizes": {"train": "all", "test": "all"}}, "only one split"),
        ({"dataset": "bbc", "sizes": {"train": -1}}, "0 or more"),
        ({"dataset": "bbc", "pth": "x"}, "pth"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        SourceConfig(**settings)


def test_two_sources_need_two_names():
    with pytest.raises(ValidationError, match="two sources are called 'bbc'"):
        DataConfig(sources=[SourceConfig(dataset="bbc"), SourceConfig(dataset="bbc", path="x")])


def test_a_dataset_behind_an_account_says_where_to_get_it_and_which_setting(tmp_path):
    with pytest.raises(ConfigError, match=r"kaggle.com.*set `path`"):
        run(tmp_path, SourceConfig(dataset="huffpost"))


def test_starter_corpus_splits(tmp_path):
    manifest, data = run(tmp_path, SourceConfig(dataset="starter"))
    assert manifest["rows"] == 6904
    sets = defaultdict(lambda: defaultdict(list))
    for split, label_set, label in columns(data.rows, "split", "label_set", "label"):
        sets[label_set][split].append(label)
    unseen = [s for s, by in sets.items() if set(by) == {"test"}]
    validation = [s for s, by in sets.items() if set(by) == {"validation"}]
    train = [s for s, by in sets.items() if set(by) == {"train", "test"}]
    assert (len(unseen), len(validation), len(train)) == (24, 12, 98)
    for label_set in train:
        assert sorted(sets[label_set]["test"]) == sorted(data.label_sets[label_set].names)
    assert Counter(data.domains[s] for s in validation) == dict.fromkeys(
        set(data.domains.values()), 2
    )
    assert all(label.synonyms for s in data.label_sets.values() for label in s.labels)
    assert data.select("test", seen=False)["label_set"].unique().to_pylist() == sorted(unseen)
    _, other = run(tmp_path, SourceConfig(dataset="starter"), seed=1, out="seed1")
    assert set(other.select("validation")["label_set"].to_pylist()) == set(validation)


def test_every_train_label_set_cannot_be_a_validation_label_set(tmp_path):
    with pytest.raises(ConfigError, match="Allowed: 0 to 109"):
        run(tmp_path, SourceConfig(dataset="starter"), validation_label_sets=110)


def test_no_text_straddles_a_split_in_the_starter_corpus(tmp_path):
    _, data = run(tmp_path, SourceConfig(dataset="starter"), validation_label_sets=30)
    splits = defaultdict(set)
    for split, text in columns(data.rows, "split", "text"):
        splits[text_key(text)].add(split)
    assert all(len(s) == 1 for s in splits.values())


def test_relative_paths_are_looked_up_in_the_folder_where_one_is_given(
    tmp_path, jsonl, monkeypatch
):
    jsonl(some_rows(), "mine/rows.jsonl")
    (tmp_path / "mine" / "labels.yaml").write_text("[c, b, a]")
    source = custom("rows.jsonl", labels="labels.yaml")
    with pytest.raises(DataError, match=r"rows\.jsonl: no such"):
        run(tmp_path, source)
    manifest, data = run(tmp_path, source, folder=str(tmp_path / "mine"))
    assert data.label_sets["mine"].names == ["c", "b", "a"]
    assert manifest["sources"]["mine"]["path"] == str(tmp_path / "mine" / "rows.jsonl")
    absolute = custom(tmp_path / "mine" / "rows.jsonl")
    assert run(tmp_path, absolute, folder="/nowhere", out="absolute")[1].rows.num_rows == 60
    monkeypatch.chdir(tmp_path / "mine")
    again, _ = run(tmp_path, source, out="here")
    assert again["fingerprint"] == manifest["fingerprint"]


def test_gzip_and_plain_are_the_same_data(tmp_path, jsonl):
    plain, _ = run(tmp_path, custom(jsonl(some_rows())), out="plain")
    path = tmp_path / "rows2.jsonl.gz"
    path.write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    packed, _ = run(tmp_path, custom(path), out="packed")
    assert plain["fingerprint"] == packed["fingerprint"]
    assert json.loads((tmp_path / "packed/manifest.json").read_text())["rows"] == 60
