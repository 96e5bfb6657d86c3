"""Sphinx configuration."""

import importlib.metadata
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import gpu_measured  # noqa: E402
import gpu_tables  # noqa: E402
import measured  # noqa: E402

project = "QSpec"
author = "The QSpec developers"
copyright = "2026, The QSpec developers"
release = importlib.metadata.version("qspec")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "colon_fence", "substitution"]
myst_heading_anchors = 3
RESULTS = DOCS / "results"
myst_substitutions = {
    **measured.substitutions(RESULTS),
    **gpu_tables.substitutions(
        measured.load(RESULTS / "gpu_build_triton.json"), measured.load(RESULTS / "gpu_build_cuda.json")
    ),
    **gpu_measured.substitutions(
        *(
            [measured.load(path) for path in sorted(RESULTS.glob(f"gpu_{kind}_*.json"))]
            for kind in ("bench", "train")
        )
    ),
}
html_theme = "furo"
html_title = "QSpec"
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = False


def setup(app) -> None:
    """Drawings are made before pages that show them are read."""

    def draw(_: object) -> None:
        measured.draw(RESULTS, DOCS / "_build" / "measured")
        gpu_measured.draw(RESULTS, DOCS / "_build" / "measured")

    app.connect("builder-inited", draw)
