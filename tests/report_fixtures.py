"""A sample report with every type of block, for tests of the writers; its numbers are invented."""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Drawing
from PIL import Image
from skimage import data
from sympy import Function, Indexed, Integer, Mul, Sum, floor, log, symbols

from chromabox.report.document.model import Code, Document, Figure, Formula, MissingRun, Number, Section, Table, Text
from chromabox.report.plots import plot_curves, plot_image_rows, save_figure

NIC, NF, NC, H, W, K = symbols("NIC NF NC H W k", positive=True)

LONG_LINE = (
    "self.down = nn.Sequential(nn.Conv2d(num_in_channels, num_filters, kernel_size=kernel, padding=padding), "
    "nn.MaxPool2d(2), nn.BatchNorm2d(num_filters), nn.ReLU())"
)
MODEL_SOURCE = '''class PoolUpsampleNet(nn.Module):
    """Downsample twice, upsample twice."""

    def __init__(self, kernel: int, num_in_channels: int, num_filters: int, num_colours: int) -> None:
        super().__init__()
        padding = kernel // 2  # preserves the size for odd kernels
        LONG
        self.up = nn.Sequential(nn.Conv2d(num_filters, 24, kernel), nn.Upsample(scale_factor=2.0))

    @property
    def name(self) -> str:
        return f"<{len(self.down)} & \\"{1e-3:.2f}\\">" if self.up is not None else 'none'

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))
'''.replace("LONG", LONG_LINE)

SPECIAL_CHARACTERS = (
    'A <b>bold</b> & "quoted" $name$ _under_ *star* #hash @at [box] `code <i>` \\n ~ // /* // -- --- ... ΔE ± σ ≤ é ’ …'
)


def make_sample_document(folder: Path) -> Document:
    """Return the document; its figures are written into the folder."""
    return Document(
        title="Colourising images by pixel classification",
        abstract=[
            Text(
                "Three small models colourise horses; the best has an accuracy of {best} % over {seeds} seeds, and a "
                "lookup table has {baseline} %. Every number below records the file that it comes from.",
                {
                    "best": Number(58.37, "runs/unet-course-seed*/summary.json: test_accuracy", ".2f", 0.15),
                    "seeds": Number(3.0, "runs/unet-course-seed*: folders", ".0f"),
                    "baseline": Number(62.17, "chromabox.colour.evaluation.evaluate: most frequent colour", ".2f"),
                },
            ),
            Text("Skip connections help because they restore details that pooling loses."),
        ],
        sections=[
            _image_section(folder),
            _formula_section(),
            _curves_section(folder),
            _wide_table_section(folder),
            _special_characters_section(folder),
            _missing_section(),
        ],
        references=[
            "Olaf Ronneberger, Philipp Fischer and Thomas Brox. U-Net: convolutional networks for biomedical image "
            "segmentation. MICCAI 2015, pages 234–241. https://arxiv.org/abs/1505.04597.",
            "Joseph Redmon and Ali Farhadi. YOLOv3: an incremental improvement. 2018 (https://arxiv.org/abs/1804.02767).",
        ],
        metadata={
            "chromabox": "0.1.0",
            "machine": "AMD EPYC, 2 cores, no GPU; Linux 6.1",
            "date": "2026-02-01",
            "runs": "/home/someone/" + "a_rather_long_folder_name/" * 6 + "runs",
        },
    )


def _image_section(folder: Path) -> Section:
    rng = np.random.default_rng(0)
    cat = data.chelsea()[20:276, 100:356]
    tiles = [np.ascontiguousarray(cat[y : y + 64, x : x + 64]) for y in (0, 96, 192) for x in (0, 96, 192)]
    noisy = [np.clip(tile + rng.normal(0, 30, tile.shape), 0, 255).astype(np.uint8) for tile in tiles]
    plot_image_rows({"truth": tiles, "predicted": noisy}, folder / "rows.png", "First test images")
    return Section(
        "A.1",
        "A model with pooling and upsampling",
        "Write the model of figure 1a and show its code. Are its results good? Explain.",
        [
            Text("The class below has `num_filters` channels after its first layer and twice as many in its middle."),
            Code(MODEL_SOURCE),
            Figure(folder / "rows.png", "Top: ground truth; bottom: prediction. The edges are blurred."),
            Text(
                "Its accuracy is {accuracy} %, {difference} points below the table's {baseline} %; its loss is {loss}.",
                {
                    "accuracy": Number(
                        41.2, "runs/pool-upsample-course-seed*/summary.json: test_accuracy", ".2f", 0.09
                    ),
                    "difference": Number(20.97, "difference of the accuracies", ".2f"),
                    "baseline": Number(62.17, "chromabox.colour.evaluation.evaluate: most frequent colour", ".2f"),
                    "loss": Number(1.5904, "runs/pool-upsample-course-seed*/summary.json: test_loss", ".3f"),
                },
            ),
        ],
    )


