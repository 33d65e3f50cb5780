import numpy as np
import pytest
from scipy import stats  # comes with scikit-learn
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from comet import scores
from comet.corpus.problems import Problem
from comet.measures import count_examples, main_measure, measures
from comet.predictions import PredictedExample, read_predictions, write_predictions
from comet.scores import System, difference, summary
from comet.tasks import Task

SENTIMENT = Task("afrisenti", "sequence", ("negative", "neutral", "positive"))
NAMES = Task("masakhaner", "token", ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"))
ABOUT = {"system": "s", "split": "dev", "data": "d", "fingerprint": "f"}


def run(seed, right, languages=("hau", "yor"), count=200, labels=3):
    """Predictions of one seed that are right with some probability; gold labels depend on the language alone."""
    found = []
    for language in languages:
        gold = np.random.default_rng([*language.encode()]).choice(
            labels, count, p=[0.5, 0.3, 0.2] if labels == 3 else [0.6, 0.4]
        )
        chance = np.random.default_rng([seed, *language.encode()])
        wrong = (gold + chance.integers(1, labels, count)) % labels
        said = np.where(chance.random(count) < right, gold, wrong)
        found += [
            PredictedExample(language, row, int(one), int(two))
            for row, (one, two) in enumerate(zip(gold, said, strict=True), start=2)
        ]
    return found


def runs(right, seeds=(0, 1, 2), shift=0, **options):
    return {seed: run(seed + shift, right, **options) for seed in seeds}


def summarised(found, **options):
    return summary(SENTIMENT, found, **{"trained_on": ["hau", "yor"], **ABOUT, **options})


# Measures


@pytest.mark.parametrize("labels", [2, 3])
def test_measures_of_sums_are_those_of_scikit_learn(labels):
    task = Task("t", "sequence", ("a", "b", "c")[:labels])
    predictions = run(0, 0.6, languages=["hau"], labels=labels)
    predictions[5:] = [one for one in predictions[5:] if one.predicted != 0]
    gold, said = [one.gold for one in predictions], [one.predicted for one in predictions]
    found = measures(task, count_examples(task, predictions).sum(0))
    for average in ("weighted", "macro"):
        expected = f1_score(gold, said, average=average, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(expected, abs=1e-12)
    assert found["accuracy"] == pytest.approx(np.mean(np.equal(gold, said)), abs=1e-12)


def test_labels_that_do_not_occur_change_nothing():
    predictions = run(0, 0.6, languages=["hau"], labels=2)
    gold, said = [one.gold for one in predictions], [one.predicted for one in predictions]
    found = measures(SENTIMENT, count_examples(SENTIMENT, predictions).sum(0))
    assert found["macro_f1"] == pytest.approx(f1_score(gold, said, average="macro"), abs=1e-12)


def test_entities_count_where_both_ends_and_the_type_are_right():
    pytest.importorskip("nervaluate")
    o, b_per, i_per, b_loc, i_loc = range(5)
    predictions = [
        PredictedExample("hau", 2, (b_per, i_per, o, b_loc), (b_per, i_per, o, b_per)),
        PredictedExample("hau", 5, (b_per, i_per, b_per), (b_per, i_per, i_per)),
        PredictedExample("hau", 9, (o, o), (i_loc, i_loc)),
        PredictedExample("hau", 12, (o, b_loc, o), (o, i_loc, o)),  # begins one, as in conlleval
    ]
    right, predicted, there = count_examples(NAMES, predictions).reshape(4, 2, 3).sum(0).T
    assert right.tolist() == [1, 1]
    assert predicted.tolist() == [3, 2]
    assert there.tolist() == [3, 2]
    found = measures(NAMES, count_examples(NAMES, predictions).sum(0))
    assert found == {
        "f1": pytest.approx(0.4),
        "precision": pytest.approx(0.4),
        "recall": pytest.approx(0.4),
    }


@pytest.mark.parametrize(
    ("task", "gold", "predicted"),
    [
        (SENTIMENT, 0, 3),
        (SENTIMENT, -1, 0),
        (SENTIMENT, (0,), (0,)),
        (NAMES, (0, 1), (0,)),
        (NAMES, 0, 0),
        (NAMES, (0, 5), (0, 0)),
    ],
)
def test_foreign_predictions_are_refused(task, gold, predicted):
    if task is NAMES:
        pytest.importorskip("nervaluate")
    with pytest.raises(ValueError, match=r"predictions: hau row 7 has gold"):
        count_examples(task, [PredictedExample("hau", 7, gold, predicted)])


# The summary


def test_a_summary_holds_every_figure_of_the_seeds():
    found = runs(0.7)
    result = summarised(found, problems=[Problem("a.tsv", 3, "why")], size={"parameters": 5})
    assert result["schema"] == 1
    assert result["measure"] == "weighted_f1" == main_measure(SENTIMENT)
    assert result["seeds"] == [0, 1, 2]
    assert result["task"] == {
        "name": "afrisenti", "kind": "sequence", "labels": ["negative", "neutral", "positive"],
        "data": "d", "fingerprint": "f",
    }  # fmt: skip
    assert result["problems"] == [{"file": "a.tsv", "line": 3, "reason": "why"}]
    assert (result["floor"], result["retention"], result["unseen_mean"]) == (None, None, None)
    confusion, by_class = 0, []
    for place, seed in enumerate(found):
        chosen = [one for one in found[seed] if one.language == "yor"]
        gold, said = [one.gold for one in chosen], [one.predicted for one in chosen]
        expected = f1_score(gold, said, average="weighted")
        assert result["languages"]["yor"]["weighted_f1"]["values"][place] == pytest.approx(expected)
        confusion = confusion + confusion_matrix(gold, said)
        by_class.append(precision_recall_fscore_support(gold, said)[2])
    yor = result["languages"]["yor"]
    assert yor["examples"] == 200
    assert yor["confusion"] == confusion.tolist()
    assert yor["classes"]["neutral"]["f1"] == pytest.approx(np.mean(by_class, axis=0)[1])
    figure = yor["weighted_f1"]
    assert figure["mean"] == pytest.approx(np.mean(figure["values"]))
    assert figure["std"] == pytest.approx(np.std(figure["values"], ddof=1))
    assert figure["low"] < figure["mean"] < figure["high"]
    both = [result["languages"][name]["macro_f1"]["values"] for name in ("hau", "yor")]
    assert result["mean"]["macro_f1"]["values"] == pytest.approx(np.mean(both, axis=0).tolist())
    assert summarised({0: found[0]})["mean"]["accuracy"]["std"] is None


def test_languages_that_were_not_trained_have_a_mean_of_their_own():
    found = runs(0.7, languages=("hau", "pcm", "tso", "yor"))
    result = summarised(found)
    figures = {name: one["weighted_f1"]["mean"] for name, one in result["languages"].items()}
    assert [one["trained"] for one in result["languages"].values()] == [True, False, False, True]
    expected = (figures["hau"] + figures["yor"]) / 2
    assert result["mean"]["weighted_f1"]["mean"] == pytest.approx(expected)
    expected = (figures["pcm"] + figures["tso"]) / 2
    assert result["unseen_mean"]["weighted_f1"]["mean"] == pytest.approx(expected)
    alone = summarised(found, trained_on=["ibo"], teacher=System("t", found))
    assert (alone["mean"], alone["retention"]) == (None, None)


def test_scores_come_with_and_without_texts_of_other_splits():
    found = runs(0.7)
    overlap = {
        "hau": {"train": range(2, 102), "dev": range(92, 122)},
        "yor": {"train": [], "dev": []},
    }
    result = summarised(found, overlap=overlap)
    hau, yor = (result["languages"][name] for name in ("hau", "yor"))
    assert {name: hau["overlap"][name] for name in ("train", "dev", "any")} == {
        "train": 100, "dev": 30, "any": 120,
    }  # fmt: skip
    rest = {seed: [one for one in its if one.row >= 122] for seed, its in found.items()}
    expected = summarised(rest, trained_on=["hau"])["languages"]["hau"]
    assert hau["overlap"]["without"] == {
        name: expected[name] for name in ("weighted_f1", "macro_f1", "accuracy")
    }
    assert hau["weighted_f1"] == summarised(found)["languages"]["hau"]["weighted_f1"]
    assert yor["overlap"]["any"] == 0
    assert yor["overlap"]["without"]["accuracy"] == yor["accuracy"]
    without = result["mean_without_overlap"]["accuracy"]["mean"]
    assert without == pytest.approx((expected["accuracy"]["mean"] + yor["accuracy"]["mean"]) / 2)
    whole = summarised(found, overlap={**overlap, "hau": {"train": range(2, 202)}})
    assert whole["languages"]["hau"]["overlap"]["without"] is None
    assert whole["mean_without_overlap"] is None
    unknown = summarised(found)
    assert unknown["mean_without_overlap"] is None
    assert unknown["languages"]["hau"]["overlap"] is None


def test_a_summary_of_entities():
    pytest.importorskip("nervaluate")
    predictions = [PredictedExample("hau", row, (1, 2, 0), (1, row % 3, 0)) for row in range(60)]
    result = summary(NAMES, {0: predictions}, trained_on=["hau"], **ABOUT)
    assert result["measure"] == "f1"
    assert result["mean"]["f1"]["mean"] == pytest.approx(2 * 20 / (60 + 80))
    hau = result["languages"]["hau"]
    assert hau["classes"]["PER"]["recall"] == pytest.approx(1 / 3)
    assert hau["classes"]["LOC"]["support"] == 0
    assert "confusion" not in hau


def test_the_same_predictions_give_the_same_summary_in_any_order():
    found = runs(0.7)
    shuffled = {seed: one[::-1] for seed, one in found.items()}
    assert summarised(found) == summarised(shuffled)
    alone = summarised(runs(0.7, languages=("yor",)), trained_on=["yor"])
    assert alone["languages"]["yor"] == summarised(found)["languages"]["yor"]


# Intervals


def test_the_interval_of_an_accuracy_is_that_of_its_binomial():
    result = summarised({0: run(0, 0.7, count=2000)})["languages"]["hau"]["accuracy"]
    mean = result["mean"]
    deviation = (mean * (1 - mean) / 2000) ** 0.5
    low, high = stats.norm.interval(0.95, mean, deviation)
    assert result["low"] == pytest.approx(low, abs=0.1 * (high - low))
    assert result["high"] == pytest.approx(high, abs=0.1 * (high - low))


def test_seeds_that_differ_widen_the_interval():
    same = {seed: run(0, 0.7, languages=["hau"]) for seed in range(3)}
    apart = {seed: run(0, right, languages=["hau"]) for seed, right in enumerate((0.5, 0.7, 0.9))}
    narrow, wide = (
        summarised(one, trained_on=["hau"])["mean"]["accuracy"] for one in (same, apart)
    )
    assert narrow["std"] == 0
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])


