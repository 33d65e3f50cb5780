"""Benchmarks: `pytest bench/` for the ops, `python -m bench.bench_step` for a whole distillation step."""
