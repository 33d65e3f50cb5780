"""`python -m bench.kernel_resources`: what every shipped configuration of every Triton kernel takes of a GPU.

Compiles for GPUs that need not be there and lists registers a thread, bytes of spills and shared memory. The
environment must not set TRITON_INTERPRET.
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
from comet_kernels.ops.mean_attention import gradient_kernels
from comet_kernels.ops.mean_attention import kernels as attention
from comet_kernels.ops.softened_kl import kernels as kl

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


def attention_cases(arch: str) -> Iterator[Case]:
    """The largest head of each shape class; TF32 on NVIDIA only; float16 where it differs, in the backward."""
    kinds = [("half", torch.bfloat16), ("half", torch.float16), ("ieee", torch.float32)]
    if not arch.startswith("gfx"):
        kinds.append(("tf32", torch.float32))
    forward = (attention.statistics_kernel, attention.map_kernel, gradient_kernels.delta_kernel)
    backward = (gradient_kernels.query_gradient_kernel, gradient_kernels.key_gradient_kernel)
    for kind, dtype in kinds:
        for head_size in (64, 256):
            shape_class = attention.shape_class(head_size, kind)
            for kernel in (*forward, *backward):
                is_backward = kernel in backward
                if dtype == torch.float16 and not (is_backward and arch in FLOAT16_TARGETS):
                    continue
                table = gradient_kernels.BACKWARD if is_backward else attention.FORWARD
                constants = attention.constants(
                    kind,
                    dtype,
                    head_size,
                    masked=True,
                    backward=is_backward,
                    hip=arch.startswith("gfx"),
                )
                for stride in ("stride_qd", "stride_kd", "stride_gk", "stride_od"):
                    if stride in kernel.arg_names:
                        constants[stride] = 1
                pointers = {
                    "query": POINTERS[dtype],
                    "key": POINTERS[dtype],
                    "query_gradient": POINTERS[dtype],
                    "key_gradient": POINTERS[dtype],
                    "mask": "*u8",
                    **dict.fromkeys(("lse", "attention", "gradient", "delta"), "*fp32"),
                }
                options = launch.lookup(table, arch, shape_class)
                yield kernel, pointers, constants, options, f"{shape_class} {dtype}"


def kl_cases(arch: str) -> Iterator[Case]:
    """Both shape classes."""
    for dtype in (torch.float32, torch.bfloat16):
        like = torch.empty(0, dtype=dtype)
        shape_class = kl.shape_class(like, like)
        pointers = {
            **dict.fromkeys(("student", "teacher", "gradient"), POINTERS[dtype]),
            "mask": "*u8",
            **dict.fromkeys(("temperature", "loss", "statistics", "scale"), "*fp32"),
        }
        for kernel, table in ((kl.forward_kernel, kl.FORWARD), (kl.backward_kernel, kl.BACKWARD)):
            options = launch.lookup(table, arch, shape_class)
            yield kernel, pointers, {"HAS_MASK": True}, options, f"{shape_class} {dtype}"


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
    aligned = {a for a in kernel.arg_names if a in pointers or re.match("stride_[qko]", a)}
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
        }
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # A stack of no bytes: Triton's kernels have no other use for one than registers that did not fit.
    return {"registers": _number(r"REG:(\d+)", text), "spills": _number(r"STACK:(\d+)", text)}


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, pattern
    return int(found[1])


def _table(records: list[dict[str, Any]]) -> Iterator[str]:
    headings = ("target", "kernel", "case", "options", "registers", "spilled", "shared")
    rows = [
        (
            r["target"],
            r["kernel"],
            r["case"],
            " ".join(f"{name}={value}" for name, value in r["options"].items()),
            str(r["registers"]),
            f"{r['spills']} B",
            f"{r['shared']} B",
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
