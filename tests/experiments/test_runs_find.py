"""Finding finished runs below folders and grouping comparable ones."""

from pathlib import Path
from typing import Any

import pytest

from chromabox.engine.checkpoint import write_json
from chromabox.errors import ChromaboxError, UsageError
from chromabox.experiments.runs import find_runs


def make_run(folder: Path, model: str = "unet", *, seed: int = 0, epochs: int = 25, recipe: str = "course") -> Path:
    """Write the files of a finished colour run that are read."""
    folder.mkdir(parents=True)
    config: dict[str, Any] = {"net": model, "recipe": {"epochs": epochs}, "settings": {}, "seed": seed, "execution": {}}
    write_json(folder / "config.json", config)
    summary = {"net": model, "recipe": recipe, "data": "cifar10:horse", "palette": "course", "seed": seed}
    write_json(folder / "summary.json", {**summary, "epochs": epochs, "test_accuracy": 0.5, "test_loss": 1.0})
    (folder / "metrics.jsonl").write_text("".join(f'{{"epoch": {epoch + 1}}}\n' for epoch in range(epochs)))
    return folder


def test_runs_are_in_assignment_order_and_by_seed(tmp_path: Path) -> None:
    for model in ("unet", "conv-transpose", "pool-upsample"):
        for seed in (2, 0, 10):
            make_run(tmp_path / f"{model}-{seed}", model, seed=seed)
    run_index = find_runs([tmp_path])
    assert list(run_index.colour) == ["pool-upsample", "conv-transpose", "unet"]
    assert [run.name for run in run_index.colour["unet"]] == ["unet-0", "unet-2", "unet-10"]
    assert run_index.ignored == []


def test_run_folders_can_be_given_individually(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run{seed}", seed=seed) for seed in range(3)]
    assert find_runs(runs).colour == {"unet": runs}


def test_unfinished_run_is_ignored(tmp_path: Path) -> None:
    make_run(tmp_path / "complete")
    make_run(tmp_path / "incomplete", seed=1).joinpath("summary.json").unlink()
    assert find_runs([tmp_path]).colour == {"unet": [tmp_path / "complete"]}


def test_runs_of_a_sweep_are_not_listed(tmp_path: Path) -> None:
    make_run(tmp_path / "sweep" / "batch-size-32-seed0")
    write_json(tmp_path / "sweep" / "sweep.json", {})
    run_index = find_runs([tmp_path])
    assert (run_index.sweeps, run_index.colour) == ([tmp_path / "sweep"], {})


def test_detectors_are_found(tmp_path: Path) -> None:
    make_run(tmp_path / "mine", "detector")
    assert find_runs([tmp_path / "mine"]).detectors == [tmp_path / "mine"]


def test_recipe_with_most_models_is_selected_and_the_other_reported(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "unet")
    make_run(tmp_path / "b", "conv-transpose")
    make_run(tmp_path / "c", "unet", recipe="quick", epochs=40)
    run_index = find_runs([tmp_path])
    assert run_index.colour == {"conv-transpose": [tmp_path / "b"], "unet": [tmp_path / "a"]}
    assert len(run_index.ignored) == 1
    assert "1 with the quick recipe" in run_index.ignored[0]


def test_runs_with_different_epochs_are_not_grouped(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"long{seed}", seed=seed)
    make_run(tmp_path / "short", seed=2, epochs=3)
    run_index = find_runs([tmp_path])
    assert run_index.colour == {"unet": [tmp_path / "long0", tmp_path / "long1"]}
    assert str(tmp_path / "short") in run_index.ignored[0]


def test_photo_run_is_ignored_with_a_message(tmp_path: Path) -> None:
    make_run(tmp_path / "photo", "photo")
    assert "a run of photo" in find_runs([tmp_path]).ignored[0]


@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_path_without_runs_is_rejected_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ChromaboxError, match=name) as caught:
        find_runs([tmp_path / name])
    assert isinstance(caught.value, UsageError) is (name != "empty")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("summary.json", "{"),
        ("summary.json", '{"a": 1}'),
        ("summary.json", '{"epochs": "a"}'),
        ("metrics.jsonl", ""),
        ("metrics.jsonl", "garbage\n"),
        ("metrics.jsonl", '{"epoch": "a"}\n'),
    ],
)
def test_damaged_run_is_left_out(tmp_path: Path, name: str, content: str, caplog: pytest.LogCaptureFixture) -> None:
    damaged = make_run(tmp_path / "damaged")
    (damaged / name).write_text(content)
    with pytest.raises(ChromaboxError, match=f"damaged/{name}: "):
        find_runs([damaged])
    intact = make_run(tmp_path / "intact", seed=1)
    run_index = find_runs([tmp_path])
    assert run_index.colour == {"unet": [intact]}
    assert f"damaged/{name}: " in run_index.ignored[0]
    assert f"damaged/{name}: " in caplog.text
