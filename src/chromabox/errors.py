"""Errors that end a command; the command line prints the message on one line and returns the exit code."""


class ChromaboxError(Exception):
    """A command failed. The message is one line that names the file, what is wrong and what was expected."""

    exit_code = 1


class UsageError(ChromaboxError):
    """Invalid option or argument. The message names it and states what is wrong and what was expected."""

    exit_code = 2


def missing_package(purpose: str, error: ImportError, extra: str = "train") -> UsageError:
    """Return the error for a package that ``purpose`` requires and that an optional extra of chromabox installs."""
    package = (error.name or "").partition(".")[0]
    install = f"pip install 'chromabox[{extra}]'"
    return UsageError(f"{purpose} requires {package}, which is not installed; install it with {install}")
