"""The commands of the assignment: ``report``, ``check``, ``count``, ``padding`` and ``demo``."""

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from chromabox.cli.options import DEFAULT_RUNTIME, Integer, OutputPath, option, print_line
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError


def report(
    runs: Annotated[Positional[tuple[Path, ...]], option("RUN ...", "none; use --all")] = (),
    /,
    *,
    output: OutputPath = Path("report"),
    run_all: Annotated[bool, arg(name="all")] = False,
    quick: bool = False,
    runtime: OmitArgPrefixes[RuntimeOptions] = DEFAULT_RUNTIME,
) -> int:
    """Write a report on runs, or run the complete assignment.

    The report is an HTML page, a PDF and a JSON file with all the numbers.

    Examples:
      chromabox report runs/unet-course-seed0 runs/raccoon
      chromabox report runs/ -o report/
      chromabox report --all -o assignment/

    Args:
        runs: Run folders of train, compare, sweep and finetune, or folders that contain run folders.
        output: Folder for report.html, report.pdf, report.json and the figures.
        run_all: Answer every question of the assignment. Missing runs are trained first, in OUTPUT/runs (about an hour
            on two cores; resumed if interrupted). If RUN is given, missing runs are only listed.
        quick: With --all: use shortened training runs (a few minutes in total).
    """
    if not runs and not run_all:
        raise UsageError("no run given: expected run folders, or --all for the complete assignment")
    if quick and (runs or not run_all):
        raise UsageError("--quick: only with --all and without runs")
    from chromabox.assignment.run import COURSE, QUICK, run_assignment
    from chromabox.assignment.write_up import write_report
    from chromabox.experiments.compare import print_comparison
    from chromabox.experiments.sweep_results import print_sweep

    if not runs:
        result = run_assignment(output / "runs", QUICK if quick else COURSE, options=runtime)
        print_comparison(result.comparison)
        print_sweep(result.batch_size_sweep)
        runs = result.folders
    for line in write_report(runs, output, include_missing=run_all).lines():
        print_line(line)
    return 0


def check(
    file: Annotated[Positional[Path], option("FILE")],
    /,
    *,
    timeout: Annotated[float, option("SECONDS")] = 60.0,
    memory_limit: Annotated[float, option("GB")] = 4.0,
    json: Annotated[Path | None, option("PATH", "not written")] = None,
) -> int:
    """Check your own networks against figure 1 of the assignment.

    PoolUpsampleNet, ConvTransposeNet and UNet are compared with the reference layer by layer. FILE IS EXECUTED in a
    child process with time and memory limits. This is not a sandbox: check only code that you would run yourself.
    Only top-level imports, constants, functions and classes are executed; training code is not. To check a dataset,
    use chromabox data check.

    The exit code is 0 if everything matches, 1 if something differs or fails, 2 if the file cannot be checked.

    Examples:
      chromabox check a2-code.ipynb
      chromabox check my_nets.py --timeout 120 --json result.json

    Args:
        file: A .py or .ipynb file with one or more of the three classes.
        timeout: Time limit.
        memory_limit: Memory limit, where the system supports it.
        json: Also write the results to this .json file.
    """
    from chromabox.assignment.check.runner import report_check

    return 0 if report_check(file, timeout=timeout, memory_limit_gb=memory_limit, output=json).matches else 1


def demo(*, output: OutputPath = Path("demo")) -> int:
    """Demonstrate the main features on real data in a few minutes.

    Colourises sample photographs and runs a short version of the assignment with its report.

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
    print_line(f"photographs: {photographs}")
    for line in report.lines():
        print_line(line)
    return 0


def count(
    model: Annotated[Positional[str], option("MODEL|RUN|PATH")],
    /,
    *,
    biases: bool = False,
    batch_norm: bool = False,
    count_activations: bool = False,
    size: Annotated[int | None, option("N", "32; detectors: stored with the weights")] = None,
    kernel: Annotated[int | None, option("N", "3")] = None,
    num_filters: Annotated[int | None, option("N", "32")] = None,
    num_colours: Annotated[int | None, option("N", "24", name="colours")] = None,
    num_in_channels: Annotated[int | None, option("N", "1", name="in-channels")] = None,
) -> int:
    """Count weights, outputs and connections of a model.

    Prints formulas derived from the model, and their values for the given image size and for twice that size. A
    connection is a product of an input and a weight; products with zero padding are included.

    Examples:
      chromabox count pool-upsample
      chromabox count unet --kernel 5 --num-filters 16 --biases
      chromabox count yolov3-tiny --size 416
      chromabox count runs/first

    Args:
        model: pool-upsample, conv-transpose, unet, colournet, photo (bundled), yolov3, yolov3-tiny, a run folder or a
            checkpoint.
        biases: Count biases as weights.
        batch_norm: Count the weights, outputs and connections of BatchNorm.
        count_activations: Count the outputs of pooling, upsampling and activation layers.
        size: Side length of the images in pixels.
        kernel: k, the kernel size.
        num_filters: NF, the number of filters.
        num_colours: NC, the number of colours.
        num_in_channels: NIC, the number of input channels.
    """
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
    """Find the paddings that preserve the shapes in figure 1b.

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
