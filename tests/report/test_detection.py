"""Files of a detector evaluation, and class names that could break a figure or a table."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.detect.data.dataset import DetectionDataset, Sample
from chromabox.detect.evaluation.evaluate import DetectionEvaluation, evaluate_predictions
from chromabox.detect.evaluation.metrics import ImagePredictions
from chromabox.errors import ChromaboxError
from chromabox.report.detection import print_evaluation, write_evaluation


def make_evaluation(names: tuple[str, ...]) -> DetectionEvaluation:
    """Evaluate one image with a box of each class, all detected, the first with the wrong class."""
    count = len(names)
    left = np.arange(count) * 10.0
    boxes = np.stack([left, left, left + 8, left + 8], axis=1)
    truth = Sample(Path("a.png"), boxes, np.arange(count), (10 * count, 10 * count))
    predicted_ids = np.arange(count)
    predicted_ids[0] = count - 1
    predictions = ImagePredictions(boxes, np.linspace(0.9, 0.3, count), predicted_ids)
    return evaluate_predictions([predictions], DetectionDataset((truth,), names, ("",)), num_resamples=10)


NAMES = {
    "two": ("cat", "dog"),
    "many": tuple(f"class {index}" for index in range(30)),
    "unusual": ("$x$ [red]", "_hidden", "$", r"$\frac$", "Ωmega", "кошка", "猫", "हाथी"),
}


# A warning of matplotlib about a missing glyph would be an error here.
@pytest.mark.parametrize("case", NAMES)
def test_all_files_are_written(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = make_evaluation(NAMES[case])
    paths = write_evaluation(result, tmp_path / "new", {"weights": "w"}, "a title with $ [x] 猫")
    assert [path.name for path in paths] == ["evaluation.json", "curves.png", "confusion.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    written = json.loads(paths[0].read_text())
    assert written["weights"] == "w"
    assert list(written["per_class"]) == list(NAMES[case])
    assert {"ap", "ap50", "ap_interval", "ap50_interval", "course", "per_class"} <= written.keys()
    for path in paths[1:]:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 300
    print_evaluation(result, "a title with [x]")
    printed = capsys.readouterr().out
    assert "a title with [x]" in printed
    assert all(name in printed for name in NAMES[case])


def test_unwritable_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ChromaboxError, match="cannot be written to"):
        write_evaluation(make_evaluation(("cat", "dog")), tmp_path / "file" / "new", {}, "t")
