"""Labels fitted to a corpus: what is learned, what is left alone, the same bits every time."""

import json

import numpy as np
import pytest

from sce.adaptation.adapt import adapt
from sce.adaptation.artefact import FACTS_FILE, LABELS_FILE, WEIGHTS_FILE, AdaptedLabels
from sce.adaptation.fit import Fitter, Start, grain
from sce.adaptation.mixture import Labelled, moments_of
from sce.adaptation.passes import Block, in_memory
from sce.adaptation.progress import restore, to_arrays
from sce.adaptation.settings import MIN_CHOICE_ROWS, MIN_GRAIN, AdaptSettings
from sce.errors import DataError, LabelError
from sce.labels import LabelSet
from sce.model.decisions import fitted_share
from sce.model.label_tree import answer_names, parse_set
from sce.model.options import Scoring
from sce.model.products import VECTOR_BITS, vector_integers
from sce.model.rejection import NONE_SHARE, at_share

WIDTH = 24
NAMES = ["sport", "money", "weather", "music"]
EMBEDDER = {"dimension": WIDTH}


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


class World:
    """A corpus in groups, and an embedder whose vectors of labels lie near the groups, not in them:
    a label's vector is turned towards its neighbour's group."""

    def __init__(self, names=NAMES, sizes=(200, 200, 200, 200), turned=0.7, seed=0):
        random = np.random.default_rng(seed)
        self.centres_KD = unit(random.normal(size=(len(names), WIDTH)))
        labels_KD = unit(self.centres_KD + turned * np.roll(self.centres_KD, 1, axis=0))
        self.vectors = dict(zip(names, labels_KD))
        self.targets_N = np.repeat(np.arange(len(names)), sizes)
        noise_ND = random.normal(size=(len(self.targets_N), WIDTH)) * 0.13
        self.x_ND = unit(self.centres_KD[self.targets_N] + noise_ND)
        self.label_set = LabelSet.parse(list(names))

    def text_vectors(self, texts):
        """A name in any template has the name's vector; anything else a vector of its own."""
        found = []
        for text in texts:
            names = [name for name in self.vectors if name in text]
            seed = sum(map(ord, text))
            own = unit(np.random.default_rng(seed).normal(size=WIDTH))
            found.append(self.vectors[names[0]] if names else own)
        return np.array(found, np.float32)

    def adapt(self, label_set=None, x_ND=None, **settings):
        labelled, shares = settings.pop("labelled", None), settings.pop("shares", None)
        return adapt(
            self.x_ND if x_ND is None else x_ND,
            label_set or self.label_set,
            self.text_vectors,
            EMBEDDER,
            labelled=labelled,
            shares=shares,
            settings=AdaptSettings(**settings),
        )

    def accuracy(self, adapted) -> float:
        order = [adapted.names.index(name) for name in self.label_set.names]
        return float((adapted.scores(self.x_ND)[:, order].argmax(1) == self.targets_N).mean())


def test_the_corpus_teaches_the_labels():
    world = World()
    before, after = world.adapt(trust="none"), world.adapt()
    assert world.accuracy(before) < 0.9
    assert world.accuracy(after) > 0.97
    report = after.report
    assert (report["adapted"], report["trust"], report["rows"]) == (True, "default", 800)
    assert report["changed"] == pytest.approx(
        (before.scores(world.x_ND).argmax(1) != after.scores(world.x_ND).argmax(1)).mean()
    )
    assert sum(label["mass_after"] for label in report["labels"]) == pytest.approx(1)
    assert report["agreement"] > 0.95


def test_skew_is_not_evened_out():
    world = World(sizes=(600, 120, 60, 40))
    shares = {label["name"]: label["mass_after"] for label in world.adapt().report["labels"]}
    assert world.accuracy(world.adapt()) > 0.95
    assert shares["sport"] > 0.68


def test_a_label_without_texts_is_named_and_takes_little():
    world = World(sizes=(300, 300, 300, 0), turned=0.5)
    found = {label["name"]: label for label in world.adapt().report["labels"]}
    assert found["music"]["seems_absent"]
    assert found["music"]["mass_after"] < 0.02
    assert not any(found[name]["seems_absent"] for name in NAMES[:3])


