"""Whether a caller calls the methods that are written here, or has put others in their place."""

from __future__ import annotations

import inspect
from typing import Any


class WrittenMethods:
    """The methods of a class as they are written, to be compared with an instance's at each call.

    beside  names of methods that callers may replace

    Made once, when the class is, so that a method that is put into the class later is noticed too.

    >>> METHODS = WrittenMethods(SamPredictor)
    >>> METHODS.replaced_in(predictor)  # "MyPredictor.predict_torch is another", or None
    """

    def __init__(self, kind: type, *, beside: tuple[str, ...] = ()) -> None:
        self._kind = kind
        self._methods = {
            name: value
            for name, value in vars(kind).items()
            if name not in (*beside, "__init__") and _is_method(value)
        }

    def replaced_in(self, instance: object) -> str | None:
        """The first method of which the instance has another, in words; None if it has all."""
        kind = type(instance)
        if not isinstance(instance, self._kind):
            return f"{kind.__name__} is no {self._kind.__name__}"
        attributes = vars(instance)
        for name, written in self._methods.items():
            if name in attributes or inspect.getattr_static(kind, name, None) is not written:
                return f"{kind.__name__}.{name} is another"
        return None

    @property
    def unchanged(self) -> bool:
        """Whether the class itself still has all of them."""
        present = vars(self._kind)
        return all(present.get(name) is written for name, written in self._methods.items())


def _is_method(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, staticmethod | classmethod | property)
