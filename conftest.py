"""Code blocks of the README and the docs are tests: a page's blocks run in order, sharing names."""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["README.md", "docs/**/*.md"]
).pytest()
