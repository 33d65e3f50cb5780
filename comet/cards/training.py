"""How a model was trained, in the words of its card."""

from typing import Any

import yaml

from comet.cards.facts import Facts
from comet.cards.lineage import is_hub_id, plain_name
from comet.cards.markdown import code, escaped, fenced
from comet.report.words import count, listed
from comet.tasks.hub import HUB

_MADLAD = "allenai/MADLAD-400"
_STARTS = {
    "auto": "as much of the teacher's weights as its sizes allow",
    "random": "random weights",
    "embeddings": "the teacher's embeddings, reduced",
    "teacher": "the teacher's weights, reduced",
}
_ATTENTION = {
    "mse": "squared error of attention maps",
    "kl": "KL of attention maps",
    "relation": "KL of MiniLMv2's relations",
}


def training_words(facts: Facts) -> str:
    """What taught it, what it read, for how long; and the whole recipe, folded."""
    if facts.made is None:
        return ""
    lines = {"distilled": _distilled, "adapted": _adapted, "tuned": _tuned}[facts.made](facts)
    if not facts.is_tfidf:
        lines.append(_optimisation(facts))
    text = yaml.safe_dump(dict(facts.written), sort_keys=False, allow_unicode=True).rstrip()
    folded = "<details><summary>recipe.yaml, with folders by their names</summary>"
    listing = "\n".join(f"- {line}" for line in lines)
    return f"{listing}\n\n{folded}\n\n{fenced(text, 'yaml')}\n\n</details>"


def datasets(facts: Facts) -> list[str]:
    """What of its data the hub knows."""
    paths = facts.recipe.get("corpus", {}).get("paths") or []
    found = [_MADLAD for path in paths if path.startswith("madlad400")]
    data = facts.recipe.get("task", {}).get("data") or ""
    name = data.removeprefix(HUB).partition(":")[0]
    if data.startswith(HUB) and is_hub_id(name):
        found.append(name)
    return list(dict.fromkeys(found))


def _distilled(facts: Facts) -> list[str]:
    objective = facts.recipe["objective"]
    alpha, temperature = objective["alpha"], f"{objective['temperature']:g}"
    if objective["temperature_mode"] != "constant":
        temperature += f" ({objective['temperature_mode']})"
    loss = f"{alpha:g} · KL at temperature {temperature} on {objective['kd_tokens']} tokens"
    if alpha < 1:
        loss += f" + {1 - alpha:g} · {_ATTENTION[objective['attention_loss']]}"
        if objective["attention_loss"] == "mse" and objective["projection"] != "identity":
            loss += f" ({objective['projection']} projection, which is not part of the model)"
    if objective["mlm_weight"]:
        loss += f" + {objective['mlm_weight']:g} · masked language modelling"
    teacher = code(facts.base.name) if facts.base else "not known"
    if facts.recipe["teacher"].get("trim"):
        teacher += f", trimmed to what the text needs ({facts.recipe['teacher']['trim']:g})"
    # today's default may not be what a recipe of an older version, which does not say it, was run with
    initial = facts.written["student"].get("initial")
    start = code(facts.start) if facts.start else _STARTS.get(initial)
    return [
        f"Teacher: {teacher}; frozen.{f' The student started from {start}.' if start else ''}",
        *_text(facts),
        f"Loss: {loss}.",
    ]


def _adapted(facts: Facts) -> list[str]:
    share = facts.recipe["corpus"]["mask_probability"]
    return [*_text(facts), f"Masked language modelling: {share:.0%} of the tokens are chosen."]


def _tuned(facts: Facts) -> list[str]:
    task, objective = facts.recipe["task"], facts.recipe["objective"]
    counts = facts.record.get("task", {}).get("examples", {})
    known = [f"{escaped(name)} {counts[name]:,}" for name in facts.languages if name in counts]
    data = f" ({code(task['data'])})" if task["data"] else ""
    lines = [
        f"Task: {escaped(task['task'])}{data}; examples: {', '.join(known or map(escaped, facts.languages))}."
    ]
    if facts.recipe["teacher"]["model"]:
        lines.append(
            f"Taught by {code(facts.recipe['teacher']['model'])} and the labels: {objective['alpha']:g} · KL at "
            f"temperature {objective['temperature']:g} + {1 - objective['alpha']:g} · attention + "
            f"{objective['label_weight']:g} · cross-entropy of the labels."
        )
    if objective["floor_weight"]:
        lines.append(f"TF-IDF taught it too: + {objective['floor_weight']:g} · KL to its labels.")
    if facts.tuned is not None and not facts.is_tfidf:
        lines.append(f"Chosen on dev: the best of the run, at step {facts.tuned.step:,}.")
    return lines


def _text(facts: Facts) -> list[str]:
    """What it read: from where, in which languages, how many documents."""
    paths = [_corpus(path) for path in facts.recipe["corpus"]["paths"]]
    source = listed(paths) if paths else "that of the cache of the teacher's outputs"
    lines = [f"Text: {source}; languages: {listed([escaped(name) for name in facts.languages])}."]
    documents = facts.record.get("documents") or {}
    known = [f"{escaped(name)} {some:,}" for name, some in documents.items() if some is not None]
    if known:
        lines.append(f"Documents: {', '.join(known)}.")
    return lines


def _corpus(path: str) -> str:
    if path == "toy":
        return "Comet's toy corpus, which is made up"
    if path.startswith("madlad400"):
        return f"[MADLAD-400](https://huggingface.co/datasets/{_MADLAD})"
    return code(plain_name(path))


def _optimisation(facts: Facts) -> str:
    optimisation: dict[str, Any] = facts.recipe["optimisation"]
    steps = facts.record.get("steps") or optimisation.get("steps")
    rate = facts.record.get("learning_rate") or optimisation["learning_rate"]
    seed = facts.tuned.seed if facts.tuned else facts.recipe["run"]["seed"]
    tokens = optimisation.get("batch_tokens")
    batch = f"{tokens:,} tokens" if tokens else f"{optimisation['batch_size']:,} sequences"
    parts = [
        f"{steps:,} steps of {batch}" if steps else f"{optimisation['epochs']} epochs",
        *([f"{count(facts.tokens)} tokens seen"] if facts.tokens else []),
        f"AdamW, peak rate {f'{rate:.3g}' if rate else 'by width'}",
        f"weight decay {optimisation['weight_decay']:g}",
        optimisation["precision"],
        f"seed {seed}",
    ]
    return f"{', '.join(parts)}."
