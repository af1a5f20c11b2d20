"""Errors that end a command. The command line prints the message and exits with ``exit_code``."""


class ChromaboxError(Exception):
    """Error during a command. The message is one line that names the file, the problem and what was expected."""

    exit_code = 1


class UsageError(ChromaboxError):
    """Invalid option or argument. The message names the option, the problem and what was expected."""

    exit_code = 2


def missing_package(purpose: str, error: ImportError, extra: str = "train") -> UsageError:
    """Return the error for a missing package that ``purpose`` requires. ``extra`` is the extra that installs it."""
    package = (error.name or "").partition(".")[0]
    return UsageError(
        f"{purpose} requires {package}, which is not installed; install it with pip install 'chromabox[{extra}]'"
    )
