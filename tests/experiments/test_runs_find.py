"""Which finished runs are found below some folders, and which of them belong together."""

from pathlib import Path
from typing import Any

import pytest

from chromabox.engine.checkpoint import write_json
from chromabox.errors import UsageError
from chromabox.experiments.runs import find_runs


def finished(folder: Path, net: str = "unet", *, seed: int = 0, epochs: int = 25, recipe: str = "course") -> Path:
    """A folder with what is read of a colour run."""
    folder.mkdir(parents=True)
    config: dict[str, Any] = {"net": net, "recipe": {"epochs": epochs}, "settings": {}, "seed": seed, "execution": {}}
    write_json(folder / "config.json", config)
    summary = {"net": net, "recipe": recipe, "data": "cifar10:horse", "palette": "course", "seed": seed}
    write_json(folder / "summary.json", {**summary, "epochs": epochs, "test_accuracy": 0.5, "test_loss": 1.0})
    return folder


def test_runs_are_in_the_assignments_order_and_by_seed(tmp_path: Path) -> None:
    for net in ("unet", "conv-transpose", "pool-upsample"):
        for seed in (2, 0, 10):
            finished(tmp_path / f"{net}-{seed}", net, seed=seed)
    found = find_runs([tmp_path])
    assert list(found.colour) == ["pool-upsample", "conv-transpose", "unet"]
    assert [run.name for run in found.colour["unet"]] == ["unet-0", "unet-2", "unet-10"]
    assert found.ignored == []


def test_each_run_may_be_named_by_itself(tmp_path: Path) -> None:
    runs = [finished(tmp_path / f"run{seed}", seed=seed) for seed in range(3)]
    assert find_runs(runs).colour == {"unet": runs}


def test_a_run_that_is_not_finished_is_none(tmp_path: Path) -> None:
    finished(tmp_path / "whole")
    finished(tmp_path / "half", seed=1).joinpath("summary.json").unlink()
    assert find_runs([tmp_path]).colour == {"unet": [tmp_path / "whole"]}


def test_sweeps_keep_their_runs(tmp_path: Path) -> None:
    finished(tmp_path / "sweep" / "batch-size-32-seed0")
    write_json(tmp_path / "sweep" / "sweep.json", {})
    found = find_runs([tmp_path])
    assert (found.sweeps, found.colour) == ([tmp_path / "sweep"], {})


def test_detectors_are_found(tmp_path: Path) -> None:
    finished(tmp_path / "mine", "detector")
    assert find_runs([tmp_path / "mine"]).detectors == [tmp_path / "mine"]


def test_of_two_recipes_the_one_with_more_nets_is_taken_and_the_other_named(tmp_path: Path) -> None:
    finished(tmp_path / "a", "unet")
    finished(tmp_path / "b", "conv-transpose")
    finished(tmp_path / "c", "unet", recipe="quick", epochs=40)
    found = find_runs([tmp_path])
    assert found.colour == {"conv-transpose": [tmp_path / "b"], "unet": [tmp_path / "a"]}
    assert len(found.ignored) == 1
    assert "1 runs by the quick recipe" in found.ignored[0]


def test_runs_of_another_length_are_not_averaged_with_the_rest(tmp_path: Path) -> None:
    for seed in range(2):
        finished(tmp_path / f"long{seed}", seed=seed)
    finished(tmp_path / "short", seed=2, epochs=3)
    found = find_runs([tmp_path])
    assert found.colour == {"unet": [tmp_path / "long0", tmp_path / "long1"]}
    assert str(tmp_path / "short") in found.ignored[0]


def test_a_photo_run_is_named_and_left_out(tmp_path: Path) -> None:
    finished(tmp_path / "photo", "photo")
    assert "a run of photo" in find_runs([tmp_path]).ignored[0]


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_what_holds_no_run_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=name):
        find_runs([tmp_path / name])
