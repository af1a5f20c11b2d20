"""Build the photographs that train the photo model from public git repositories: tar shards, an index and a report.

    python scripts/build_photos.py --mirrors MIRRORS --held TEST_IMAGES -o photos/ --clone https://HOST

The images are read from bare repositories (MIRRORS/OWNER+NAME). A missing repository is cloned if ``--clone`` is given:
only the commit in the table of sources, without its history. Photographs in colour are kept and shrunk to a short side
of at most 256 pixels. The rest is omitted for one of these reasons, which are examined in this order:

    missing   the repository lacks the file, or the file has 4 MiB or more
    damaged   the file cannot be decoded
    mode      not RGB: greyscale, CMYK or transparent
    small     the short side is below the minimum of the source
    aspect    the long side is more than 2.2 times the short side
    grey      little chroma, or a single tint
    white     many white pixels, as in cut-outs and diagrams
    black     most pixels are black
    flat      most horizontal neighbours are equal, as in graphics
    held      similar to an image in the folder ``--held`` or to its mirror image
    near      similar to an image that was kept

The result depends only on the table of sources, the held-out images and the options. The images of a source are
ordered by folders in turn, and within a folder by a hash. The sources of a tier are mixed evenly, so that each shard is
a sample of the tier. The SHA-1 of the original file decides whether an image is for training or validation. If the
program is interrupted, the same command continues: the journal lists all candidates whose result is on disk.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TextIO

from photo_selection import Photo, decode, difference_hashes, prepare

from chromabox.io.atomic import atomic_write

REASONS = ("missing", "damaged", "mode", "small", "aspect", "grey", "white", "black", "flat", "held", "near")
COLUMNS = "name, tier, repository, commit, pattern, cap, min_side, licence"
#: Maximum number of different bits (of 64) of the hashes of similar images.
HELD_DISTANCE, NEAR_DISTANCE = 6, 2
VAL_PERCENT = 2
END_OF_ARCHIVE = bytes(2 * tarfile.BLOCKSIZE)
CANDIDATES_PER_COMMIT = 512


@dataclass(frozen=True)
class Source:
    """A row of the table of sources. ``cap`` is the maximum number of images that are kept (0: no maximum)."""

    name: str
    tier: int
    repository: str
    commit: str
    pattern: re.Pattern[str]
    cap: int
    min_side: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image file of a source, and the result: the reason why it is omitted, or where it is stored.

    ``blob`` is the SHA-1 of the file in git, and ``end`` the length of the shard after the photograph was added.
    """

    source: str
    blob: str
    path: str
    reason: str = ""
    tar: str = ""
    name: str = ""
    size: str = ""
    original_size: str = ""
    num_bytes: int = 0
    hash: int = 0
    end: int = 0


