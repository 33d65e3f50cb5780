"""One folder per op: `reference.py` is plain torch, `kernels.py` Triton, `op.py` schema, checks, dispatch, autograd."""