def test_shares_that_the_user_gives_stand_for_the_fitted_mass():
    world = World(turned=0.95)
    even = world.adapt()
    told = world.adapt(shares={"sport": 0.97, "money": 0.01, "weather": 0.01, "music": 0.01})
    place = NAMES.index("sport")
    answered = [(one.scores(world.x_ND).argmax(1) == place).sum() for one in (even, told)]
    assert answered[1] > answered[0]
    for wrong in ({"sport": 1.5}, {"sport": 0.9, "money": 0.9}, {"sport": True}):
        with pytest.raises(DataError, match="shares"):
            world.adapt(shares=wrong)
    with pytest.raises(LabelError, match="cheese"):
        world.adapt(shares={"cheese": 0.1})


def test_the_same_bits_for_every_order_of_rows_and_labels(tmp_path):
    world, random = World(), np.random.default_rng(5)
    known = np.arange(0, 800, 20)
    labelled = world.x_ND[known], [NAMES[k] for k in world.targets_N[known]]
    one = world.adapt(labelled=labelled)
    order, turned = random.permutation(800), random.permutation(len(known))
    labelled = labelled[0][turned], [labelled[1][i] for i in turned]
    other = world.adapt(LabelSet.parse(NAMES[::-1]), world.x_ND[order], labelled=labelled)
    one.save(tmp_path / "one")
    other.save(tmp_path / "other")
    for name in (FACTS_FILE, WEIGHTS_FILE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert one.id == other.id
    assert (one.scores(world.x_ND) == other.scores(world.x_ND)[:, ::-1]).all()


@pytest.mark.parametrize("size", [1, 7, 100, 800])
def test_the_same_bits_however_the_rows_are_shared_out(size):
    world = World()
    start = Start.of(world.label_set, world.text_vectors, 1)
    fitters = []
    for blocks in (
        Block.split(world.x_ND),
        [Block.of(world.x_ND[i : i + size]) for i in range(0, 800, size)],
    ):
        fitters.append(Fitter.of(start, AdaptSettings()))
        fitters[-1].run(in_memory(blocks))
    first, second = (to_arrays(fitter) for fitter in fitters)
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


def test_a_fit_goes_on_from_any_round_to_the_same_end():
    world = World()
    start, add_up = (
        Start.of(world.label_set, world.text_vectors, 1),
        in_memory(Block.split(world.x_ND)),
    )
    whole = Fitter.of(start, AdaptSettings(trust="bold"))
    kept = []
    while whole.step(add_up):
        kept.append(to_arrays(whole))
    assert len(kept) == 7  # the first pass is round 1 of 8
    for arrays in kept:
        resumed = Fitter.of(start, AdaptSettings(trust="bold"))
        restore(resumed, arrays)
        resumed.run(add_up)
        for track, scores in whole.scores.items():
            assert (resumed.scores[track].weight_KD == scores.weight_KD).all()
            assert (resumed.scores[track].bias_K == scores.bias_K).all()


def test_labels_across_the_grain_are_left_alone_unless_it_is_asked_for():
    world = World()
    random = np.random.default_rng(3)
    # Directions in which the corpus hardly varies.
    flat_D = np.linalg.svd(world.x_ND - world.x_ND.mean(0))[2][-3:]
    for name, direction in zip(NAMES, [*flat_D, flat_D.mean(0) + 0.01 * random.normal(size=WIDTH)]):
        world.vectors[name] = unit(direction)
    left = world.adapt()
    assert (left.report["adapted"], left.report["trust"]) == (False, "none")
    assert "across" in left.report["why"]
    assert left.report["grain"] < MIN_GRAIN
    assert world.adapt(trust="default").report["adapted"]


def test_grain_is_one_for_labels_that_are_noise():
    random = np.random.default_rng(0)
    x_ND, g_KD = unit(random.normal(size=(4000, WIDTH))), unit(random.normal(size=(200, WIDTH)))
    assert grain(moments_of(vector_integers(x_ND)), g_KD) == pytest.approx(1, abs=0.05)


def test_labelled_rows_choose_and_are_answered_by_fits_that_had_not_seen_them():
    world, random = World(), np.random.default_rng(2)
    known = random.permutation(800)[:60]
    found = world.adapt(labelled=(world.x_ND[known], [NAMES[k] for k in world.targets_N[known]]))
    choice = found.report["choice"]
    assert choice["rows"] == 60
    assert [fit["trust"] for fit in choice["fits"]] == ["none", "careful", "default", "bold"]
    none, *fits = choice["fits"]
    assert none["gain"] == 0
    for fit in fits:
        assert fit["low"] <= fit["accuracy"] <= fit["high"]
        assert fit["gain"] == pytest.approx(fit["accuracy"] - none["accuracy"])
    calibration = found.report["calibration"]
    assert (calibration["from"], calibration["rows"]) == ("labelled rows", 60)
    assert sum(label["rows"] for label in found.report["labels"]) == 60


def test_wrong_labels_of_a_person_do_not_look_right():
    """If each row were answered by a fit that had seen it, random labels would be learned."""
    world, random = World(turned=0.2), np.random.default_rng(4)
    known = random.permutation(800)[:120]
    wrong = [NAMES[k] for k in random.integers(0, 4, 120)]
    fits = world.adapt(labelled=(world.x_ND[known], wrong)).report["choice"]["fits"]
    assert max(fit["accuracy"] for fit in fits) < 0.45


def test_few_labelled_rows_take_part_without_choosing():
    world = World(turned=0.95)
    known = np.arange(0, 800, 50)
    assert len(known) < MIN_CHOICE_ROWS
    labelled = world.x_ND[known], [NAMES[k] for k in world.targets_N[known]]
    found = world.adapt(labelled=labelled)
    assert found.report["choice"] is None
    assert "too few to choose" in found.report["why"]
    assert world.accuracy(found) >= world.accuracy(world.adapt())


def test_below_a_few_texts_a_label_nothing_is_adapted():
    world = World(sizes=(3, 3, 3, 3))
    found = world.adapt()
    assert not found.report["adapted"]
    assert "3.0 a label" in found.report["why"]


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        (lambda x: x[:3], "3 texts for 4 labels"),
        (lambda x: np.repeat(x[:2], 500, axis=0), "2 different ones"),
        (lambda x: np.concatenate([x[:5], x[:1] * np.nan]), r"vectors\[5\]: holds NaN"),
        (lambda x: x[:0], "no texts"),
    ],
)
def test_a_corpus_from_which_nothing_can_be_read(corpus, said):
    world = World()
    with pytest.raises(DataError, match=said):
        world.adapt(x_ND=corpus(world.x_ND))


