"""Kill ``chromabox colour`` at random moments and compare the results with those of an undisturbed run.

    python scripts/kill_points.py --images 300 --video 50

The program is started again after every kill until it finishes. Then all files in the output folder must have the same
names and bytes as after the undisturbed run (the order of the lines in the manifest does not matter), which also shows
that no temporary file is left. Exit code 1 reports a difference.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

# Short segments, so that a small video has several.
PROGRAM = """
import sys
from chromabox.io.video import transcoding
from chromabox.__main__ import main
transcoding.SEGMENT_FRAMES = 4
sys.exit(main())
"""


def make_pixels(index: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Return a grey image with a moving pattern: uint8 [height, width]."""
    y, x = np.mgrid[:height, :width]
    return (128 + 60 * np.sin((x + 3 * index) / 9) + 50 * np.cos(y / 7)).astype(np.uint8)


def make_images(folder: Path, count: int = 12) -> list[str]:
    """Write images and return the arguments of the command, without the output."""
    folder.mkdir()
    for index in range(count):
        suffix = ("jpg", "png", "tif")[index % 3]
        Image.fromarray(make_pixels(index)).save(folder / f"{index:02}.{suffix}")
    return [str(folder), "-o"]


def make_video(folder: Path, count: int = 30) -> list[str]:
    """Write a video and return the arguments of the command, without the output."""
    import av

    folder.mkdir()
    with av.open(str(folder / "film.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for index in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(make_pixels(index), format="gray")))
        container.mux(stream.encode(None))
    return [str(folder / "film.mp4"), "-o"]


def read_outputs(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in the folder, by name, with sorted lines for the manifest."""
    contents = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {
        name: b"\n".join(sorted(set(content.splitlines()))) if name.endswith(".jsonl") else content
        for name, content in contents.items()
    }


def run_with_kills(arguments: list[str], work: Path, kills: int, generator: random.Random) -> int:
    """Kill and restart the command until `kills` kills are done and the last run finished; return the differences."""
    command = [sys.executable, "-c", PROGRAM, "colour", *arguments]
    is_video = len(arguments) and arguments[0].endswith(".mp4")
    expected_folder, folder = work / "expected", work / "killed"
    expected_folder.mkdir()

    def start(output: Path) -> subprocess.Popen[bytes]:
        output.mkdir(exist_ok=True)
        target = output / "film.mp4" if is_video else output
        return subprocess.Popen([*command, str(target)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    start_time = time.perf_counter()
    process = start(expected_folder)
    if process.wait() != 0:
        raise SystemExit(f"the undisturbed run failed: {process.communicate()[1].decode()}")
    seconds = time.perf_counter() - start_time
    expected = read_outputs(expected_folder)
    done = finished = differences = 0
    while done < kills or folder.exists():
        process = start(folder)
        try:
            _, errors = process.communicate(timeout=generator.uniform(0, seconds) if done < kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            done += 1
            continue
        finished += 1
        result = read_outputs(folder)
        names = sorted(name for name in expected.keys() | result.keys() if expected.get(name) != result.get(name))
        # A video that was complete when the previous run was killed is not replaced.
        is_complete = is_video and process.returncode == 2 and done > 0
        if names or (process.returncode and not is_complete):
            differences += 1
            print(f"after {done} kills: exit code {process.returncode}, different files {names}\n{errors.decode()}")
        shutil.rmtree(folder)
    print(f"{'video' if is_video else 'images'}: {done} kills, {finished} finished runs, {differences} differences")
    return differences


def main() -> int:
    """Run the kills and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20, help="kills of a run on a folder of images")
    parser.add_argument("--video", type=int, default=10, help="kills of a run on a video")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator = random.Random(args.seed)
    differences = 0
    for kills, make in ((args.images, make_images), (args.video, make_video)):
        with tempfile.TemporaryDirectory() as name:
            differences += run_with_kills(make(Path(name, "in")), Path(name), kills, generator) if kills else 0
    return 1 if differences else 0


if __name__ == "__main__":
    raise SystemExit(main())
