"""Running `qspec` in the test's own process, with tiny random checkpoints in place of the bundled ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qspec_decode import demo
from qspec_decode.cli import app
from tests.decode import checkpoints


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target and a sibling, as they are bundled."""
    root = tmp_path_factory.mktemp("bundle")
    checkpoints.write(root / "target", hidden=128)
    checkpoints.write(root / "small", hidden=64, layers=1)
    checkpoints.write(root / "other", hidden=64, layers=1, vocab_size=601)
    return root


@pytest.fixture
def bundled(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "path", lambda name="target": bundle / name)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def document(result: Result) -> dict[str, Any]:
    """The one JSON document on standard output of a command that succeeded."""
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return json.loads(result.stdout)
