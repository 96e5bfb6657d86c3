"""The API reference names everything that is public."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"


def directives(kind: str) -> set[str]:
    """What the pages hand to autodoc by one directive."""
    pages = "\n".join(page.read_text() for page in REFERENCE.glob("*.md"))
    return set(re.findall(rf"^\.\. {kind}:: (\S+)$", pages, flags=re.M))


@pytest.mark.parametrize("package", ["qspec_kernels", "qspec_decode"])
def test_the_reference_has_every_public_name(package: str) -> None:
    found = importlib.import_module(package)
    source = Path(found.__file__ or "").read_text()
    public = re.findall(r"import \(?\s*\w+ as (\w+)", source)
    assert len(public) > 10
    modules, named = directives("automodule"), directives("autofunction") | directives("autoclass")
    missing = [
        name
        for name in public
        if f"{package}.{name}" not in named
        and not isinstance(getattr(found, name), ModuleType)
        # what has no home of its own, such as a dict, is looked for in the module that it is imported from
        and re.findall(rf"from (\S+) import \(?\s*{name} as {name}", source)[0] not in modules
    ]
    assert not missing
