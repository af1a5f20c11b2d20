"""Fixtures of the tests of detection."""

from pathlib import Path

import pytest

from chromabox.detect.weights.convert import export_detector
from detector_fixtures import make_small_detector


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the small detector as an exported ONNX file."""
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    export_detector(make_small_detector(), path)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty cache folder and return its path."""
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
