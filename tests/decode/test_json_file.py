"""`--json FILE`: what cannot be written is refused at once, and what is written is never half there."""

import json
import os
import threading
from pathlib import Path

import pytest

from qspec_decode.commands.json_file import check_file, replace_file
from qspec_kernels import UsageError
from tests.decode.command_line import run

COMMANDS = ("kernels", "decode", "gpu", "train")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_directory_is_refused_before_anything_is_measured(command: str, tmp_path: Path) -> None:
    result = run("bench", command, f"--json={tmp_path}")
    assert result.exit_code == 2, result.exception
    # as with a blank in place of the equal sign, an error is a document
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "UsageError"
    assert f"{tmp_path}, which is a directory" in error["message"]
    assert f"{tmp_path}/measured.json" in error["hint"]


def test_a_file_that_cannot_be_made_is_refused() -> None:
    # what the system says depends on who asks
    with pytest.raises(UsageError, match=r"/proc/qspec\.json, which cannot be written: (No such|Permission)"):
        check_file(Path("/proc/qspec.json"))
    with pytest.raises(UsageError, match=r"/no/such/place\.json, whose directory does not exist"):
        check_file(Path("/no/such/place.json"))


def test_a_file_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.json"
    path.write_text("kept")
    check_file(path)
    # root may write what is read-only
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
    with pytest.raises(UsageError, match="Permission denied"):
        check_file(path)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("kept.json", "kept")]


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_file(tmp_path / "new.json")
    assert not list(tmp_path.iterdir())


def test_what_was_there_stays_until_everything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "measured.json"
    replace_file(path, {"run": 1})
    with pytest.raises(ValueError, match="JSON"):
        replace_file(path, {"run": float("nan")})
    with path.open() as reader:
        replace_file(path, {"run": 2})
        assert json.load(reader) == {"run": 1}

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        replace_file(path, {"run": 3})
    assert json.loads(path.read_text()) == {"run": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_goes_on_naming_the_file(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    link = tmp_path / "latest.json"
    link.symlink_to(tmp_path / "results" / "today.json")
    check_file(link)
    replace_file(link, {"run": 1})
    assert link.is_symlink()
    assert json.loads((tmp_path / "results" / "today.json").read_text()) == {"run": 1}


def test_a_pipe_gets_the_document(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    check_file(pipe)
    replace_file(pipe, {"run": 1})
    reader.join()
    assert found == ['{"run": 1}\n']
    assert pipe.is_fifo()
