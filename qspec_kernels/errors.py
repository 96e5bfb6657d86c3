"""The one family of errors. Messages name the value and the expectation, `hint` the way out."""


class QSpecError(Exception):
    """Base of every error raised on purpose by `qspec_kernels` and `qspec_decode`.

    Parameters
    ----------
    message
        What was found and what was expected, both by name and value.
    hint
        What the caller can do about it; shown on a line of its own.
    """

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(QSpecError, ValueError):
    """A value handed in by the caller is not one that can be served."""


class FormatError(UsageError):
    """A tensor contradicts the weight or activation format it is said to have."""


class CheckpointError(UsageError):
    """A checkpoint directory is incomplete, damaged, or of an unsupported kind."""


class KernelUnavailable(QSpecError):
    """No backend on this machine serves the op asked for."""
