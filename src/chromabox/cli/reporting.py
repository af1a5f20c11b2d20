"""The verb that writes everything up."""

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from chromabox.cli.options import EXECUTION, Output, print_line
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.errors import UsageError


def report(
    runs: Positional[tuple[Path, ...]] = (),
    /,
    *,
    output: Output = Path("report"),
    whole: Annotated[bool, arg(name="all")] = False,
    quick: bool = False,
    execution: OmitArgPrefixes[ExecutionOptions] = EXECUTION,
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
    if not runs and not whole:
        raise UsageError("runs: name the runs to write about, or give --all to do the whole assignment")
    if quick and (runs or not whole):
        raise UsageError("quick: is for --all without runs, which trains them; leave it out")
    from chromabox.assignment.run import COURSE, QUICK, do_assignment
    from chromabox.assignment.write_up import write_up
    from chromabox.experiments.compare import print_comparison
    from chromabox.experiments.sweep_results import print_sweep

    if not runs:
        done = do_assignment(output / "runs", QUICK if quick else COURSE, options=execution, say=print_line)
        print_comparison(done.comparison)
        print_sweep(done.batch_sizes)
        runs = done.folders
    for line in write_up(runs, output, whole=whole).told():
        print_line(line)
    return 0
