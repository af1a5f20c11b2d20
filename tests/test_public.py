"""The public interface: importable names, commands, options, exit codes, and help without heavy imports.

A new name, command or option is added to these tables. Removing one breaks users' scripts.
"""

import importlib
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from chromabox.__main__ import main
from chromabox.cli import COMMANDS, with_current_names

NAMES = {
    "chromabox": "__version__ colourise detect",
    "chromabox.errors": "ChromaboxError UsageError",
    "chromabox.io.fetch": "Archive Mirror NpmPackage PinnedFile Progress Source StderrProgress TarUrl Url cache_folder "
    "fetch",
    "chromabox.io.cifar10": "CIFAR10_CLASSES download_cifar10 load_cifar10",
    "chromabox.io.images": "read_image write_image find_images make_grid",
    "chromabox.engine.trainer": "TrainingInterrupted TrainTask TrainSchedule fit",
    "chromabox.engine.checkpoint": "load_checkpoint save_checkpoint write_json",
    "chromabox.engine.distributed": "SyncBatchNorm2d DistInfo all_reduce_any all_reduce_mean "
    "broadcast_object convert_sync_batchnorm init_distributed",
    "chromabox.engine.autotune": "RuntimeConfig autotune resolve_device",
    "chromabox.engine.options": "RuntimeOptions",
    "chromabox.engine.optim": "Muon",
    "chromabox.engine.logger": "MetricsLogger progress_bar read_metrics format_metrics",
    "chromabox.colour.palette.palette": "Palette annealed_mean assign_labels decode_labels draw_palette fit_palette "
    "mask_logits quantisation_error",
    "chromabox.colour.palette.io": "load_palette save_palette",
    "chromabox.colour.models": "ColourNet ConvTransposeNet PhotoNet PoolUpsampleNet UNet build_model "
    "num_trainable_parameters",
    "chromabox.colour.training.recipes": "PALETTE_MODELS PaletteModelName TrainRecipe RecipeName "
    "course_recipe default_recipe make_photo_recipe "
    "quick_recipe make_recipe",
    "chromabox.colour.data.datasets": "ColourDataset LabelledImages load_colour_dataset",
    "chromabox.colour.evaluation.metrics": "accuracy ciede2000 colourfulness confusion_matrix delta_e psnr ssim",
    "chromabox.colour.training.train": "TrainConfig train",
    "chromabox.colour.chroma.bins": "ChromaBins fit_bins",
    "chromabox.colour.chroma.distribution": "ChromaDistribution merge_distributions",
    "chromabox.colour.training.train_photo": "PhotoConfig train_photo validate_photo",
    "chromabox.colour.weights.checkpoint": "PaletteModel PhotoModel load_palette_model load_model",
    "chromabox.colour.weights.onnx_model": "ColourModel load_onnx_model",
    "chromabox.colour.weights.export": "export_onnx",
    "chromabox.colour.inference.load": "open_model",
    "chromabox.colour.constraints.constraints": "ColourConstraints ColourPrediction apply_constraints",
    "chromabox.colour.inference.predict": "STYLES ColouriseOptions apply_prediction colourise_image "
    "predict_chroma predict_colours predict_distribution",
    "chromabox.colour.chroma.recolour": "lightness apply_chroma",
    "chromabox.colour.api": "colourise",
    "chromabox.report.explain": "draw_explanation",
    "chromabox.colour.inference.batch": "ColouriseResult colourise_batch",
    "chromabox.io.paths": "expand_inputs map_outputs",
    "chromabox.colour.evaluation.image_scores": "score_folders score_image",
    "chromabox.colour.inference.video": "colourise_video",
    "chromabox.detect.boxes": "Letterbox iou nms",
    "chromabox.detect.data.synthetic": "make_synthetic_dataset",
    "chromabox.detect.training.loss": "DetectionLoss",
    "chromabox.detect.training.transfer": "replace_heads",
    "chromabox.detect.weights.darknet_cfg": "read_cfg write_cfg",
    "chromabox.detect.data.load": "DetectionDataset load_detection_dataset",
    "chromabox.detect.evaluation.evaluate": "evaluate_detector",
    "chromabox.detect.training.config": "FinetuneConfig",
    "chromabox.detect.training.finetune": "finetune",
    "chromabox.detect.training.freeze": "freeze",
    "chromabox.detect.models.architecture": "Architecture DARKNET ULTRALYTICS_9_0 ULTRALYTICS_9_6 Variant yolov3 "
    "yolov3_tiny",
    "chromabox.detect.models.darknet": "DarknetModel",
    "chromabox.detect.detections": "Detections",
    "chromabox.detect.inference.predict": "detect_image",
    "chromabox.detect.weights.load": "Detector download_pretrained load_detector save_detector write_darknet",
    "chromabox.detect.weights.onnx_model": "DetectorModel OnnxDetector load_onnx_detector",
    "chromabox.detect.inference.load": "open_detector",
    "chromabox.report.dataset": "report_validation",
    "chromabox.report.detection": "evaluate_detector_file",
    "chromabox.report.training": "run_finetune",
    "chromabox.colour.evaluation.evaluate": "Evaluation evaluate",
    "chromabox.experiments.compare": "Comparison compare",
}

