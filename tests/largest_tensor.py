"""How large the tensors become that operations give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """``elements``: the most that any tensor had, ``memory``: the most bytes behind any."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = self.memory = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                leaf = leaf.values() if leaf.layout == torch.sparse_csr else leaf
                self.elements = max(self.elements, leaf.numel())
                self.memory = max(self.memory, leaf.untyped_storage().nbytes())
        return out
