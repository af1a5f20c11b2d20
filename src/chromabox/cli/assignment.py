"""The verb that writes everything up.

The verb that holds a student's own networks beside figure 1.

The verbs that count a net and ask about its paddings.
"""

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from chromabox.cli.options import DEFAULT_RUNTIME, OutputPath, print_line
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError


def report(
    runs: Positional[tuple[Path, ...]] = (),
    /,
    *,
    output: OutputPath = Path("report"),
    run_all: Annotated[bool, arg(name="all")] = False,
    quick: bool = False,
    runtime: OmitArgPrefixes[RuntimeOptions] = DEFAULT_RUNTIME,
) -> int:
    """Write up runs as a web page, a paper and a list of all numbers; or do the whole assignment.

    chromabox report runs/unet-course-seed0 runs/raccoon

    chromabox report runs/ -o report/

    chromabox report --all -o assignment/

    Args:
        runs: Run folders, or folders that hold some: of train, compare, sweep and finetune.
        output: Folder for report.html, report.pdf, report.json and the figures.
        whole: Answer every question of the assignment. Runs that are missing are made first, in OUTPUT/runs: an hour or
            so on two cores; stopped, it goes on where it was. With runs given, what is missing is named instead.
        quick: With --all: a few minutes' training instead of the assignment's.
        execution: How the machine is used.
    """
    if not runs and not run_all:
        raise UsageError("runs: name the runs to write about, or give --all to do the whole assignment")
    if quick and (runs or not run_all):
        raise UsageError("quick: is for --all without runs, which trains them; leave it out")
    from chromabox.assignment.run import COURSE, QUICK, run_assignment
    from chromabox.assignment.write_up import write_report
    from chromabox.experiments.compare import print_comparison
    from chromabox.experiments.sweep_results import print_sweep

    if not runs:
        done = run_assignment(output / "runs", QUICK if quick else COURSE, options=runtime, log=print_line)
        print_comparison(done.comparison)
        print_sweep(done.batch_size_sweep)
        runs = done.folders
    for line in write_report(runs, output, include_missing=run_all).lines():
        print_line(line)
    return 0


def check(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    *,
    timeout: float = 60.0,
    memory_limit: float = 4.0,
    json: Path | None = None,
) -> int:
    """Check your own PoolUpsampleNet, ConvTransposeNet and UNet against figure 1 of the assignment, layer by layer.

    FILE is a .py file or a notebook. It IS EXECUTED, in a process of its own with limits of time and memory; that is
    no sandbox, so check only code that you would run yourself. Of its top level only what the classes need is run:
    imports, constants, functions and classes, no training. To look a labelled set for the detector over, use
    chromabox data check.

    The exit code is 0 if all that is there matches, 1 if something differs or crashes, 2 if the file cannot be checked.

    chromabox check a2-code.ipynb

    chromabox check my_nets.py --time 120 --json found.json

    Args:
        file: Your .py or .ipynb file with one or more of the three classes.
        time: Seconds after which the process is ended.
        memory: GB that it may take (where the system can limit it).
        json: Also write everything that was found into this .json file.
    """
    from chromabox.assignment.check.runner import report_check

    return 0 if report_check(file, timeout=timeout, memory_limit_gb=memory_limit, output=json).matches else 1


def demo(*, output: OutputPath = Path("demo")) -> int:
    """The main job in a few minutes: photographs coloured, and the assignment done the quick way and written up.

    Example: chromabox demo -o demo

    Args:
        output: Folder for everything.
    """
    from chromabox.assignment.run import run_demo
    from chromabox.experiments.compare import print_comparison
    from chromabox.experiments.sweep_results import print_sweep

    result = run_demo(output, log=print_line)
    print_comparison(result.assignment.comparison)
    print_sweep(result.assignment.batch_size_sweep)
    print_line(f"photographs: {result.photos}")
    for line in result.report.lines():
        print_line(line)
    return 0


def count(
    net: Positional[str],
    /,
    *,
    size: int | None = None,
    kernel: int | None = None,
    num_filters: int | None = None,
    colours: int | None = None,
    in_channels: int | None = None,
    biases: bool = False,
    batch_norm: bool = False,
    count_activations: bool = False,
) -> int:
    """Count weights, outputs and connections of a net, as formulas and as numbers, for a size and for twice that.

    chromabox count pool-upsample

    chromabox count unet --kernel 5 --filters 16 --biases

    chromabox count yolov3-tiny --size 416

    chromabox count runs/first

    Formulas are derived from the net itself. A connection is a product of an input by a weight; padding's zeros count.

    Args:
        net: pool-upsample, conv-transpose, unet, colournet, photo (the shipped one), yolov3, yolov3-tiny, or a run
            folder or file with a net.
        size: Side of the pictures in pixels; 32, of a detector its own.
        kernel: k, the kernel size (3).
        filters: NF, the number of filters (32).
        colours: NC, the number of colours (24).
        in_channels: NIC, the channels of the pictures (1).
        biases: Count biases as weights.
        batch_norm: Count BatchNorm: its weights, outputs and connections.
        others: Count the outputs of pooling, upsampling and activations.
    """
    from chromabox.assignment.count import CountOptions
    from chromabox.assignment.count_tables import count_by_name, print_counts

    counting = count_by_name(
        net, size=size, kernel=kernel, num_filters=num_filters, num_colours=colours, num_in_channels=in_channels
    )
    print_counts(counting, CountOptions(biases, batch_norm, count_activations))
    return 0


def padding(*, kernel: tuple[int, ...] = (3, 4, 5), stride: int = 2, dilation: int = 1) -> int:
    """Say which paddings and output paddings keep the shapes of the assignment's figure 1b, or why none does.

    chromabox geometry --kernel 4 5

    chromabox geometry --kernel 1 2 3 4 5 6 7 8 9 --dilation 2

    Args:
        kernel: Kernel sizes.
        stride: Of all layers but the last, which has 1.
        dilation: Of all layers.
    """
    if not kernel:
        raise UsageError("kernel: names no size; give at least one")
    from chromabox.assignment.count_tables import print_paddings

    print_paddings(kernel, stride, dilation)
    return 0
