"""Warnings with advice, from the numbers of a run alone: what went wrong before the run is over.

Three signs are watched.

- The attention term dominates or vanishes beside the softened KL. Of the sum of the two, as weighted, the attention
  term should be neither above nine tenths nor below a thousandth. Gradients are clipped together and AdamW divides by
  the size of what remains, so that a term's pull is about its share: above nine tenths the KL has less than a tenth of
  every step, and a thousandth is less than the KL itself varies from batch to batch. (Losses are compared, not
  gradients, which would cost a second backward pass: a sign, not a proof.) Averaged over S² pairs the squared error of
  maps is near 1/S² and vanishes by construction. A term that is small since it was learnt, below a tenth of what it was
  at first, is no reason to warn.
- A language gets no better while others do: its loss fell by less than 1 %, half of the others' by more than 5 %. A
  mean over 20 logged lines is compared with the 20 lines before, where one batch more or less moves it by about that
  1 %; an evaluation with the one two evaluations before, as both read the very same masked text.
- The norm of the gradient, before clipping, is above ten times its running median. Clipping then makes one batch's
  direction the whole step.
"""

from collections.abc import Iterable, Mapping
from statistics import fmean, median
from typing import Any

from comet.coverage import Coverage
from comet.objective_recipe import ObjectiveRecipe

LINES = 40  # logged lines that are looked back on, and for which a warning is not repeated at first
SHARE_LINES = 3  # over which an attention term is too large or too small
DOMINATES, VANISHES, LEARNT = 0.9, 1e-3, 0.1
NO_BETTER, OTHERS_BETTER = 0.01, 0.05
EVALUATIONS = 3
EXPLODES, FEWEST_NORMS = 10.0, 5
UNKNOWN, CUT_UP = (
    0.01,
    1.5,
)  # tokenisation to blame: share of unknown pieces, pieces per word against the others'

Curves = dict[str, list[float]]


