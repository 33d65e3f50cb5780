"""`pytest bench/`: checks an op's result, times it, measures its memory; ends with one table and with what is missing.

A time is the median over rounds of the case's direction, launching and waiting for the device included; what a
direction needs before it, such as the forward of a backward, is done outside of it. Before each round the caches are
filled with something else, so that inputs come from memory as they do between the layers of a model. Extra memory is
the peak beyond the inputs; outputs, gradients and what forward keeps for backward count.
"""

import contextlib
import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench import memory, results, table
from bench.cases import (
    Case,
    Direction,
    Found,
    Implementation,
    Measure,
    Op,
    Tensors,
    differentiate,
    oracle,
    synchronize,
    timed_part,
)
from bench.judge import largest_error
from comet_kernels.ops import launch

Result = TypeVar("Result")
HAS_GPU = torch.cuda.is_available()
NO_GPU = "no CUDA or ROCm device"
CACHE_BYTES = 256 << 20
SLOW_SECONDS = 1.0  # from here on a second warm-up would change nothing
SECONDS, ROUNDS = 1.0, 20  # of one implementation, whichever is reached first
FEWEST_ROUNDS = 3  # and all that --quick takes
RECORDS = pytest.StashKey[list[results.Record]]()
CEILINGS = pytest.StashKey[dict[str, dict[str, float]]]()
INPUTS = pytest.StashKey[tuple[str, Tensors]]()
ORACLE = pytest.StashKey[tuple[str, Found]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("comet")
    group.addoption("--quick", action="store_true", help="small sizes, to see that all runs")
    group.addoption(
        "--sweep", action="store_true", help="other sizes of each op instead, for plots"
    )
    group.addoption(
        "--save", action="store_true", help="write bench/results/<machine>-<commit>.json"
    )


def pytest_configure(config: pytest.Config) -> None:
    for option in ("save", "sweep"):
        if config.getoption(option) and config.getoption("quick"):
            raise pytest.UsageError(
                f"--{option}: --quick measures sizes of no interest; leave one of them out"
            )
    config.stash[RECORDS], config.stash[CEILINGS] = [], {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A benchmark that takes `case` and `implementation`, or `variant`, runs for all of its module's."""
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", metafunc.module.VARIANTS)
    if not {"case", "implementation"} <= set(metafunc.fixturenames):
        return
    module = metafunc.module
    quick, sweep = (metafunc.config.getoption(option) for option in ("quick", "sweep"))
    if quick:
        cases = _small_cases(module)
    elif sweep:  # a run that is saved puts no record of its own beside those of another
        cases = [case for case in module.SWEEP if case not in module.CASES]
    else:
        cases = module.CASES
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
            for name, implementation in module.OP.implementations.items()
            if case.device == "cuda"
            or _is_timed_on_the_cpu(name, implementation, case == cases[0], quick, sweep)
        ],
    )


def _is_timed_on_the_cpu(
    name: str, implementation: Implementation, first: bool, quick: bool, sweep: bool
) -> bool:
    """Minutes are few there: only plain torch and libraries are timed in every case and direction.

    Floors, and what costs far more, in the first case or in all of a sweep's; what has to be compiled, in the first of
    a whole run.
    """
    if implementation.compiles:
        return first and not (quick or sweep)
    return name in ("comet", "torch") or implementation.peer or first or sweep


