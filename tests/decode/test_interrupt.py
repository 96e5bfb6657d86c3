"""An interrupt is one, whatever the code that it meets makes of it."""

import signal
from typing import Any

import pytest

from qspec_decode import cli
from qspec_decode.commands import plan


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_becomes_another_error_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sent: signal.Signals
) -> None:
    """As C code of a library makes of it that asks for a length meanwhile."""

    def interrupted(*_: Any) -> None:
        try:
            signal.raise_signal(sent)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None

    monkeypatch.setattr(plan.Plan, "load", interrupted)
    before = signal.getsignal(sent)
    with pytest.raises(SystemExit) as exit_:
        cli.app(["generate", "demo", "--prompt", "a"])
    assert exit_.value.code == 130
    assert capsys.readouterr().err.rstrip().endswith("interrupted")
    assert signal.getsignal(sent) is before
