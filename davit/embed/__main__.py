"""Write the features of a folder's images to a file, and find those most like an image."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..commands import run_cli
from ..data import PictureDataset
from ..engine.build import usable_workers
from ..engine.distributed import device_named
from ..engine.features import Features, extract_features
from ..engine.load_model import LoadedModel, ModelOptions, load_model
from ..engine.precision import Precision, precision_from
from ..parsing.results import give, require_writable
from ..predict.pictures import PictureSource, find_pictures
from ..probe.places import request_of
from ..text import as_line, as_utf8
from ..visualize.sheet import Shown, draw_sheet
from .flags import embed_parser
from .vectors import Embeddings, require_suffix, weights_sha256, write_embeddings

log = logging.getLogger(__name__)

_PREPARED = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def main(arguments: Sequence[str] | None = None) -> int:
    """Embed images; return exit status 0, 1 where some could not be read, 2 for a mistake."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_cli(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> list[str]:
    """Return the images that could not be read."""
    args = embed_parser().parse_args(arguments)
    require_writable(args.output)
    out, sheet = Path(args.out), Path(args.sheet) if args.sheet else _beside(Path(args.out))
    require_suffix(out)
    for file in (out, sheet) if args.neighbours else (out,):
        if file.is_dir() or not os.access(file.absolute().parent, os.W_OK | os.X_OK):
            raise ValueError(f"{file}: no file can be written there; check the folder.")
    found = find_pictures([args.folder], sys.stdin.buffer.read() if args.folder == "-" else None)
    request = request_of(args.checkpoint)
    device = device_named(args.device)
    options = ModelOptions.from_values({**vars(args), "no_test_pool": True})
    precision = precision_from(options, device)
    precision.say()
    name = args.model or request.model
    loaded = load_model(name, request.checkpoint, options, device, needs_head=False, takes_exported=True)
    bad: dict[str, str] = {}

    def embed(pictures: Sequence[Any], label: str) -> tuple[list[str], Features]:
        """Return the names of the images that could be read, and their features."""
        source = PictureSource(pictures, loaded.decoding.bands)
        features = _features(loaded, source, precision, args, label)
        bad.update(features.bad_images)
        return [source.path(int(position)) for position in features.positions_N], features

    asked = embed(args.neighbours, "images to compare with") if args.neighbours else None  # a mistake shows at once
    files, features = embed(found, "images")
    root = args.folder if Path(args.folder).is_dir() else ""
    names = tuple(_below(root, file) for file in files)
    about = _about(loaded, str(request.checkpoint or ""), precision, root)
    embeddings = Embeddings(names, features.vectors_NC, {**about, "count": len(names), "skipped": len(bad)})
    write_embeddings(out, embeddings)
    log.info("%d images, %d features each, by %s: %s", *embeddings.features_NC.shape, loaded.name, as_line(out))
    shown = [] if asked is None else _neighbours(embeddings, files, *asked, args.count)
    if asked is not None:
        _draw(embeddings, files, shown, sheet)
    if asked is not None or args.json:
        _give(args, embeddings, shown)
    for picture, reason in bad.items():
        log.error("%s is left out: %s", as_line(picture), reason)
    return list(bad)


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.stem}-neighbours.png")


def _features(
    loaded: LoadedModel, source: PictureSource, precision: Precision, args: argparse.Namespace, label: str
) -> Features:
    return extract_features(
        loaded.model,
        PictureDataset(source, loaded.transform(), decoding=loaded.decoding),
        device=device_named(args.device),
        precision=precision,
        batch_size=args.batch_size,
        workers=usable_workers(args.workers),
        label=label,
        log_freq=args.log_freq,
    )


def _below(root: str, file: str) -> str:
    """Name an image by its path below the folder that was given."""
    prefix = "" if not root or str(Path(root)) == "." else f"{Path(root)}/".replace("//", "/")
    return file.removeprefix(prefix)


def _about(loaded: LoadedModel, checkpoint: str, precision: Precision, root: str) -> dict[str, Any]:
    """Say which features these are."""
    decoding = loaded.decoding
    prepared = {name: loaded.config[name] for name in _PREPARED}
    prepared |= {"bands": decoding.bands, "bit_depth": decoding.bit_depth, "percentiles": decoding.percentiles}
    return {
        "model": loaded.name,
        "checkpoint": as_line(checkpoint),
        "weights": loaded.weights,
        "weights_sha256": weights_sha256(loaded.model),
        "features": "forward_head(forward_features(x), pre_logits=True), not normalised",
        "precision": precision.name,
        "preprocessing": prepared,
        "folder": as_line(root),
    }


_Near = tuple[str, list[tuple[int, float]]]
"""An image that is asked for, and those most like it: places and cosines, the nearest first."""


def _neighbours(
    embeddings: Embeddings, files: Sequence[str], asked: Sequence[str], features: Features, count: int
) -> list[_Near]:
    """Find the images most like each of those asked for, without itself."""
    found = []
    for picture, vector_C in zip(asked, features.vectors_NC, strict=True):
        itself = {place for place, file in enumerate(files) if os.path.realpath(file) == os.path.realpath(picture)}
        near = [one for one in embeddings.nearest(vector_C, count + len(itself)) if one[0] not in itself][:count]
        found.append((picture, near))
    return found


def _draw(embeddings: Embeddings, files: Sequence[str], found: Sequence[_Near], sheet: Path) -> None:
    rows = []
    for picture, near in found:
        shown = [Shown(files[place], (f"{cosine:.4f}", Path(files[place]).name)) for place, cosine in near]
        rows.append((Shown(picture, (Path(picture).name,)), shown))
    draw_sheet(rows, sheet, f"nearest by the features of {embeddings.metadata['model']} (cosine)")
    log.info("drawn in %s", as_line(sheet))


def _give(args: argparse.Namespace, embeddings: Embeddings, found: Sequence[_Near]) -> None:
    lines: list[str] = []
    rows: list[dict[str, Any]] = []
    for picture, near in found:
        lines.append(as_line(picture))
        for rank, (place, cosine) in enumerate(near, start=1):
            lines.append(f"  {cosine:7.4f}  {as_line(embeddings.names[place])}")
            neighbour = as_utf8(embeddings.names[place])
            rows.append({"picture": as_utf8(picture), "rank": rank, "cosine": float(cosine), "neighbour": neighbour})
    about = {name: embeddings.metadata[name] for name in ("model", "weights", "count", "skipped")}
    document = {"file": as_utf8(args.out), **about, "features": embeddings.features_NC.shape[1], "neighbours": rows}
    give(args, "\n".join(lines), document, rows)


if __name__ == "__main__":
    sys.exit(main())
