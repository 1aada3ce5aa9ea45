"""The declarations agree with appendix F of the paper, its Table 3, and with themselves."""

import openpyxl
import pytest

from sce.datasets.custom import read_label_file, read_label_set
from sce.datasets.sources import label_set_for, synonym_tables
from sce.datasets.specs import SPECS
from sce.errors import DataError, LabelError
from sce.labels import LabelSet

# Appendix F: number of label names of each dataset.
PAPER_LABELS = {
    "bbc": 5, "huffpost": 9, "huffpost10": 10, "mind": 10, "nytimes": 13, "yahoo": 10,
    "ag_news": 4, "arise": 6, "mnds": 12,
}  # fmt: skip


# The eight datasets of the paper in the order of appendix F: trained on, then unseen.
PAPER_SEEN = ("bbc", "huffpost", "mind", "nytimes")
PAPER_UNSEEN = ("yahoo", "ag_news", "arise", "mnds")


def trained_on(spec):
    return spec.sizes.get("train", 0) != 0


@pytest.mark.parametrize(("name", "count"), PAPER_LABELS.items())
def test_label_names_of_appendix_f(name, count):
    spec = SPECS[name]
    labels = spec.labels
    assert len(labels) == count
    assert set(labels) == set(spec.label_map.values())
    assert all(label == label.lower() for label in labels)


def test_split_sizes_add_up_to_table_3():
    sizes = [SPECS[name].sizes for name in PAPER_SEEN]
    assert sum(s["train"] for s in sizes) == 16000
    assert sum(s["validation"] for s in sizes) == 5325
    assert all(not trained_on(SPECS[name]) for name in PAPER_UNSEEN)


@pytest.mark.parametrize(
    ("dataset", "original", "ours"),
    [
        ("huffpost", "WORLD NEWS", None),
        ("huffpost10", "WORLD NEWS", "world"),
        ("huffpost", "STYLE & BEAUTY", "style"),
        ("huffpost41", "WORLD NEWS", "world news"),
        ("mind", "tv", "entertainment"),
        ("mind", "middleeast", None),
        ("nytimes", "Your Money", "economy"),
        ("nytimes", "Opinion", None),
        ("ag_news", "Sci/Tech", "science"),
        ("yahoo", "5", "computers"),
        ("mnds", "human interest", None),
        ("mnds", "labour", None),
        ("clinc150", "oos", None),
        ("clinc150", "what_song", "what song"),
    ],
)
def test_original_labels(dataset, original, ours):
    assert SPECS[dataset].our_label(original) == ours


@pytest.mark.parametrize("table", ["bbc", "huffpost", "huffpost41", "mind", "nytimes"])
def test_synonyms_are_enough_and_collide_with_no_other_label(table):
    known = synonym_tables()[table]
    owner = {name.casefold(): name for name in known}
    for name, info in known.items():
        assert 3 <= len(info["synonyms"]) <= 6, name
        assert info["description"], name
        for synonym in info["synonyms"]:
            assert owner.setdefault(synonym.casefold(), name) == name, synonym
            assert synonym.casefold() != name.casefold()


def test_tables_cover_the_training_labels_and_only_those():
    for spec in SPECS.values():
        if spec.synonyms and spec.name != "huffpost41":
            label_set = label_set_for(spec.labels, spec.synonyms)
            assert all(label.synonyms and label.description for label in label_set.labels)
        assert bool(spec.synonyms) == trained_on(spec)
    assert len(synonym_tables()["huffpost41"]) == 41


