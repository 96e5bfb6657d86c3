"""The ladder of linear_w4a16: what its page shows is what is counted."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs its cuobjdump")

from qspec_kernels.backends.cuda import _nvrtc
from tests.gpu import build_table_cuda, ladder

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "gpu_linear_w4a16.md"


def shown() -> dict[str, list[int]]:
    """The lines of the page's table by version."""
    lines = re.findall(r"^\| ([^|]+) \|((?: \d+ \|){4})$", PAGE.read_text("utf-8"), re.MULTILINE)
    return {name: list(map(int, cells.replace("|", "").split())) for name, cells in lines}


def test_the_page_has_what_is_counted() -> None:
    assert list(shown()) == list(ladder.VERSIONS)
    if ".".join(map(str, _nvrtc.version())) != json.loads(build_table_cuda.TABLE.read_text())["nvrtc"]:
        pytest.skip("another compiler than the committed tables'")
    first, *_, last = ladder.VERSIONS
    for name in (first, last):
        assert ladder.count(ladder.VERSIONS[name], 90, 8) == shown()[name][2]
