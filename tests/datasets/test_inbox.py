"""The inbox: three label sets over one corpus, test rows alone, every message accounted for."""

from collections import Counter

import pytest
from pydantic import ValidationError

from sce.datasets.inbox import DEPARTMENTS, inbox_label_sets, inbox_rows, inbox_topics
from sce.datasets.prepare import DataConfig, PreparedData, SourceConfig, prepare_data
from sce.datasets.starter import read_starter

MESSAGES, WITHOUT_TOPIC = 1699, 110


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inbox") / "data"
    manifest = prepare_data(DataConfig(sources=[SourceConfig(dataset="inbox")]), folder, 0)
    return manifest, PreparedData.load(folder)


def test_every_message_stands_in_three_sets_or_has_no_topic(prepared):
    manifest, data = prepared
    counts = {name: sum(by["test"].values()) for name, by in manifest["label_counts"].items()}
    with_topic = MESSAGES - WITHOUT_TOPIC
    assert counts == {
        "inbox/topics": with_topic, "inbox/departments": with_topic, "inbox/tones": MESSAGES,
    }  # fmt: skip
    left_out = {"no topic (inbox/topics)": 110, "no topic (inbox/departments)": 110}
    assert manifest["dropped"]["inbox"] == left_out
    assert set(data.rows["split"].to_pylist()) == {"test"}
    assert len(set(data.rows["row_id"].to_pylist())) == data.rows.num_rows == sum(counts.values())
    assert not data.seen_label_sets


def test_messages_have_all_of_their_topics():
    topics = [labels for _, labels in inbox_topics()]
    assert Counter(map(len, topics)) == {0: WITHOUT_TOPIC, 1: 1346, 2: 243}
    assert {one for labels in topics for one in labels} == set(
        inbox_label_sets()["inbox/topics"].names
    )


def test_labels_are_those_of_the_rows_and_departments_add_topics_up(prepared):
    manifest, data = prepared
    for name, label_set in inbox_label_sets().items():
        assert set(manifest["label_counts"][name]["test"]) == set(label_set.names)
        assert data.label_sets[name] == label_set
    topics, departments = (
        manifest["label_counts"][f"inbox/{name}"]["test"] for name in ("topics", "departments")
    )
    for department, members in DEPARTMENTS.items():
        assert departments[department] == sum(topics[topic] for topic in members)
    assert topics["delivery"] == 310
    # Same text, same department as its topic says.
    of = {(r.label_set, r.text): r.label for r in inbox_rows("inbox")[0]}
    for (name, text), label in of.items():
        if name == "inbox/topics":
            assert label in DEPARTMENTS[of["inbox/departments", text]]


def test_all_messages_are_the_corpus_of_each_set_once(prepared):
    _, data = prepared
    text_of = dict(zip(data.rows["row_id"].to_pylist(), data.rows["text"].to_pylist()))
    for name in data.label_sets:
        ids = data.corpus(name)
        assert ids == sorted(ids)
        assert len(ids) == MESSAGES == len({text_of[i] for i in ids})


def test_sets_that_share_no_text_have_a_corpus_each(tmp_path, jsonl):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "label_set": "xy"[i // 6]} for i in range(12)]
    rows += [{"text": "t0", "label": "c", "label_set": "z"}, {"text": "own", "label": "c",
             "label_set": "z"}, {"text": "own", "label": "c", "label_set": "z"}]  # fmt: skip
    rows = [row | {"split": "test"} for row in rows]
    source = SourceConfig(dataset="custom", name="mine", path=str(jsonl(rows)))
    other = SourceConfig(dataset="custom", name="other", path=str(jsonl(rows[:3], "other.jsonl")))
    prepare_data(DataConfig(sources=[source, other]), tmp_path / "out", 0)
    data = PreparedData.load(tmp_path / "out")
    text_of = dict(zip(data.rows["row_id"].to_pylist(), data.rows["text"].to_pylist()))

    def texts(name):
        return Counter(text_of[i] for i in data.corpus(name))

    assert texts("mine/y") == Counter(f"t{i}" for i in range(6, 12))
    assert texts("mine/x") == texts("mine/z") == Counter([*(f"t{i}" for i in range(6)), "own"])
    assert texts("other/x") == Counter(["t0", "t1", "t2"]), "another dataset is another corpus"


def test_no_text_of_the_inbox_is_one_of_the_starter_corpus():
    starter = {text for one in read_starter() for text, _ in one.examples}
    assert not starter & {row.text for row in inbox_rows("inbox")[0]}


def test_its_splits_cannot_be_chosen():
    with pytest.raises(ValidationError, match="inbox does not take sizes"):
        SourceConfig(dataset="inbox", sizes={"train": 0.8, "test": 0.2})
