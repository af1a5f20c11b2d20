"""Printed tables: all numbers are present and not wrapped."""

from pathlib import Path

import numpy as np
import pytest

from chromabox.colour.evaluation.evaluate import Evaluation, EvaluationRow
from chromabox.experiments.compare import Comparison, print_comparison
from chromabox.report.tables import print_colour_evaluation


def test_print_colour_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    model = EvaluationRow(
        name="net",
        loss=0.98765,
        accuracy=0.6123,
        balanced_accuracy=0.4,
        psnr=23.456,
        delta_e=9.8765,
        colourfulness=12.34,
    )
    grey = EvaluationRow(name="grey", psnr=22.0, delta_e=11.0, colourfulness=0.0)
    print_colour_evaluation(Evaluation([model, grey], np.zeros((2, 2), np.int64)), "unet on horses")
    lines = capsys.readouterr().out.splitlines()
    assert any("unet on horses" in line for line in lines)
    # The key "net" is displayed as "model".
    assert any(
        all(number in line for number in ("model", "0.9877", "61.23", "40.00", "23.46", "9.88", "12.3"))
        for line in lines
    )
    # Missing values are empty cells and neither zero nor "None".
    grey_line = next(line for line in lines if "grey" in line)
    assert "None" not in grey_line
    assert grey_line.count(".") == 3


def test_print_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "model": "unet",
        "recipe": "course",
        "data": "cifar10:horse",
        "palette": "course",
        "parameters": 56856,
        "seeds": "0 1 2",
        "accuracy": 58.5,
        "accuracy_std": 0.25,
        "loss": 1.04,
        "loss_std": None,
        "seconds": 140.0,
        "published_accuracy": "57.5–59.3",
        "published_loss": "1.0332",
    }
    print_comparison(Comparison([row], {"unet": []}, Path("a/table.csv"), Path("a/figure.png")))
    printed = capsys.readouterr().out
    for part in (
        "58.50 ± 0.25",
        "1.0400",
        "56,856",
        "57.5–59.3",
        "1.0332",
        "a/table.csv",
        "a/figure.png",
        "palette course",
    ):
        assert part in printed
    assert "1.0400 ±" not in printed
