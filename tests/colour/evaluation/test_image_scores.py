"""Scores against scikit-image on its sample photographs, and pairing of files in folders."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import bootstrap
from skimage import data
from skimage.color import deltaE_ciede2000, lab2rgb, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from chromabox.colour.evaluation.image_scores import (
    FileScores,
    ImageScores,
    ScoreReport,
    pair_files,
    score_folders,
    score_image,
)
from chromabox.errors import ChromaboxError, UsageError

CAT = np.ascontiguousarray(data.chelsea()[40:140, 60:190])
COFFEE = np.ascontiguousarray(data.coffee()[100:180, 200:290])
GREY_CAT = np.repeat(np.rint(CAT.mean(-1, keepdims=True)).astype(np.uint8), 3, -1)


def halve_chroma(rgb: np.ndarray) -> np.ndarray:
    """Halve the chroma of an image with scikit-image."""
    return np.rint(lab2rgb(rgb2lab(rgb) * [1, 0.5, 0.5]) * 255).astype(np.uint8)


def save_image(path: Path, rgb: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path, **options)
    return path


def test_scores_equal_scikit_image() -> None:
    coloured, grey = halve_chroma(CAT), np.rint(lab2rgb(rgb2lab(CAT) * [1, 0, 0]) * 255).astype(np.uint8)
    scores = score_image(CAT, coloured)
    lab = rgb2lab(CAT)
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for prefix, other in (("", coloured), ("grey_", grey)):
        expected = {
            "psnr": peak_signal_noise_ratio(CAT, other, data_range=255),
            "ssim": structural_similarity(CAT, other, data_range=255, channel_axis=2, **wang),
            "delta_e": deltaE_ciede2000(lab, rgb2lab(other)).mean(),
            "delta_lightness": np.abs(lab - rgb2lab(other))[..., 0].mean(),
        }
        for name, value in expected.items():
            assert getattr(scores, prefix + name) == pytest.approx(value, rel=2e-3), prefix + name
    assert scores.psnr_gain == pytest.approx(scores.psnr - scores.grey_psnr)
    assert scores.delta_e_reduction == pytest.approx(100 * (1 - scores.delta_e / scores.grey_delta_e))
    assert scores.colourfulness_difference == pytest.approx(scores.colourfulness - scores.original_colourfulness)
    assert scores.colourfulness_ratio == pytest.approx(scores.colourfulness / scores.original_colourfulness)


def report_of(gains: list[float], delta_es: list[float]) -> ScoreReport:
    """Return a report of images whose greyscale versions have a ΔE2000 of 10."""
    base = score_image(CAT, halve_chroma(CAT))
    files = [
        FileScores(Path(), Path(), 1, 1, replace(base, psnr_gain=gain, delta_e=value, grey_delta_e=10.0))
        for gain, value in zip(gains, delta_es, strict=True)
    ]
    return ScoreReport(files, {})


def test_summary_of_all_images_has_bootstrap_intervals() -> None:
    rng = np.random.default_rng(1)
    gains, delta_es = rng.normal(1, 2, 200), rng.uniform(4, 12, 200)
    summary = report_of(gains.tolist(), delta_es.tolist()).summarise()
    assert summary["psnr_gain"] == pytest.approx(gains.mean())
    assert summary["delta_e_reduction"] == pytest.approx(100 - 10 * delta_es.mean())
    assert summary["worse_than_grey"] == pytest.approx(100 * (gains < -0.5).mean())
    for name, values in (("psnr_gain", gains), ("delta_e_reduction", 100 - 10 * delta_es)):
        expected = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2)).confidence_interval
        width = expected.high - expected.low
        assert summary[f"{name}_interval"] == pytest.approx(tuple(expected), abs=0.15 * width)


def test_summary_leaves_out_undefined_scores() -> None:
    report = report_of([1.0, 2.0, 3.0], [5.0, 5.0, 5.0])
    report.files[2] = replace(report.files[2], scores=replace(report.files[2].scores, psnr_gain=None))
    assert report.summarise()["psnr_gain"] == 1.5
    assert ScoreReport([], {}).summarise() == {}


def test_half_chroma_scores_between_greyscale_and_the_original() -> None:
    scores = score_image(CAT, halve_chroma(CAT))
    assert 4 < scores.psnr_gain < 8  # Half the distance in linear light is 20·log10(2) = 6.02 dB.
    assert 40 < scores.delta_e_reduction < 60
    assert 0.4 < scores.colourfulness_ratio < 0.6
    assert scores.delta_lightness < 0.2
    assert scores.grey_delta_lightness < 0.2


def test_equal_images_have_perfect_scores() -> None:
    scores = score_image(CAT, CAT)
    assert (scores.psnr, scores.ssim, scores.delta_e, scores.delta_lightness) == (math.inf, 1, 0, 0)
    assert (scores.colourfulness_difference, scores.colourfulness_ratio) == (0, 1)
    assert (scores.psnr_gain, scores.delta_e_reduction) == (None, 100)


def test_grey_original_has_no_gain_and_no_ratio() -> None:
    scores = score_image(GREY_CAT, CAT)
    assert (scores.grey_psnr, scores.grey_ssim, scores.grey_delta_e) == (math.inf, 1, 0)
    assert (scores.psnr_gain, scores.delta_e_reduction, scores.colourfulness_ratio) == (None, None, None)
    assert scores.colourfulness == scores.colourfulness_difference > 0


def test_images_without_pixels_are_rejected() -> None:
    with pytest.raises(ChromaboxError, match="no pixels"):
        score_image(CAT[:0], CAT[:0])


def test_folders_are_paired_by_relative_path_with_any_suffix(tmp_path: Path) -> None:
    originals, coloured = tmp_path / "in", tmp_path / "out"
    save_image(originals / "a.bmp", CAT)
    save_image(originals / "inner" / "a.png", COFFEE)
    save_image(originals / "same.bmp", CAT)
    save_image(originals / "same.png", CAT)
    save_image(coloured / "a.png", halve_chroma(CAT))
    save_image(coloured / "inner" / "a.png", halve_chroma(COFFEE))
    save_image(coloured / "same.bmp", halve_chroma(CAT))
    save_image(coloured / "same.png", CAT)
    report = score_folders(originals, coloured)
    assert report.failed == {}
    assert [(file.original.as_posix(), file.coloured.as_posix()) for file in report.files] == [
        ("a.bmp", "a.png"),
        ("inner/a.png", "inner/a.png"),
        ("same.bmp", "same.bmp"),
        ("same.png", "same.png"),
    ]
    first, second, _, equal = report.files
    assert first.scores == score_image(CAT, halve_chroma(CAT))
    assert second.scores == score_image(COFFEE, halve_chroma(COFFEE))
    assert (second.width, second.height) == (90, 80)
    # The infinite PSNR of the equal pair is excluded from the mean, and is null in JSON.
    assert report.mean["psnr"] == pytest.approx((2 * first.scores.psnr + second.scores.psnr) / 3)
    assert report.mean["ssim"] == pytest.approx(np.mean([file.scores.ssim for file in report.files]))
    written = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert written["files"][3]["psnr"] is None
    assert written["files"][0]["psnr"] == first.scores.psnr
    assert equal.scores.psnr == math.inf


def test_files_that_cannot_be_scored_are_listed_and_the_others_scored(tmp_path: Path) -> None:
    originals, coloured = tmp_path / "in", tmp_path / "out"
    for name in ("good.png", "missing.png", "unclear.png", "size.png", "damaged.png", "same.ppm", "same.bmp"):
        save_image(originals / name, CAT)
    for name in ("good.png", "unclear.bmp", "unclear.jpg", "extra.png", "same.png"):
        save_image(coloured / name, CAT)
    save_image(coloured / "size.png", CAT[:50])
    (coloured / "damaged.png").write_bytes(b"\x89PNG broken")
    report = score_folders(originals, coloured)
    assert [file.original.name for file in report.files] == ["good.png"]
    errors = {file.name: error for file, error in report.failed.items()}
    assert errors.keys() == {
        "missing.png", "unclear.png", "size.png", "damaged.png", "same.ppm", "same.bmp", "extra.png"
    }  # fmt: skip
    assert "has no colourised image" in errors["missing.png"]
    assert "missing.*" in errors["missing.png"]
    assert "unclear.bmp and " in errors["unclear.png"]
    assert "size.png is 130 × 50 pixels and its original" in errors["size.png"]
    assert "130 × 100 pixels after their EXIF orientation was applied" in errors["size.png"]
    assert "damaged.png is not an image" in errors["damaged.png"]
    assert "expected one original and one colourised image named same.*" in errors["same.ppm"]
    assert "has no original" in errors["extra.png"]
    assert all(error.count("\n") == 0 for error in errors.values())


def test_means_are_none_if_no_file_can_be_scored(tmp_path: Path) -> None:
    save_image(tmp_path / "in" / "a.png", CAT)
    save_image(tmp_path / "out" / "a.png", CAT[:50])
    report = score_folders(tmp_path / "in", tmp_path / "out")
    assert report.files == []
    assert set(report.mean.values()) == {None}
    assert report.mean.keys() == ImageScores.__dataclass_fields__.keys()


def test_two_files_are_paired_regardless_of_their_names(tmp_path: Path) -> None:
    original = save_image(tmp_path / "original.png", CAT)
    coloured = save_image(tmp_path / "coloured.png", halve_chroma(CAT))
    [file] = score_folders(original, coloured).files
    assert file.scores == score_image(CAT, halve_chroma(CAT))


def test_file_is_paired_with_its_counterpart_in_a_folder(tmp_path: Path) -> None:
    original = save_image(tmp_path / "in" / "a.bmp", CAT)
    save_image(tmp_path / "in" / "b.png", CAT)
    coloured = save_image(tmp_path / "out" / "a.png", CAT)
    save_image(tmp_path / "out" / "other.png", CAT)
    for first, second in ((original, tmp_path / "out"), (tmp_path / "in", coloured)):
        pairs, failed = pair_files(first, second)
        assert [(pair[0][0], pair[1][0]) for pair in pairs] == [(original, coloured)]
        assert failed == {}
    _, failed = pair_files(tmp_path / "in" / "b.png", tmp_path / "out")
    assert ["b.png has no colourised image" in error for error in failed.values()] == [True]
    _, failed = pair_files(tmp_path / "in", tmp_path / "out" / "other.png")
    assert ["other.png has no original" in error for error in failed.values()] == [True]


def test_nested_folder_is_excluded_from_the_outer_folder(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", CAT)
    save_image(tmp_path / "out" / "a.png", CAT)
    for first, second in ((tmp_path, tmp_path / "out"), (tmp_path / "out", tmp_path)):
        pairs, failed = pair_files(first, second)
        assert [(pair[0][0], pair[1][0]) for pair in pairs] == [(first / "a.png", second / "a.png")]
        assert failed == {}
    pairs, failed = pair_files(tmp_path, tmp_path / "out" / "a.png")
    assert (len(pairs), failed) == (1, {})


def test_exif_orientation_is_applied_depth_reduced_and_alpha_ignored(tmp_path: Path) -> None:
    """Expected values by hand with NumPy; a 16-bit value is 257 times the 8-bit value."""
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° clockwise for display
    rotated = save_image(tmp_path / "rotated.png", np.ascontiguousarray(np.rot90(CAT)), exif=exif)
    upright = save_image(tmp_path / "upright.png", CAT)
    alpha = save_image(tmp_path / "alpha.png", np.concatenate([CAT, CAT[..., :1]], -1))
    for path in (rotated, alpha):
        [file] = score_folders(upright, path).files
        assert (file.scores.psnr, file.width, file.height) == (math.inf, 130, 100)
    sixteen_bit = save_image(tmp_path / "sixteen_bit.png", GREY_CAT[..., 0].astype(np.uint16) * 257 + 100)
    eight_bit = save_image(tmp_path / "eight_bit.png", GREY_CAT)
    [file] = score_folders(eight_bit, sixteen_bit).files
    assert file.scores.psnr == math.inf


def test_missing_path_and_empty_folder_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    path = save_image(tmp_path / "a.png", CAT)
    with pytest.raises(UsageError, match="does not exist"):
        score_folders(path, tmp_path / "nowhere")
    with pytest.raises(ChromaboxError, match="contains no images"):
        score_folders(tmp_path / "empty", path)
