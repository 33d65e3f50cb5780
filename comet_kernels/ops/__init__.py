"""One folder per op: `reference.py` is plain torch, `kernels.py` is Triton, `op.py` schema, checks, dispatch, autograd."""
