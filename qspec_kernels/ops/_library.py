"""How an op becomes a `torch.library` op: schema, implementation, fake kernel, in one place."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.errors import UsageError

_LIBRARY = torch.library.Library("qspec", "DEF")


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define `qspec::<schema>` and return the callable that goes through PyTorch's dispatcher.

    One implementation serves every device, since it asks `dispatch.find` for the path itself. There is
    no autograd formula: the ops are for inference, and a backward pass that reaches one is refused.
    """
    name = schema.partition("(")[0]

    def unrecorded(*arguments: Any) -> Any:
        gpu = next((a.device for a in arguments if isinstance(a, Tensor) and a.is_cuda), None)
        if gpu is not None:
            # launches go to the current device, which need not be the tensors'
            with torch.no_grad(), torch.cuda.device(gpu):
                return implementation(*arguments)
        if not torch.is_grad_enabled():
            return implementation(*arguments)
        with torch.no_grad():
            return implementation(*arguments)

    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, unrecorded, "CompositeExplicitAutograd")
    torch.library.register_fake(f"qspec::{name}", fake, lib=_LIBRARY)
    op = getattr(torch.ops.qspec, name).default

    def refuse(_: Tensor) -> None:
        raise UsageError(
            f"qspec::{name} has no gradient: the ops are for inference",
            "Detach its input, or call the model under torch.no_grad().",
        )

    def call(*arguments: Any) -> Any:
        # a program's recorder looks into the implementation, which the dispatcher would hide from it
        if not torch.compiler.is_compiling() and dispatch.recording():
            return implementation(*arguments)
        out = op(*arguments)
        # without the hook PyTorch would leave the gradient out and only warn of it
        for tensor in out if isinstance(out, tuple) else (out,):
            if tensor is not None and tensor.requires_grad and not torch.compiler.is_compiling():
                tensor.register_hook(refuse)
        return out

    return call
