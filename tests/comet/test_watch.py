import json

import pytest

from comet.coverage import Coverage
from comet.objective_recipe import ObjectiveRecipe
from comet.watch import LINES, Watch

LANGUAGES = ("hau", "ibo", "swa", "yor")


def cut(unknown_rate, pieces_per_word):
    return Coverage(unknown_rate, pieces_per_word, characters_per_piece=3.0)


def coverage(**changes):
    usual = {name: cut(0.0, 1.5) for name in LANGUAGES}
    return {**usual, **changes}


def watch(objective=None, **changes):
    return Watch(coverage(**changes), objective)


def fed(watch, lines):
    return [warning for line in lines for warning in watch.metrics(line)]


def terms(kd, attention, **more):
    return {"step": 1, "loss": 0.5 * (kd + attention), "kd": kd, "attention": attention, **more}


def test_an_attention_term_that_vanishes_is_told_with_the_reduction_that_helps():
    mean = ObjectiveRecipe(attention_reduction="mean")
    found = fed(watch(mean), [terms(4.0, 4.0 / 128**2)] * 5)
    assert len(found) == 1
    assert found[0] == (
        "warning: the attention term is 6e-05 of the loss, too little to teach anything: as a mean over "
        "pairs of tokens it is near 1/S²; set objective.attention_reduction row, or lower objective.alpha (now 0.5)"
    )
    (by_row,) = fed(watch(ObjectiveRecipe()), [terms(4.0, 1e-4)] * 5)
    assert by_row.endswith("too little to teach anything: lower objective.alpha (now 0.5)")
    (of_maps,) = fed(watch(ObjectiveRecipe(attention_loss="kl")), [terms(4.0, 1e-4)] * 5)
    assert of_maps.endswith("too little to teach anything: lower objective.alpha (now 0.5)")


def test_an_attention_term_that_dominates_is_told():
    recipe = ObjectiveRecipe(alpha=0.25)
    (found,) = fed(watch(recipe), [terms(1.0, 4.0)] * 5)
    assert found == (
        "warning: the attention term is 92.3% of the loss and hides the softened KL: "
        "raise objective.alpha (now 0.25)"
    )
    assert not fed(watch(ObjectiveRecipe()), [terms(1.0, 4.0)] * 5)


def test_a_term_that_is_small_since_it_was_learnt_is_left_alone():
    first = [terms(4.0, 0.5)] * 3
    assert not fed(watch(ObjectiveRecipe()), [*first, *[terms(4.0, 1e-4)] * 9])
    assert not fed(watch(ObjectiveRecipe()), [*first, *[terms(0.01, 0.5)] * 9])
    assert fed(watch(ObjectiveRecipe()), [*first, *[terms(600.0, 0.5)] * 9])


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_terms_of_which_one_is_off_are_not_compared(alpha):
    assert not fed(watch(ObjectiveRecipe(alpha=alpha)), [terms(4.0, 1e-7)] * 5)
    assert not fed(watch(None), [terms(4.0, 1e-7)] * 5)
    assert not fed(watch(ObjectiveRecipe()), [{"step": 1, "loss": 4.0, "mlm": 4.0}] * 5)


def falling(line, *, stuck=(), rate=0.99):
    """The others fall by about a fifth from 20 lines to the next 20."""
    return {f"kd/{name}": 5.0 if name in stuck else 5.0 * rate**line for name in LANGUAGES}


def test_a_language_that_gets_no_better_is_told_with_its_tokenisation():
    bad = cut(0.031, 1.6)
    found = fed(watch(yor=bad), [falling(line, stuck=("yor",)) for line in range(LINES)])
    assert found == [
        "warning: yor gets no better: training loss 5, 5 before, over 40 logged lines, in which that of the "
        "other languages fell by 18%; its text has 3.10% unknown pieces and 1.60 pieces per word (others "
        "1.50): choose a teacher whose tokenizer knows its letters"
    ]


def test_a_language_is_compared_with_the_others_alone():
    cover = {
        "hau": cut(0.0, 1.5),
        "yor": cut(0.0, 3.0),
    }
    seen = Watch(cover)
    for step, (hau, yor) in enumerate([(5.0, 5.0), (4.6, 5.0)]):
        found = seen.evaluation(step, {"hau": {"kl": hau}, "yor": {"kl": yor}})
    assert "other languages fell by 8%" in found[0]
    assert "3.00 pieces per word (others 1.50)" in found[0]


def test_advice_follows_from_the_tokenisation():
    lines = [falling(line, stuck=("yor",)) for line in range(LINES)]
    (cut_up,) = fed(watch(yor=cut(0.001, 3.4)), lines)
    assert (
        "3.40 pieces per word (others 1.50): choose a teacher whose tokenizer cuts it less"
        in cut_up
    )
    (fine,) = fed(watch(), lines)
    assert fine.endswith("so give it more text, or a corpus.sampling_temperature above 1")
    (unknown,) = fed(Watch({}), lines)
    assert unknown.endswith("18%; give it more text, or a corpus.sampling_temperature above 1")


