"""How results are judged: relative RMS error against float64, and no worse than plain torch.

Gradients here are near 1e-6, so an absolute tolerance alone would accept a gradient of zeros.
"""

import torch

RELATIVE_RMS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def relative_rms(actual: torch.Tensor, oracle: torch.Tensor) -> float:
    """‖actual − oracle‖ / ‖oracle‖ in float64; infinite where anything is NaN or a zero oracle is missed."""
    actual, oracle = actual.detach().to(oracle.device).double(), oracle.detach().double()
    assert actual.shape == oracle.shape, f"{tuple(actual.shape)} against {tuple(oracle.shape)}"
    if actual.isnan().any() or oracle.isnan().any():
        return float("inf")
    error, size = (actual - oracle).norm().item(), oracle.norm().item()
    if size == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / size


def divergence(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL of every row [N] and T² KL's gradient [N, V] in float64, with 8 digits however alike the two sides are.

    KL = Σ p (e^r − 1 − r) with r = log q − log p: nothing cancels but in the bracket, for which there is a series.
    """
    mass = (teacher.double() / temperature).softmax(-1)
    x = (student.double() - teacher.double()) / temperature
    x = x - (mass * x).sum(-1, keepdim=True)
    r = x - (mass * x.expm1()).sum(-1, keepdim=True).log1p()
    series = r**2 * (1 / 2 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r / 5040)))))
    terms = torch.where(r.abs() < 0.02, series, r.expm1() - r)
    return (mass * terms).sum(-1), temperature * mass * r.expm1()


def assert_accurate(
    actual: torch.Tensor,
    oracle: torch.Tensor,
    plain: torch.Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    slack: float = 1.5,
    what: str = "result",
) -> None:
    """Small relative RMS error for its dtype and, given `plain` torch in that precision, at most `slack` times its."""
    error = relative_rms(actual, oracle)
    assert error <= RELATIVE_RMS[dtype], f"{what}: relative RMS error {error:.2e} for {dtype}"
    if plain is not None:
        floor = 4 * torch.finfo(torch.float32).eps
        allowed = slack * relative_rms(plain, oracle) + floor
        assert error <= allowed, f"{what}: error {error:.2e}, plain torch allows {allowed:.2e}"