def test_a_paired_difference_is_far_narrower_than_the_systems_intervals():
    base = run(0, 0.7, count=1000)
    better = [
        PredictedExample(
            one.language, one.row, one.gold, one.gold if one.row % 20 == 0 else one.predicted
        )
        for one in base
    ]
    found = difference({0: better}, {0: base}, SENTIMENT)
    gain = summarised({0: better})["mean"]["weighted_f1"]["mean"]
    figure = summarised({0: base})["mean"]["weighted_f1"]
    assert found["mean"] == pytest.approx(gain - figure["mean"])
    assert 0 < found["low"] < found["mean"] < found["high"]
    assert found["high"] - found["low"] < 0.5 * (figure["high"] - figure["low"])
    assert found["languages"]["hau"]["low"] > 0


def test_differences_are_antisymmetric_zero_for_the_same_and_of_chosen_languages():
    first, second = runs(0.8), runs(0.7, shift=10)
    there, back = (difference(*pair, SENTIMENT) for pair in ((first, second), (second, first)))
    assert there["mean"] == pytest.approx(-back["mean"])
    assert there["low"] == pytest.approx(-back["high"])
    same = difference(first, first, SENTIMENT)
    assert (same["mean"], same["low"], same["high"]) == (0, 0, 0)
    alone = difference(first, second, SENTIMENT, ["yor"])
    assert alone["mean"] == pytest.approx(there["languages"]["yor"]["mean"])
    assert list(alone["languages"]) == ["yor"]
    assert difference(first, {0: second[0]}, SENTIMENT)["mean"] > 0


