"""The two ways in which work ends early; the command line turns each into one sentence and an exit code."""


class ChromaboxError(Exception):
    """Work that failed: the message is one sentence naming the file, what was wrong and what would be right."""

    exit_code = 1


class UsageError(ChromaboxError):
    """A wrong option or argument: the message names it, what was wrong and what would be right."""

    exit_code = 2
