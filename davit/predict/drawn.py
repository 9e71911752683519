"""Draw what a detector or segmentor finds in images, and list it in a json."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..data import BadImageError
from ..files import write_bytes
from ..parsing.results import as_json, put
from ..text import as_line, some
from .pictures import distinct_names, find_pictures

log = logging.getLogger(__name__)


def require_place(place: str) -> None:
    """Raise `ValueError` where there is no such image or folder."""
    if not Path(place).exists():
        raise ValueError(f"{place}: there is no such image or folder.")


def draw_all(place: str, predictor: Any, folder: Path, *, is_json: bool = False) -> None:
    """Write a drawn image for each of a place, an image or a folder, and predictions.json, into a folder.

    A file that is no image is named and passed over.

    Args:
        predictor: its ``predict`` gives `Detections` or a `Segmentation`.
        is_json: print what was found as one JSON document.

    Raises:
        ValueError: there is no such place, or files were passed over.
    """
    require_place(place)
    files = [Path(str(file)) for file in find_pictures([place])]
    folder.mkdir(parents=True, exist_ok=True)
    names = distinct_names(files)
    results, bad = {}, []
    for file in files:
        try:
            found = predictor.predict(file)
        except BadImageError as error:
            log.warning("%s: %s; passed over.", as_line(error.file), error.reason)
            bad.append(str(file))
            continue
        results[str(file)] = found.to_json()
        found.draw().save(folder / f"{names[file]}.png")
    write_bytes(folder / "predictions.json", as_json(results).encode())
    if is_json:
        put(as_json(results))
    log.info("%d images drawn in %s, and listed in its predictions.json.", len(results), folder)
    if bad:
        raise ValueError(f"{len(bad)} of {len(files)} files could not be read as images: {some(bad, 3)}.")
