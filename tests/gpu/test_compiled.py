"""`torch.compile` of every op when Triton serves them, interpreted."""

from importlib.util import find_spec

import pytest

from tests.kernels.test_compile import check


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_one_graph_for_any_number_of_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    check(["triton"], tmp_path)
