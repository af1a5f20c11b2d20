"""The verb sweep: what it is told reaches the runs, and where everything is gets printed."""

from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

from chromabox.cli.experiments import sweep
from chromabox.colour.training.train import read_config
from chromabox.errors import UsageError
from chromabox.experiments.sweep_results import read_sweep

PLAIN = ["--precision", "float32", "--compile", "off", "--channels-last", "off", "--threads", "1", "--device", "cpu"]


def command(arguments: list[str]) -> int:
    return tyro.cli(sweep, args=arguments)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures of noise, one of them to test on."""
    (tmp_path / "photos").mkdir()
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    return tmp_path / "photos"


def test_a_sweep_from_the_command_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["conv-transpose", "--over", "batch-size=5,2", "--recipe", "course", "--epochs", "1", "--steps", "2"]
    given += ["--data", "photos", "--palette", "horse24", "--seeds", "4", *PLAIN]
    assert command(given) == 0
    folder = Path("runs/sweep-conv-transpose-course-batch-size")
    found = read_sweep(folder)
    assert [row.value for row in found.equal_epochs] == [2, 5]
    assert [(row.steps, row.epochs) for row in found.equal_steps] == [(2, 1), (2, 2)]
    config = read_config(folder / "batch-size-2-steps2-seed4")
    assert (config.seed, config.max_steps, config.recipe.epochs) == (4, 2, 1)
    # The folder is found also from elsewhere.
    assert config.data == str(photos)
    printed = capsys.readouterr().out
    assert "equal epochs" in printed
    assert "equal steps" in printed
    for name in ("sweep.json", "sweep.csv", "curves.png", "sheet.png"):
        assert str(folder / name) in printed
        assert (folder / name).is_file()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["--over", "batch=1,2"], "over 'batch': unknown"),
        (["--over", "kernel=1,2,1"], "1 stands there twice"),
        (["--over", "kernel=1,2", "--steps", "9"], "steps is 9: leave it out"),
        (["--over", "batch-size=1,2", "--epochs", "0"], "epochs is 0"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, given: list[str], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        command(["unet", *given, "-o", str(tmp_path / "sweep"), *PLAIN])
    assert not (tmp_path / "sweep").exists()
