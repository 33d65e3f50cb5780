"""Watches plain torch code: what it allocates, and what lies in the memory of the factors of its products."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}


class Allocations(TorchDispatchMode):
    """`with Allocations() as seen:` counts the largest tensor and the most bytes alive at once, inputs left out.

    A registered op hides what happens inside it.
    """

    def __init__(self):
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.inputs: set[int] = set()
        self.largest_bytes = 0
        self.peak_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {s.data_ptr() for s in _storages((args, kwargs))} - self.alive.keys()
        self.inputs |= known
        result = func(*args, **(kwargs or {}))
        self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
        for storage in _storages(result):
            if storage.data_ptr() not in self.inputs:
                self.alive[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
                self.largest_bytes = max(self.largest_bytes, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self.alive.values()))
        return result


class Products(TorchDispatchMode):
    """`with Products():` fails where the memory of a product's factor holds NaN, even next to the factor."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__.rstrip("_") in PRODUCTS:
            self.seen += 1
            for factor in args[-2:]:
                memory = torch.empty(0, dtype=factor.dtype).set_(factor.untyped_storage())
                assert not memory.isnan().any(), f"{func}: factor {list(factor.shape)}"
        return func(*args, **(kwargs or {}))


def _storages(tree):
    return [t.untyped_storage() for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]
