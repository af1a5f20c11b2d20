"""The verbs that colour pictures and judge the result."""

import sys
from pathlib import Path

from tyro.conf import Positional

from chromabox.cli.options import Output, print_line
from chromabox.errors import UsageError


def colour(
    inputs: Positional[tuple[Path, ...]],
    /,
    *,
    output: Output,
    net: Path | None = None,
    temperature: float = 0.38,
    working_size: int = 32,
) -> int:
    """Colour pictures: any size, JPEG, PNG, TIFF, WebP or BMP, grey or not; size and luminance stay as they are.

    Example: chromabox colour old/ portrait.jpg -o coloured/

    Args:
        inputs: Pictures and folders.
        output: A file name for one picture, else a folder.
        net: A run folder or checkpoint; the shipped net if left out.
        temperature: 0 takes the likeliest colour of each place, 1 the mean of all; between them lies the pleasing part.
        working_size: Short side in pixels at which the net looks at a picture.
    """
    from chromabox.colour.predict import colour_files, plan_outputs
    from chromabox.colour.trained import load_trained
    from chromabox.engine.log import progress

    if not 0 <= temperature <= 1:
        raise UsageError(f"temperature is {temperature}: give a number from 0 to 1")
    if not 16 <= working_size <= 1024:
        raise UsageError(f"working-size is {working_size}: give 16 to 1024 pixels")
    if not inputs:
        raise UsageError("inputs: name at least one picture or folder to colour")
    pairs = plan_outputs(inputs, output)
    trained = load_trained(net)
    failed = []
    with progress("colouring", len(pairs), unit="pictures") as tick:
        for outcome in colour_files(pairs, trained, temperature=temperature, working_size=working_size):
            tick()
            if outcome.error is None:
                print_line(str(outcome.target))
            else:
                failed.append(outcome)
    for outcome in failed:
        print(f"chromabox: not coloured: {outcome.error}", file=sys.stderr)
    return 1 if failed else 0


def demo(*, output: Output = Path("demo")) -> int:
    """The main job in a few minutes: three nets trained the quick way and compared, sample photographs coloured.

    Example: chromabox demo -o demo

    Args:
        output: Folder for everything.
    """
    from chromabox.report.demo import run_demo
    from chromabox.report.tables import print_comparison

    result = run_demo(output, say=print_line)
    print_comparison(result.comparison)
    print(f"photographs: {result.photographs}")
    return 0
