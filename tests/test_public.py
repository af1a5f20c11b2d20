"""What others may rely on: importable names, verbs and flags, exit codes, and a help that appears at once.

The tables are the promise. A new name, verb or flag is one more word here; a word that has to go breaks somebody's
script and belongs into the change log.
"""

import importlib
import re
import subprocess
import sys

import pytest

from chromabox.__main__ import main

NAMES = {
    "chromabox": "__version__ colourise",
    "chromabox.errors": "ChromaboxError UsageError",
    "chromabox.io.fetch": "Archive Mirror NpmPackage PinnedFile Progress Source StderrProgress TarUrl Url cache_folder "
    "fetch",
    "chromabox.io.cifar10": "CLASS_NAMES download_cifar10 load_cifar10",
    "chromabox.io.images": "read_image write_image find_images make_grid",
    "chromabox.engine.trainer": "TrainingInterrupted TrainTask TrainSchedule fit",
    "chromabox.engine.checkpoint": "load_checkpoint save_checkpoint write_json",
    "chromabox.engine.distributed": "SyncBatchNorm2d DistInfo all_reduce_any all_reduce_mean "
    "broadcast_object convert_sync_batchnorm init_distributed",
    "chromabox.engine.autotune": "RuntimeConfig autotune resolve_device",
    "chromabox.engine.runtime_options": "RuntimeOptions",
    "chromabox.engine.optim": "Muon",
    "chromabox.engine.logger": "MetricsLogger progress_bar read_metrics format_metrics",
    "chromabox.colour.palette.palette": "Palette annealed_mean mask_logits fit_palette decode_labels quantisation_error "
    "assign_labels draw_palette",
    "chromabox.colour.palette.io": "load_palette save_palette",
    "chromabox.colour.models": "ColourNet ConvTransposeNet PhotoNet PoolUpsampleNet UNet build_model "
    "num_trainable_parameters",
    "chromabox.colour.training.recipes": "PALETTE_MODELS PaletteModelName TrainRecipe RecipeName "
    "course_recipe default_recipe make_photo_recipe "
    "quick_recipe make_recipe",
    "chromabox.colour.data.datasets": "ColourDataset LabelledImages load_colour_dataset",
    "chromabox.colour.evaluation.metrics": "accuracy colourfulness confusion_matrix delta_e psnr",
    "chromabox.colour.training.train": "TrainConfig read_config train",
    "chromabox.colour.chroma.bins": "ChromaBins fit_bins",
    "chromabox.colour.chroma.distribution": "ChromaDistribution merge_distributions",
    "chromabox.colour.training.train_photo": "PhotoConfig read_photo_config train_photo validate_photo",
    "chromabox.colour.weights.checkpoint": "PaletteModel PhotoModel load_palette_model load_model",
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
    "chromabox.detect.training.config": "FinetuneConfig read_finetune_config",
    "chromabox.detect.training.finetune": "finetune",
    "chromabox.detect.training.freeze": "freeze",
    "chromabox.detect.models.architecture": "Architecture yolov3 yolov3_tiny",
    "chromabox.detect.models.darknet": "DARKNET DarknetModel Variant ULTRALYTICS_9_0 ULTRALYTICS_9_6",
    "chromabox.detect.inference.predict": "detect_image",
    "chromabox.detect.weights.load": "Detector download_pretrained load_detector save_detector write_darknet",
    "chromabox.report.dataset": "report_validation",
    "chromabox.report.detection": "evaluate_detector_file",
    "chromabox.report.training": "run_finetune",
    "chromabox.colour.evaluation.evaluate": "Evaluation evaluate",
    "chromabox.experiments.compare": "Comparison compare",
}

