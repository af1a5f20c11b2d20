"""Round trip of ``sweep.json``, including infinite values, which JSON cannot represent."""

import json
import math
from pathlib import Path

import pytest

from chromabox.errors import UsageError
from chromabox.experiments.sweep_results import (
    METRICS,
    SeedStats,
    SweepResult,
    SweepRow,
    print_sweep,
    read_sweep,
    write_sweep,
)


def make_sweep(folder: Path, psnr: tuple[float, ...], grey_psnr: float = 20.5) -> SweepResult:
    metrics = {name: SeedStats((0.25, 0.75)[: len(psnr)]) for name in METRICS} | {"psnr": SeedStats(psnr)}
    seeds = tuple(range(len(psnr)))
    runs = tuple(Path(f"filters-8-seed{seed}") for seed in seeds)
    row = SweepRow(8, runs, 1000, 3, 12, 4, metrics)
    return SweepResult(folder, "unet", "quick", "my $data", "mine", "filters", seeds, grey_psnr, 34.5, (row,))


@pytest.mark.parametrize("psnr", [(20.0, 22.0), (math.inf, 22.0), (math.inf, math.inf), (21.0,)])
@pytest.mark.parametrize("grey_psnr", [20.5, math.inf])
def test_sweep_json_round_trip(tmp_path: Path, psnr: tuple[float, ...], grey_psnr: float) -> None:
    sweep = make_sweep(tmp_path, psnr, grey_psnr)
    write_sweep(sweep)
    assert read_sweep(tmp_path) == sweep
    written = json.loads((tmp_path / "sweep.json").read_text())["equal_epochs"][0]["metrics"]["psnr"]
    assert written["each"] == [value if math.isfinite(value) else None for value in psnr]


def test_mean_and_sample_standard_deviation() -> None:
    assert (SeedStats((1.0, 3.0)).mean, SeedStats((1.0, 3.0)).std) == (2.0, math.sqrt(2))
    assert SeedStats((5.0,)).std is None
    assert (SeedStats((5.0, math.inf)).mean, SeedStats((5.0, math.inf)).std) == (math.inf, None)


def test_every_metric_has_a_description(tmp_path: Path) -> None:
    write_sweep(make_sweep(tmp_path, (20.0,)))
    written = json.loads((tmp_path / "sweep.json").read_text())
    assert written["metrics"].keys() == written["equal_epochs"][0]["metrics"].keys()


def test_print_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_sweep(make_sweep(tmp_path, (20.0, 22.0)))
    printed = capsys.readouterr().out
    assert "unet on my $data, quick recipe, palette mine: equal epochs" in printed
    assert "equal steps" not in printed
    [line] = [line for line in printed.splitlines() if line.startswith("│")]
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells[:3] == ["8", "3", "12"]
    assert "50.00 ± 35.36" in cells
    assert "21.00 ± 1.41" in cells
    for path in ("sweep.json", "sweep.csv", "curves.png", "sheet.png"):
        assert str(tmp_path / path) in printed


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "contains no sweep.json; use the folder of a finished sweep"),
        ("{", "invalid sweep result"),
        ("{}", "invalid sweep result"),
        ('"text"', "invalid sweep result"),
    ],
)
def test_missing_or_invalid_sweep_json_raises(tmp_path: Path, content: str | None, error: str) -> None:
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UsageError, match=error):
        read_sweep(tmp_path)
