"""The command line end to end: exit codes, one line per error, and the printed output paths."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.__main__ import main
from chromabox.colour.models import build_model
from chromabox.colour.palette.io import load_palette
from chromabox.colour.weights.checkpoint import PaletteModel, model_metadata
from chromabox.engine.checkpoint import save_checkpoint
from colour_fixtures import write_colour_model
from import_fixtures import NOT_FOR_INFERENCE, run_without

RNG = np.random.default_rng(2)
PLAIN = ["--precision", "float32", "--compile", "off", "--channels-last", "off", "--threads", "1", "--device", "cpu"]
# Exit code, standard output, standard error.
Result = tuple[int, str, str]


@pytest.fixture
def chromabox(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Return a function that runs the command line as the installed program does."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["chromabox", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos/ (12 images), grey.png, a checkpoint, an ONNX file, a broken and an empty folder."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "photos").mkdir()
    (folder / "empty").mkdir()
    for index in range(12):
        pixels = RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
        Image.fromarray(pixels).save(folder / "photos" / f"{index:02d}.png")
    Image.fromarray(RNG.integers(0, 256, (30, 40), dtype=np.uint8)).save(folder / "grey.png")
    (folder / "broken.png").write_bytes(b"not an image")
    model_args = {"num_filters": 4, "num_colours": 24}
    palette, network = load_palette("cifar24"), build_model("unet", **model_args)
    metadata = {**model_metadata("unet", model_args, palette), "data": str(folder / "photos"), "size": 16}
    save_checkpoint(folder / "net.safetensors", {"net": network.state_dict()}, metadata)
    write_colour_model(folder / "net.onnx", PaletteModel(network, palette, metadata), seed=0, scale=5)
    return folder


@pytest.fixture(scope="module")
def finished_run(workspace: Path) -> Path:
    """Return the folder of a finished run of one epoch."""
    from chromabox.cli import run_cli

    options = ["--data", str(workspace / "photos"), "--size", "16", "--epochs", "1", "--batch-size", "4"]
    folder = workspace / "runs" / "one"
    assert run_cli(["train", "unet", "--recipe", "course", *options, "-o", str(folder), *PLAIN]) == 0
    return folder


# (arguments, part of the message); PHOTOS, RUN and so on stand for paths in the workspace.
BAD_USAGE = [
    ("train", "no model given"),
    ("train vgg", "MODEL is 'vgg': expected one of pool-upsample, conv-transpose, unet, colournet, photo"),
    ("train unet --recipe best", "--recipe is 'best': expected one of course, default, quick"),
    ("train unet --epochs 0", "--epochs is 0"),
    ("train unet --epochs some", "--epochs is 'some': expected a whole number"),
    ("train unet --epochs=1.5", "--epochs is '1.5': expected a whole number"),
    ("train unet --threads x", "--threads is 'x': expected a whole number"),
    ("train unet --precision half", "--precision is 'half': expected one of auto, float32, bfloat16"),
    ("train unet --learning-rate 0,1", "--learning-rate is '0,1': expected a number"),
    ("train unet --batch-size -4", "--batch-size is -4"),
    ("train unet --learning-rate 0", "--learning-rate is 0"),
    ("train unet --accumulate 0", "--accumulate is 0"),
    ("train unet --max-steps 0", "--max-steps is 0"),
    ("train unet --patience 3", "--patience"),
    ("train unet --val-fraction 0.2 --patience 0 --data PHOTOS", "--patience is 0: expected at least 1"),
    ("finetune PHOTOS --patience 0", "--patience is 0: expected at least 1"),
    ("train unet --threads -1", "--threads is -1: expected 0 or more"),
    ("train unet --size 0 --data PHOTOS", "--size is 0"),
    ("train photo --size 0 --data PHOTOS", "--size is 0"),
    ("train unet --init shipped", "--init: only supported for photo"),
    ("train unet --val-fraction 0.9 --data PHOTOS", "--val-fraction is 0.9"),
    ("train unet --size 12 --data PHOTOS", "size is 12"),
    ("train unet --kernel 0 --data PHOTOS", "kernel is 0"),
    ("train unet --kernel 40 --data PHOTOS", "kernel 40"),
    ("train pool-upsample --dilation 2 --data PHOTOS", "dilation"),
    ("train unet --data nowhere", "'nowhere'"),
    ("train unet --data cifar10:unicorn --palette horse24", "'unicorn'"),
    ("train unet --batch-size 100 --data PHOTOS --size 16", "--batch-size: 100"),
    ("train unet --colour blue", "--colour"),
    ("train unet -o RUN", "already contains a run"),
    ("train --resume EMPTY", "contains no config.json"),
    ("train --resume nowhere", "nowhere"),
    ("train --resume PHOTO", "is a file; expected a folder"),
    ("train --resume RUN --recipe quick", "cannot change --recipe from course to quick; only --epochs and runtime"),
    ("train conv-transpose --resume RUN", "cannot change model from unet to conv-transpose; only --epochs and runtime"),
    (
        "train unet --resume RUN --seed 1 --batch-size 8 --kernel 5",
        "cannot change --seed from 0 to 1, --batch-size "
        "from 4 to 8, --kernel from the default to 5; only --epochs and runtime options",
    ),
    ("train --resume RUN --epochs 0", "epochs"),
    ("colour GREY -o out --model nowhere.safetensors", "nowhere.safetensors"),
    ("colour -o out", "no input given"),
    ("evaluate nowhere.safetensors", "nowhere.safetensors"),
    ("evaluate EMPTY", "contains no best.safetensors"),
    ("evaluate NET --data nowhere", "'nowhere'"),
    ("compare --recipe best", "best"),
    ("compare --models unet vgg", "--models is 'vgg': expected one of pool-upsample, conv-transpose, unet, colournet"),
    ("compare --seeds 0 x", "--seeds is 'x': expected a whole number"),
    ("compare --runs", "--runs is empty: expected at least one value"),
    ("padding --kernel 3 4.5", "--kernel is '4.5': expected a whole number"),
    ("palette fit PHOTOS -k many -o out.json", "-k/--colours is 'many': expected a whole number"),
    ("verify GREY GREY --tolerance x", "--tolerance is 'x': expected a number"),
    ("detect GREY --format images pdf", "--format is 'pdf': expected one of images, json, csv, yolo"),
    ("colour GREY -o out.png --quality x", "--quality is 'x': expected a whole number"),
    ("colour GREY -o out.png --quality 0", "--quality is 0: expected 1 to 100"),
    ("colour GREY -o out.png --quality", "Missing value for argument '--quality'"),
    ("colour GREY -o out.png --allow", "--allow is empty: expected at least one value"),
    ("colour GREY -o out.png --overwrit", "Unrecognized options: --overwrit"),
    ("compare --runs EMPTY", "contains no summary.json"),
    ("compare --seeds 0 0 --data PHOTOS -o NEW", "seeds"),
    ("colour GREY -o out.png --temperature 2", "--temperature is 2"),
    ("colour GREY -o out.png --temperature -0.1", "--temperature is -0.1"),
    ("colour GREY -o out.png --min-confidence 2", "--min-confidence is 2.0"),
    ("colour GREY -o out.png --ban reddish", "--ban 'reddish'"),
    ("colour GREY -o out.png --replace red", "--replace 'red'"),
    ("colour GREY -o out.png --style bright", "--style is 'bright': expected one of natural, vivid"),
    ("colour PHOTOS -o out --hints GREY", "--hints: "),
    ("colour https://a.org/b.jpg -o out", "https://a.org/b.jpg is a URL"),
    ("colour GREY -o out --model https://a.org/b.onnx", "https://a.org/b.onnx is a URL"),
    ("score https://a.org/b PHOTOS", "https://a.org/b is a URL"),
    ("detect GREY -o out --weights https://a.org/b.onnx", "https://a.org/b.onnx is a URL"),
    ("detect GREY -o out --size 0", "--size is 0: expected a multiple of 32"),
    ("export yolov3-tiny --onnx out.onnx --size 0", "--size is 0: expected a multiple of 32"),
    ("weights https://a.org/b.weights", "https://a.org/b.weights is a URL"),
    ("colour GREY -o out --hints nope.png", "--hints: nope.png does not exist"),
    ("colour GREY -o out --hints PHOTOS", "--hints: "),
    ("colour PHOTOS -o out --match *.bmp", "--match: no image"),
    ("colour PHOTOS -o out --workers 0", "chromabox: --workers is 0: expected at least 1"),
    ("train photo --recipe course --data PHOTOS", "--recipe course"),
    ("train photo", "--data: required for photo; expected a folder of photographs"),
    ("train unet -o GREY", "grey.png is a file; expected a folder"),
    ("evaluate NET -o GREY", "grey.png is a file; expected a folder"),
    ("evaluate NET --temperature nan", "--temperature is nan: expected a number from 0 to 1"),
    ("evaluate --temperature 0.5 --data PHOTOS", "--temperature, --output: only for models with a palette"),
    ("palette fit PHOTOS -o out.txt", "out.txt: unsupported suffix; expected one of .npy, .json, .gpl"),
    ("palette show nope -o out.png", "nope: unknown palette; expected one of"),
    ("colour GREY -o out.png --palette nope", "nope: unknown palette; expected one of"),
    ("colour GREY -o out.png --palette nope.json", "nope.json: does not exist"),
    ("colour GREY -o out.png --palette nope.jpg", "nope.jpg: does not exist"),
    ("colour nofile.mp4 -o out.mp4", "nofile.mp4 does not exist"),
    ("colour *.jpg -o out", "*.jpg: no file matches this pattern"),
    ("colour GREY --output=", '--output: is empty ("")'),
    ("colour GREY -o out --temporal-smoothing 0.8", "--temporal-smoothing: has no effect on the given inputs"),
    ("colour GREY -o out --match *.png", "--match: has no effect on the given inputs; expected a folder"),
    ("colour GREY -o out --no-recursive", "--no-recursive: has no effect on the given inputs; expected a folder"),
    ("colour GREY -o name.avif", "name.avif: unsupported output format for an image; expected .bmp"),
    ("colour GREY PHOTO -o out.jpg", "out.jpg: 2 inputs cannot be written to one file; use -o FOLDER"),
    ("train photo --kernel 5 --data PHOTOS", "--kernel: not supported for photo"),
    ("train photo --size 50 --data PHOTOS", "size is 50"),
    ("train photo --init NET --data PHOTOS", "expected a photo model"),
    ("evaluate", "use --data"),
    ("score nowhere PHOTOS", "nowhere"),
    ("score PHOTOS PHOTOS -o GREY", "is a file; expected a folder"),
    ("colour GREY", "--output PATH"),
    ("colour nowhere.png -o out", "nowhere.png"),
    ("colour GREY -o GREY", "is the same file as the input"),
    ("colour GREY -o out.gif", "out.gif"),
    ("palette fit PHOTOS -k 1 -o out.json", "colours is 1"),
    ("palette fit -o out.json", "PATH|NAME ... is empty: expected at least one value"),
    ("palette fit nowhere -o out.json", "nowhere"),
    ("palette show horse24 -o out.xyz", "out.xyz"),
    ("data imagenet", "imagenet"),
    ("data synth -o out", "'folder'"),
    ("count code.py", "code.py: is source code; expected a model, a run folder or a checkpoint"),
]


@pytest.mark.parametrize(("line", "names"), BAD_USAGE)
def test_invalid_usage_gives_one_line_and_exit_code_2(
    chromabox: Callable[..., Result],
    workspace: Path,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    names: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {"PHOTOS": "photos", "EMPTY": "empty", "GREY": "grey.png", "PHOTO": "photos/00.png", "NEW": "new"}
    paths |= {"NET": "net.safetensors", "RUN": "runs/one"}
    arguments = [str(workspace / paths[word]) if word in paths else word for word in line.split()]
    code, out, err = chromabox(*arguments)
    assert code == 2, out + err
    assert names in " ".join(err.split())
    assert err.startswith("chromabox: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_empty_argument_is_rejected(chromabox: Callable[..., Result]) -> None:
    message = 'chromabox: an argument without an option is empty (""); expected a path or a name\n'
    assert chromabox("colour", "", "-o", "out") == (2, "", message)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("colour BROKEN -o out", "broken.png"),
        ("colour GREY -o out --model GREY", "grey.png"),
        ("evaluate GREY", "grey.png"),
        ("train unet --data PHOTOS --palette BROKEN", "broken.png"),
        ("palette show BROKEN -o out.png", "broken.png"),
        ("palette fit BROKEN -o out.json", "broken.png"),
        ("colour GREY -o out --hints BROKEN", "chromabox: --hints: "),
        # Linux allows no new files in /proc, whoever asks.
        ("colour GREY -o /proc/x", "chromabox: /proc/x cannot be created or written to"),
        ("colour GREY -o /proc/x/a.png", "chromabox: /proc/x cannot be created or written to"),
        ("colour PHOTOS -o out --contact-sheet /proc/a.png", "chromabox: /proc cannot be created or written to"),
        ("score PHOTOS PHOTOS -o /proc/x", "chromabox: /proc/x cannot be created or written to"),
        ("train unet --data PHOTOS -o /proc/x", "chromabox: /proc/x cannot be created or written to"),
        ("palette show horse24 -o /proc/x.png", "chromabox: /proc cannot be created or written to"),
        # Folders in which nothing usable is found.
        ("colour EMPTY -o out", "empty"),
        ("detect EMPTY -o out", "empty"),
        ("score EMPTY EMPTY -o out", "empty"),
        ("train unet --data EMPTY -o out", "empty"),
        ("finetune EMPTY -o out", "empty"),
        ("palette fit EMPTY -o out.json", "empty"),
        ("data check EMPTY", "empty"),
        ("report EMPTY -o out", "empty"),
    ],
)
def test_failed_work_gives_one_line_and_exit_code_1(
    chromabox: Callable[..., Result],
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    names: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {"PHOTOS": "photos", "GREY": "grey.png", "BROKEN": "broken.png", "EMPTY": "empty"}
    arguments = [str(workspace / paths[word]) if word in paths else word for word in line.split()]
    if arguments[0] == "colour" and "--model" not in arguments:
        arguments += ["--model", str(workspace / "net.onnx")]
    code, out, err = chromabox(*arguments)
    assert code == 1, out + err
    assert names in err
    assert err.startswith("chromabox: ")
    assert err.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_train_prints_output_paths(chromabox: Callable[..., Result], workspace: Path, tmp_path: Path) -> None:
    options = ["--data", workspace / "photos", "--size", 16, "--batch-size", 4, "--recipe", "course", *PLAIN]
    folder = tmp_path / "run"
    code, out, err = chromabox("train", "unet", *options, "--max-steps", 2, "-o", folder)
    assert (code, err) == (0, "")
    assert json.loads((folder / "summary.json").read_text())["updates"] == 2
    assert "epoch 1, train_loss" in out
    assert "test accuracy" in out
    for path in (folder, folder / "curves.png", folder / "sheets", folder / "best.onnx"):
        assert f"{path}\n" in out
        assert path.exists()
    code, out, _ = chromabox("train", "--resume", folder, "--epochs", 2)
    assert code == 0
    assert "epoch 2, train_loss" in out
    assert "epoch 1, train_loss" not in out
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 2


def test_run_without_checkpoint_cannot_be_resumed(
    chromabox: Callable[..., Result], finished_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((finished_run / "config.json").read_bytes())
    code, _, err = chromabox("train", "--resume", tmp_path)
    assert code == 2
    assert "stopped before its first checkpoint" in err


def test_fine_tuned_run_cannot_be_resumed_as_colourisation_run(
    chromabox: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"format": 2, "model": "detector"}')
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    code, _, err = chromabox("train", "--resume", tmp_path)
    assert code == 2
    assert "(the model is detector)" in err


@pytest.mark.parametrize("options", [(), ("--epochs", 2)])
def test_run_with_truncated_checkpoint_cannot_be_resumed(
    chromabox: Callable[..., Result], finished_run: Path, tmp_path: Path, options: tuple[str | int, ...]
) -> None:
    (tmp_path / "config.json").write_bytes((finished_run / "config.json").read_bytes())
    checkpoint = tmp_path / "last.safetensors"
    checkpoint.write_bytes((finished_run / "last.safetensors").read_bytes()[:-100])
    code, _, err = chromabox("train", "--resume", tmp_path, *options)
    assert code == 1
    assert f"{checkpoint}: truncated or corrupt checkpoint" in err
    assert f"restore the file from a copy, or delete {tmp_path} and start the run again" in err


def test_evaluate_prints_table_and_output_paths(
    chromabox: Callable[..., Result], finished_run: Path, tmp_path: Path
) -> None:
    code, out, err = chromabox("evaluate", finished_run, "-o", tmp_path / "new")
    assert (code, err) == (0, "")
    for name in ("model", "majority colour", "grey lookup table", "palette upper bound"):
        assert name in out
    for file in ("evaluation.json", "confusion.png"):
        assert f"{tmp_path / 'new' / file}\n" in out
    written = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    summary = json.loads((finished_run / "summary.json").read_text())
    # Data and image size are those of the run.
    assert written["rows"]["net"]["accuracy"] == pytest.approx(summary["test_accuracy"])
    assert written["rows"]["net"]["loss"] == pytest.approx(summary["test_loss"], rel=1e-5)
    assert f"{100 * summary['test_accuracy']:.2f}" in out


def test_compare_tabulates_finished_runs(chromabox: Callable[..., Result], finished_run: Path, tmp_path: Path) -> None:
    code, out, err = chromabox("compare", "--runs", finished_run, "-o", tmp_path / "table")
    assert (code, err) == (0, "")
    for kind, file in (("table", "comparison.csv"), ("figure", "comparison.png")):
        assert f"{kind}: {tmp_path / 'table' / file}\n" in out
        assert (tmp_path / "table" / file).is_file()


def test_colour_prints_path_of_every_image(chromabox: Callable[..., Result], workspace: Path, tmp_path: Path) -> None:
    net = workspace / "net.onnx"
    code, out, err = chromabox("colour", workspace / "grey.png", "-o", tmp_path / "coloured.png", "--model", net)
    assert (code, out, err) == (0, f"{tmp_path / 'coloured.png'}\n", "")
    with Image.open(tmp_path / "coloured.png") as image:
        assert (image.mode, image.size) == ("RGB", (40, 30))


def test_bad_image_does_not_stop_the_rest_and_gives_exit_code_1(
    chromabox: Callable[..., Result], workspace: Path, tmp_path: Path
) -> None:
    inputs = [workspace / "broken.png", workspace / "grey.png", workspace / "photos"]
    code, out, err = chromabox("colour", *inputs, "-o", tmp_path, "--model", workspace / "net.onnx")
    assert code == 1
    written = [path for path in tmp_path.iterdir() if path.suffix == ".png"]
    *lines, summary = out.splitlines()
    assert {line for line in lines if line.startswith("/")} == set(map(str, written))
    first = workspace / "photos" / "00.png"
    assert any(line.startswith(f"already in colour, and their colours were replaced: 12 ({first}, ") for line in lines)
    assert summary == "colourised: 13, up to date: 0, failed: 1, not processed: 0"
    assert len(written) == 13
    assert err.startswith("chromabox: failed: ")
    assert "broken.png" in err
    assert err.count("\n") == 1


def test_colour_uses_the_bundled_model(chromabox: Callable[..., Result], workspace: Path, tmp_path: Path) -> None:
    code, out, err = chromabox("colour", workspace / "grey.png", "-o", tmp_path / "coloured.png")
    assert (code, out, err) == (0, f"{tmp_path / 'coloured.png'}\n", "")


def test_run_folder_colourises_with_its_exported_model(
    chromabox: Callable[..., Result], workspace: Path, finished_run: Path, tmp_path: Path
) -> None:
    before = (finished_run / "best.onnx").stat()
    for index, model in enumerate((finished_run, finished_run / "best.onnx")):
        code, _, err = chromabox(
            "colour", workspace / "photos" / "00.png", "-o", tmp_path / f"{index}.png", "--model", model
        )
        assert (code, err) == (0, "")
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    assert (finished_run / "best.onnx").stat().st_mtime_ns == before.st_mtime_ns


IMPORT_MAIN = "from chromabox.__main__ import main\n"


def test_colour_and_score_need_no_training_packages(workspace: Path, tmp_path: Path) -> None:
    grey, photos, coloured = workspace / "grey.png", workspace / "photos", tmp_path / "coloured"
    options = ["--model", workspace / "net.onnx", "--contact-sheet", tmp_path / "sheet.png"]
    commands = [
        ("colour", grey, "-o", tmp_path / "bundled.png"),
        ("colour", photos, "-o", coloured, *options),
        ("colour", grey, "-o", tmp_path / "palette.png", "--palette", photos / "01.png"),
        ("score", photos, coloured, "-o", tmp_path / "scores"),
    ]
    program = "for sys.argv in {}:\n  try: main()\n  except SystemExit as end: print(end.code)\n"
    arguments = [["chromabox", *map(str, command)] for command in commands]
    done = run_without(NOT_FOR_INFERENCE, IMPORT_MAIN + program.format(arguments))
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if len(line) == 1] == ["0"] * 4
    assert len(list((tmp_path / "coloured").glob("*.png"))) == 12
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert len(scores["files"]) == 12
    for path in ("bundled.png", "sheet.png", "palette.png"):
        with Image.open(tmp_path / path) as image:
            image.load()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train unet --data PHOTOS -o NEW", r"chromabox train requires \w+, which is not installed; install it with"),
        ("evaluate NET", r"chromabox evaluate requires \w+, which is not installed; install it with"),
        ("export NET --onnx new.onnx", r"chromabox export requires \w+, which is not installed; install it with"),
        ("colour GREY -o new.png --explain", "chromabox colour requires matplotlib, which is not installed; install"),
        (
            "colour GREY -o new.png --model NET",
            r"net\.safetensors: loading a checkpoint that is not .* requires torch,",
        ),
    ],
)
def test_missing_packages_give_one_line_that_names_the_extra(
    workspace: Path, tmp_path: Path, line: str, message: str
) -> None:
    paths = {"PHOTOS": "photos", "GREY": "grey.png", "NET": "net.safetensors", "NEW": "new"}
    arguments = [str(workspace / paths[word]) if word in paths else word for word in line.split()]
    done = run_without(NOT_FOR_INFERENCE, IMPORT_MAIN + "main()", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(message, done.stderr)
    assert done.stderr.endswith("pip install 'chromabox[train]'\n")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_export_writes_a_model_for_colour_and_evaluate(
    chromabox: Callable[..., Result], workspace: Path, tmp_path: Path
) -> None:
    exported = tmp_path / "new" / "net.onnx"
    code, out, err = chromabox("export", workspace / "net.safetensors", "--onnx", exported)
    assert (code, err) == (0, "")
    assert out.startswith("checked against PyTorch on 8 inputs")
    assert out.endswith(f"\n{exported}\n")
    rows = []
    for model in (workspace / "net.safetensors", exported):
        folder = tmp_path / model.suffix
        assert chromabox("evaluate", model, "-o", folder)[0] == 0
        rows.append(json.loads((folder / "evaluation.json").read_text())["rows"]["net"])
    assert rows[0].pop("name") == rows[1].pop("name")
    assert rows[0] == pytest.approx(rows[1], rel=1e-3)
    code, _, err = chromabox("export", exported, "--onnx", tmp_path / "copy.onnx")
    assert (code, err) == (
        2,
        f"chromabox: {exported}: the model is already an ONNX file; use the checkpoint from which it was exported\n",
    )


def test_second_run_skips_images_that_are_up_to_date(
    chromabox: Callable[..., Result], workspace: Path, tmp_path: Path
) -> None:
    """A changed source, a missing output and other settings are processed again."""
    source, target = tmp_path / "in", tmp_path / "out"
    shutil.copytree(workspace / "photos", source)
    command = ("colour", source, "-o", target, "--model", workspace / "net.onnx")
    assert chromabox(*command)[0] == 0
    first = {path.name: path.read_bytes() for path in target.glob("*.png")}
    shutil.copy(source / "01.png", source / "00.png")
    (target / "02.png").unlink()
    code, out, err = chromabox(*command)
    assert (code, err) == (0, "")
    processed = {Path(line).name for line in out.splitlines() if line.endswith(".png")}
    assert processed == {"00.png", "02.png"}
    assert (target / "02.png").read_bytes() == first["02.png"]
    assert (target / "00.png").read_bytes() == first["01.png"]
    assert "(up to date)" not in chromabox(*command, "--temperature", "0.1")[1]


def test_palette_constraints_explanation_and_contact_sheet(
    chromabox: Callable[..., Result], workspace: Path, tmp_path: Path
) -> None:
    options = ["--palette", "horse24", "--ban", "black", "--explain", "--contact-sheet", tmp_path / "sheet.jpg"]
    code, out, err = chromabox("colour", workspace / "grey.png", "-o", tmp_path / "out.png", *options)
    assert (code, err) == (0, "")
    for name in ("out.png", "out.png.explained.png", "sheet.jpg"):
        assert str(tmp_path / name) in out
        with Image.open(tmp_path / name) as image:
            image.load()


def test_score_of_identical_images(chromabox: Callable[..., Result], workspace: Path, tmp_path: Path) -> None:
    code, _, err = chromabox("score", workspace / "photos", workspace / "photos", "-o", tmp_path)
    assert (code, err) == (0, "")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert len(scores["files"]) == 12
    assert scores["mean"]["delta_e"] == 0
    assert scores["mean"]["ssim"] == pytest.approx(1)


def test_palette_fit_and_show(chromabox: Callable[..., Result], workspace: Path, tmp_path: Path) -> None:
    code, out, _ = chromabox("palette", "fit", workspace / "photos", "-k", 5, "-o", tmp_path / "fitted.json")
    assert code == 0
    assert out.splitlines()[-1] == str(tmp_path / "fitted.json")
    assert len(load_palette(tmp_path / "fitted.json")) == 5
    code, out, _ = chromabox("palette", "show", tmp_path / "fitted.json", "-o", tmp_path / "fitted.png")
    assert (code, out) == (0, f"{tmp_path / 'fitted.png'}\n")
    with Image.open(tmp_path / "fitted.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {tuple(colour) for colour in load_palette(tmp_path / "fitted.json").rgb.tolist()} <= colours