def test_systems_without_a_difference_have_zero_in_their_interval_as_often_as_said():
    inside = 0
    for number in range(40):
        pair = ({0: run(100 + 2 * number + side, 0.7, ["hau"])} for side in (0, 1))
        found = difference(*pair, SENTIMENT)
        inside += found["low"] <= 0 <= found["high"]
    assert 35 <= inside <= 40


# Teacher and floor


def test_retention_as_it_is_and_above_the_floor():
    student, teacher, floor = runs(0.75), runs(0.85, shift=10), {0: run(50, 0.6)}
    result = summarised(student, teacher=System("big", teacher), floor=System("tfidf", floor))
    ours, theirs, level = (
        summarised(one)["mean"]["weighted_f1"]["mean"] for one in (student, teacher, floor)
    )
    retention = result["retention"]
    assert retention["teacher"] == "big"
    assert result["floor"]["system"] == "tfidf"
    assert result["floor"]["mean"]["mean"] == pytest.approx(level)
    assert retention["raw"]["mean"] == pytest.approx(ours / theirs)
    assert retention["above_floor"]["mean"] == pytest.approx((ours - level) / (theirs - level))
    for one in (retention["raw"], retention["above_floor"]):
        assert one["low"] < one["mean"] < one["high"]
        assert set(one["languages"]) == {"hau", "yor"}
    itself = summarised(teacher, teacher=System("big", teacher))["retention"]["raw"]
    assert (itself["mean"], itself["low"], itself["high"]) == (1, 1, 1)


