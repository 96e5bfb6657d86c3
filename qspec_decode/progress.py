"""A progress bar on stderr for work that takes over a second, and silence for the rest."""

import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_PATIENCE_SECONDS = 1.0
# drawing takes as long as a small step
_REDRAW_SECONDS = 0.1


def track(steps: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield the steps; show a bar from the second second on, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield from steps
        return
    from rich.console import Console
    from rich.progress import Progress

    started, drawn = time.monotonic(), -math.inf
    with Progress(console=Console(stderr=True), transient=True, disable=False, auto_refresh=False) as bar:
        task = bar.add_task(what, total=total, visible=False)
        for done, step in enumerate(steps):
            now = time.monotonic()
            if now - started > _PATIENCE_SECONDS and now - drawn >= _REDRAW_SECONDS:
                bar.update(task, completed=done, visible=True, refresh=True)
                drawn = now
            yield step