def _formula_section() -> Section:
    weights = K**2 * (NIC * NF + 2 * NF**2 + 2 * NF**2 + NF * NC + NC**2) + 4 * NF + 2 * NC
    outputs = H * W * (2 * NF + 2 * NF / 4 + NF / Integer(8) + 2 * NC)
    p, y = symbols("p y")
    c = symbols("c", integer=True)
    return Section(
        "A.3",
        "Numbers of weights, outputs and connections",
        "Count the model's weights, outputs and connections as functions of NIC, NF and NC, and for twice the size.",
        [
            Formula("weights", weights),
            Formula("outputs", outputs),
            Formula("connections", Mul(H * W, weights, evaluate=False)),
            Formula(
                "height after a layer", floor((H + 2 * symbols("p") - symbols("d") * (K - 1) - 1) / symbols("s")) + 1
            ),
            Formula(
                "loss",
                -Sum(Indexed("y", c) * log(Function("σ")(Indexed("x", c))), (c, 1, symbols("C"))) / p + y ** -(p + 1),
            ),
            Table(
                "Six values for kernel size 3, one input channel, 32 filters and 24 colours.",
                ["quantity", "at 32 × 32", "at 64 × 64", "ratio"],
                [
                    [
                        name,
                        *(Number(float(value), "chromabox.assignment.count", ",.0f") for value in values),
                        Number(float(ratio), "ratio", ".0f"),
                    ]
                    for name, values, ratio in (
                        ("weights", (49_728, 49_728), 1),
                        ("outputs", (145_408, 581_632), 4),
                        ("connections", (26_542_080, 106_168_320), 4),
                    )
                ],
            ),
            Text(
                "The number of weights does not depend on the image size; the other two grow by a factor of {four}.",
                {"four": Number(4.0, "ratio", ".0f")},
            ),
        ],
    )


def _curves_section(folder: Path) -> Section:
    records = [
        {
            "epoch": n,
            "train_loss": 1 + 2 / n,
            "test_loss": 1.1 + 2 / n,
            "train_accuracy": 0.6 - 0.5 / n,
            "test_accuracy": 0.58 - 0.5 / n,
        }
        for n in range(1, 26)
    ]
    plot_curves(records, folder / "curves.png", "unet, course recipe")
    tall = Drawing(figsize=(3, 8), layout="constrained")
    tall.subplots().plot(np.arange(50), np.sin(np.arange(50) / 5))
    save_figure(tall, folder / "tall.png", dpi=200)
    Image.fromarray(data.astronaut()[:48, 200:264]).save(folder / "small.png")
    return Section(
        "B.2",
        "Curves of losses and accuracies over twenty-five epochs of training, plotted for both splits",
        "Train for at least 25 epochs and plot the curves.",
        [
            Text("Both losses decrease; the test loss remains above the training loss."),
            Figure(folder / "curves.png", "Losses and accuracies per epoch."),
            Figure(folder / "tall.png", "A tall figure."),
            Figure(folder / "small.png", "A small image, which is not enlarged."),
        ],
    )


def _wide_table_section(folder: Path) -> Section:
    columns = [
        "run",
        "batch size",
        "learning rate",
        *(f"test loss after {n} epochs" for n in (5, 10, 15, 20, 25)),
        "accuracy %",
        "ΔE2000",
        "seconds",
        "remark",
    ]
    rng = np.random.default_rng(1)
    source = "/tmp/sweep/sweep.json: runs"
    rows = [
        [
            f"conv-transpose-{index}",
            Number(2.0 ** (4 + index % 6), source, ".0f"),
            Number(10.0 ** -(index % 5), source, ".0e"),
            *(Number(1.9 - 0.1 * n + float(rng.normal(0, 0.05)), source, ".4f", 0.0123) for n in range(5)),
            Number(float(rng.uniform(40, 60)), source, ".2f"),
            Number(math.nan if index == 7 else float(rng.uniform(8, 12)), source, ".2f"),
            Number(1000 * float(rng.uniform(0, 3)), source, ",.0f"),
            "diverged & was stopped early" if index == 7 else "",
        ]
        for index in range(30)
    ]
    photo = Drawing(figsize=(6.3, 4), layout="constrained")
    axes = photo.subplots()
    axes.imshow(data.astronaut())
    axes.set_axis_off()
    save_figure(photo, folder / "photo.png", dpi=200)
    return Section(
        "B.5",
        "Batch sizes",
        "Train with several batch sizes for the same number of epochs. How do losses and images change?",
        [
            Table("Thirty runs of a sweep, each with its loss after several epochs.", columns, rows),
            Text("Larger batches have a higher loss after the same number of epochs."),
            Table(
                "Longest first: sorted by value and not by text.",
                ["", "loss"],
                [
                    ["b", Number(10.5, "b.json: loss", ".1f")],
                    ["c", Number(-2.0, "c.json: loss", ".1f")],
                    ["a", Number(9.25, "a.json: loss", ".2f")],
                    ["e", Number(1234.5, "e.json: loss", ",.1f")],
                    ["d", Number(math.nan, "d.json: loss", ".2f")],
                ],
            ),
            Figure(folder / "photo.png", "A photograph with many colours."),
        ],
    )


def _special_characters_section(folder: Path) -> Section:
    return Section(
        "C.1",
        "Special characters: <i>&amp; " + '"$_*#@',
        SPECIAL_CHARACTERS,
        [
            Text(SPECIAL_CHARACTERS.replace("{", "{{")),
            Text(
                "A file: `{}`, and {{braces}} with an unpaired ` backtick.".replace(
                    "{}", "folder_with-a-name/" * 12 + "image.png"
                )
            ),
            Table(
                SPECIAL_CHARACTERS,
                ["name <th>", "text"],
                [["x" * 150, "a/very/long/path/" * 8], ["short", SPECIAL_CHARACTERS]],
            ),
            Code("SELECT * FROM t WHERE a = '<b>' -- comment\n" + "x" * 300 + "\n\n\tindented", "sql"),
            Code('plain text in an unknown language $ # \\ " ` [', "unknown"),
        ],
    )


def _missing_section() -> Section:
    return Section(
        "D.2",
        "The classification loss",
        "",
        [
            MissingRun(
                "a fine-tuned detector",
                "chromabox finetune set -o runs/mine --freeze 10 --name '<two words>' && chromabox report runs",
            )
        ],
    )
