"""Errors that end a command; the command line prints the message on one line and returns the exit code."""


class ChromaboxError(Exception):
    """A command failed. The message is one line that names the file, what is wrong and what was expected."""

    exit_code = 1


class UsageError(ChromaboxError):
    """Invalid option or argument. The message names it and states what is wrong and what was expected."""

    exit_code = 2