def read_sources(path: Path) -> list[Source]:
    """Read the table of sources. Exit with a message if a row is invalid."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    sources = []
    for number, row in enumerate(rows[1:], 2):
        try:
            name, tier, repository, commit, pattern, cap, min_side, _ = row
            sources.append(Source(name, int(tier), repository, commit, re.compile(pattern), int(cap), int(min_side)))
        except (ValueError, re.error) as error:
            sys.exit(f"{path}:{number}: invalid row ({error}); expected the columns {COLUMNS}")
    return sources


def find_repository(mirrors: Path, source: Source, url: str | None) -> Path:
    """Return the git folder of a source. If it is missing, fetch the commit from ``url``/OWNER/NAME."""
    folder = mirrors / source.repository.replace("/", "+")
    for path in (folder, folder / ".git", folder / "repo", folder / "repo" / ".git"):
        if (path / "HEAD").is_file():
            return path
    if url is None:
        sys.exit(f"{folder}: no git repository; expected a mirror of {source.repository}, or the option --clone")
    partial = folder.with_name(f"{folder.name}.part")
    run_git("init", "--quiet", "--bare", str(partial))
    run_git("--git-dir", str(partial), "fetch", "--depth", "1", f"{url}/{source.repository}", source.commit)
    return partial.rename(folder)


def run_git(*arguments: str) -> bytes:
    """Return the output of a git command. If it fails, exit with its message."""
    # Without this variable, git asks for a password if a repository no longer exists.
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    result = subprocess.run(["git", *arguments], capture_output=True, env=environment)
    if result.returncode:
        sys.exit(f"git {' '.join(arguments)}: {result.stderr.decode(errors='replace').strip()}")
    return result.stdout


def list_files(repository: Path, commit: str) -> Iterator[tuple[str, str]]:
    """Yield the blob and the path of every file of a commit, without symbolic links and submodules."""
    for line in run_git("--git-dir", str(repository), "ls-tree", "-r", "-z", commit).split(b"\0")[:-1]:
        header, _, path = line.partition(b"\t")
        mode, kind, blob = header.decode().split()
        if kind == "blob" and mode != "120000":
            yield blob, path.decode(errors="replace")


def list_candidates(sources: Sequence[Source], repositories: dict[str, Path]) -> list[Candidate]:
    """Return the files that match the patterns, in the order in which they are examined. A blob is listed once."""
    blobs: set[str] = set()
    placed = []
    for row, source in enumerate(sources):
        folders: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
        for blob, path in list_files(repositories[source.name], source.commit):
            if source.pattern.search(path) and blob not in blobs:
                blobs.add(blob)
                folders[os.path.dirname(path)].append((hashlib.sha1(blob.encode()).hexdigest()[:16], blob, path))
        ranked = sorted((rank, *file) for files in folders.values() for rank, file in enumerate(sorted(files)))
        if not ranked:
            print(f"{source.name}: no file matches the pattern", file=sys.stderr)
        # About a fifth of the candidates is omitted.
        expected = max(1, min(len(ranked), source.cap * 5 // 4) if source.cap else len(ranked))
        placed += [
            (source.tier, (index + 0.5) / expected, row, blob, path) for index, (*_, blob, path) in enumerate(ranked)
        ]
    return [Candidate(sources[row].name, blob, path) for _, _, row, blob, path in sorted(placed)]


def read_blob(repository: Path, blob: str) -> bytes | None:
    """Return the content of a file in a repository, or None if the repository lacks it."""
    process = start_reader(repository)
    process.stdin.write(f"{blob}\n".encode())
    process.stdin.flush()
    header = process.stdout.readline().split()  # SHA-1, "blob" and size, or SHA-1 and "missing"
    if not header:
        sys.exit(f"{repository}: git cannot read {blob}")
    return process.stdout.read(int(header[2]) + 1)[:-1] if len(header) == 3 else None


@cache
def start_reader(repository: Path) -> subprocess.Popen[bytes]:
    """Start the process that reads the files of a repository. It ends with this program."""
    command = ["git", "--git-dir", str(repository), "cat-file", "--batch"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


class SimilarHashes:
    """Set of 64-bit hashes that finds hashes with at most ``distance`` different bits.

    Hashes are split into ``distance`` + 1 bands of bits. Two similar hashes are equal in at least one band.
    """

    def __init__(self, distance: int, values: Iterable[int] = ()) -> None:
        self.distance = distance
        self.bands: dict[tuple[int, int], list[int]] = defaultdict(list)
        for value in values:
            self.add(value)

    def _keys(self, value: int) -> Iterator[tuple[int, int]]:
        width = -(-64 // (self.distance + 1))
        return ((shift, value >> shift & (1 << width) - 1) for shift in range(0, 64, width))

    def add(self, value: int) -> None:
        """Add a hash."""
        for key in self._keys(value):
            self.bands[key].append(value)

    def __contains__(self, value: int) -> bool:
        others = (other for key in self._keys(value) for other in self.bands.get(key, ()))
        return any((value ^ other).bit_count() <= self.distance for other in others)


class Collection:
    """The candidates that were examined, and the photographs that were kept, in tar shards in a folder."""

    def __init__(self, folder: Path, held: Sequence[int], max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.held, self.near = SimilarHashes(HELD_DISTANCE, held), SimilarHashes(NEAR_DISTANCE)
        self.examined: list[Candidate] = []
        self.num_kept: Counter[str] = Counter()
        #: Number of the last shard of each series, and its length without the end of the archive.
        self.shards: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))

    def record(self, candidate: Candidate) -> None:
        """Record a candidate with its result. This restores the state from the journal."""
        self.examined.append(candidate)
        if not candidate.reason:
            self.num_kept[candidate.source] += 1
            self.near.add(candidate.hash)
            series, _, number = candidate.tar.removesuffix(".tar").rpartition("-")
            self.shards[series] = int(number), candidate.end

    def add(self, candidate: Candidate, photo: Photo | str, tier: int) -> None:
        """Store a photograph unless it is similar to another one. A string is the reason why it is omitted."""
        if isinstance(photo, Photo) and (photo.hash in self.held or photo.mirrored_hash in self.held):
            photo = "held"
        if isinstance(photo, Photo) and photo.hash in self.near:
            photo = "near"
        if isinstance(photo, str):
            return self.record(replace(candidate, reason=photo))
        split = "val" if int(candidate.blob[:8], 16) % 10000 < 100 * VAL_PERCENT else "train"
        name = f"{split}/{candidate.blob[:20]}.jpg"
        tar, end = self._write("val" if split == "val" else f"t{tier}", name, photo.data)
        size, original_size = (f"{width}x{height}" for width, height in (photo.size, photo.original_size))
        result = (tar, name, size, original_size, len(photo.data), photo.hash, end)
        return self.record(Candidate(candidate.source, candidate.blob, candidate.path, "", *result))

    def _write(self, series: str, name: str, data: bytes) -> tuple[str, int]:
        """Append a file to the last shard of a series, or to a new one if the shard would become too large."""
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(data), 0o644
        member = header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)
        number, end = self.shards[series]
        if end and end + len(member) + len(END_OF_ARCHIVE) > self.max_bytes:
            number, end = number + 1, 0
        tar = f"{series}-{number:03}.tar"
        with (self.folder / tar).open("r+b" if end else "wb") as file:
            file.seek(end)
            file.write(member + END_OF_ARCHIVE)
            file.truncate()  # After an interruption, the shard can be longer than the journal says.
        return tar, end + len(member)

    def commit(self, journal: TextIO, first: int) -> None:
        """Write the shards, and then the journal, to the disk, for the examined candidates from ``first`` on."""
        for tar in {candidate.tar for candidate in self.examined[first:] if candidate.tar}:
            with (self.folder / tar).open("r+b") as file:
                os.fsync(file.fileno())
        journal.writelines(f"{json.dumps(asdict(candidate))}\n" for candidate in self.examined[first:])
        journal.flush()
        os.fsync(journal.fileno())


def read_journal(path: Path) -> list[Candidate]:
    """Return the candidates in the journal. An incomplete last line is removed from the file."""
    data = path.read_bytes() if path.exists() else b""
    complete = data[: data.rfind(b"\n") + 1]
    if complete != data:
        os.truncate(path, len(complete))
    return [Candidate(**json.loads(line)) for line in complete.splitlines()]


def write_tables(folder: Path, examined: Sequence[Candidate], num_listed: Counter[str]) -> None:
    """Write ``index.tsv``, with a row per photograph, and ``report.tsv``, with the counts by source and reason."""
    index = [["tar", "name", "source", "original path", "size", "original size", "bytes"]]
    counts: dict[str, Counter[str]] = {name: Counter(listed=number) for name, number in num_listed.items()}
    for file in examined:
        counts[file.source].update(
            ["tried", file.reason] if file.reason else ["tried", "kept", Path(file.name).parts[0]]
        )
        if not file.reason:
            path = re.sub(r"[\t\r\n]", " ", file.path)
            index.append([file.tar, file.name, file.source, path, file.size, file.original_size, str(file.num_bytes)])
    columns = ["listed", "tried", "kept", "train", "val", *REASONS]
    counts["all"] = sum(counts.values(), Counter())
    report = [["source", *columns], *([name, *(str(row[key]) for key in columns)] for name, row in counts.items())]
    for name, table in (("index.tsv", index), ("report.tsv", report)):
        with atomic_write(folder / name) as temp_path:
            temp_path.write_text("".join("\t".join(row) + "\n" for row in table), encoding="utf-8")


def read_held_hashes(path: Path) -> list[int]:
    """Return the difference hashes in a file, or those of the images in a folder. Exit if there are none."""
    if path.is_dir():
        images = [decode(file.read_bytes())[0] for file in sorted(path.rglob("*")) if file.is_file()]
        hashes = [difference_hashes(image)[0] for image in images if image is not None]
    else:
        hashes = [int(line, 16) for line in path.read_text().splitlines() if line and not line.startswith("#")]
    if not hashes:
        sys.exit(f"{path}: expected a folder of images, or a file with one hexadecimal hash per line")
    return hashes


def build(args: argparse.Namespace) -> None:
    """Build the dataset, or continue an interrupted build."""
    sources = {source.name: source for source in read_sources(args.sources)}
    held = read_held_hashes(args.held)
    sources_hash = hashlib.sha256(args.sources.read_bytes()).hexdigest()
    held_hash = hashlib.sha256(repr(held).encode()).hexdigest()
    text = json.dumps({"sources": sources_hash, "held": held_hash, "shard_mib": args.shard_mib})
    settings_path, journal_path = args.output / "settings.json", args.output / "journal.jsonl"
    args.output.mkdir(parents=True, exist_ok=True)
    if not any(args.output.iterdir()):
        settings_path.write_text(text)
    if not settings_path.exists() or settings_path.read_text() != text:
        sys.exit(f"{args.output}: is not empty; expected a new folder, or the output of the same sources and options")
    repositories = {name: find_repository(args.mirrors, source, args.clone) for name, source in sources.items()}
    candidates = list_candidates(list(sources.values()), repositories)
    collection = Collection(args.output, held, int(args.shard_mib * 2**20))
    for candidate in read_journal(journal_path):
        collection.record(candidate)
    done, num_committed = {candidate.blob for candidate in collection.examined}, len(collection.examined)
    with journal_path.open("a") as journal:
        for candidate in candidates:
            source = sources[candidate.source]
            if candidate.blob in done or 0 < source.cap <= collection.num_kept[source.name]:
                continue
            photo = prepare(read_blob(repositories[source.name], candidate.blob), source.min_side)
            collection.add(candidate, photo, source.tier)
            if len(collection.examined) == num_committed + CANDIDATES_PER_COMMIT:
                collection.commit(journal, num_committed)
                num_committed = len(collection.examined)
                print(f"{num_committed:,} candidates, {collection.num_kept.total():,} photographs", flush=True)
        collection.commit(journal, num_committed)
    num_listed = Counter(dict.fromkeys(sources, 0))
    num_listed.update(candidate.source for candidate in candidates)
    write_tables(args.output, collection.examined, num_listed)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    table = Path(__file__).with_name("photo_sources.tsv")
    parser.add_argument("--sources", type=Path, default=table, help="table of sources (default: photo_sources.tsv)")
    parser.add_argument("--mirrors", type=Path, required=True, help="folder of bare repositories OWNER+NAME")
    parser.add_argument("--clone", metavar="URL", help="clone a missing repository from URL/OWNER/NAME")
    parser.add_argument("--held", type=Path, required=True, help="folder of images that must not be in the dataset")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--shard-mib", type=float, default=60, help="maximum size of a shard (default: 60)")
    build(parser.parse_args())


if __name__ == "__main__":
    main()
