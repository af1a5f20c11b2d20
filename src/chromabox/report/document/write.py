"""Reports written to disk: a self-contained HTML page, a PDF, and a JSON file of all numbers with their sources.

Typst typesets the PDF with the fonts included in Typst and matplotlib only, so that it is identical on every machine.
"""

import base64
import io
import json
import math
import tempfile
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
import typst
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from chromabox.errors import ChromaboxError
from chromabox.io.atomic import atomic_write
from chromabox.report.document.layout import Inline, layout_document, strip_control_chars, to_text
from chromabox.report.document.model import Document, Figure, MissingRun


def write_document(document: Document, folder: Path) -> tuple[Path, Path, Path]:
    """Write ``report.html``, ``report.pdf`` and ``report.json`` and return their paths; create the folder if necessary.

    Each file is written atomically. Raise ChromaboxError if a figure is not a PNG file, or if the files cannot be
    written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (
            write_html(document, folder / "report.html"),
            write_pdf(document, folder / "report.pdf"),
            write_numbers_json(document, folder / "report.json"),
        )
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ChromaboxError(f"{folder}: the report cannot be written ({reason}); use another folder") from error


#: Page size in bytes above which a warning is issued; smaller pages can be sent by e-mail and open quickly.
MAX_PAGE_BYTES = 5_000_000


def write_html(document: Document, path: Path) -> Path:
    """Write the page, which contains all images, and return the path.

    Issue a warning if the page is larger than :data:`MAX_PAGE_BYTES`. Raise ChromaboxError if a figure is not a
    PNG file, and OSError if the page cannot be written.
    """
    layout = layout_document(document)
    images = []
    for figure in layout["figures"]:
        content, (width, height) = _read_png(figure)
        uri = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
        images.append({"uri": uri, "width": width, "height": height})
    environment = Environment(
        loader=PackageLoader("chromabox", "assets/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = [(*map(strip_control_chars, names), number) for *names, number in document.numbers()]
    page = environment.get_template("page.html").render(
        document=layout, images=images, numbers=numbers, clean=strip_control_chars, width_class=_cell_width_class
    )
    with atomic_write(path) as temp_path:
        temp_path.write_text(page, encoding="utf-8")
    if (size := path.stat().st_size) > MAX_PAGE_BYTES:
        warnings.warn(
            f"{path}: the size of the page is {size / 1e6:.1f} MB; use figures with fewer pixels", stacklevel=2
        )
    return path


def _read_png(figure: Figure) -> tuple[bytes, tuple[int, int]]:
    """Return the content, width and height (pixels) of a PNG file. Raise ChromaboxError if the file is not valid."""
    try:
        content = figure.path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
            return content, image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = "not a complete PNG file; create the figure again"
        if isinstance(error, OSError) and error.strerror:  # Pillow's own errors have no ``strerror``.
            problem = f"the figure cannot be read ({error.strerror.lower()})"
        raise ChromaboxError(f"{figure.path}: {problem}") from error


def _cell_width_class(cell: list[Inline]) -> str:
    """Return the CSS class of a table cell: ``short`` cells are not wrapped, and words in ``long`` cells can break."""
    text = to_text(cell)
    if len(text) <= 24:
        return "short"
    return "long" if max(map(len, text.split()), default=0) > 24 else "text"


def write_numbers_json(document: Document, path: Path) -> Path:
    """Write a JSON file with the keys ``title``, ``about``, ``numbers`` and ``missing``, and return the path.

    Each number has the keys ``section`` (the key of its section, empty in the abstract), ``name``, ``value``,
    ``printed``, ``source`` and ``spread`` (the standard deviation). A value that is not finite is null, because JSON
    cannot represent it; ``printed`` shows it. Raise OSError if the file cannot be written.
    """
    numbers = [
        {"section": key, "name": name, "value": number.value, "printed": str(number)}
        | {"source": number.source, "spread": number.std}
        for key, name, number in document.numbers()
    ]
    missing = [
        {"section": key, "what": block.description, "command": block.command}
        for key, block in document.blocks()
        if isinstance(block, MissingRun)
    ]
    content = {"title": document.title, "about": dict(document.metadata), "numbers": numbers, "missing": missing}
    text = json.dumps(_to_json(content), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as temp_path:
        temp_path.write_text(text + "\n", encoding="utf-8")
    return path


def _to_json(value: Any) -> Any:
    """Return the value with "�" for every unsupported character and with None for every non-finite number."""
    if isinstance(value, dict):
        return {_to_json(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return strip_control_chars(value) if isinstance(value, str) else value


def write_pdf(document: Document, path: Path) -> Path:
    """Write the PDF and return the path. The same document always produces the same bytes.

    All text is passed to Typst as data and never as markup, so that it can contain any characters. Raise ChromaboxError
    if a figure is not a PNG file, and OSError if the PDF cannot be written.
    """
    layout = layout_document(document)
    assets = resources.files("chromabox").joinpath("assets", "report")
    with tempfile.TemporaryDirectory(prefix="chromabox-") as name:
        images = []
        for index, figure in enumerate(layout.pop("figures"), start=1):
            content, (width, height) = _read_png(figure)
            Path(name, f"figure-{index}.png").write_bytes(content)
            images.append({"file": f"figure-{index}.png", "width": width, "height": height})

        def inline_to_json(inline: Inline) -> dict[str, Any]:
            return {**vars(inline), "number": inline.number is not None}

        data = json.dumps({**layout, "images": images}, default=inline_to_json, ensure_ascii=False)
        Path(name, "document.json").write_text(data, encoding="utf-8")
        Path(name, "paper.typ").write_bytes(assets.joinpath("paper.typ").read_bytes())
        try:
            pdf = typst.compile(
                str(Path(name, "paper.typ")),
                root=name,
                font_paths=[str(Path(matplotlib.get_data_path()) / "fonts" / "ttf")],
                ignore_system_fonts=True,
                timestamp=0,
            )
        except typst.TypstError as error:
            raise ChromaboxError(f"{path}: the report cannot be typeset ({error.message})") from error
    with atomic_write(path) as temp_path:
        temp_path.write_bytes(pdf)
    return path
