"""Triton kernels run by its interpreter, in a process of their own (see `../test_interpreted.py`).

Whether `triton.jit` compiles or interprets is decided when a kernel's file is imported, so these tests are
collected only where TRITON_INTERPRET=1. To run one of them by hand:

    TRITON_INTERPRET=1 python -m pytest tests/gpu/interpreted/test_linear.py

The interpreter computes with numpy, a program at a time, and takes CPU tensors. What it cannot do: bfloat16
(numpy has none; it keeps the bits as uint16, so loads and stores are right, arithmetic is not, and
conversions cut off where they should round, which the kernels make up for), inline assembly, and layouts
or races. So kernels compute in float32 here what is bfloat16 on a GPU, and tests use shapes of a few tiles.
"""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]