def test_nothing_is_said_of_languages_where_all_fall_or_none():
    assert not fed(watch(), [falling(line) for line in range(2 * LINES)])
    assert not fed(watch(), [falling(line, stuck=LANGUAGES) for line in range(2 * LINES)])
    slowly = [falling(line, stuck=("yor",), rate=0.999) for line in range(2 * LINES)]
    assert not fed(watch(), slowly)
    assert not fed(watch(), [{"kd/hau": 5.0}] * 2 * LINES)


def test_a_language_that_is_absent_from_some_lines_is_compared_by_those_it_is_in():
    lines = [falling(line, stuck=("yor",)) for line in range(2 * LINES)]
    for line in lines[::2]:
        del line["kd/yor"]
    assert len(fed(watch(), lines[:-1])) == 0
    assert len(fed(watch(), lines)) == 1


def evaluated(hau, others):
    rows = {name: {"kl": hau if name == "hau" else others, "top1": 0.1} for name in LANGUAGES}
    return {**rows, "all": {"kl": 5.0, "top1": 0.1}}


def test_evaluations_are_compared_too():
    seen = watch()
    assert seen.evaluation(0, evaluated(7.0, 7.0)) == []
    assert seen.evaluation(100, evaluated(6.5, 6.5)) == []
    assert seen.evaluation(200, evaluated(6.4, 6.0)) == []
    (found,) = seen.evaluation(300, evaluated(6.45, 5.5))  # 6.5 two evaluations ago
    assert found.startswith(
        "warning: hau gets no better: held-out kl of step 300 6.45, 6.5 before, over 3 evaluations, in "
        "which that of the other languages fell by 15%"
    )


def test_another_measure_and_missing_ones():
    seen = Watch(coverage(), measure="loss")
    rows = [
        {"hau": {"loss": 5.0}, "ibo": {"loss": 5.0 - step}, "swa": {"loss": None}}
        for step in (0, 1)
    ]
    assert seen.evaluation(0, rows[0]) == []
    assert "hau gets no better" in seen.evaluation(1, rows[1])[0]
    assert Watch(coverage()).evaluation(0, rows[0]) == []


def test_a_gradient_that_explodes_is_told():
    norms = [1.0, 1.4, 0.8, 1.2, 1.0, 9.9, 30.0, 1.0]
    seen = watch()
    said = [seen.metrics({"step": 1, "grad_norm": norm}) for norm in norms]
    assert [len(one) for one in said] == [0, 0, 0, 0, 0, 0, 1, 0]
    assert "the gradient norm is 30, 27 times its usual 1.1: " in said[6][0]
    assert "optimisation.learning_rate" in said[6][0]
    assert not fed(watch(), [{"grad_norm": 0.01}] * 4 + [{"grad_norm": 1.0}])  # too early to know


def test_a_warning_is_repeated_ever_more_rarely():
    seen = watch(ObjectiveRecipe())
    said = [line for line in range(400) if seen.metrics(terms(4.0, 1e-5))]
    assert said == [2, 2 + LINES, 2 + 3 * LINES, 2 + 7 * LINES]


def test_kinds_and_languages_do_not_silence_each_other():
    lines = [
        {
            **falling(line, stuck=("yor", "hau")),
            **terms(4.0, 1e-5, grad_norm=99.0 if line == LINES - 1 else 1.0),
        }
        for line in range(LINES)
    ]
    seen = watch(ObjectiveRecipe())
    assert len(fed(seen, lines[:-1])) == 1  # the attention term
    said = fed(seen, lines[-1:])
    assert [text.split()[1] for text in said] == ["the", "hau", "yor"]
    assert "gradient norm" in said[0]


@pytest.mark.parametrize("cut", [1, 25, 39, 40, 41])
def test_a_resumed_run_says_the_same(cut):
    def lines():
        return [
            {
                **falling(line, stuck=("yor",)),
                **terms(4.0, 1e-3 * 0.94**line, grad_norm=50.0 if line == 27 else 1.0),
            }
            for line in range(3 * LINES)
        ]

    whole, before, after = (watch(ObjectiveRecipe()) for _ in range(3))
    for one in (whole, before):
        one.evaluation(0, evaluated(7.0, 7.0))
    fed(before, lines()[:cut])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    fed(whole, lines()[:cut])
    rest = fed(whole, lines()[cut:])
    assert rest
    assert fed(after, lines()[cut:]) == rest
    assert after.evaluation(9, evaluated(7.0, 6.0)) == whole.evaluation(9, evaluated(7.0, 6.0))
    assert json.dumps(after.state_dict()) == json.dumps(whole.state_dict())
