"""Whether an implementation computes what it says, by the measure of the tests."""

import torch
from accuracy import RELATIVE_RMS, relative_rms  # type: ignore[import-not-found]

from bench.cases import Found, Tensors

# Of implementations other than Comet's: more is another result, less is their rounding, which the table shows.
OTHERS_LIMIT = 0.1


def largest_error(
    name: str, found: Found, expected: Found, prepared: Tensors, dtype: torch.dtype
) -> float:
    """The largest relative RMS error of output and gradients.

    Args:
        name: of the implementation.
        found: its output and gradients.
        expected: those of the oracle.
        prepared: what the implementation took; a gradient of other tensors is not expected of it.
        dtype: of the case.

    Raises:
        AssertionError: something is missing, or the error is larger than Comet or others are allowed.
    """
    limit = RELATIVE_RMS[dtype] if name == "comet" else OTHERS_LIMIT
    due = [what for what in expected if what == "output" or what in prepared]
    missing = [what for what in due if what not in found]
    assert not missing, f"{name} has no gradient of {', '.join(missing)}"
    errors: dict[str, float] = {what: relative_rms(found[what], expected[what]) for what in due}
    for what, error in errors.items():
        assert error <= limit, f"{name}, {what}: relative RMS error {error:.2e} for {dtype}"
    return max(errors.values())
