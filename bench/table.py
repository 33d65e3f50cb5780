"""What was measured, for people: one line per implementation of each case."""

from collections.abc import Iterable, Mapping

from bench.results import Record

HEAD = (
    "op",
    "shape",
    "dtype",
    "device",
    "direction",
    "implementation",
    "time",
    "x torch",
    "x best peer",
    "extra memory",
    "error",
    "GB/s",
    "TFLOP/s",
)
Ceilings = Mapping[str, Mapping[str, float]]  # by device, then by what is measured


def table(records: Iterable[Record], ceilings: Ceilings) -> list[str]:
    """A head and the records, in order of their cases; what the lines of a case share stands in its first."""
    cases: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        cases.setdefault(_case(record), []).append(record)
    rows: list[tuple[str, ...]] = [HEAD]
    for case, found in cases.items():
        compared = (_fastest(found, implementation="torch"), _fastest(found, peer=True))
        for number, record in enumerate(found):
            shown = case if number == 0 else ("",) * len(case)
            rows.append((*shown, *_figures(record, compared, ceilings.get(record["device"], {}))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def legend(ceilings: Ceilings) -> list[str]:
    """What the columns mean, and what the shares in brackets are of."""
    lines = [
        "x torch, x best peer: times as fast as plain torch, and as the fastest of torch.compile and other libraries",
        "extra memory: the peak beyond the inputs; outputs, gradients and what forward keeps for backward count",
        "forward: what backward needs is kept; some implementations compute gradients there, which only both compares",
        "error: relative RMS error, the largest of output and gradients, against plain torch in float32",
        "GB/s and TFLOP/s: the least bytes and operations that the op takes, over the time; in brackets their share of",
    ]
    for device, measured in ceilings.items():
        products = (
            f"matrix products {rate:,.3g} TFLOP/s in {name.split('_')[0]}"
            for name, rate in measured.items()
            if "product" in name
        )
        copy = f"copies {measured['copy_gigabytes_per_second']:,.4g} GB/s"
        lines.append(f"    what {device} reached in this run: {'; '.join((copy, *products))}")
    return lines


def _case(record: Record) -> tuple[str, ...]:
    shape = " ".join(f"{letter}={size}" for letter, size in record["sizes"].items())
    if record["without"]:
        shape += f", no {record['without']}"
    return record["op"], shape, record["dtype"], record["device"], record["direction"]


def _fastest(found: Iterable[Record], **wanted: object) -> float | None:
    """The least time, in seconds, of the records with these fields."""
    times = (
        one["median_seconds"]
        for one in found
        if all(one[field] == value for field, value in wanted.items())
    )
    return min(times, default=None)


def _figures(
    record: Record, compared: Iterable[float | None], ceilings: Mapping[str, float]
) -> tuple[str, ...]:
    seconds = record["median_seconds"]
    extra, error = record["extra_bytes"], record["error"]
    product = ceilings.get(f"{record['dtype']}_product_teraflops_per_second")
    return (
        record["implementation"],
        f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms",
        *("-" if other is None else f"{other / seconds:.2f}x" for other in compared),
        "-" if extra is None else f"{extra / 2**20:,.1f} MiB",
        "-" if error is None else f"{error:.1g}",
        _rate(record["bytes"] / seconds / 1e9, ceilings.get("copy_gigabytes_per_second")),
        _rate(record["operations"] / seconds / 1e12, product),
    )


def _rate(rate: float, ceiling: float | None) -> str:
    if rate == 0:
        return "-"
    return f"{rate:,.3g}" + ("" if ceiling is None else f" ({rate / ceiling:.0%})")
