"""``chromabox`` and ``python -m chromabox``: run the command line, and end in one sentence whatever happens."""

import sys

from chromabox.errors import ChromaboxError


def main() -> None:
    """Run the command line; errors become one line on standard error and an exit code (2 usage, 1 failed work)."""
    from chromabox.cli import run_cli

    try:
        sys.exit(run_cli())
    except ChromaboxError as error:
        sys.exit(_fail(str(error), error.exit_code))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted; finished files are whole, nothing half-written is left", 130))
    except BrokenPipeError:
        sys.stderr.close()  # Whoever read our output has gone; say nothing more.
        sys.exit(0)
    except OSError as error:
        sys.exit(_fail(f"{error.filename or 'a file'}: {error.strerror or error}", 1))
    except MemoryError:
        sys.exit(_fail("not enough memory for this; take smaller pictures, a smaller --batch-size or fewer at once", 1))


def _fail(message: str, code: int) -> int:
    print(f"chromabox: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