def test_label_files(tmp_path):
    path = tmp_path / "labels.yaml"
    path.write_text("- one\n- {name: two, description: the second}\n")
    assert read_label_file(path)[0] == "one"
    path.write_text("a: [")
    with pytest.raises(DataError, match=r"labels\.yaml: not a readable file of labels"):
        read_label_file(path)
    for name, content in (
        ("labels.txt", "one\ntwo\n"),
        ("labels.json", '["one", "two"]'),
        ("labels.jsonl", '{"name": "one"}\n{"name": "two", "description": "the second"}\n'),
    ):
        (tmp_path / name).write_text(content)
        assert LabelSet.parse(read_label_file(tmp_path / name)).names == ["one", "two"]
    with pytest.raises(DataError, match="no such file"):
        read_label_file(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        # Lines end at LF and CRLF alone.
        ("x.txt", "late delivery\x0bor lost\r\nbilling\n", ["late delivery\x0bor lost", "billing"]),
        ("x.txt", "# of March\nbilling\n#\n#sale\n", ["billing", "#sale"]),
        ("x.jsonl", '{"name": "a", "description": "late\u2028or not"}\n"b"\n', ["a", "b"]),
        ("x.yaml", "billing:\n  description: charges\npraise: {synonyms: [ta]}\nother:\n",
         ["billing", "praise", "other"]),
        ("x.yaml", "labels:\n  - billing\n  - praise\n", ["billing", "praise"]),
        ("x.json", '{"billing": null, "praise": {"examples": ["thanks"]}}', ["billing", "praise"]),
    ],
)  # fmt: skip
def test_label_files_as_people_write_them(tmp_path, name, content, names):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read_label_set(tmp_path / name)[0].names == names


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_label_files_in_the_encodings_of_windows(tmp_path, encoding):
    (tmp_path / "x.txt").write_bytes("Rückgabe\r\nGröße\r\n".encode(encoding))
    assert read_label_set(tmp_path / "x.txt")[0].names == ["Rückgabe", "Größe"]


def test_a_spreadsheet_of_labels(tmp_path):
    rows = [["Name", "Description", "synonyms"], ["refund", "money back", "return | cash back"]]
    rows += [["other", "", ""]]
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(tmp_path / "x.xlsx")
    (tmp_path / "x.csv").write_bytes("\r\n".join(map(";".join, rows)).encode("cp1252"))
    for name in ("x.xlsx", "x.csv"):
        refund, other = read_label_set(tmp_path / name)[0].labels
        assert (refund.name, refund.description) == ("refund", "money back")
        assert refund.synonyms == ("return", "cash back")
        assert (other.name, other.description) == ("other", "")
    for header, message in (("text;description", "no column `name`"), ("name;notes", "'notes'")):
        (tmp_path / "y.csv").write_text(f"{header}\na;b\n")
        with pytest.raises(DataError, match=message):
            read_label_set(tmp_path / "y.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.yaml", "a: one\nb: two\na: three\n", "'a' stands twice, in lines 1 and 3"),
        ("x.yaml", "labels:\n- name: a\n  name: b\n", "'name' stands twice, in lines 2 and 3"),
        ("x.yaml", "{a: one, a: two}\n", "'a' stands twice, in lines 1 and 1"),
        ("x.json", '{"a": "one", "a": "two"}', "x.json: the key 'a' stands twice"),
        ("x.jsonl", '"b"\n{"name": "a", "name": "c"}\n', "x.jsonl:2: the key 'name' stands twice"),
        ("x.yaml", "- yes\n- no\n", 'not bool .*In YAML put it in quotes: "no"'),
        ("x.yaml", "- name: 404\n", "not int .*In YAML put it in quotes"),
        ("x.yaml", "a: {name: b}\n", "'a' has another name inside, 'b'"),
    ],
)
def test_what_a_label_file_would_hide_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(LabelError, match=message):
        read_label_set(tmp_path / name)


PRINTED = {  # appendix F, letter by letter
    "bbc": ["tech", "business", "sport", "entertainment", "politics"],
    "huffpost": ["wellness", "Politics", "Entertainment", "Travel", "Style", "parenting", "Food",
                 "Business", "Sports"],
    "mind": ["travel", "health", "Food", "sports", "weather", "finance", "entertainment", "music",
             "lifestyle", "autos"],
    "nytimes": ["Television", "Movies", "Sports", "Music", "Theater", "Media", "Art", "Style",
                "Food", "Health", "Science", "Travel", "Economy"],
    "yahoo": ["Society", "Science", "Health", "Education", "Computers", "Sports", "Business",
              "Entertainment", "Relationships", "Government"],
    "ag_news": ["Science", "World", "Sports", "Business"],
    "arise": ["business", "sports", "politics", "health", "tech", "entertainment"],
    "mnds": ["society", "science", "politics", "sport", "religion", "war", "health", "education",
             "environment", "crime", "disaster", "weather"],
}  # fmt: skip


@pytest.mark.parametrize("name", PRINTED)
def test_labels_are_as_appendix_f_prints_them_on_request(name):
    spec = SPECS[name]
    labels = spec.labels
    assert [spec.as_printed(label) for label in labels] == PRINTED[name]
    label_set = label_set_for(labels, spec.synonyms, spec.as_printed)
    assert label_set.names == PRINTED[name]
    lower = label_set_for(labels, spec.synonyms)
    assert [label.synonyms for label in label_set.labels] == [x.synonyms for x in lower.labels]
