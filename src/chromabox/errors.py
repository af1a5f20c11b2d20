"""Errors that end a command. The command line prints the message and exits with ``exit_code``."""


class ChromaboxError(Exception):
    """Error during a command. The message is one line that names the file, the problem and what was expected."""

    exit_code = 1


class UsageError(ChromaboxError):
    """Invalid option or argument. The message names the option, the problem and what was expected."""

    exit_code = 2


def escape_unprintable(text: str) -> str:
    r"""Return one line of text for the terminal, with unprintable characters as Python escapes.

    File names can contain line breaks, control characters, which a terminal would execute, and bytes that are not text.
    Such a byte, which Python represents by a surrogate, becomes ``\xNN``.
    """
    if text.isprintable():
        return text

    def escape(char: str) -> str:
        return f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else ascii(char)[1:-1]

    return "".join(char if char.isprintable() else escape(char) for char in text)


def missing_package(purpose: str, error: ImportError, extra: str = "train") -> UsageError:
    """Return the error for a missing package that ``purpose`` requires. ``extra`` is the extra that installs it."""
    package = (error.name or "").partition(".")[0]
    return UsageError(
        f"{purpose} requires {package}, which is not installed; install it with pip install 'chromabox[{extra}]'"
    )