RUNTIME = "--precision --compile --channels-last --threads --device"
FLAGS = {
    "colour": "-o --output --explain --no-explain --model --style --temperature --palette --allow --ban --replace "
    "--hints --min-confidence --match --recursive --no-recursive --workers --overwrite --no-overwrite --contact-sheet "
    "--temporal-smoothing --quality --pages --skip-colour --no-skip-colour",
    "detect": "-o --output --weights --format --confidence --iou --classes --size --device --workers --overwrite "
    "--no-overwrite",
    "verify": "--tolerance",
    "score": "-o --output --fid --overwrite --no-overwrite",
    "train": "--recipe --data --palette --seed -o --output --resume --epochs --max-steps --batch-size "
    f"--accumulate --learning-rate --val-fraction --patience --size --max-size --kernel --num-filters "
    f"--dilation --init {RUNTIME}",
    "finetune": "-o --output --data --weights --freeze --recipe --epochs --size --batch-size --learning-rate "
    "--cached-views --cache-memory --classes "
    f"--keep-old-classes --no-keep-old-classes --new-classes --retention-data --patience --seed --resume {RUNTIME}",
    "evaluate": "--data --temperature --split --size --device -o --output",
    "compare": f"-o --output --models --recipe --seeds --data --palette --epochs --runs {RUNTIME}",
    "sweep": f"--over --seeds --recipe --epochs --steps --data --palette -o --output {RUNTIME}",
    "data cifar10": "",
    "data check": "-o --output --repair --overwrite --no-overwrite",
    "data synth": "--size --seed",
    "palette fit": "-o --output -k --colours --seed --overwrite --no-overwrite",
    "palette show": "-o --output --overwrite --no-overwrite",
    "weights": "-o --output --architecture --variant --classes --sanity-check --no-sanity-check --overwrite "
    "--no-overwrite",
    "export": "--onnx --size --overwrite --no-overwrite",
    "report": f"-o --output --all --no-all --quick --no-quick {RUNTIME}",
    "check": "--timeout --memory-limit --json --overwrite --no-overwrite",
    "count": "--size --kernel --num-filters --colours --in-channels --biases --no-biases --batch-norm --no-batch-norm "
    "--count-activations --no-count-activations",
    "padding": "--kernel --stride --dilation",
    "demo": "-o --output",
}

# (arguments, part of the message): invalid arguments that the parser rejects before any work.
INVALID = [
    ("data mnist", "cifar10"),
    ("train nonet", "nonet"),
    ("train unet --bogus 3", "--bogus"),
    ("train unet --epochs many", "many"),
    ("train unet --recipe best", "best"),
    ("colour x.png", "--output"),
]

# (arguments, beginning of the message): what a command rejects, in exactly one line.
REJECTED = [
    ("", "no command given; see chromabox --help"),
    ("frobnicate", "frobnicate: unknown command; expected one of colour, detect, verify, score, train,"),
    ("train", "no model given: expected one of pool-upsample, "),
    ("train unet --patience 2", "--patience: early stopping needs a validation set"),
    ("train --resume /nowhere", "/nowhere: contains no config.json; use a run folder"),
    ("train unet --resume /nowhere", "/nowhere: contains no config.json"),
    ("colour /nowhere/a.png -o b.png", "/nowhere/a.png does not exist"),
    ("colour /nowhere/a.png -o b.png --allow red --ban red", "--ban: all allowed colours are banned; "),
    (
        "colour /nowhere/a.png -o b.png --ban blue --replace red=blue",
        "--replace #ff0000=#0000ff: #0000ff is within a distance of 20",
    ),
    ("compare --runs /nowhere", "/nowhere: contains no summary.json"),
]


@pytest.mark.parametrize("module", NAMES)
def test_public_names_exist(module: str) -> None:
    imported = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(imported, name)] == []