def test_one_label():
    world = World()
    with pytest.raises(DataError, match="one label"):
        world.adapt(LabelSet.parse(["sport"]))


def test_probabilities_are_softer_than_the_raw_scores():
    world = World(turned=0.85)
    found = world.adapt()
    assert found.temperature > 1
    confidence = found.probabilities(world.x_ND).max(1).mean()
    assert abs(confidence - world.accuracy(found)) < 0.2


def test_the_folder_is_read_as_it_was_written(tmp_path):
    world = World()
    made = world.adapt()
    made.save(tmp_path / "labels")
    read = AdaptedLabels.load(tmp_path / "labels")
    assert (read.id, read.names, read.temperature) == (made.id, NAMES, made.temperature)
    assert (read.scores(world.x_ND) == made.scores(world.x_ND)).all()
    assert read.report == json.loads(json.dumps(made.report))
    assert AdaptedLabels.is_at(tmp_path / "labels")
    assert (read.usual_2K == made.usual_2K).all()
    scores_NK = made.scores(world.x_ND)  # several labels a text are held against these
    np.testing.assert_allclose(made.usual_2K, [scores_NK.mean(0), scores_NK.std(0)], rtol=1e-6)
    found = read.answer(world.x_ND, Scoring(mode="multi"))
    assert found.scores_M.reshape(scores_NK.shape).sum(1).std() > 0.01


@pytest.mark.parametrize("file", [FACTS_FILE, WEIGHTS_FILE, LABELS_FILE])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_folder_that_is_damaged_is_refused(tmp_path, file, damage):
    folder = tmp_path / "labels"
    World().adapt().save(folder)
    path = folder / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content.replace(b"sport", b"snort") + b" " * (file == WEIGHTS_FILE))
    with pytest.raises(DataError, match=r"damaged|cut short|no adapted"):
        AdaptedLabels.load(folder)


def test_texts_that_no_label_fits_are_told_at_the_level_of_the_corpus(tmp_path):
    world = World()
    alien_ND = unit(np.random.default_rng(5).normal(size=(80, WIDTH)))
    x_ND = np.concatenate([world.x_ND, alien_ND])
    world.adapt(x_ND=x_ND).save(tmp_path / "adapted")
    adapted = AdaptedLabels.load(tmp_path / "adapted")
    none_N = adapted.answer(x_ND, Scoring(none_of_these=True)).none_N
    assert np.array_equal(none_N, world.adapt(x_ND=x_ND).none_scores(x_ND))
    assert np.median(none_N[800:]) > np.quantile(none_N[:800], 0.95)
    told_N = at_share(none_N, NONE_SHARE)
    assert told_N.mean() == pytest.approx(NONE_SHARE, abs=1e-3)
    several_N = adapted.answer(x_ND, Scoring(mode="multi", none_of_these=True)).none_N
    assert at_share(several_N, NONE_SHARE, fitted_share("multi")) == pytest.approx(told_N, abs=1e-6)


