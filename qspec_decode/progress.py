"""A progress bar on stderr for work that takes over a second, and silence for the rest."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_PATIENCE_SECONDS = 1.0


def track(steps: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield the steps; show a bar from the second second on, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield from steps
        return
    from rich.console import Console
    from rich.progress import Progress

    started = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True, disable=False, auto_refresh=False) as bar:
        task = bar.add_task(what, total=total, visible=False)
        for done, step in enumerate(steps):
            if time.monotonic() - started > _PATIENCE_SECONDS:
                bar.update(task, completed=done, visible=True, refresh=True)
            yield step
