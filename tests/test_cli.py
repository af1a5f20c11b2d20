"""The command line as its users meet it: exit codes, one sentence for each mistake, and where things were put."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.__main__ import main
from chromabox.cli import COMMANDS
from chromabox.colour.models import build_model
from chromabox.colour.palette.io import load_palette
from chromabox.colour.weights.checkpoint import DEFAULT_CHECKPOINT, model_metadata
from chromabox.engine.checkpoint import save_checkpoint

RNG = np.random.default_rng(2)
PLAIN = ["--precision", "float32", "--compile", "off", "--channels-last", "off", "--threads", "1", "--device", "cpu"]
# An exit code, standard output, standard error.
Said = tuple[int, str, str]


@pytest.fixture
def chromabox(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs the command line as the installed program does."""

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["chromabox", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/ (12 pictures), grey.png, a checkpoint, a broken file, an empty folder."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "photos").mkdir()
    (folder / "empty").mkdir()
    for index in range(12):
        pixels = RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
        Image.fromarray(pixels).save(folder / "photos" / f"{index:02d}.png")
    Image.fromarray(RNG.integers(0, 256, (30, 40), dtype=np.uint8)).save(folder / "grey.png")
    (folder / "broken.png").write_bytes(b"no picture")
    settings = {"num_filters": 4, "num_colours": 24}
    description = model_metadata("unet", settings, load_palette("cifar24"))
    state = {"net": build_model("unet", **settings).state_dict()}
    save_checkpoint(folder / "net.safetensors", state, {**description, "data": str(folder / "photos"), "size": 16})
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """A finished run of one epoch."""
    from chromabox.cli import run_cli

    options = ["--data", str(place / "photos"), "--size", "16", "--epochs", "1", "--batch-size", "4"]
    folder = place / "runs" / "one"
    assert run_cli(["train", "unet", "--recipe", "course", *options, "-o", str(folder), *PLAIN]) == 0
    return folder


# What is typed, and what the sentence names. PHOTOS, RUN … stand for paths in the folder above.
BAD_USAGE = [
    ("train", "net: name the network to train"),
    ("train vgg", "vgg"),
    ("train unet --recipe best", "best"),
    ("train unet --epochs 0", "epochs is 0"),
    ("train unet --epochs some", "epochs"),
    ("train unet --batch-size -4", "batch-size is -4"),
    ("train unet --learning-rate 0", "learning-rate is 0"),
    ("train unet --accumulate 0", "accumulate is 0"),
    ("train unet --patience 3", "patience"),
    ("train unet --hold-out 0.9 --data PHOTOS", "hold-out is 0.9"),
    ("train unet --size 12 --data PHOTOS", "size is 12"),
    ("train unet --kernel 0 --data PHOTOS", "kernel is 0"),
    ("train unet --kernel 40 --data PHOTOS", "kernel 40"),
    ("train pool-upsample --dilation 2 --data PHOTOS", "dilation"),
    ("train unet --data nowhere", "'nowhere'"),
    ("train unet --data cifar10:unicorn --palette horse24", "'unicorn'"),
    ("train unet --data EMPTY", "empty"),
    ("train unet --batch-size 100 --data PHOTOS --size 16", "batch size 100"),
    ("train unet --colour blue", "--colour"),
    ("train unet -o RUN", "holds a run already"),
    ("train --resume EMPTY", "holds no config.json"),
    ("train --resume nowhere", "nowhere"),
    ("train --resume PHOTO", "holds no config.json"),
    ("train --resume RUN --recipe quick", "besides --resume only --epochs"),
    ("train conv-transpose --resume RUN", "besides --resume only --epochs"),
    ("train --resume RUN --seed 1", "besides --resume only --epochs"),
    ("train --resume RUN --epochs 0", "epochs"),
    ("colour GREY -o out --net nowhere.safetensors", "nowhere.safetensors"),
    ("colour -o out", "inputs"),
    ("evaluate nowhere.safetensors", "nowhere.safetensors"),
    ("evaluate EMPTY", "holds no best.safetensors"),
    ("evaluate NET --data nowhere", "'nowhere'"),
    ("compare --recipe best", "best"),
    ("compare --nets vgg", "vgg"),
    ("compare --runs EMPTY", "holds no summary.json"),
    ("compare --seeds 0 0 --data PHOTOS -o NEW", "seeds"),
    ("colour GREY -o out.png --temperature 2", "temperature is 2"),
    ("colour GREY -o out.png --temperature -0.1", "temperature is -0.1"),
    ("colour GREY -o out.png --leave-grey-below 2", "leave-grey-below is 2.0"),
    ("colour GREY -o out.png --ban reddish", "ban 'reddish'"),
    ("colour GREY -o out.png --replace red", "replace 'red'"),
    ("colour GREY -o out.png --style bright", "bright"),
    ("colour PHOTOS -o out --hints GREY", "hints"),
    ("colour PHOTOS -o out --match *.bmp", "match: no picture"),
    ("colour PHOTOS -o out --workers 0", "workers is 0"),
    ("train photo --recipe course --data PHOTOS", "recipe course"),
    ("train photo", "'cifar10:horse': not a folder"),
    ("train photo --kernel 5 --data PHOTOS", "kernel is 5: photo has no such setting"),
    ("train photo --size 50 --data PHOTOS", "size is 50"),
    ("train photo --start NET --data PHOTOS", "fine-tuning needs a photo net"),
    ("evaluate", "give --data FOLDER"),
    ("score nowhere PHOTOS", "nowhere"),
    ("colour GREY", "output"),
    ("colour nowhere.png -o out", "nowhere.png"),
    ("colour EMPTY -o out", "empty"),
    ("colour GREY -o GREY", "is the input"),
    ("colour GREY GREY -o out", "would both become"),
    ("colour GREY -o out.gif", "out.gif"),
    ("palette fit PHOTOS -k 1 -o out.json", "colours is 1"),
    ("palette fit nowhere -o out.json", "nowhere"),
    ("palette show horse24 -o out.xyz", "out.xyz"),
    ("data imagenet", "imagenet"),
    ("paint", "paint"),
]


@pytest.mark.parametrize(("line", "names"), BAD_USAGE)
def test_bad_usage_is_one_sentence_and_exit_code_2(
    chromabox: Callable[..., Said],
    place: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    names: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {"PHOTOS": "photos", "EMPTY": "empty", "GREY": "grey.png", "PHOTO": "photos/00.png", "NEW": "new"}
    paths |= {"NET": "net.safetensors", "RUN": "runs/one"}
    arguments = [str(place / paths[word]) if word in paths else word for word in line.split()]
    code, out, err = chromabox(*arguments)
    assert code == 2, out + err
    assert names in " ".join(err.split())
    assert "Traceback" not in err
    if err.startswith("chromabox: "):
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("colour BROKEN -o out", "broken.png"),
        ("colour GREY -o out --net GREY", "grey.png"),
        ("evaluate GREY", "grey.png"),
        ("train unet --data PHOTOS --palette BROKEN", "broken.png"),
        ("palette show BROKEN -o out.png", "broken.png"),
        ("palette fit BROKEN -o out.json", "broken.png"),
    ],
)
def test_failed_work_is_one_sentence_and_exit_code_1(
    chromabox: Callable[..., Said],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    names: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {"PHOTOS": "photos", "GREY": "grey.png", "BROKEN": "broken.png"}
    arguments = [str(place / paths[word]) if word in paths else word for word in line.split()]
    if arguments[0] == "colour" and "--net" not in arguments:
        arguments += ["--net", str(place / "net.safetensors")]
    code, out, err = chromabox(*arguments)
    assert code == 1, out + err
    assert names in err
    assert err.startswith("chromabox: ")
    assert err.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_has_help(chromabox: Callable[..., Said], verb: str) -> None:
    code, out, _ = chromabox(verb, "--help")
    assert code == 0
    assert f"chromabox {verb}" in out


def test_the_verbs(chromabox: Callable[..., Said]) -> None:
    words = (
        "data palette train evaluate compare sweep colour score export weights detect finetune "
        "count geometry check report demo"
    )
    assert list(COMMANDS) == words.split()
    code, out, _ = chromabox("--help")
    assert code == 0
    assert all(verb in out for verb in COMMANDS)


def test_train_says_where_everything_is(chromabox: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    options = ["--data", place / "photos", "--size", 16, "--batch-size", 4, "--recipe", "course", *PLAIN]
    folder = tmp_path / "run"
    code, out, err = chromabox("train", "unet", *options, "--epochs", 1, "-o", folder)
    assert (code, err) == (0, "")
    assert "epoch 1, train_loss" in out
    assert "test accuracy" in out
    for path in (folder, folder / "curves.png", folder / "sheets"):
        assert f"{path}\n" in out
        assert path.exists()
    code, out, _ = chromabox("train", "--resume", folder, "--epochs", 2)
    assert code == 0
    assert "epoch 2, train_loss" in out
    assert "epoch 1, train_loss" not in out
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 2


def test_a_run_without_a_checkpoint_cannot_be_resumed(
    chromabox: Callable[..., Said], finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((finished / "config.json").read_bytes())
    code, _, err = chromabox("train", "--resume", tmp_path)
    assert code == 2
    assert "stopped before its first checkpoint" in err


def test_evaluate_prints_the_table_and_says_where_it_put_things(
    chromabox: Callable[..., Said], finished: Path, tmp_path: Path
) -> None:
    code, out, err = chromabox("evaluate", finished, "-o", tmp_path / "new")
    assert (code, err) == (0, "")
    for name in ("net", "majority colour", "grey value's colour", "palette oracle"):
        assert name in out
    for file in ("evaluation.json", "confusion.png"):
        assert f"{tmp_path / 'new' / file}\n" in out
    written = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    summary = json.loads((finished / "summary.json").read_text())
    # The data and the size of its pictures are the run's own.
    assert written["rows"]["net"]["accuracy"] == pytest.approx(summary["test_accuracy"])
    assert written["rows"]["net"]["loss"] == pytest.approx(summary["test_loss"], rel=1e-5)
    assert f"{100 * summary['test_accuracy']:.2f}" in out


def test_compare_tabulates_finished_runs(chromabox: Callable[..., Said], finished: Path, tmp_path: Path) -> None:
    code, out, err = chromabox("compare", "--runs", finished, "-o", tmp_path / "table")
    assert (code, err) == (0, "")
    for kind, file in (("table", "comparison.csv"), ("figure", "comparison.png")):
        assert f"{kind}: {tmp_path / 'table' / file}\n" in out
        assert (tmp_path / "table" / file).is_file()


def test_colour_says_where_every_picture_is(chromabox: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    net = place / "net.safetensors"
    code, out, err = chromabox("colour", place / "grey.png", "-o", tmp_path / "coloured.png", "--net", net)
    assert (code, out, err) == (0, f"{tmp_path / 'coloured.png'}\n", "")
    with Image.open(tmp_path / "coloured.png") as image:
        assert (image.mode, image.size) == ("RGB", (40, 30))


def test_one_bad_picture_does_not_stop_the_rest_but_shows_in_the_exit_code(
    chromabox: Callable[..., Said], place: Path, tmp_path: Path
) -> None:
    inputs = [place / "broken.png", place / "grey.png", place / "photos"]
    code, out, err = chromabox("colour", *inputs, "-o", tmp_path, "--net", place / "net.safetensors")
    assert code == 1
    made = [path for path in tmp_path.iterdir() if path.suffix == ".png"]
    assert sorted(out.split()) == sorted(map(str, made))
    assert len(made) == 13
    assert err.startswith("chromabox: not coloured: ")
    assert "broken.png" in err
    assert err.count("\n") == 1


def test_colour_uses_the_shipped_net(chromabox: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    from importlib import resources

    if not (resources.files("chromabox.assets") / DEFAULT_CHECKPOINT).is_file():
        pytest.skip(f"THE SHIPPED NET {DEFAULT_CHECKPOINT} IS MISSING, SO NOTHING OF IT IS TESTED")
    code, out, err = chromabox("colour", place / "grey.png", "-o", tmp_path / "coloured.png")
    assert (code, out, err) == (0, f"{tmp_path / 'coloured.png'}\n", "")


def test_a_folder_goes_on_where_it_was(chromabox: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    """Done pictures are skipped; a changed source, a lost result and other settings are not."""
    source, target = tmp_path / "in", tmp_path / "out"
    shutil.copytree(place / "photos", source)
    ask = ("colour", source, "-o", target, "--net", place / "net.safetensors")
    assert chromabox(*ask)[0] == 0
    first = {path.name: path.read_bytes() for path in target.glob("*.png")}
    shutil.copy(source / "01.png", source / "00.png")
    (target / "02.png").unlink()
    code, out, err = chromabox(*ask)
    assert (code, err) == (0, "")
    anew = {Path(line).name for line in out.splitlines() if "done before" not in line}
    assert anew == {"00.png", "02.png"}
    assert (target / "02.png").read_bytes() == first["02.png"]
    assert (target / "00.png").read_bytes() == first["01.png"]
    assert "done before" not in chromabox(*ask, "--temperature", "0.1")[1]


def test_palette_control_explanation_and_sheet(chromabox: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    options = ["--palette", "horse24", "--ban", "black", "--explain", "--contact-sheet", tmp_path / "sheet.jpg"]
    code, out, err = chromabox("colour", place / "grey.png", "-o", tmp_path / "out.png", *options)
    assert (code, err) == (0, "")
    for name in ("out.png", "out.explained.png", "sheet.jpg"):
        assert str(tmp_path / name) in out
        with Image.open(tmp_path / name) as image:
            image.load()


def test_score_of_a_picture_against_itself(chromabox: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    code, _, err = chromabox("score", place / "photos", place / "photos", "-o", tmp_path)
    assert (code, err) == (0, "")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert len(scores["files"]) == 12
    assert scores["mean"]["delta_e"] == 0
    assert scores["mean"]["ssim"] == pytest.approx(1)


def test_palettes_are_fitted_and_shown(chromabox: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    code, out, _ = chromabox("palette", "fit", place / "photos", "-k", 5, "-o", tmp_path / "mine.json")
    assert code == 0
    assert out.splitlines()[-1] == str(tmp_path / "mine.json")
    assert len(load_palette(tmp_path / "mine.json")) == 5
    code, out, _ = chromabox("palette", "show", tmp_path / "mine.json", "-o", tmp_path / "mine.png")
    assert (code, out) == (0, f"{tmp_path / 'mine.png'}\n")
    with Image.open(tmp_path / "mine.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {tuple(colour) for colour in load_palette(tmp_path / "mine.json").rgb.tolist()} <= colours
