"""Entry point of ``chromabox`` and ``python -m chromabox``. An error is printed as a message and sets the exit code."""

import io
import sys

from chromabox.errors import ChromaboxError, escape_unprintable, missing_package

#: The optional modules that each extra installs.
EXTRAS = {
    "train": {"faster_coco_eval", "matplotlib", "onnx", "onnxscript", "safetensors", "scipy", "skimage", "sklearn"}
    | {"supervision", "tensorboard", "torch"},
    "assignment": {"jinja2", "pygments", "sympy", "typst"},
    "video": {"av"},
    "heic": {"pillow_heif"},
}


def main() -> None:
    """Run the command line and exit with 0 on success, 1 on failure, 2 on invalid usage and 130 if interrupted."""
    from chromabox.cli import run_cli

    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks must not end the program.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(run_cli())
    except ChromaboxError as error:
        sys.exit(_fail(str(error), error.exit_code))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extras = [extra for extra, modules in EXTRAS.items() if missing in modules]
        if not extras:
            raise
        command = " ".join(["chromabox", *sys.argv[1:2]])
        sys.exit(_fail(str(missing_package(command, error, extras[0])), 2))
    except KeyboardInterrupt:
        sys.exit(_fail("Interrupted. Finished files are intact; no partial files were left behind.", 130))
    except BrokenPipeError:
        sys.stderr.close()  # The reader of the output has exited, and no message is necessary.
        sys.exit(0)
    except OSError as error:
        sys.exit(_fail(f"{error.filename or 'a file'}: {error.strerror or error}", 1))
    except MemoryError:
        sys.exit(_fail("Out of memory: use smaller images, a smaller --batch-size or fewer --workers.", 1))


def _fail(message: str, code: int) -> int:
    print(f"chromabox: {escape_unprintable(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