def _small_cases(module: ModuleType) -> list[Case]:
    """The module's quick case in every form that its cases have, on every device that is there."""
    forms = dict.fromkeys((case.without, case.direction) for case in module.CASES)
    devices = ("cpu", "cuda") if HAS_GPU else ("cpu",)
    return [
        dataclasses.replace(module.QUICK, device=device, without=without, direction=direction)
        for device in devices
        for without, direction in forms
    ]


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
        tensors = _inputs(config, op, case)
        try:
            prepared = implementation.prepare(tensors)
        except ValueError as reason:
            pytest.skip(str(reason))
        whole = functools.partial(differentiate, implementation.function, prepared)
        found, seconds = _warmed_up(whole, case.device)
        error = None
        if implementation.same_result:
            expected = _expected(config, op, case)
            error = largest_error(name, found, expected, prepared, case.dtype)
            del expected
        del found, tensors
        most = FEWEST_ROUNDS if config.getoption("quick") else ROUNDS
        benchmark.group = f"{op.name} {case}"
        benchmark.pedantic(
            _finished,
            setup=_Preparation(case.device, case.direction, implementation, prepared),
            rounds=max(FEWEST_ROUNDS, min(most, int(SECONDS / seconds))),
        )
        if benchmark.disabled:
            return
        if case.device == "cuda":
            extra: int | None = memory.extra_bytes_on_gpu(implementation, prepared, case.direction)
        else:
            module = request.module
            extra = memory.extra_bytes_on_cpu(module.__name__, module.QUICK, case, name)
        times = benchmark.stats.stats
        config.stash[RECORDS].append(
            {
                "op": op.name,
                "sizes": case.sizes,
                "without": case.without,
                "direction": case.direction,
                "dtype": case.dtype_name,
                "device": case.device,
                "implementation": name,
                "peer": implementation.peer,
                "median_seconds": times.median,
                "seconds": list(times.data),
                "extra_bytes": extra,
                "error": error,
                **op.work(case)._asdict(),
            }
        )

    def run_if_it_fits(op: Op, case: Case, name: str) -> None:
        reason = op.implementations[name].why_not(case)
        if reason is None:
            try:
                run(op, case, name)
            except torch.OutOfMemoryError:
                if name == "comet":
                    raise
                reason = f"{op.name} {case}: {name} does not fit into this GPU"
            except ImportError as missing:
                if name == "comet":
                    raise
                reason = f"{name} cannot be imported: {missing}"
        if reason is not None:  # out here, where no exception holds the tensors of what did not fit
            pytest.skip(reason)

    return run_if_it_fits


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    records = config.stash[RECORDS]
    ceilings = {
        device: results.measure_ceilings(device)
        for device in sorted({record["device"] for record in records})
    }
    config.stash[CEILINGS] = ceilings
    if config.getoption("save") and records:
        path = results.save("ops", records, ceilings=ceilings)
        print(f"\nsaved {path}")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    write = terminalreporter.write_line
    records, ceilings = config.stash[RECORDS], config.stash[CEILINGS]
    terminalreporter.section("Comet's ops, plain torch, and what else there is")
    if records:
        for line in (*table.table(records, ceilings), "", *table.legend(ceilings)):
            write(line)
    for (kernel, arch, shape_class), options in launch.options_found().items():
        write(f"COMET_AUTOTUNE: {kernel} on {arch}, {shape_class}: {options}")
    write("")
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
    )
    for reason, count in reasons.items():
        write(f"left out: {count} benchmark{'s' * (count > 1)}: {reason}")
    write(f"left out: on the CPU, for time: {_left_out_on_the_cpu(config)}")
    if config.getoption("quick"):
        gpu = "" if HAS_GPU else f", and the GPU ({NO_GPU})"
        write(f"left out: the sizes of interest (--quick){gpu}")
    elif not config.getoption("sweep"):
        write("left out: more sizes of each op, for plots; run `pytest bench/ --sweep`")
    write("left out: the whole step at the paper's shapes; run `python -m bench.bench_step`")


def _left_out_on_the_cpu(config: pytest.Config) -> str:
    """What `_is_timed_on_the_cpu` refuses."""
    if config.getoption("sweep"):
        return "torch.compile; and the sizes that `pytest bench/` has"
    first = "but for the first case of each op"
    if config.getoption("quick"):
        return f"torch.compile; `products` and `dense` {first}"
    return f"torch.compile, `products` and `dense` {first}"


class _Preparation:
    """Before each round: does what comes before the timed part, then overwrites a buffer larger than the caches."""

    def __init__(
        self, device: str, direction: Direction, implementation: Implementation, tensors: Tensors
    ) -> None:
        self._device = device
        self._timed_part = functools.partial(
            timed_part, direction, implementation.function, tensors
        )
        self._buffer = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=device)

    def __call__(self) -> tuple[tuple[Callable[[], object], str], dict[str, object]]:
        call = self._timed_part()
        self._buffer.fill_(1)
        synchronize(self._device)
        return (call, self._device), {}


def _inputs(config: pytest.Config, op: Op, case: Case) -> Tensors:
    """The tensors of a case, made once for all directions and implementations."""
    key = f"{op.name} {case.inputs}"
    if config.stash.get(INPUTS, ("", {}))[0] != key:
        config.stash[INPUTS], config.stash[ORACLE] = ("", {}), ("", {})
        config.stash[INPUTS] = (key, op.set_up(dataclasses.replace(case, direction="both")))
    tensors = config.stash[INPUTS][1]
    return tensors if case.tracked else {name: one.detach() for name, one in tensors.items()}


def _expected(config: pytest.Config, op: Op, case: Case) -> Found:
    """Plain torch's result, computed once for all directions and implementations of the same inputs."""
    key = f"{op.name} {case.inputs}"
    if config.stash.get(ORACLE, ("", {}))[0] != key:
        trained = _inputs(config, op, dataclasses.replace(case, direction="both"))
        with contextlib.suppress(torch.OutOfMemoryError):
            config.stash[ORACLE] = (key, oracle(op, trained))
    found, expected = config.stash[ORACLE]
    if found != key:
        pytest.skip(
            f"{op.name} cannot be checked: plain torch in float32 does not fit into this GPU"
        )
    return expected if case.tracked else {"output": expected["output"]}


def _finished(call: Callable[[], Result], device: str) -> Result:
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
