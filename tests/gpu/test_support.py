"""The table of who serves a precision on which GPU, in the support page, is what the dispatcher would do."""

from pathlib import Path

import pytest
import torch

from qspec_kernels import PRECISIONS, dispatch
from tests.gpu.devices import Device

pytest.importorskip("triton")

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "support.md"
# Ampere, Ada, Hopper, Blackwell; None for AMD's
CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), None)


def test_the_table_of_precisions_is_the_dispatchers(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = []
    for capability in CAPABILITIES:
        device(capability, ("triton", "cupy"))
        if capability is None:
            monkeypatch.setattr(torch.version, "hip", "7.1")
            monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        columns.append([_served(f"linear_{name}") for name in PRECISIONS])
    heads = ["AMD" if one is None else "sm_{}{}".format(*one) for one in CAPABILITIES]
    lines = [
        _row("precision", *heads),
        "| --- |" + " --- |" * len(heads),
        *(_row(f"`{name}`", *cells) for name, *cells in zip(PRECISIONS, *columns, strict=True)),
    ]
    assert "\n".join(lines) in PAGE.read_text(encoding="utf-8")


def _served(op: str) -> str:
    """Who decodes; and who serves prompts, if it is another file."""
    decode, prompt = (
        dispatch.choose(op, torch.device("cuda"), torch.float32, phase=phase) for phase in dispatch.PHASES
    )
    cell = str(decode.backend)
    return cell if prompt.name == op else f"{cell}, {prompt.backend}*"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
