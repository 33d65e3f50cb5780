"""`pytest bench/`: checks an op's result, times it, measures its memory; ends with one table and with what is missing.

A time is the median over rounds of forward and backward together, launching and waiting for the device included. Before
each round the caches are filled with something else, so that inputs come from memory as they do between the layers of
a model. Extra memory is the peak beyond the inputs; gradients count.
"""

import functools
import time
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from accuracy import RELATIVE_RMS, relative_rms  # type: ignore[import-not-found]
from pytest_benchmark.fixture import BenchmarkFixture

from bench import memory, results
from bench.cases import Case, Found, Measure, Op, differentiate, oracle, synchronize
from comet_kernels.ops import launch

HAS_GPU = torch.cuda.is_available()
NO_GPU = "no CUDA or ROCm device"
CACHE_BYTES = 256 << 20
SLOW_SECONDS = 1.0  # from here on a second warm-up would change nothing
SECONDS, QUICK_SECONDS = 5.0, 0.3  # of timed rounds per implementation, but at least three rounds
RECORDS = pytest.StashKey[list[results.Record]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("comet")
    group.addoption("--quick", action="store_true", help="small sizes, to see that all runs")
    group.addoption(
        "--save", action="store_true", help="write bench/results/<machine>-<commit>.json"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("save") and config.getoption("quick"):
        raise pytest.UsageError(
            "--save: --quick measures sizes of no interest; leave one of them out"
        )
    config.stash[RECORDS] = []
    config.option.benchmark_columns = ["median", "min", "iqr", "rounds"]
    config.option.benchmark_sort = "fullname"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A benchmark that takes `case` and `implementation`, or `variant`, runs for all of its module's."""
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", metafunc.module.VARIANTS)
    if not {"case", "implementation"} <= set(metafunc.fixturenames):
        return
    module = metafunc.module
    cases = [module.QUICK] if metafunc.config.getoption("quick") else module.CASES
    metafunc.parametrize(
        ("case", "implementation"),
        [
            pytest.param(
                case,
                name,
                id=f"{case}-{name}",
                marks=[pytest.mark.gpu] if case.device == "cuda" else [],
            )
            for case in cases
            for name in module.OP.implementations
        ],
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not HAS_GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.fixture
def measure(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Measure:
    """Check, time and weigh one implementation of one case, and keep the record."""
    config = request.config

    def run(op: Op, case: Case, name: str) -> None:
        implementation = op.implementations[name]
        tensors = op.set_up(case)
        try:
            prepared = implementation.prepare(tensors)
        except ValueError as error:
            pytest.skip(str(error))
        call = functools.partial(differentiate, implementation.function, prepared)
        found, seconds = _warmed_up(call, case.device)
        if name != "torch" and implementation.same_result:
            _require_same(found, oracle(op, tensors), case.dtype)
        del found, tensors
        budget = QUICK_SECONDS if config.getoption("quick") else SECONDS
        benchmark.group = f"{op.name} {case}"
        benchmark.pedantic(
            _finished,
            args=(call, case.device),
            setup=_Eviction(case.device),
            rounds=max(3, min(30, int(budget / seconds))),
        )
        if benchmark.disabled:
            return
        if case.device == "cuda":
            extra: int | None = memory.extra_bytes_on_gpu(implementation, prepared)
        else:
            module = request.module
            extra = memory.extra_bytes_on_cpu(module.__name__, module.QUICK, case, name)
        times = benchmark.stats.stats
        config.stash[RECORDS].append(
            {
                "op": op.name,
                "sizes": case.sizes,
                "dtype": case.dtype_name,
                "device": case.device,
                "implementation": name,
                "median_seconds": times.median,
                "seconds": list(times.data),
                "extra_bytes": extra,
            }
        )

    def run_if_it_fits(op: Op, case: Case, name: str) -> None:
        try:
            run(op, case, name)
        except torch.OutOfMemoryError:
            pytest.skip("does not fit into this GPU")

    return run_if_it_fits


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    records = config.stash[RECORDS]
    if config.getoption("save") and records:
        ceilings = {
            device: results.measure_ceilings(device)
            for device in sorted({record["device"] for record in records})
        }
        path = results.save("ops", records, ceilings=ceilings)
        print(f"\nsaved {path}")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    write = terminalreporter.write_line
    records = config.stash[RECORDS]
    terminalreporter.section("comet against plain torch, forward and backward")
    for line in results.table(records):
        write(line)
    for (kernel, arch, shape_class), options in launch._found.items():
        write(f"COMET_AUTOTUNE: {kernel} on {arch}, {shape_class}: {options}")
    write("")
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
    )
    for reason, count in reasons.items():
        write(f"left out: {count} benchmark{'s' * (count > 1)}: {reason}")
    if config.getoption("quick"):
        write("left out: the sizes of interest, and every GPU case (--quick)")
    write("left out: the whole step at the paper's shapes; run `python -m bench.bench_step`")


class _Eviction:
    """Overwrites a buffer larger than the caches."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._buffer = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=device)

    def __call__(self) -> None:
        self._buffer.fill_(1)
        synchronize(self._device)


def _finished(call: Callable[[], Found], device: str) -> Found:
    found = call()
    synchronize(device)
    return found


def _warmed_up(call: Callable[[], Found], device: str) -> tuple[Found, float]:
    """The result, and about how long a call takes once kernels are compiled and libraries are awake."""
    seconds = 0.0
    for again in (True, False):
        start = time.perf_counter()
        found = _finished(call, device)
        seconds = time.perf_counter() - start
        if again and device == "cpu" and seconds > SLOW_SECONDS:
            break
    return found, seconds


def _require_same(found: Found, expected: Found, dtype: torch.dtype) -> None:
    for what in found.keys() & expected.keys():
        error = relative_rms(found[what], expected[what])
        assert error <= RELATIVE_RMS[dtype], f"{what}: relative RMS error {error:.2e} for {dtype}"
