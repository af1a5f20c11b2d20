"""From weights of any origin to a file of ours or darknet's: what ``chromabox weights`` does."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from chromabox.detect.cfg import write_cfg
from chromabox.detect.kinds import kind_named
from chromabox.detect.selftest import self_test
from chromabox.detect.weights import (
    PUBLISHED,
    TrainedDetector,
    fetch_detector,
    load_detector,
    save_detector,
    write_darknet,
)
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.http import Progress


def convert_weights(
    weights: str,
    output: Path | None = None,
    *,
    architecture: str | None = None,
    kind: str | None = None,
    classes: Sequence[str] | None = None,
    test: bool = True,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Path:
    """Fetch published weights or read a file, test what they mean, and write them.

    Args:
        weights: ``yolov3-tiny`` or a .weights, .onnx, .pt or .safetensors file.
        output: .safetensors (ours) or .weights (darknet's, with its .cfg beside it); None: the cache for a name, else
            the file's own name as .safetensors.
        architecture: ``yolov3``, ``yolov3-tiny`` or a .cfg file; kind: a name of ``chromabox.detect.kinds``; classes:
            names. See :func:`~chromabox.detect.weights.load_detector`.
        test: show the net a known picture before anything is written, if it knows what is on it.

    Returns the file that was written. Raises ChromaboxError for files that cannot be read or fail the test, UsageError
    for options that do not fit.
    """
    named = weights in PUBLISHED and not Path(weights).exists()
    path = _output(weights, output, named)
    trained = load_detector(
        weights,
        architecture=architecture,
        kind=None if kind is None else kind_named(kind),
        classes=classes,
        progress=progress,
    )
    say(_described(trained))
    reached = self_test(trained) if test else None
    if reached is not None:
        trained = replace(trained, description={**trained.description, "self_test": round(reached, 4)})
        say(f"self-test on the known picture: {reached:.2f} of 1, and no other meaning does better")
    elif test:
        say("self-test left out: these classes have no person and cat, which the known picture shows")
    if path is None:
        path = fetch_detector(weights, progress)
    else:
        _write(path, trained)
    say(f"weights are in {path}")
    return path


def _output(weights: str, output: Path | None, named: bool) -> Path | None:
    """Where to write; None for published weights that stay in the cache."""
    if output is None:
        if named:
            return None
        output = Path(weights).with_suffix(".safetensors")
    if output.suffix not in (".safetensors", ".weights"):
        raise UsageError(f"{output}: weights are written as .safetensors (ours) or .weights (darknet's)")
    if not named and output.exists() and Path(weights).exists() and output.samefile(weights):
        raise UsageError(f"{output}: is the file that is read; give another with -o")
    return output


def _described(trained: TrainedDetector) -> str:
    net, source = trained.architecture, trained.description.get("source", {})
    return (
        f"{net.name} from {source.get('file', 'a checkpoint')}: {len(net.layers)} layers, {net.numbers:,} numbers, "
        f"{net.classes} classes, kind {trained.kind.name}"
    )


def _write(path: Path, trained: TrainedDetector) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_detector(path, trained)
            return
        write_darknet(path, trained.net, int(trained.description.get("source", {}).get("seen", 0)))
        write_cfg(trained.architecture, path.with_suffix(".cfg"))
    except OSError as error:
        remedy = "choose a folder that can be written"
        raise ChromaboxError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from error
