"""Launchers only launch: no method on their way asks the device for a value, or waits for it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from qspec_kernels import backends

FOLDERS = [Path(backends.__path__[0]) / name for name in ("triton", "cuda")]
WAITING = {
    *("cpu", "item", "numpy", "tolist", "synchronize", "wait_stream"),
    *("nonzero", "masked_select", "equal", "is_nonzero", "unique"),
}
# The signs of a base matrix are packed on the host, once for each order and device, and never while a graph
# is captured: test_cuda_hadamard.py. What a GPU says of its matrix instructions is for the host.
ALLOWED = {("hadamard_quantize_act.py", "packed_signs", "cpu"), ("_fragments.py", "asked", "cpu")}


def waiting(source: str) -> Iterator[tuple[str, str]]:
    """What a source uses that waits for a device, with the name of the function around it."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and node.attr in WAITING:
                    yield function.name, node.attr


def test_no_launcher_waits() -> None:
    files = [path for folder in FOLDERS for path in folder.glob("*.py")]
    assert len(files) > 50
    found = {(path.name, *use) for path in files for use in waiting(path.read_text())}
    assert found == ALLOWED


@pytest.mark.parametrize("use", ["x.item()", "x.max().tolist()", "torch.cuda.synchronize()", "x.nonzero()"])
def test_a_launcher_that_waits_is_found(use: str) -> None:
    assert list(waiting(f"def launch(x):\n    return [{use}]\n")) == [("launch", use.split(".")[-1][:-2])]
