"""YOLO, COCO and Pascal VOC written by supervision are read equal, and supervision reads the cleaned copy equal.

VOC contains whole pixels, and supervision writes YOLO numbers with five decimals.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chromabox.detect.data.validate import validate_dataset, write_clean_copy
from detection_fixtures import LabelledImage, assert_dataset, make_image

CLASSES = ["2 doors", "cat & <dog>", "no", "étoile"]
FORMATS = ("yolo", "coco", "voc")


@pytest.fixture(scope="module")
def supervision() -> Any:
    return pytest.importorskip("supervision", reason="the train extra installs supervision")


def make_images() -> list[LabelledImage]:
    """Return images of several sizes and splits; the boxes include whole edges and overlaps."""
    rng = np.random.default_rng(0)
    images = []
    sizes = [(100, 50), (333, 500), (64, 64), (999, 17), (3, 2), (640, 480)]
    for index, ((width, height), split) in enumerate(
        zip(sizes, itertools.cycle(("train", "val", "test")), strict=False)
    ):
        objects = []
        for count in range(index % 5):
            # Boxes of one pixel are left out: in VOC, they are indistinguishable from boxes without a size.
            left, top = int(rng.integers(0, width - 1)), int(rng.integers(0, height - 1))
            right, bottom = int(rng.integers(left + 2, width + 1)), int(rng.integers(top + 2, height + 1))
            objects.append((CLASSES[(index + count) % 4], (left, top, right, bottom)))
        images.append(LabelledImage(f"image {index}.v1", split, (width, height), tuple(objects)))
    return images


def write(supervision: Any, folder: Path, dataset_format: str, images: list[LabelledImage]) -> None:
    """Write each split with supervision, in a folder of its own."""
    for split in ("train", "val", "test"):
        annotations, paths = {}, []
        for seed, image in enumerate(images):
            if image.split != split:
                continue
            path = str(make_image(folder / "source" / f"{image.name}.png", seed, image.size))
            boxes = np.array([box for _, box in image.objects], np.float64).reshape(-1, 4)
            class_ids = np.array([CLASSES.index(name) for name, _ in image.objects], np.int64)
            annotations[path] = supervision.Detections(xyxy=boxes, class_id=class_ids)
            paths.append(path)
        data = supervision.DetectionDataset(classes=CLASSES, images=paths, annotations=annotations)
        part = folder / "data" / split
        if dataset_format == "yolo":
            data.as_yolo(str(part / "images"), str(part / "labels"), str(folder / "data" / "data.yaml"))
        elif dataset_format == "coco":
            data.as_coco(str(part), str(part / "_annotations.coco.json"))
        else:
            data.as_pascal_voc(str(part), str(part))
    if dataset_format == "yolo":  # supervision writes the class names only.
        with (folder / "data" / "data.yaml").open("a") as file:
            file.write("".join(f"{split}: {split}/images\n" for split in ("train", "val", "test")))


@pytest.mark.parametrize("dataset_format", FORMATS)
def test_dataset_of_supervision_is_read_and_copied_and_read_by_supervision(
    supervision: Any, tmp_path: Path, dataset_format: str
) -> None:
    images = make_images()
    write(supervision, tmp_path, dataset_format, images)
    report = validate_dataset(tmp_path / "data")
    assert report.data.format == dataset_format
    assert [str(issue) for issue in report.issues if issue.issue_type != "huge box"] == []
    assert report.data.classes == tuple(CLASSES)
    assert_dataset(report.data, images)
    write_clean_copy(report, tmp_path / "data", tmp_path / "copy")
    for split in ("train", "val", "test"):
        parts = [str(tmp_path / "copy" / name / split) for name in ("images", "labels")]
        data = supervision.DetectionDataset.from_yolo(*parts, str(tmp_path / "copy" / "data.yaml"))
        assert data.classes == CLASSES
        expected = {image.name: image for image in images if image.split == split}
        assert {Path(path).stem for path in data.image_paths} == expected.keys()
        for path, detections in data.annotations.items():
            objects = expected[Path(path).stem].objects
            assert [CLASSES[class_id] for class_id in detections.class_id] == [name for name, _ in objects]
            boxes = np.reshape([box for _, box in objects], (-1, 4))
            np.testing.assert_allclose(detections.xyxy, boxes, atol=0.01)
