"""Scores against scikit-image on its own photographs, and what becomes of files that do not fit together."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data
from skimage.color import deltaE_ciede2000, lab2rgb, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from chromabox.colour.evaluation.image_scores import ImageScores, pair_files, score_folders, score_image
from chromabox.errors import ChromaboxError, UsageError

CAT = np.ascontiguousarray(data.chelsea()[40:140, 60:190])
COFFEE = np.ascontiguousarray(data.coffee()[100:180, 200:290])
GREY_CAT = np.repeat(np.rint(CAT.mean(-1, keepdims=True)).astype(np.uint8), 3, -1)


def pale(rgb: np.ndarray) -> np.ndarray:
    """The picture with half its chroma, by scikit-image."""
    return np.rint(lab2rgb(rgb2lab(rgb) * [1, 0.5, 0.5]) * 255).astype(np.uint8)


def save(path: Path, rgb: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path, **options)
    return path


def test_every_score_is_scikit_images() -> None:
    coloured, grey = pale(CAT), np.rint(lab2rgb(rgb2lab(CAT) * [1, 0, 0]) * 255).astype(np.uint8)
    found = score_image(CAT, coloured)
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
            assert getattr(found, prefix + name) == pytest.approx(value, rel=2e-3), prefix + name
    assert found.psnr_gain == pytest.approx(found.psnr - found.grey_psnr)
    assert found.delta_e_reduction == pytest.approx(100 * (1 - found.delta_e / found.grey_delta_e))
    assert found.colourfulness_difference == pytest.approx(found.colourfulness - found.original_colourfulness)
    assert found.colourfulness_ratio == pytest.approx(found.colourfulness / found.original_colourfulness)


def test_half_the_chroma_lies_between_grey_and_the_truth() -> None:
    found = score_image(CAT, pale(CAT))
    assert 4 < found.psnr_gain < 8  # Half the distance in linear light is 20·log10(2) = 6.02 dB.
    assert 40 < found.delta_e_reduction < 60
    assert 0.4 < found.colourfulness_ratio < 0.6
    assert found.delta_lightness < 0.2
    assert found.grey_delta_lightness < 0.2


def test_equal_pictures() -> None:
    found = score_image(CAT, CAT)
    assert (found.psnr, found.ssim, found.delta_e, found.delta_lightness) == (math.inf, 1, 0, 0)
    assert (found.colourfulness_difference, found.colourfulness_ratio) == (0, 1)
    assert (found.psnr_gain, found.delta_e_reduction) == (None, 100)


def test_of_a_grey_original_nothing_can_be_gained() -> None:
    found = score_image(GREY_CAT, CAT)
    assert (found.grey_psnr, found.grey_ssim, found.grey_delta_e) == (math.inf, 1, 0)
    assert (found.psnr_gain, found.delta_e_reduction, found.colourfulness_ratio) == (None, None, None)
    assert found.colourfulness == found.colourfulness_difference > 0


def test_no_pixels_are_refused() -> None:
    with pytest.raises(ChromaboxError, match="no pixels"):
        score_image(CAT[:0], CAT[:0])


def test_folders_are_matched_by_place_whatever_the_suffix(tmp_path: Path) -> None:
    originals, coloured = tmp_path / "in", tmp_path / "out"
    save(originals / "a.bmp", CAT)
    save(originals / "inner" / "a.png", COFFEE)
    save(originals / "twin.bmp", CAT)
    save(originals / "twin.png", CAT)
    save(coloured / "a.png", pale(CAT))
    save(coloured / "inner" / "a.png", pale(COFFEE))
    save(coloured / "twin.bmp", pale(CAT))
    save(coloured / "twin.png", CAT)
    card = score_folders(originals, coloured)
    assert card.failed == []
    assert [(file.original.as_posix(), file.coloured.as_posix()) for file in card.files] == [
        ("a.bmp", "a.png"),
        ("inner/a.png", "inner/a.png"),
        ("twin.bmp", "twin.bmp"),
        ("twin.png", "twin.png"),
    ]
    first, second, _, equal = card.files
    assert first.scores == score_image(CAT, pale(CAT))
    assert second.scores == score_image(COFFEE, pale(COFFEE))
    assert (second.width, second.height) == (90, 80)
    # The equal pair's infinite PSNR is left out of the mean, and is null in JSON.
    assert card.mean["psnr"] == pytest.approx((2 * first.scores.psnr + second.scores.psnr) / 3)
    assert card.mean["ssim"] == pytest.approx(np.mean([file.scores.ssim for file in card.files]))
    written = json.loads(json.dumps(card.as_json(), allow_nan=False))
    assert written["files"][3]["psnr"] is None
    assert written["files"][0]["psnr"] == first.scores.psnr
    assert equal.scores.psnr == math.inf


def test_what_cannot_be_scored_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    originals, coloured = tmp_path / "in", tmp_path / "out"
    for name in ("good.png", "missing.png", "unclear.png", "size.png", "damaged.png", "same.ppm", "same.bmp"):
        save(originals / name, CAT)
    for name in ("good.png", "unclear.bmp", "unclear.jpg", "extra.png", "same.png"):
        save(coloured / name, CAT)
    save(coloured / "size.png", CAT[:50])
    (coloured / "damaged.png").write_bytes(b"\x89PNG broken")
    card = score_folders(originals, coloured)
    assert [file.original.name for file in card.files] == ["good.png"]
    errors = {failure.file.name: failure.error for failure in card.failed}
    assert errors.keys() == {
        "missing.png", "unclear.png", "size.png", "damaged.png", "same.ppm", "same.bmp", "extra.png"
    }  # fmt: skip
    assert "has no partner" in errors["missing.png"]
    assert "missing.*" in errors["missing.png"]
    assert "unclear.bmp and " in errors["unclear.png"]
    assert "size.png is 130 × 50 pixels and its original" in errors["size.png"]
    assert "130 × 100, both turned upright by their EXIF orientation" in errors["size.png"]
    assert "damaged.png is not an image" in errors["damaged.png"]
    assert "one of 2 originals" in errors["same.ppm"]
    assert "has no original" in errors["extra.png"]
    assert all(error.count("\n") == 0 for error in errors.values())


def test_no_file_can_be_scored(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", CAT)
    save(tmp_path / "out" / "a.png", CAT[:50])
    card = score_folders(tmp_path / "in", tmp_path / "out")
    assert card.files == []
    assert set(card.mean.values()) == {None}
    assert card.mean.keys() == ImageScores.__dataclass_fields__.keys()


def test_two_files_belong_together_whatever_their_names(tmp_path: Path) -> None:
    original, coloured = save(tmp_path / "original.png", CAT), save(tmp_path / "coloured.png", pale(CAT))
    [file] = score_folders(original, coloured).files
    assert file.scores == score_image(CAT, pale(CAT))


def test_a_file_against_a_folder_is_looked_up_there(tmp_path: Path) -> None:
    original = save(tmp_path / "in" / "a.bmp", CAT)
    save(tmp_path / "in" / "b.png", CAT)
    coloured = save(tmp_path / "out" / "a.png", CAT)
    save(tmp_path / "out" / "other.png", CAT)
    for left, right in ((original, tmp_path / "out"), (tmp_path / "in", coloured)):
        pairs, failed = pair_files(left, right)
        assert [(pair.original, pair.coloured) for pair in pairs] == [(original, coloured)]
        assert failed == []
    _, failed = pair_files(tmp_path / "in" / "b.png", tmp_path / "out")
    assert ["b.png has no partner" in failure.error for failure in failed] == [True]
    _, failed = pair_files(tmp_path / "in", tmp_path / "out" / "other.png")
    assert ["other.png has no original" in failure.error for failure in failed] == [True]


def test_a_folder_inside_the_other_is_not_counted_to_it(tmp_path: Path) -> None:
    save(tmp_path / "a.png", CAT)
    save(tmp_path / "out" / "a.png", CAT)
    for left, right in ((tmp_path, tmp_path / "out"), (tmp_path / "out", tmp_path)):
        pairs, failed = pair_files(left, right)
        assert [(pair.original, pair.coloured) for pair in pairs] == [(left / "a.png", right / "a.png")]
        assert failed == []
    pairs, failed = pair_files(tmp_path, tmp_path / "out" / "a.png")
    assert (len(pairs), failed) == (1, [])


def test_orientation_depth_and_alpha(tmp_path: Path) -> None:
    """Upright, at 8 bits, alpha left out: by hand with numpy, a 16-bit value being 257 times the 8-bit one."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° to the right
    turned = save(tmp_path / "turned.png", np.ascontiguousarray(np.rot90(CAT)), exif=exif)
    upright = save(tmp_path / "upright.png", CAT)
    alpha = save(tmp_path / "alpha.png", np.concatenate([CAT, CAT[..., :1]], -1))
    for path in (turned, alpha):
        [file] = score_folders(upright, path).files
        assert (file.scores.psnr, file.width, file.height) == (math.inf, 130, 100)
    wide = save(tmp_path / "wide.png", GREY_CAT[..., 0].astype(np.uint16) * 257 + 100)
    narrow = save(tmp_path / "narrow.png", GREY_CAT)
    [file] = score_folders(narrow, wide).files
    assert file.scores.psnr == math.inf


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    path = save(tmp_path / "a.png", CAT)
    with pytest.raises(UsageError, match="does not exist"):
        score_folders(path, tmp_path / "nowhere")
    with pytest.raises(UsageError, match="contains no images"):
        score_folders(tmp_path / "empty", path)
