"""How an op becomes a `torch.library` op: schema, implementation, fake kernel, in one place."""

from collections.abc import Callable
from typing import Any

import torch

from qspec_kernels import dispatch

_LIBRARY = torch.library.Library("qspec", "DEF")


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define `qspec::<schema>` and return the callable that goes through PyTorch's dispatcher.

    One implementation serves every device, since it asks `dispatch.find` for the path itself. There is
    no autograd formula: the ops are for inference.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"qspec::{name}", fake, lib=_LIBRARY)
    op = getattr(torch.ops.qspec, name).default

    def call(*arguments: Any) -> Any:
        # a program's recorder looks into the implementation, which the dispatcher would hide from it
        if not torch.compiler.is_compiling() and dispatch.recording():
            return implementation(*arguments)
        return op(*arguments)

    return call
