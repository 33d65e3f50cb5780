"""What each kind of projection of attention maps costs, on paper: `python -m comet.profile --projection`.

Parameters are counted, memory is that of training them (float32 with gradient and Adam's two moments), operations are
those of the matrix products of one step, forward and backward: two for every multiplication and addition.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from comet.configuration import CommandParser
from comet.projections import memory_bytes, trained_bytes


class Cost(NamedTuple):
    """One kind of projection at one length.

    Attributes:
        kind: as in `objective.projection`, with its size.
        parameters: how many.
        operations: of one training step on a batch.
    """

    kind: str
    parameters: int
    operations: int


def projection_costs(length: int, terms: Sequence[int], rank: int, batch: int) -> Iterator[Cost]:
    """Costs of the kinds of projection for maps `[batch, length, length]`.

    A product costs as much again for each of its two gradients.

    Args:
        length: S.
        terms: K of the kronecker projections.
        rank: r of the lowrank projection.
        batch: B.
    """
    square = length**2
    yield Cost("identity", 0, 0)
    yield Cost("dense", square**2, 3 * 2 * batch * square**2)
    yield Cost(f"lowrank, r = {rank}", 2 * rank * square, 3 * 2 * batch * 2 * rank * square)
    for count in terms:
        products = 2 * count * length * square  # L A, then R on its right
        yield Cost(f"kronecker, K = {count}", 2 * count * square, 3 * 2 * batch * products)


def table(costs: Sequence[Cost]) -> Iterator[str]:
    """A line for each kind, dense's share beside it."""
    dense = next(cost for cost in costs if cost.kind == "dense")
    there = memory_bytes()
    yield f"{'':16} {'parameters':>14} {'of dense':>9} {'to train':>10} {'GFLOP a step':>13} {'of dense':>9}"
    for cost in costs:
        needed = trained_bytes(cost.parameters)
        yield (
            f"{cost.kind:16} {cost.parameters:14,} {cost.parameters / dense.parameters:9.3%} "
            f"{_bytes(needed):>10} {cost.operations / 1e9:13,.2f} "
            f"{cost.operations / dense.operations:9.2%}"
            + "  does not fit this machine"
            * (needed > there)
        )


def _bytes(count: int) -> str:
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1024:,.0f} KiB"


def read_command(argv: Sequence[str], program: str) -> argparse.Namespace:
    """The command line of `--projection`.

    Raises:
        ValueError: a size below 1.
    """
    parser = CommandParser(
        prog=f"python -m {program}",
        description="What projections of attention maps cost, on paper.",
    )
    parser.add_argument(
        "--projection", action="store_true", required=True, help="projections of attention maps"
    )
    parser.add_argument(
        "--length", type=int, nargs="+", default=[128], help="tokens per sequence (default: 128)"
    )
    parser.add_argument(
        "--terms", type=int, nargs="+", default=[1, 4, 16], help="K of kronecker (default: 1 4 16)"
    )
    parser.add_argument("--rank", type=int, default=64, help="rank of lowrank (default: 64)")
    parser.add_argument("--batch", type=int, default=32, help="sequences per step (default: 32)")
    given = parser.parse_args(argv)
    for name, values in (
        ("length", given.length),
        ("terms", given.terms),
        ("rank", [given.rank]),
        ("batch", [given.batch]),
    ):
        for value in values:
            if value < 1:
                raise ValueError(f"--{name}: got {value}, expected 1 or more")
    return given


def print_costs(given: argparse.Namespace) -> None:
    """Print a table for each length."""
    for position, length in enumerate(given.length):
        print(
            "\n" * (position > 0)
            + f"projection of attention maps at {length} tokens, {given.batch} sequences a step"
        )
        costs = list(projection_costs(length, given.terms, given.rank, given.batch))
        print("\n".join(table(costs)), flush=True)