def test_a_teacher_at_the_floor_has_nothing_above_it_to_retain():
    student, teacher = runs(0.7), runs(0.7, shift=10)
    below = {0: run(50, 0.9)}
    result = summarised(student, teacher=System("t", teacher), floor=System("f", below))
    nothing = {"mean": None, "low": None, "high": None}
    above = result["retention"]["above_floor"]
    assert {name: above[name] for name in nothing} == nothing
    assert above["languages"]["hau"] == nothing
    near = {0: run(50, 0.69)}
    barely = summarised(student, teacher=System("t", runs(0.71, shift=3)), floor=System("f", near))
    assert barely["retention"]["above_floor"]["low"] is None


def test_systems_are_compared_on_the_same_examples_alone():
    found = runs(0.7)
    shorter = {0: found[0][1:]}
    other = {0: [PredictedExample(one.language, one.row, 0, 0) for one in found[0]]}
    for system in (shorter, other):
        with pytest.raises(ValueError, match=r"predictions: hau has .* on the same data"):
            difference(found, system, SENTIMENT)
        with pytest.raises(ValueError, match="predictions: hau has"):
            summarised(found, floor=System("f", system))
        with pytest.raises(ValueError, match="predictions: hau has"):
            summarised({0: found[0], 1: system[0]})
    for nothing in ({}, {0: []}):
        with pytest.raises(ValueError, match="predictions: got none"):
            summarised(nothing)


# Files of predictions


def test_predictions_are_read_as_they_were_written(tmp_path):
    file = tmp_path / "predictions/dev/seed-0.jsonl"
    predictions = [
        PredictedExample("hau", 2, 0, 1, (0.25, 0.5, 0.25)),
        PredictedExample("yor", 3, (0, 1), (1, 0)),
    ]
    write_predictions(file, predictions)
    assert read_predictions(file) == predictions
    write_predictions(file, predictions[:1])
    assert read_predictions(file) == predictions[:1]
    assert [path.name for path in file.parent.iterdir()] == ["seed-0.jsonl"]
    file.write_text(file.read_text() + '{"language": "hau"}\n')
    with pytest.raises(ValueError, match=r"seed-0\.jsonl:2 is no prediction"):
        read_predictions(file)
    write_predictions(file, [PredictedExample("hau", 1, 0, 0, np.array([1 / 3], np.float32))])
    assert read_predictions(file)[0].probabilities == (0.333333,)


def test_probabilities_that_are_not_finite_are_refused(tmp_path):
    spoilt = PredictedExample("hau", 7, 0, 0, (0.5, float("nan")))
    with pytest.raises(ValueError, match="answer to row 7 of hau is not finite: its training div"):
        write_predictions(tmp_path / "file", [spoilt])
    assert not (tmp_path / "file").exists()


def test_a_thousand_resamples_or_more():
    assert scores.RESAMPLES >= 1000
