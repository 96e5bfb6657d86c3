"""`--json FILE`: refused before anything is measured, and replaced as a whole afterwards."""

import json
import os
from pathlib import Path
from typing import Any

from qspec_decode.commands.outcome import note


def check_file(path: Path | None) -> None:
    """Raise a UsageError where the file that `--json` names cannot be made, before anything is measured."""
    from qspec_kernels import UsageError

    if path is None:
        return
    if path.is_dir():
        raise UsageError(
            f"--json names {path}, which is a directory; expected a file",
            f"For instance --json {path / 'measured.json'}.",
        )
    if not path.resolve().parent.is_dir():
        raise UsageError(f"--json names {path}, whose directory does not exist", "Make it first.")
    try:
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(None, "Permission denied")
        if is_ordinary(path):
            unfinished = _beside(path)
            unfinished.touch()
            unfinished.unlink()
    except OSError as error:
        raise UsageError(
            f"--json names {path}, which cannot be written: {error.strerror}", "Name another file."
        ) from error


def is_ordinary(path: Path) -> bool:
    """Whether it is, or would be, a file that can be replaced: no pipe and no terminal."""
    return path.is_file() or not path.exists()


def replace_file(path: Path, document: dict[str, Any]) -> None:
    """Write the document. Until all of it is there, whoever looks finds what was there before."""
    text = json.dumps(document, allow_nan=False) + "\n"
    if not is_ordinary(path):
        path.write_text(text, encoding="utf-8")
        return
    unfinished = _beside(path)
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path.resolve())
    finally:
        unfinished.unlink(missing_ok=True)


def write_file(path: Path, document: dict[str, Any]) -> None:
    """`replace_file`, and say so."""
    replace_file(path, document)
    note(f"written to {path}")


def _beside(path: Path) -> Path:
    """A name for what is not finished, on the same file system; a link's target is what is replaced."""
    target = path.resolve()
    return target.with_name(f".{target.name}.{os.getpid()}")
