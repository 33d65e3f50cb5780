"""What came of it, in a few sentences and a few figures."""

from collections.abc import Mapping, Sequence

from comet.report import words
from comet.report.figures import MEASURES, Figure, Group, System
from comet.report.measuring import Cost
from comet.report.reading import Material, Run

TASKS = {"afrisenti": "AfriSenti", "masakhaner": "MasakhaNER"}


def headline(groups: Sequence[Group], material: Material) -> list[str]:
    """What came of it, in sentences."""
    lead = leading(groups)
    if lead is None:
        return [*_agreement(material.runs)]
    group, system = lead
    assert system.mean is not None
    measure = MEASURES.get(group.measure, group.measure)
    ends = f" (95 % interval {words.interval(system.mean)})" if words.interval(system.mean) else ""
    seeds = (
        f" and {system.seeds} seeds" if system.seeds > 1 else ", one seed" if system.seeds else ""
    )
    found = [
        f"{system.name} reaches {words.points(system.mean)} points of {measure} on {task_name(group)} "
        f"{group.split}{ends}: the mean over {words.listed(list(group.trained))}{seeds}."
    ]
    floor = group.floor
    if floor is not None and floor.mean is not None:
        found.append(_against_floor(system, floor, group.trained))
    share = system.retention
    if share is not None and share.raw is not None:
        above = ""
        if share.above_floor is not None:
            above = f", and {words.points(share.above_floor)} % of what it has above the floor"
        found.append(
            f"Of its teacher, {share.teacher}, it keeps {words.points(share.raw)} % of the F1{above}."
        )
    return found


def leading(groups: Sequence[Group]) -> tuple[Group, System] | None:
    """The first of the user's systems: the order given decides, not the score on test."""
    for group in groups:
        for system in [*group.own, *group.systems]:
            if system.mean is not None:
                return group, system
    return None


def tiles(
    groups: Sequence[Group], material: Material, costs: Mapping[str, Cost]
) -> list[tuple[str, str, str]]:
    """A few figures large: name, value, remark."""
    lead = leading(groups)
    if lead is None:
        return _training_tiles(material.runs)
    group, system = lead
    found = [
        (
            f"{MEASURES.get(group.measure, group.measure)}, {group.split}",
            words.points(system.mean),
            words.interval(system.mean) or "no interval",
        )
    ]
    if group.floor is not None and group.floor.mean is not None and system.mean is not None:
        gap = Figure(system.mean.mean - group.floor.mean.mean)
        above = _above(system, group.floor, group.trained)
        remark = f"above in {len(above)} of {len(group.trained)} languages"
        found.append(("points over the TF-IDF floor", _with_sign(gap), remark))
    if system.retention is not None and system.retention.raw is not None:
        raw = system.retention.raw
        found.append(("of the teacher’s F1", f"{words.points(raw)} %", words.interval(raw)))
    encoder = system.size.get("encoder_parameters")
    if encoder:
        teacher = next((one for one in group.systems if one.role == "teacher"), None)
        theirs = teacher.size.get("encoder_parameters") if teacher else None
        remark = (
            f"{100 * encoder / theirs:.1f} % of the teacher’s" if theirs else "without embeddings"
        )
        found.append(("encoder parameters", words.count(encoder), remark))
    cost = costs.get(system.name)
    if cost is not None:
        remark = f"one text of 32 tokens, {cost.threads} CPU thread{'s' * (cost.threads > 1)}"
        found.append(("latency", f"{words.number(cost.milliseconds)} ms", remark))
    return found


def task_name(group: Group) -> str:
    """As its authors write it."""
    return TASKS.get(group.task, group.task)


def _against_floor(system: System, floor: System, trained: Sequence[str]) -> str:
    assert system.mean is not None
    assert floor.mean is not None
    gap = system.mean.mean - floor.mean.mean
    side = "above" if gap > 0 else "below"
    above = _above(system, floor, trained)
    below = [name for name in trained if name not in above and name in system.languages]
    of_languages = f"above it in {len(above)} of {len(trained)} languages"
    if below:
        of_languages += f", not in {words.listed(below)}"
    return (
        f"That is {abs(gap):.1f} points {side} the TF-IDF floor of {words.points(floor.mean)}, which anybody can have "
        f"within a minute: {of_languages}."
    )


def _above(system: System, floor: System, trained: Sequence[str]) -> list[str]:
    return [
        name
        for name in trained
        if name in system.languages
        and name in floor.languages
        and system.languages[name].mean > floor.languages[name].mean
    ]


def _agreement(runs: Sequence[Run]) -> list[str]:
    """What distillations and adaptations say of themselves where nothing was scored."""
    found = []
    for run in runs:
        if run.outcome is None:
            continue
        if run.kind == "distillation":
            before, after = (run.outcome[key]["all"]["kl"] for key in ("before", "after"))
            found.append(
                f"{run.name}: the student’s KL to its teacher on held-out text went from {before:.3f} to {after:.3f} "
                f"nats, the mean over {len(run.outcome['after']) - 1} languages."
            )
        else:
            loss, entropy = run.outcome["loss"]["all"], run.outcome["entropy_given_language"]
            found.append(
                f"{run.name}: held-out masked loss {loss:.3f} nats; the entropy of pieces given the language, where "
                f"nothing of the context is learnt yet, is {entropy:.3f}."
            )
    return found[:4]


def _training_tiles(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    found = []
    for run in runs:
        if run.kind == "distillation" and run.outcome is not None:
            before, after = (run.outcome[key]["all"] for key in ("before", "after"))
            found.append(
                (
                    "held-out KL, nats",
                    f"{after['kl']:.3f}",
                    f"{run.name}; {before['kl']:.3f} before",
                )
            )
            found.append(
                (
                    "same first choice",
                    f"{100 * after['top1']:.1f} %",
                    f"{run.name}; of masked tokens",
                )
            )
        elif run.kind == "adaptation" and run.outcome is not None:
            loss, entropy = run.outcome["loss"]["all"], run.outcome["entropy_given_language"]
            found.append(
                ("held-out masked loss, nats", f"{loss:.3f}", f"{run.name}; entropy {entropy:.3f}")
            )
    return found[:4]


def _with_sign(figure: Figure) -> str:
    return f"{figure.mean:+.1f}".replace("-", "−")
