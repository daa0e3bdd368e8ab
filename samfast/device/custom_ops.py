"""Operations of PyTorch, each declared once: its schema is the signature of a typed function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Generic, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from samfast.device.triton_support import need_triton

P = ParamSpec("P")
R = TypeVar("R")


def on_gpu(x: Tensor) -> bool:
    """Whether a tensor is on an NVIDIA GPU."""
    return x.device.type == "cuda"


@dataclass(eq=False)
class Operation(Generic[P, R]):
    """A function that torch.compile sees as one node; made by `operation`.

    function    what was declared: plain torch, and the reference of the kernel if there is one
    fake        takes the same arguments, returns empty tensors of the results' shapes and dtypes;
                None if nothing is returned
    kernel      module whose `launch` takes the same arguments, or None
    has_kernel  whether the kernel runs, given the first argument
    mutates     names of the arguments that are written
    in_place    whether the result overwrites the first argument instead of being returned

    Calls run the function or the kernel directly where nothing observes them: calling a registered
    operation makes PyTorch import its compiler, which takes a second in a new process. It is
    registered at the first call that is traced, differentiated or intercepted. torch.compile cannot
    trace the registration: call `register` before compiling code that uses the operation.
    """

    function: Callable[P, R]
    fake: Callable[..., Any] | None
    kernel: str | None
    has_kernel: Callable[[Tensor], bool]
    mutates: tuple[str, ...]
    in_place: bool = False
    _registered: Callable[P, R] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() or _observed(args):
            return self.register()(*args, **kwargs)
        return cast("R", self._run(*args, **kwargs))

    def register(self) -> Callable[P, R]:
        """The operation as PyTorch has it, `torch.ops.samfast.<name of the function>`."""
        if self._registered is None:
            schema = torch.library.infer_schema(self.function, mutates_args=self.mutates)
            name = f"samfast::{self.function.__name__}"
            if self.in_place:
                schema, name = f"{schema.rpartition('->')[0]}-> ()", f"{name}_"
            made = torch.library.custom_op(
                name, self._run, mutates_args=self.mutates, schema=schema
            )
            if self.fake is not None:
                made.register_fake(self.fake)
            self._registered = cast("Callable[P, R]", made)
        return self._registered

    def to_in_place(self, argument: str) -> Operation[P, None]:
        """The operation `<name>_`, whose result overwrites the first argument, of that name."""
        changed = replace(self, fake=None, mutates=(argument,), in_place=True, _registered=None)
        return cast("Operation[P, None]", changed)

    def _run(self, *args: Any, **options: Any) -> Any:
        run = cast("Callable[..., Any]", self.function)
        if self.kernel is not None and self.has_kernel(args[0]):
            need_triton("a fused recipe")
            run = import_module(self.kernel).launch
            if self.in_place:
                options["out"] = args[0]
        result = run(*args, **options)
        if not self.in_place:
            return result
        if result is not args[0]:
            args[0].copy_(result)
        return None


def _observed(args: tuple[Any, ...]) -> bool:
    """Whether autograd, a tracer, a dispatch mode or a class of tensors of its own must see a call
    as one operation.
    """
    return (
        torch.is_grad_enabled()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or any(isinstance(arg, Tensor) and type(arg) not in (Tensor, Parameter) for arg in args)
    )


def operation(
    *,
    fake: Callable[..., Any] | None = None,
    kernel: str | None = None,
    has_kernel: Callable[[Tensor], bool] = on_gpu,
    mutates: tuple[str, ...] = (),
) -> Callable[[Callable[P, R]], Operation[P, R]]:
    """Declare a typed function as an operation; the options are those of `Operation`.

    @operation(fake=lambda x, times: torch.empty_like(x))
    def multiply(x: Tensor, times: float) -> Tensor:
        return x * times
    """
    return lambda function: Operation(function, fake, kernel, has_kernel, mutates)
