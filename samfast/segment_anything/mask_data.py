"""`MaskData`, the original's container for many masks, for projects that extend its generator."""

from __future__ import annotations

from collections.abc import ItemsView
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.errors import InputError

_KINDS = (list, np.ndarray, Tensor)


class MaskData:
    """Named columns of one length: lists, NumPy arrays or tensors.

    A column that is None, which only code that writes to `_stats` makes, stays None.
    """

    def __init__(self, **columns: Any) -> None:
        self._stats: dict[str, Any] = {}
        for name, column in columns.items():
            self[name] = column

    def __setitem__(self, key: str, item: Any) -> None:
        if not isinstance(item, _KINDS):
            raise InputError(
                f"column {key!r} must be a list, a NumPy array or a tensor, not "
                f"{type(item).__name__}"
            )
        self._stats[key] = item

    def __delitem__(self, key: str) -> None:
        del self._stats[key]

    def __getitem__(self, key: str) -> Any:
        return self._stats[key]

    def items(self) -> ItemsView[str, Any]:
        """Names and columns."""
        return self._stats.items()

    def filter(self, keep: Tensor | NDArray[Any]) -> None:
        """Keep the rows of those indices, or where bool values are true, in every column."""
        index = keep.detach().cpu().numpy() if isinstance(keep, Tensor) else np.asarray(keep)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        for name, column in self._stats.items():
            if isinstance(column, Tensor):
                self._stats[name] = column[torch.as_tensor(keep, device=column.device)]
            elif isinstance(column, np.ndarray):
                self._stats[name] = column[index]
            elif column is not None:
                self._stats[name] = [column[i] for i in index]

    def cat(self, new_stats: MaskData) -> None:
        """Append the rows of another; a column that is new here is copied."""
        for name, column in new_stats.items():
            existing = self._stats.get(name)
            if existing is None:
                self._stats[name] = deepcopy(column)
            elif isinstance(column, Tensor):
                self._stats[name] = torch.cat([existing, column])
            elif isinstance(column, np.ndarray):
                self._stats[name] = np.concatenate([existing, column])
            else:
                self._stats[name] = existing + deepcopy(column)

    def to_numpy(self) -> None:
        """Tensors become NumPy arrays on the host."""
        for name, column in self._stats.items():
            if isinstance(column, Tensor):
                self._stats[name] = column.detach().cpu().numpy()
