"""The bundled checkpoints: a small model of Python source, and a smaller sibling that drafts for it."""

from importlib.resources import files
from pathlib import Path

from qspec_kernels import UsageError

NAMES = ("target", "small")


def path(name: str = "target") -> Path:
    """Directory of a bundled checkpoint.

    Raises
    ------
    UsageError
        For a name that is not in `NAMES`, or where the installation lacks the checkpoint.
    """
    if name not in NAMES:
        raise UsageError(f"no bundled checkpoint {name!r}, expected one of {NAMES}")
    # a package on disk: kernels and checkpoints are read by path, never from inside a zip
    directory = Path(str(files(__name__))) / "checkpoints" / name
    if not directory.is_dir():
        raise UsageError(
            f"the bundled checkpoint {directory} is missing",
            "Reinstall the package, or train it with `python -m qspec_decode.demo.train`.",
        )
    return directory
