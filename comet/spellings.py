"""Options as users spell them: with underscores or hyphens, without their part, or by Hugging Face's names.

One that means the same is taken; one that does the like is suggested.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

SAME = {  # of Hugging Face's TrainingArguments and scripts → ours, which means the same
    "bf16": "precision",
    "dataloader_num_workers": "workers",
    "eval_steps": "evaluate_every",
    "fp16": "precision",
    "logging_steps": "log_every",
    "lr": "learning_rate",
    "max_seq_length": "max_length",
    "max_steps": "steps",
    "mlm_probability": "mask_probability",
    "model_name_or_path": "model",
    "num_train_epochs": "epochs",
    "output_dir": "output",
    "report_to": "trackers",
    "save_steps": "checkpoint_every",
    "save_total_limit": "keep_checkpoints",
    "torch_compile": "compile",
    "warmup_ratio": "warmup",
}
ALIKE = {  # → ours that does the like, and how it differs
    "epochs": ("steps", "a run is as long as its steps"),
    "gradient_accumulation_steps": (
        "accumulation",
        "which cuts the batch of a step and leaves its size",
    ),
    "max_steps": ("epochs", "a run is as long as its epochs"),
    "num_train_epochs": ("steps", "a run is as long as its steps"),
    "per_device_train_batch_size": ("batch_size", "which counts over all processes"),
    "resume_from_checkpoint": ("resume", "with the run's --output"),
    "train_batch_size": ("batch_size", "which counts over all processes"),
    "warmup_ratio": ("warmup_steps", "which counts steps"),
    "warmup_steps": ("warmup", "which is a share of the steps"),
}
VALUES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
SWITCHES = ("bf16", "fp16")  # flags of their own there, values of one here


def suggestion(word: str, known: Sequence[str]) -> str:
    """` (did you mean …?)` where something known is spelt nearly so or means the same, else nothing."""
    same = SAME.get(_normal(word), "")
    near = [same] if same in known else difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def meant(flag: str, options: Mapping[str, Any]) -> list[str]:
    """The options that a flag may stand for: itself, or one spelt otherwise; several where it is ambiguous.

    Args:
        flag: such as `--batch_size`, without a value.
        options: every spelling that is known, and what it sets.
    """
    if flag in options:
        return [flag]
    word = _normal(flag)
    words = (word, SAME[word]) if word in SAME else (word,)
    for one in words:
        for spelling in (_normal, _field):
            found: dict[Any, str] = {}
            for option, action in options.items():
                if spelling(option) == one:
                    found.setdefault(action, option)
            if found:
                return list(found.values())
    return []


def advice(flag: str, options: Mapping[str, Any]) -> str:
    """` (did you mean …?)` for a flag that is unknown or ambiguous, else nothing."""
    found = meant(flag, options)
    if found:
        return f" (did you mean {' or '.join(found)}?)"
    ours, difference = ALIKE.get(_normal(flag), ("", ""))
    alike = meant(f"--{ours}", options) if ours else []
    if alike:
        return f" (did you mean {alike[0]}, {difference}?)"
    spelt: dict[str, str] = {}
    for option in options:
        spelt.setdefault(_normal(option), option)
        spelt.setdefault(_field(option), option)
    near = difflib.get_close_matches(_normal(flag), spelt, n=1)
    return f" (did you mean {spelt[near[0]]}?)" if near else ""


def _normal(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _field(option: str) -> str:
    """An option of a recipe without its part: `temperature` of `--objective.temperature`, `no_strict` likewise."""
    return re.sub(r"^(no_)?\w+\.", r"\1", _normal(option))
