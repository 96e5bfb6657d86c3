"""How every command ends: one JSON document or readable text, and errors with a way out."""

import json
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

USAGE_STATUS, BUG_STATUS, INTERRUPTED_STATUS = 2, 1, 130


class Commands(TyperGroup):
    """The command group: turns errors into a message or a document, and an interrupt into status 130.

    SIGTERM is an interrupt as Ctrl-C is, so that `kill` leaves no temporary files either.
    """

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and exit: 0, 2 for errors that the caller can mend, 1 for a bug, 130 if stopped."""
        arguments = list(sys.argv[1:] if args is None else args)
        # a command that writes a file takes --json=FILE, too
        as_json = any(part.split("=")[0] == "--json" for part in arguments)
        stopped: list[int] = []
        try:
            with _signals_noted(stopped), warnings.catch_warnings():
                warnings.showwarning = _show_note
                status = super().main(arguments, prog_name, complete_var, False, windows_expand_args, **extra)
        except (KeyboardInterrupt, typer.Abort):
            status = INTERRUPTED_STATUS
        except Exception as error:
            # C code that is interrupted may raise an error of its own instead
            status = INTERRUPTED_STATUS if stopped else _report(error, as_json)
        if status == INTERRUPTED_STATUS:
            print("\ninterrupted", file=sys.stderr)
            if as_json:
                print_json(_document("Interrupted", "the command was interrupted", "Run it again."))
        sys.exit(status or 0)


def print_json(document: dict[str, Any]) -> None:
    """The one document of a command, written at once when everything in it is known."""
    sys.stdout.write(json.dumps(document, allow_nan=False, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Something worth knowing that is no result: a line on standard error."""
    print(text, file=sys.stderr)


@contextmanager
def _signals_noted(stopped: list[int]) -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt, and are noted; a SIGINT that is ignored stays so."""

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        signal.default_int_handler(number, frame)

    # Python lets no other thread handle signals
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if before[signal.SIGINT] is signal.SIG_IGN:
        del before[signal.SIGINT]
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            # None stands for a handler that is not Python's
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _report(error: Exception, as_json: bool) -> int:
    kind, message, hint, status = _describe(error)
    if status == BUG_STATUS:
        traceback.print_exception(error, file=sys.stderr)
    if as_json:
        print_json(_document(kind, message, hint))
    else:
        print(f"error: {message}" + (f"\nhint:  {hint}" if hint else ""), file=sys.stderr)
    return status


def _describe(error: Exception) -> tuple[str, str, str, int]:
    """(type, message, hint, exit status) of anything that a command raised."""
    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # typer's own: an option that does not exist, a number that is none
        context = getattr(error, "ctx", None)
        hint = f"`{context.command_path} --help` explains the options." if context else ""
        return "UsageError", format_message().rstrip("."), hint, USAGE_STATUS
    from qspec_kernels import QSpecError

    name = type(error).__name__
    if isinstance(error, QSpecError):
        return name, error.message, error.hint, USAGE_STATUS
    if isinstance(error, MemoryError):
        return name, "there is not enough memory", "Load fewer precisions, or a smaller model.", USAGE_STATUS
    if isinstance(error, OSError):
        return name, str(error), "", USAGE_STATUS
    return name, f"{name}: {error}", "This is a bug in QSpec; please report it.", BUG_STATUS


def _document(kind: str, message: str, hint: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message, "hint": hint}}


def _show_note(message: Warning | str, *_: Any, **__: Any) -> None:
    note(f"note: {message}")