EXECUTION = "--precision --compiled --channels-last --threads --device"
FLAGS = {
    "data cifar10": "",
    "data check": "-o --output --repair",
    "data collage": "--size --seed",
    "palette fit": "-o --output -k --colours --seed",
    "palette show": "-o --output",
    "train": "--recipe --data --palette --seed -o --output --resume --epochs --batch-size --accumulate --learning-rate "
    f"--hold-out --patience --size --kernel --filters --dilation --start {EXECUTION}",
    "evaluate": "--data --temperature --split --size -o --output",
    "compare": f"-o --output --nets --recipe --seeds --data --palette --epochs --runs {EXECUTION}",
    "sweep": f"--over --seeds --recipe --epochs --steps --data --palette -o --output {EXECUTION}",
    "colour": "-o --output --net --style --temperature --palette --lock --ban --replace --hints --leave-grey-below "
    "--explain --no-explain --match --recursive --no-recursive --workers --again --no-again --contact-sheet "
    "--smoothing",
    "score": "-o --output",
    "export": "--onnx --size",
    "weights": "-o --output --architecture --kind --classes --test --no-test",
    "detect": "-o --output --weights --format --confidence --iou --classes --size --precision --workers",
    "finetune": "-o --output --weights --freeze --recipe --epochs --size --batch --views --cache-memory "
    f"--keep-old-classes --no-keep-old-classes --retain --patience --seed --resume {EXECUTION}",
    "count": "--size --kernel --filters --colours --in-channels --biases --no-biases --batch-norm --no-batch-norm "
    "--others --no-others",
    "geometry": "--kernel --stride --dilation",
    "check": "--time --memory --json",
    "report": f"-o --output --all --no-all --quick --no-quick {EXECUTION}",
    "demo": "-o --output",
}

# (arguments, a part of what is said): what the command line itself finds wrong before any work is begun.
WRONG_USE = [
    ("", "palette, train, evaluate, compare, sweep, colour,"),
    ("frobnicate", "frobnicate"),
    ("data mnist", "cifar10"),
    ("train nonet", "nonet"),
    ("train unet --bogus 3", "--bogus"),
    ("train unet --epochs many", "many"),
    ("train unet --recipe best", "best"),
    ("colour x.png", "--output"),
]

# (arguments, the sentence's beginning): what a verb refuses, in exactly one line.
REFUSED = [
    ("train", "net: name the network to train (pool-upsample, "),
    ("train unet --patience 2", "patience: early stopping needs pictures to judge by"),
    ("train --resume /nowhere", "/nowhere: holds no config.json; give the folder of a run"),
    ("train unet --resume /nowhere", "/nowhere: holds no config.json"),
    ("colour /nowhere/a.png -o b.png", "/nowhere/a.png does not exist"),
    ("compare --runs /nowhere", "/nowhere: holds no summary.json"),
]


@pytest.mark.parametrize("module", NAMES)
def test_public_names_are_there(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(found, name)] == []


def outcome(
    arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the program, run in this process."""
    monkeypatch.setattr(sys, "argv", ["chromabox", *arguments.split()])
    with pytest.raises(SystemExit) as caught:
        main()
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def test_verbs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = outcome("--help", monkeypatch, capsys)
    assert code == 0
    assert out.split("{")[1].split("}")[0].split(",") == list(dict.fromkeys(verb.split()[0] for verb in FLAGS))


# What the documentation promises and the program does not do yet; a mark that is no longer right fails.
@pytest.mark.parametrize("verb", FLAGS)
def test_flags(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = outcome(f"{verb} --help", monkeypatch, capsys)
    assert code == 0
    assert out.startswith(f"usage: chromabox {verb} ")
    # Every option has a line of the box that begins with its names.
    lines = [line[1:].strip() for line in out.splitlines() if re.match(r"\W+ -", line)]
    found = {name for line in lines for name in re.findall(r"(?<![\w-])--?[a-z][a-z.-]*", line.split("  ")[0])}
    assert found - {"-h", "--help"} == set(FLAGS[verb].split())


@pytest.mark.parametrize(("arguments", "part"), WRONG_USE)
def test_wrong_use_is_exit_code_2(
    arguments: str, part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = outcome(arguments, monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert part in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED)
def test_what_a_verb_refuses_is_one_sentence(
    arguments: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = outcome(arguments, monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert err.startswith(f"chromabox: {sentence}")
    assert err.count("\n") == 1


def test_as_a_program_it_says_one_line_too() -> None:
    command = [sys.executable, "-m", "chromabox", "train", "unet", "--accumulate", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"chromabox: accumulate is 0: .*\n", done.stderr)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["colour", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "chromabox", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    modules = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert {"tyro", "chromabox"} <= modules
    assert not modules & {"torch", "sklearn", "skimage", "matplotlib", "scipy", "tensorboard", "numpy"}
