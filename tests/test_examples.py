"""Examples in docstrings do what they say, and none is passed over."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

from qspec_kernels import dispatch

ROOT = Path(__file__).parents[1]


def modules() -> dict[str, Path]:
    """Every module of the packages that shows an example, by its dotted name."""
    found = {}
    for package in ("qspec_kernels", "qspec_decode", "reference"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if ">>> " in path.read_text():
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                found[name.removesuffix(".__init__")] = path
    return found


def examples(name: str, source: str, names: dict[str, object]) -> list[doctest.DocTest]:
    """The docstrings of a module that hold examples, each of which will see a copy of `names`.

    They are read from the source: what wraps a function at run time hides it from doctest's own search.
    """
    parser, found = doctest.DocTestParser(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            title = f"{name}.{getattr(node, 'name', '')}"
            found.append(parser.get_doctest(ast.get_docstring(node) or "", names, title, name, 0))
    return found


def run(name: str, source: str, names: dict[str, object]) -> int:
    """Run the examples of a module; how many there were. What failed is printed."""
    runner = doctest.DocTestRunner()
    for docstring in examples(name, source, names):
        runner.run(docstring)
    failed, attempted = runner.summarize()
    assert not failed, f"{failed} examples of {name} give something else"
    return attempted


@pytest.mark.parametrize("name", modules())
def test_examples(name):
    if name == "qspec_kernels.program" and dispatch.isa() == "torch":
        pytest.skip("there are no native kernels here")
    source = modules()[name].read_text()
    assert run(name, source, vars(importlib.import_module(name))) == source.count(">>> ")


SHOWN = '''
def double(x):
    """Twice x.

    >>> double(2)
    {}
    """
    return 2 * x
'''


def test_an_example_that_is_wrong_is_noticed():
    assert run("shown", SHOWN.format(4), {"double": lambda x: 2 * x}) == 1
    with pytest.raises(AssertionError, match="1 examples of shown"):
        run("shown", SHOWN.format(5), {"double": lambda x: 2 * x})