def test_a_folder_of_another_version_and_no_folder(tmp_path):
    World().adapt().save(tmp_path / "labels")
    path = tmp_path / "labels" / FACTS_FILE
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(DataError, match="format 9"):
        AdaptedLabels.load(tmp_path / "labels")
    with pytest.raises(DataError, match=r"no adapted labels|cannot|nothing"):
        AdaptedLabels.load(tmp_path / "nowhere")


def test_one_row_or_many_and_any_batch_have_the_same_answer_in_every_bit():
    world = World()
    found = world.adapt()
    many = found.answer(world.x_ND, Scoring(3, True))
    for i in (0, 17, 799):
        one = found.answer(world.x_ND[i : i + 1], Scoring(3, True))
        assert (one.top_NT[0] == many.top_NT[i]).all()
        assert (one.top_scores_NT[0] == many.top_scores_NT[i]).all()
        assert (one.scores_M == many.scores_M[4 * i : 4 * i + 4]).all()


def test_the_first_labelled_rows_of_a_label_count_for_less():
    x_MD = vector_integers(World().x_ND[:12])
    targets_M = np.array([0] * 4 + [1] * 8)
    found = Labelled.of(x_MD, targets_M, 3, 8.0)
    assert found.count_K.tolist() == [4, 8, 0]
    assert found.weight_K == pytest.approx([4, 8 * 8 / 12, 0])
    # The outer products are those of rows that stand in the corpus so many times.
    times_M = found.weight_K[targets_M] * 2.0 ** -(2 * VECTOR_BITS)
    assert found.product_DD == pytest.approx((x_MD * times_M[:, None]).T @ x_MD)


def test_a_setting_says_what_a_labelled_row_counts_for():
    world = World(turned=0.5)
    wrong = world.x_ND[world.targets_N == 0][:8], ["money"] * 8
    light, heavy = (
        world.adapt(labelled=wrong, labelled_weight=w, trust="default") for w in (0.1, 500)
    )
    place = world.label_set.index("money")
    taken = [(one.scores(world.x_ND)[:200].argmax(1) == place).mean() for one in (light, heavy)]
    assert taken[1] > 0.1 > taken[0]


def test_a_half_of_one_row_or_none_is_fitted_all_the_same():
    """The halves of a corpus are drawn by hashes: of eight rows all may lie in one."""
    sizes = set()
    for seed in range(60):
        world = World(["sport", "money"], (4, 4), seed=seed)
        halves = np.concatenate([block.hash_B for block in Block.split(world.x_ND)]) >> np.uint64(
            63
        )
        sizes.add(int(halves.sum()))
        found = world.adapt(min_rows_a_label=4)
        assert np.isfinite(found.scores(world.x_ND)).all()
        assert np.isfinite(found.weight_KD).all()
    assert min(sizes) <= 1


def test_the_leaves_of_a_tree_are_fitted_and_its_nodes_are_sums(tmp_path):
    world = World()
    tree = parse_set({"outside": ["weather", "sport"], "inside": {"money": None, "music": None}})
    adapted = world.adapt(tree)
    adapted.save(tmp_path / "tree")
    loaded = AdaptedLabels.load(tmp_path / "tree")
    assert (loaded.label_set, loaded.id) == (tree, adapted.id)
    flat = world.adapt(LabelSet.parse(["weather", "sport", "money", "music"]))
    found, alone = loaded.answer(world.x_ND), flat.answer(world.x_ND)
    assert (found.top_NT == alone.top_NT).mean() > 0.97, "the path tells a little more"
    p_NK = loaded.probabilities(world.x_ND)
    sums_N2 = np.stack([p_NK[:, :2].sum(1), p_NK[:, 2:].sum(1)], axis=1)
    names = [answer_names(loaded)[k] for k in found.path_NH[:, 0]]
    assert names == [("outside", "inside")[k] for k in sums_N2.argmax(1)]
    np.testing.assert_allclose(found.path_scores_NH[:, 0], sums_N2.max(1), rtol=1e-6)
