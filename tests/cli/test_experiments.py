"""The command ``sweep``: its options reach the runs, and output paths are printed."""

from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

from chromabox.cli.experiments import sweep
from chromabox.colour.training.train import TrainConfig
from chromabox.engine.runs import RunDir
from chromabox.errors import UsageError
from chromabox.experiments.sweep_results import read_sweep

PLAIN = ["--precision", "float32", "--compile", "off", "--channels-last", "off", "--threads", "1", "--device", "cpu"]


def run_sweep(args: list[str]) -> int:
    return tyro.cli(sweep, args=args)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with six noise images, one of them in the test split."""
    (tmp_path / "photos").mkdir()
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    return tmp_path / "photos"


def test_sweep_from_the_command_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["conv-transpose", "--over", "batch-size=5,2", "--recipe", "course", "--epochs", "1", "--steps", "2"]
    args += ["--data", "photos", "--palette", "horse24", "--seeds", "4", *PLAIN]
    assert run_sweep(args) == 0
    folder = Path("runs/sweep-conv-transpose-course-batch-size")
    result = read_sweep(folder)
    assert [row.value for row in result.equal_epochs] == [2, 5]
    assert [(row.steps, row.epochs) for row in result.equal_steps] == [(2, 1), (2, 2)]
    config = RunDir(folder / "batch-size-2-steps2-seed4").load_config(TrainConfig)
    assert (config.seed, config.max_steps, config.recipe.epochs) == (4, 2, 1)
    # The data folder is stored as an absolute path.
    assert config.data == str(photos)
    printed = capsys.readouterr().out
    assert "equal epochs" in printed
    assert "equal steps" in printed
    for name in ("sweep.json", "sweep.csv", "curves.png", "sheet.png"):
        assert str(folder / name) in printed
        assert (folder / name).is_file()


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--over", "batch=1,2"], "unknown parameter 'batch'"),
        (["--over", "kernel=1,2,1"], "kernel=1,2,1: expected two or more different integers"),
        (["--over", "kernel=1,2", "--steps", "9"], "--steps 9: all values of kernel take the same number"),
        (["--over", "batch-size=1,2", "--epochs", "0"], "epochs is 0"),
    ],
)
def test_invalid_options_are_rejected(tmp_path: Path, args: list[str], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        run_sweep(["unet", *args, "-o", str(tmp_path / "sweep"), *PLAIN])
    assert not (tmp_path / "sweep").exists()
