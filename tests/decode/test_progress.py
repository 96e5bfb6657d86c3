"""A bar for slow work on a terminal, and nothing anywhere else."""

import io
import sys

import pytest

from qspec_decode import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("slow", "shown"), [(True, True), (False, False)], ids=["slow", "fast"])
def test_only_slow_work_shows_a_bar(monkeypatch: pytest.MonkeyPatch, slow: bool, shown: bool) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", -1.0 if slow else 60.0)
    assert list(progress.track(range(4), 4, "loading demo")) == [0, 1, 2, 3]
    assert ("loading demo" in terminal.getvalue()) == shown


def test_a_pipe_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", -1.0)
    assert list(progress.track(range(4), 4, "loading demo")) == [0, 1, 2, 3]
    assert pipe.getvalue() == ""
