"""Peak memory of tensors, counted where PyTorch dispatches their creation."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of tensors created inside this context, until they are freed.

    Equal in every run, since it does not depend on the allocator. What a kernel allocates
    internally is not counted.

    Attributes:
        now, peak: bytes alive that were created inside, and their maximum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            # views and results written into an argument are no new memory
            if storage in self._counted or storage.data_ptr() in given:
                continue
            self._counted[storage] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._drop, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _drop(self, count: int) -> None:
        self.now -= count


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def peak_bytes(work: Callable[[], Any]) -> int:
    """The maximum of bytes alive at once of tensors that `work` creates, in its second run."""
    work()  # the first run fills caches
    with PeakBytes() as memory:
        work()
    return memory.peak
