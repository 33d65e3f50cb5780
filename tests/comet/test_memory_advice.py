import errno
import re

import pytest
import torch
from tiny import tiny_model

from comet.configuration import build
from comet.memory_advice import Shape, Sizes, advice, explained, is_out_of_memory, sizes_of
from comet.recipe import AdaptRecipe, DistillRecipe

GIB = 2**30
PAPER = Sizes(
    vocabulary=250_002,
    student=Shape(69_187_730, layers=6, hidden_size=256, intermediate_size=1024, heads=8),
    teacher=Shape(560_142_482, layers=24, hidden_size=1024, intermediate_size=4096, heads=16),
)


def recipe(**parts):
    given = {"teacher": {"model": "t"}, "corpus": {"paths": ["text"]}}
    return build(DistillRecipe, {**given, **parts})


def listed(recipe, sizes=PAPER):
    """Option → GiB, in the order of the line."""
    line = advice(recipe, sizes)
    assert "\n" not in line
    found = re.findall(r"([\d.,]+) (GiB|MiB) by [a-z ]*(--[\w.-]+)", line)
    return {
        option: float(size.replace(",", "")) / (1024 if unit == "MiB" else 1)
        for size, unit, option in found
    }


def test_the_paper_s_plain_step_is_told_to_fuse_first():
    plain = recipe(objective={"projection": "dense"})
    line = advice(plain, PAPER)
    assert line.startswith("out of memory; roughly to be saved: 26.5 GiB by --fused, 17.")
    found = listed(plain)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    logits, maps = 7 * 4 * 4096 * 250_002, 3 * 4 * 4096 * 128 * 16
    assert found["--fused"] == pytest.approx((logits - 2**28 + maps) / GIB, abs=0.06)
    assert found["--objective.projection"] == pytest.approx(
        4 - 4 * 4 * 2 * 4 * 128**2 / GIB, abs=0.06
    )
    activations, passing = 4 * 4096 * 6 * (8 * 256 + 2 * 1024), 4 * 4096 * (4 * 1024 + 2 * 4096)
    step = logits + maps + activations + passing
    assert found["--optimisation.accumulation"] == pytest.approx(step / 2 / GIB, abs=0.06)
    rest = (step - maps) / 2 + maps * 3 / 4 + 4 * 4 * 128**4 * 15 / 16
    assert found["--corpus.max_length"] == pytest.approx(rest / GIB, abs=0.06)


def test_what_is_on_already_is_not_advised():
    fused = recipe(objective={"fused": True})
    assert "--fused" not in advice(fused, PAPER)
    found = listed(fused)
    weights = 4 * 560_142_482 - 4 * 250_002 * 1024 + 4 * 4096 * 12288
    assert found["--teacher-cache"] == pytest.approx(weights / GIB, abs=0.06)
    activations, passing = 4 * 4096 * 6 * 4096, 4 * 4096 * 12288
    assert found["--optimisation.precision"] == pytest.approx(
        (activations + passing) / 2 / GIB, abs=0.01
    )
    assert found["--student.hidden_size"] == pytest.approx(8 * 69_187_730 / GIB, abs=0.01)
    frugal = recipe(
        objective={"fused": True},
        optimisation={"precision": "bfloat16", "gradient_checkpointing": True, "batch_size": 1},
        student={"model": "mine"},
        corpus={"paths": ["text"], "max_length": 512},
    )
    cached = Sizes(PAPER.vocabulary, PAPER.student)
    assert list(listed(frugal, cached)) == ["--corpus.max_length"]


def test_a_step_shared_by_processes_and_pieces_needs_less():
    alone = listed(recipe())["--fused"]
    four = Sizes(PAPER.vocabulary, PAPER.student, PAPER.teacher, processes=4)
    kept = 2**28 / GIB
    assert listed(recipe(), four)["--fused"] == pytest.approx((alone + kept) / 4 - kept, abs=0.1)
    pieces = recipe(optimisation={"accumulation": 4})
    assert listed(pieces)["--fused"] == listed(recipe(), four)["--fused"]
    assert "--optimisation.accumulation 8" in advice(pieces, PAPER)


def test_checkpointing_counts_what_it_would_not_keep():
    fused = recipe(objective={"fused": True})
    cached = Sizes(PAPER.vocabulary, PAPER.student)
    kept = 4 * 4096 * (6 * 256 + 4096)
    saved = listed(fused, cached)["--optimisation.gradient_checkpointing"]
    assert saved == pytest.approx((4 * 4096 * 6 * 4096 - kept) / GIB, abs=0.01)


def test_a_teacher_in_training_gets_advice_of_its_own():
    adapt = build(AdaptRecipe, {"corpus": {"paths": ["text"]}})
    line = advice(adapt, Sizes(8000, Shape(7_000_000, 6, 256, 1024, 8)))
    assert "--optimisation.accumulation 2 (same result) or half the batch size" in line
    logits, activations = 3 * 4 * round(4096 * 0.15) * 8000, 4 * 4096 * 6 * 4096
    assert f"{(logits + activations) / 2 / 2**20:,.0f} MiB by --optimisation.accumulation" in line
    assert "--fused" not in line
    assert "cache" not in line


def test_sizes_are_those_of_the_models():
    student, teacher = tiny_model("xlm-r", num_hidden_layers=2), tiny_model("modernbert")
    found = sizes_of(student, teacher, processes=3)
    count = sum(value.numel() for value in student.parameters())
    assert found.student == Shape(count, 2, 32, 48, 4)
    assert (found.vocabulary, found.teacher.layers, found.processes) == (120, 4, 3)
    assert sizes_of(student).teacher is None


def test_memory_that_ran_out_is_recognised():
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(2**60, dtype=torch.uint8)
    for error in (
        cpu.value,
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ):
        assert is_out_of_memory(error)
    for error in (
        RuntimeError("shapes differ"),
        OSError(errno.ENOSPC, "full"),
        ValueError("out of memory"),
    ):
        assert not is_out_of_memory(error)


def test_within_a_run_it_ends_with_advice():
    with (
        pytest.raises(ValueError, match=r"^out of memory; .*--fused"),
        explained(lambda: advice(recipe(), PAPER)),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    with (
        pytest.raises(RuntimeError, match="shapes differ"),
        explained(lambda: advice(recipe(), PAPER)),
    ):
        raise RuntimeError("shapes differ")