def run_program(
    arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Run the program in this process; return its exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["chromabox", *arguments.split()])
    with pytest.raises(SystemExit) as caught:
        main()
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_program("--help", monkeypatch, capsys)
    assert code == 0
    names = list(dict.fromkeys(command.split()[0] for command in FLAGS))
    assert re.findall(r"^  ([a-z]+)  ", out.partition("Options:")[0], re.MULTILINE) == names
    assert list(COMMANDS) == names


def test_main_help_fits_in_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run_program("--help", monkeypatch, capsys)[1].splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("command", FLAGS)
def test_flags(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_program(f"{command} --help", monkeypatch, capsys)
    assert code == 0
    assert out.startswith(f"usage: chromabox {command} ")
    # Every option has a line of the box that begins with its names.
    lines = [line[1:].strip() for line in out.splitlines() if re.match(r"\W+ -", line)]
    options = {name for line in lines for name in re.findall(r"(?<![\w-])--?[a-z][a-z.-]*", line.split("  ")[0])}
    assert options - {"-h", "--help"} == set(FLAGS[command].split())


@pytest.mark.parametrize("command", ["data", "palette", *FLAGS])
def test_command_help_is_readable(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run_program(f"{command} --help", monkeypatch, capsys)[1]
    assert "None" not in out
    assert "options options" not in out
    assert "(default: )" not in out
    assert "STR" not in out.replace("--device STR", "")
    assert "``" not in out
    description, examples = out.split("\nExamples:\n")
    assert re.match(r"  (chromabox|torchrun)", examples)
    assert COMMANDS[command.split()[0]].summary in description or " " in command


@pytest.mark.parametrize("name", COMMANDS)
def test_summary_is_the_first_line_of_the_docstring(name: str) -> None:
    function = getattr(importlib.import_module(f"chromabox.cli.{COMMANDS[name].module}"), name)
    assert function.__doc__.splitlines()[0] == COMMANDS[name].summary


# (command, earlier arguments, present arguments)
EARLIER = [
    ("colour", "a.png --lock red blue --again", "a.png --allow red blue --overwrite"),
    ("colour", "a.png --net=x --leave-grey-below=0.3", "a.png --model=x --min-confidence=0.3"),
    ("train", "unet --hold-out 0.1 --filters 8 --compiled no", "unet --val-fraction 0.1 --num-filters 8 --compile off"),
    ("train", "photo --start none --channels-last yes", "photo --init none --channels-last on"),
    ("train", "unet --compiled=yes --seed 3", "unet --compile=on --seed 3"),
    ("finetune", "d --batch 4 --views 2 --retain c", "d --batch-size 4 --cached-views 2 --retention-data c"),
    ("detect", "pictures --format pictures json", "pictures --format images json"),
    ("weights", "w --kind darknet --no-test", "w --variant darknet --no-sanity-check"),
    ("count", "unet --filters 4 --others", "unet --num-filters 4 --count-activations"),
    ("check", "a.py --time 3 --memory 2", "a.py --timeout 3 --memory-limit 2"),
    ("compare", "--nets unet", "--models unet"),
    ("data", "collage out", "synth out"),
    ("data", "check collage", "check collage"),
]


@pytest.mark.parametrize(("command", "earlier", "present"), EARLIER)
def test_earlier_names_are_accepted(command: str, earlier: str, present: str) -> None:
    assert with_current_names(command, earlier.split()) == present.split()
    assert with_current_names(command, present.split()) == present.split()


def test_earlier_command_name_is_accepted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("geometry --kernel 3", monkeypatch, capsys) == run_program(
        "padding --kernel 3", monkeypatch, capsys
    )


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("--version", monkeypatch, capsys) == (0, f"chromabox {version('chromabox')}\n", "")


@pytest.mark.parametrize(("arguments", "part"), INVALID)
def test_invalid_arguments_exit_with_code_2(
    arguments: str, part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_program(arguments, monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert part in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("arguments", "message"), REJECTED)
def test_rejected_arguments_print_one_line(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_program(arguments, monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert err.startswith(f"chromabox: {message}")
    assert err.count("\n") == 1


def test_program_prints_one_line_on_error() -> None:
    command = [sys.executable, "-m", "chromabox", "train", "unet", "--accumulate", "0"]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (completed.returncode, completed.stdout) == (2, "")
    assert re.fullmatch(r"chromabox: --accumulate is 0: expected at least 1\n", completed.stderr)


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in ("train", "finetune", "colour"))])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "chromabox", *arguments]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert completed.returncode == 0
    modules = {line.split("|")[-1].strip().split(".")[0] for line in completed.stderr.splitlines() if "|" in line}
    assert "chromabox" in modules
    assert not modules & {"torch", "sklearn", "skimage", "matplotlib", "scipy", "tensorboard", "numpy"}
