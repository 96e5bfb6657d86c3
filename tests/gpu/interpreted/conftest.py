"""Triton kernels run by its interpreter, in a process of their own (see `../test_interpreted.py`).

Whether `triton.jit` compiles or interprets is decided when a kernel's file is imported, so these tests are
collected only where TRITON_INTERPRET=1. To run one of them by hand:

    TRITON_INTERPRET=1 python -m pytest tests/gpu/interpreted/test_linear.py

The interpreter computes with numpy, a program at a time, and takes CPU tensors. What it cannot do: bfloat16
(numpy has none; it keeps the bits as uint16, so loads and stores are right, arithmetic is not, and
conversions cut off where they should round, which the kernels make up for), inline assembly, and layouts
or races. So kernels compute in float32 here what is bfloat16 on a GPU, and tests use shapes of a few tiles.
"""

import inspect
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


if INTERPRETED:
    from triton import language
    from triton.runtime import interpreter

    @cache
    def _builtins(package: Any) -> tuple[str, ...]:
        return tuple(name for name, one in inspect.getmembers(package) if language.core.is_builtin(one))

    def _exchange(package: Any, builder: Any, scope: Any) -> None:
        for name in _builtins(package):
            if language.core.is_builtin(one := getattr(package, name)):
                interpreter._patch_attr(package, name, one, builder, scope)

    @pytest.fixture(scope="session", autouse=True)
    def exchanged_by_name() -> Iterator[None]:
        """Names of the language's functions are looked for once.

        Each call of a device function exchanges them for the interpreter's, after a search through all that
        the language has: a quarter of the time.
        """
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(interpreter, "_patch_builtin", _exchange)
            yield
