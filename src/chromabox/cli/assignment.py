"""The commands of the assignment: ``report``, ``check``, ``count``, ``padding`` and ``demo``."""

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from chromabox.cli.options import DEFAULT_RUNTIME, Integer, OutputPath, log_lines, option
from chromabox.engine.options import RuntimeOptions
from chromabox.errors import UsageError


def report(
    runs: Annotated[Positional[tuple[Path, ...]], option("RUN ...", "required unless --all is given")] = (),
    /,
    *,
    output: OutputPath = Path("report"),
    run_all: Annotated[bool, arg(name="all")] = False,
    quick: bool = False,
    runtime: OmitArgPrefixes[RuntimeOptions] = DEFAULT_RUNTIME,
) -> int:
    """Write a report on training runs, or run the whole assignment.

    The report is an HTML page, a PDF and a JSON file with all the numbers.

    Examples:
      chromabox report runs/unet-course-seed0 runs/raccoon
      chromabox report runs/ -o report/
      chromabox report --all -o assignment/

    Args:
        runs: Run folders written by train, compare, sweep or finetune, or folders that contain run folders.
        output: Folder for report.html, report.pdf, report.json and the figures.
        run_all: Answer every question of the assignment. Models for missing runs are trained first, in OUTPUT/runs
            (about an hour on two cores). Interrupted runs are resumed. If RUN is given, missing runs are listed in the
            report instead.
        quick: With --all: shorten the training runs to a few minutes in total.
    """
    if not runs and not run_all:
        raise UsageError("no run given: expected run folders, or --all for the complete assignment")
    if quick and (runs or not run_all):
        raise UsageError("--quick: requires --all without run folders")
    from chromabox.assignment.run import COURSE, QUICK, run_assignment
    from chromabox.assignment.write_up import write_report
    from chromabox.experiments.compare import print_comparison
    from chromabox.experiments.sweep_results import print_sweep

    if not runs:
        result = run_assignment(output / "runs", QUICK if quick else COURSE, options=runtime)
        print_comparison(result.comparison)
        print_sweep(result.batch_size_sweep)
        runs = result.folders
    log_lines(*write_report(runs, output, include_missing=run_all).lines())
    return 0


def check(
    file: Annotated[Positional[Path], option("FILE")],
    /,
    *,
    timeout: Annotated[float, option("S")] = 60.0,
    memory_limit: Annotated[float, option("GB")] = 4.0,
    json: Annotated[Path | None, option("PATH", "not written")] = None,
    overwrite: bool = False,
) -> int:
    """Check your own networks against figure 1 of the assignment.

    PoolUpsampleNet, ConvTransposeNet and UNet are compared layer by layer.

    FILE IS EXECUTED in child processes with time and memory limits.
    (This is not a sandbox. Check only code that you would run yourself.)

    Only the top-level imports, constants, and function and class definitions
    of the file are executed.

    The exit code is 0 if all layers match, and 1 if a layer differs, a network fails
    or the file cannot be checked. For a dataset, use chromabox data check.

    Examples:
      chromabox check a2-code.ipynb
      chromabox check my_nets.py --timeout 120 --json result.json

    Args:
        file: A .py or .ipynb file with one or more of the three classes.
        timeout: Time limit for each child process, in seconds.
        memory_limit: Maximum memory. Not every operating system supports this limit.
        json: Also write the results to this .json file.
        overwrite: Replace an existing .json file.
    """
    from chromabox.assignment.check.runner import report_check
    from chromabox.io.paths import check_outputs

    if json is not None:
        check_outputs([json], [file], overwrite=overwrite)
    return 0 if report_check(file, timeout=timeout, memory_limit_gb=memory_limit, output=json).matches else 1


def demo(*, output: OutputPath = Path("demo")) -> int:
    """Demonstrate the main features on real data in a few minutes.

    Colourises sample photographs, and runs a short version of the assignment.

    Examples:
      chromabox demo -o demo

    Args:
        output: Output folder.
    """
    from chromabox.assignment.run import run_demo
    from chromabox.experiments.compare import print_comparison
    from chromabox.experiments.sweep_results import print_sweep

    photographs, runs, report = run_demo(output)
    print_comparison(runs.comparison)
    print_sweep(runs.batch_size_sweep)
    log_lines(f"photographs: {photographs}", *report.lines())
    return 0


def count(
    model: Annotated[Positional[str], option("MODEL|RUN|PATH")],
    /,
    *,
    biases: bool = False,
    batch_norm: bool = False,
    count_activations: bool = False,
    size: Annotated[int | None, option("N", "32; detectors: the size stored with the weights")] = None,
    kernel: Annotated[int | None, option("N", "3")] = None,
    num_filters: Annotated[int | None, option("N", "32")] = None,
    num_colours: Annotated[int | None, option("N", "24", name="colours")] = None,
    num_in_channels: Annotated[int | None, option("N", "1", name="in-channels")] = None,
) -> int:
    """Count the weights, outputs and connections of a model.

    Prints formulas, and their values for the image size and for twice that size.

    Each multiplication of a weight by an input value, including padded zeros, is
    one connection.

    Examples:
      chromabox count pool-upsample
      chromabox count unet --kernel 5 --num-filters 16 --biases
      chromabox count yolov3-tiny --size 416
      chromabox count runs/first

    Args:
        model: pool-upsample, conv-transpose, unet, colournet, photo (the bundled model), yolov3, yolov3-tiny, a run
            folder or a checkpoint.
        biases: Count biases as weights.
        batch_norm: Count the weights, outputs and connections of BatchNorm.
        count_activations: Count the outputs of pooling, upsampling and activation layers.
        size: Side length of the images in pixels.
        kernel: k, the kernel size.
        num_filters: NF, the number of filters.
        num_colours: NC, the number of colours.
        num_in_channels: NIC, the number of input channels.
    """
    if Path(model).suffix in (".py", ".ipynb"):
        raise UsageError(
            f"{model}: is source code; expected a model, a run folder or a checkpoint; "
            "to check code, use chromabox check"
        )
    from chromabox.assignment.count import CountOptions
    from chromabox.assignment.count_tables import count_by_name, print_counts

    settings = {"num_filters": num_filters, "num_colours": num_colours, "num_in_channels": num_in_channels}
    counts = count_by_name(model, size=size, kernel=kernel, **settings)
    print_counts(counts, CountOptions(biases, batch_norm, count_activations))
    return 0


def padding(
    *,
    kernel: Annotated[tuple[int, ...], option("N ...")] = (3, 4, 5),
    stride: Integer = 2,
    dilation: Integer = 1,
) -> int:
    """Find the paddings that preserve the assignment's shapes (figure 1b).

    Examples:
      chromabox padding --kernel 4 5
      chromabox padding --kernel 1 2 3 4 5 6 7 8 9 --dilation 2

    Args:
        kernel: Kernel sizes.
        stride: Stride of all layers but the last, which has stride 1.
        dilation: Dilation of all layers.
    """
    if not kernel:
        raise UsageError("--kernel: expected at least one kernel size")
    from chromabox.assignment.count_tables import print_paddings

    print_paddings(kernel, stride, dilation)
    return 0
