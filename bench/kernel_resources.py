"""`python -m bench.kernel_resources`: what every shipped configuration of every Triton kernel takes of a GPU.

Compiles for GPUs that need not be there and lists registers a thread, bytes of spills, shared memory, and how many
instructions load 16 bytes into registers. The environment must not set TRITON_INTERPRET.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from comet_kernels.ops import launch
from comet_kernels.ops.mean_attention import gradient_kernels, kernels, short_kernels
from comet_kernels.ops.mean_attention import options as attention
from comet_kernels.ops.softened_kl import gradient_kernels as kl_gradient
from comet_kernels.ops.softened_kl import kernels as kl
from comet_kernels.ops.softened_kl import loads as kl_loads

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
# Its kernels are bfloat16's but for conversions and, in the backward of attention, the products of dS.
FLOAT16_TARGETS = {"sm_90"}
FLOATS = {"scale", "gradient_scale"}
Case = tuple[Any, dict[str, str], dict[str, Any], launch.Options, str]


ATTENTION = (
    (kernels.statistics_kernel, attention.FORWARD),
    (kernels.map_kernel, attention.FORWARD),
    (gradient_kernels.delta_kernel, attention.QUERY_GRADIENT),
    (gradient_kernels.query_gradient_kernel, attention.QUERY_GRADIENT),
    (gradient_kernels.key_gradient_kernel, attention.KEY_GRADIENT),
    (short_kernels.row_map_kernel, attention.ROW_MAP),
    (short_kernels.row_gradient_kernel, attention.ROW_GRADIENT),
)


def attention_cases(arch: str) -> Iterator[Case]:
    """Every row of the tables at its largest head; on sm_90 also variants of D = 64 in 16 bits."""
    for kernel, table in ATTENTION:
        differs = "GRADIENT_DTYPE" in kernel.arg_names  # between bfloat16 and float16
        for name in dict.fromkeys(name for _, name in table):
            if not attention.has_row(table, name, arch):
                continue
            kind, head_size = name.split("-")[:2]
            dtype = torch.bfloat16 if kind == "half" else torch.float32
            yield _attention_case(arch, kernel, table, name, dtype)
            if arch not in FLOAT16_TARGETS or kind != "half":
                continue
            if differs or head_size == "64":
                yield _attention_case(arch, kernel, table, name, torch.float16)
            if head_size == "64":
                yield _attention_case(arch, kernel, table, name, dtype, masked=False)
                yield _attention_case(arch, kernel, table, name, dtype, wide=True)
                yield _attention_case(arch, kernel, table, name, dtype, even=True)
        if kernel is short_kernels.row_gradient_kernel:
            for missing in ("query_gradient", "key_gradient"):
                yield _attention_case(
                    arch, kernel, table, "half-64-128", torch.bfloat16, missing=missing
                )


def _attention_case(
    arch: str,
    kernel: Any,
    table: launch.Table,
    name: str,
    dtype: torch.dtype,
    *,
    masked: bool = True,
    wide: bool = False,
    even: bool = False,
    missing: str = "",
) -> Case:
    """`even`: S is a multiple of 16, which Triton compiles apart; `missing`: the gradient that nobody asked for."""
    kind, head_size, *keys = name.split("-")
    options = launch.lookup(table, arch, name)
    given = {
        **attention.constants(kind, int(head_size), masked=masked, wide=wide),
        **attention.gradient_constants(kind, dtype, hip=arch.startswith("gfx")),
        "PAIR": attention.in_pairs(arch, name),
        "KEYS": int(keys[0]) if keys else None,
        "num_stages": options["num_stages"],
        **{f"stride_{tensor}d": 1 for tensor in ("q", "k", "o", "dq", "dk")},
        "stride_gk": 1,
    }
    constants = {argument: given[argument] for argument in kernel.arg_names if argument in given}
    inputs = ("query", "key", "query_gradient", "key_gradient")
    pointers = {
        **dict.fromkeys(inputs, POINTERS[dtype]),
        "mask": "*u8",
        **dict.fromkeys(("lse", "attention", "gradient", "delta"), "*fp32"),
    }
    if even:  # what is listed here counts as aligned
        pointers.update(sequence="i32", stride_gb="i32", stride_gq="i32")
    if missing:
        constants[missing] = None
    words = [name, str(dtype), "unmasked" * (not masked), "wide" * wide, "even" * even]
    words.append(f"no {missing}" * bool(missing))
    return kernel, pointers, constants, options, " ".join(filter(None, words))


def kl_cases(arch: str) -> Iterator[Case]:
    """Both shape classes with and without biases, sides of unequal dtype, rows off the 16-byte boundaries."""
    halves, mixed = (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)
    for dtypes, aligned, shifted, masked, biased in (
        ((torch.float32,) * 2, True, True, True, False),
        ((torch.float32,) * 2, True, False, True, True),
        (halves, True, True, True, False),
        (halves, True, False, True, True),
        (halves, True, True, False, False),
        (halves, False, False, True, False),
        (mixed, True, True, True, False),
    ):
        student, teacher = (torch.empty(0, 8, dtype=dtype) for dtype in dtypes)
        bias = student.new_empty(8) if biased else None
        shape_class = kl_loads.shape_class(student, teacher)
        loads = {
            **kl_loads.with_biases(kl_loads.wide_loads(student, teacher), (bias, bias)),
            "ALIGNED": aligned,
            "SHIFTED": shifted,
        }
        pointers = {
            **dict.fromkeys(("student", "gradient", "student_bias"), POINTERS[dtypes[0]]),
            **dict.fromkeys(("teacher", "teacher_bias"), POINTERS[dtypes[1]]),
            "mask": "*u8",
            **dict.fromkeys(("temperature", "loss", "statistics", "scale", "parts"), "*fp32"),
        }
        names = {"masked": masked, "biased": biased, "unaligned": not aligned}
        name = f"{shape_class} {dtypes[0]}" + f"/{dtypes[1]}" * (dtypes is mixed)
        name = " ".join([name, *(word for word, said in names.items() if said)])
        for kernel, table, own in (
            (kl.chunk_kernel, kl.FORWARD, {"CHUNK": kl.CHUNK, **loads}),
            (kl_gradient.gradient_kernel, kl_gradient.BACKWARD, loads),
        ):
            constants = {"HAS_MASK": masked, **own}
            yield kernel, pointers, constants, launch.lookup(table, arch, shape_class), name
    constants = {"HAS_MASK": True, "BLOCK_C": 8}
    yield kl.row_kernel, pointers, constants, launch.lookup(kl.JOIN, arch, "any"), "any"


def compile_case(arch: str, case: Case) -> dict[str, Any]:
    kernel, pointers, constants, options, name = case
    options = dict(options)
    launched = {key: options.pop(key) for key in ("num_warps", "num_stages")}
    constants = {**constants, **options}
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in pointers:
            signature[argument] = pointers[argument]
        else:
            signature[argument] = "fp32" if argument in FLOATS else "i32"
    # What Triton sees in ordinary arguments: aligned addresses, heads of a multiple of 16 numbers, any S and V.
    aligned = {a for a in kernel.arg_names if a in pointers or re.match("stride_[qkod]", a)}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, a in enumerate(kernel.arg_names)
        if a in aligned and a not in constants
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=TARGETS[arch], options=launched)
    resources = _resources(compiled, arch)
    return {
        "kernel": kernel.fn.__name__,
        "target": arch,
        "case": name,
        "options": {**options, **launched},
        "shared": compiled.metadata.shared,
        **resources,
    }


def _resources(compiled: Any, arch: str) -> dict[str, int]:
    if arch.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        return {
            "registers": _number(r"\.vgpr_count:\s+(\d+)", text),
            "spills": _number(r"\.vgpr_spill_count:\s+(\d+)", text),
            "wide_loads": len(re.findall(r"(?:global|buffer)_load_dwordx4", text)),
        }
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # A stack of no bytes: Triton's kernels have no other use for one than registers that did not fit.
    return {
        "registers": _number(r"REG:(\d+)", text),
        "spills": _number(r"STACK:(\d+)", text),
        "wide_loads": len(re.findall(r"ld\.global\S*\.v4\.b32", compiled.asm["ptx"])),
    }


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, pattern
    return int(found[1])


def _table(records: list[dict[str, Any]]) -> Iterator[str]:
    headings = ("target", "kernel", "case", "options", "registers", "spilled", "shared", "wide")
    rows = [
        (
            r["target"],
            r["kernel"],
            r["case"],
            " ".join(f"{name}={value}" for name, value in r["options"].items()),
            str(r["registers"]),
            f"{r['spills']} B",
            f"{r['shared']} B",
            str(r["wide_loads"]),
        )
        for r in records
    ]
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernel_resources",
        description="Compile every shipped Triton kernel; print registers, spills, shared memory.",
    )
    parser.add_argument("--target", choices=TARGETS, action="append", help="only these; repeatable")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every N-th case from I")
    parser.add_argument("--json", action="store_true", help="records instead of a table")
    given = parser.parse_args()
    part, parts = map(int, given.part.split("/"))
    cases = [
        (arch, case)
        for arch in given.target or TARGETS
        for make in (attention_cases, kl_cases)
        for case in make(arch)
    ]
    records = [compile_case(arch, case) for arch, case in cases[part::parts]]
    print(json.dumps(records) if given.json else "\n".join(_table(records)))


if __name__ == "__main__":
    main()