class Watch:
    """Reads every logged line and every evaluation, and says what looks wrong.

    A kind of warning, each language its own, stays silent for 40 lines after it was given, then for 80, and so on.
    What was said follows from the numbers alone, and the state is part of a checkpoint: a resumed run says the same.

    Args:
        coverage: how the tokenizer cuts each language.
        objective: the weights of the terms; None where there is no attention term.
        measure: which value of an evaluation is to fall.
        advice: what helps a language that gets no better.
    """

    def __init__(
        self,
        coverage: Mapping[str, Coverage],
        objective: ObjectiveRecipe | None = None,
        measure: str = "kl",
        advice: str = "give it more text, or a corpus.sampling_temperature above 1",
    ) -> None:
        self._coverage = coverage
        self._objective = objective
        self._measure = measure
        self._advice = advice
        self._line = 0
        self._first: dict[str, float] = {}
        self._shares: list[float] = []
        self._norms: list[float] = []
        self._training: Curves = {}
        self._held_out: Curves = {}
        self._silent: dict[str, list[int]] = {}  # kind → line until which, and for how many

    def metrics(self, metrics: Mapping[str, Any]) -> list[str]:
        """Take in a logged line; `kd/hau` and the like are a language's.

        Returns:
            Warnings, each one line.
        """
        self._line += 1
        values = {name.split("/")[1]: value for name, value in metrics.items() if "/" in name}
        _extend(self._training, values, LINES)
        found = self._of_gradient(metrics) | self._of_terms(metrics)
        falls = {
            language: (fmean(curve[: LINES // 2]), fmean(curve[LINES // 2 :]))
            for language, curve in self._training.items()
            if len(curve) == LINES
        }
        return self._new(
            found | self._of_languages(falls, "training loss", f"{LINES} logged lines")
        )

    def evaluation(self, step: int, found: Mapping[str, Mapping[str, float | None]]) -> list[str]:
        """Take in an evaluation: language → name → value, the mean under `all` left aside.

        Returns:
            Warnings, each one line.
        """
        values = {
            language: value
            for language, measured in found.items()
            if language != "all" and (value := measured.get(self._measure)) is not None
        }
        _extend(self._held_out, values, EVALUATIONS)
        falls = {
            language: (curve[0], curve[-1])
            for language, curve in self._held_out.items()
            if len(curve) > 1
        }
        name = f"held-out {self._measure} of step {step}"
        return self._new(self._of_languages(falls, name, f"{EVALUATIONS} evaluations"))

    def state_dict(self) -> dict[str, Any]:
        """What was seen and said so far, as JSON."""
        return {
            "line": self._line,
            "first": dict(self._first),
            "shares": list(self._shares),
            "norms": list(self._norms),
            "training": {language: list(curve) for language, curve in self._training.items()},
            "held_out": {language: list(curve) for language, curve in self._held_out.items()},
            "silent": {kind: list(until) for kind, until in self._silent.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._line = state["line"]
        self._first = dict(state["first"])
        self._shares, self._norms = list(state["shares"]), list(state["norms"])
        self._training = {language: list(curve) for language, curve in state["training"].items()}
        self._held_out = {language: list(curve) for language, curve in state["held_out"].items()}
        self._silent = {kind: list(until) for kind, until in state["silent"].items()}

    def _new(self, found: Mapping[str, str]) -> list[str]:
        """Of warnings by kind those that are due, and silence for them from now on."""
        due = []
        for kind, text in found.items():
            until, lines = self._silent.get(kind, (0, LINES))
            if self._line >= until:
                self._silent[kind] = [self._line + lines, 2 * lines]
                due.append(f"warning: {text}")
        return due

    def _of_gradient(self, metrics: Mapping[str, Any]) -> dict[str, str]:
        norm = metrics.get("grad_norm")
        if norm is None:
            return {}
        usual = median(self._norms) if len(self._norms) >= FEWEST_NORMS else None
        self._norms = [*self._norms, norm][-LINES:]
        if usual is None or norm <= EXPLODES * usual:
            return {}
        return {
            "gradient": f"the gradient norm is {norm:.3g}, {norm / max(usual, 1e-30):,.0f} times its usual "
            f"{usual:.3g}: if the loss does not come back, lower optimisation.learning_rate or "
            "optimisation.max_grad_norm, or lengthen optimisation.warmup_steps"
        }

    def _of_terms(self, metrics: Mapping[str, Any]) -> dict[str, str]:
        recipe = self._objective
        if recipe is None or not 0 < recipe.alpha < 1 or not {"kd", "attention"} <= metrics.keys():
            return {}
        kd, attention = metrics["kd"], metrics["attention"]
        self._first = self._first or {"kd": kd, "attention": attention}
        both = recipe.alpha * kd + (1 - recipe.alpha) * attention
        self._shares = [*self._shares, (1 - recipe.alpha) * attention / max(both, 1e-30)]
        self._shares = self._shares[-SHARE_LINES:]
        if len(self._shares) < SHARE_LINES:
            return {}
        share, now = fmean(self._shares), f"objective.alpha (now {recipe.alpha:g})"
        if share > DOMINATES and kd > LEARNT * self._first["kd"]:
            text = f"the attention term is {share:.1%} of the loss and hides the softened KL: raise {now}"
            return {"dominates": text}
        if share < VANISHES and attention > LEARNT * self._first["attention"]:
            text = f"the attention term is {share:.1g} of the loss, too little to teach anything: "
            if recipe.attention_loss == "mse" and recipe.attention_reduction == "mean":
                text += "as a mean over pairs of tokens it is near 1/S²; set objective.attention_reduction row, or "
            return {"vanishes": f"{text}lower {now}"}
        return {}

    def _of_languages(
        self, falls: Mapping[str, tuple[float, float]], name: str, span: str
    ) -> dict[str, str]:
        """Languages whose loss, given before and after, stays while that of others falls."""
        better = {
            language: 1 - after / before
            for language, (before, after) in falls.items()
            if before > 0
        }
        found = {}
        for language, gain in better.items():
            others = [one for key, one in better.items() if key != language]
            if others and gain < NO_BETTER and median(others) > OTHERS_BETTER:
                before, after = falls[language]
                found[f"language/{language}"] = (
                    f"{language} gets no better: {name} {after:.4g}, {before:.4g} before, over {span}, in which "
                    f"that of the other languages fell by {median(others):.0%}; {self._tokenisation(language)}"
                )
        return found

    def _tokenisation(self, language: str) -> str:
        """How the language is cut into pieces, and what to do about it."""
        cover = self._coverage.get(language)
        if cover is None:
            return self._advice
        usual = _median(
            one.pieces_per_word for key, one in self._coverage.items() if key != language
        )
        text = f"its text has {cover.unknown_rate:.2%} unknown pieces and {cover.pieces_per_word:.2f} pieces per word"
        text += "" if usual is None else f" (others {usual:.2f})"
        if cover.unknown_rate >= UNKNOWN:
            return f"{text}: choose a teacher whose tokenizer knows its letters"
        if usual is not None and cover.pieces_per_word >= CUT_UP * usual:
            return f"{text}: choose a teacher whose tokenizer cuts it less"
        return f"{text}, so {self._advice}"


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return median(found) if found else None


def _extend(curves: Curves, values: Mapping[str, float], most: int) -> None:
    for name, value in values.items():
        curves[name] = [*curves.get(name, []), value][-most:]
