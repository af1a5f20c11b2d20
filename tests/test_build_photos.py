"""The script that builds the photographs for training, on a git repository with a few generated images."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import chromabox

ROOT = Path(__file__).parents[1]
COLUMNS = ["name", "tier", "repository", "commit", "pattern", "cap", "min_side", "licence"]
#: Files of the repository and what becomes of them.
EXPECTED = {
    "a/large.png": "kept",
    "a/stored.jpg": "kept",
    "a/turned.jpg": "kept",
    "b/duplicate.jpg": "near",
    "b/grey.jpg": "grey",
    "b/one_tint.png": "grey",
    "b/small.jpg": "small",
    "b/panorama.jpg": "aspect",
    "b/damaged.jpg": "damaged",
    "b/greyscale.png": "mode",
    "b/cut_out.png": "white",
    "b/night.png": "black",
    "b/graphics.png": "flat",
    "b/held.png": "held",
    "b/held_mirrored.png": "held",
    "b/large_file.jpg": "missing",
}


def make_image(seed: int, size: tuple[int, int] = (320, 300)) -> Image.Image:
    """Return noise of low frequency in colour."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    """Return an image file."""
    data = io.BytesIO()
    image.save(data, image_format, **options)
    return data.getvalue()


def make_files() -> tuple[dict[str, bytes], bytes]:
    """Return the files of the repository, and the image that is held out."""
    exif = Image.Exif()
    exif[0x0112] = 6
    large, held = make_image(0), make_image(5)
    cut_out, night, graphics = (np.asarray(make_image(seed)).copy() for seed in (6, 7, 8))
    cut_out[:100], night[:190] = 255, 0
    files = {
        "a/large.png": encode(large),
        "a/stored.jpg": encode(make_image(1, (260, 240)), "JPEG", comment=b"a comment"),
        "a/turned.jpg": encode(make_image(2, (260, 240)), "JPEG", exif=exif),
        "b/duplicate.jpg": encode(large, "JPEG", quality=90),
        "b/grey.jpg": encode(make_image(3).convert("L").convert("RGB"), "JPEG"),
        "b/one_tint.png": encode(Image.new("RGB", (300, 300), (140, 110, 80))),
        "b/small.jpg": encode(make_image(4, (300, 199)), "JPEG"),
        "b/panorama.jpg": encode(make_image(4, (700, 300)), "JPEG"),
        "b/damaged.jpg": encode(make_image(4), "JPEG")[:2000],
        "b/greyscale.png": encode(make_image(4).convert("L")),
        "b/cut_out.png": encode(Image.fromarray(cut_out)),
        "b/night.png": encode(Image.fromarray(night)),
        "b/graphics.png": encode(Image.fromarray(graphics[::40, ::40]).resize((320, 300), Image.Resampling.NEAREST)),
        "b/held.png": encode(held.resize((400, 380))),
        "b/held_mirrored.png": encode(held.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    }
    files["b/large_file.jpg"] = files["a/stored.jpg"] + bytes(4 << 20)
    return files, encode(held)


def git(*arguments: str | Path) -> str:
    """Run git without the settings of the user."""
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    options = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", *options, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.strip()


def reference_hash(image: Image.Image) -> int:
    """Compute the difference hash bit by bit."""
    grey = image.convert("L").resize((9, 8), Image.Resampling.LANCZOS)
    bits = [grey.getpixel((x + 1, y)) > grey.getpixel((x, y)) for y in range(8) for x in range(8)]
    return int("".join(str(int(bit)) for bit in bits), 2)


def run(folder: Path, output: str, *options: str, held: str = "held.txt") -> subprocess.CompletedProcess[str]:
    """Run the script with the sources, mirrors and held-out images in a folder."""
    command = [sys.executable, str(ROOT / "scripts" / "build_photos.py"), "--sources", "sources.tsv"]
    command += ["--mirrors", "mirrors", "--held", held, "-o", output, *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(chromabox.__file__).parents[1])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=60)


@pytest.mark.skipif(shutil.which("git") is None, reason="requires git")
def test_photographs_are_selected_and_an_interrupted_build_is_continued(tmp_path: Path) -> None:
    files, held = make_files()
    work = tmp_path / "host" / "owner" / "photos"
    for name, data in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(data)
    git("init", "--quiet", work)
    git("-C", work, "add", ".")
    git("-C", work, "commit", "--quiet", "-m", "photos")
    commit = git("-C", work, "rev-parse", "HEAD")
    blobs = {name: git("-C", work, "rev-parse", f"HEAD:{name}") for name in ("a/large.png", "a/stored.jpg")}
    rows = [COLUMNS]
    rows += [[name, tier, "owner/photos", commit, f"^{name}/", "0", "200", "none"] for name, tier in ("a1", "b2")]
    (tmp_path / "sources.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    (tmp_path / "held.txt").write_text(f"# a comment\n{reference_hash(Image.open(io.BytesIO(held))):016x}\n")
    (tmp_path / "mirrors").mkdir()

    assert run(tmp_path, "photos").stderr.startswith("mirrors/owner+photos: no git repository; expected a mirror of")
    result = run(tmp_path, "photos", "--clone", (tmp_path / "host").as_uri())
    assert result.returncode == 0, result.stderr

    report = [line.split("\t") for line in (tmp_path / "photos" / "report.tsv").read_text().splitlines()]
    counts = dict(zip(report[0][1:], map(int, report[-1][1:]), strict=True))
    outcomes = list(EXPECTED.values())
    assert {name: count for name, count in counts.items() if count and name not in ("train", "val")} == {
        **{name: outcomes.count(name) for name in outcomes},
        "listed": len(files),
        "tried": len(files),
    }
    index = [line.split("\t") for line in (tmp_path / "photos" / "index.tsv").read_text().splitlines()[1:]]
    assert sorted((row[3], row[4], row[5]) for row in index) == [
        ("a/large.png", "273x256", "320x300"),
        ("a/stored.jpg", "260x240", "260x240"),
        ("a/turned.jpg", "240x260", "260x240"),
    ]
    assert counts["train"] + counts["val"] == 3
    contents = {}
    for tar, name, _, path, size, *_ in index:
        with tarfile.open(tmp_path / "photos" / tar) as archive:
            member = archive.extractfile(name)
            assert member is not None
            contents[path] = member.read()
        image = Image.open(io.BytesIO(contents[path]))
        assert f"{image.width}x{image.height}" == size
        split = "val" if int(Path(name).name[:8], 16) % 10000 < 200 else "train"
        assert name.startswith(f"{split}/")
    assert {Path(row[1]).stem for row in index} >= {blob[:20] for blob in blobs.values()}
    # A small JPEG is stored without its comment and with the same coded image.
    assert b"a comment" not in contents["a/stored.jpg"]
    assert contents["a/stored.jpg"].endswith(files["a/stored.jpg"][-1000:])
    # The tables of libjpeg for quality 60 (luma) and quality 90 (chroma), first values: 16 · 0.8 and 17 · 0.2.
    tables = Image.open(io.BytesIO(contents["a/large.png"])).quantization
    assert (tables[0][0], tables[1][0]) == (13, 3)

    # The state after a kill: fewer lines in the journal, one of them incomplete, and more bytes in the shards.
    shutil.copytree(tmp_path / "photos", tmp_path / "killed")
    journal = (tmp_path / "killed" / "journal.jsonl").read_text().splitlines()
    (tmp_path / "killed" / "journal.jsonl").write_text("\n".join(journal[:2]) + "\n" + journal[2][:30])
    for shard in (tmp_path / "killed").glob("*.tar"):
        shard.write_bytes(shard.read_bytes() + b"more")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "image.png").write_bytes(held)
    result = run(tmp_path, "killed", held="held")
    assert result.returncode == 0, result.stderr
    for path in (tmp_path / "photos").iterdir():
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes(), path.name

    message = run(tmp_path, "killed", "--shard-mib", "1").stderr
    assert message == "killed: is not empty; expected a new folder, or the output of the same sources and options\n"
