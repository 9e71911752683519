"""Look into a checkpoint, or convert one: ``python -m davit.checkpoint inspect|convert``."""

import argparse
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..commands import exit_status
from ..parsing.checkpoint import checkpoint_parser
from ..parsing.results import give, require_writable
from ..text import as_utf8, some, without_controls
from .convert import convert_with_report
from .function import FUNCTION_ENTRY, likely_function
from .names import (
    TAIL_SLOTS,
    CheckpointError,
    Recognised,
    Structure,
    lacking,
    recognise,
    structure_of,
)
from .read import files_of, read_checkpoint, sha256_of, write_checkpoint
from .unwrap import Checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or the status of `davit.commands` with one paragraph on stderr."""
    options = checkpoint_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        {"inspect": _inspect, "convert": _convert}[options.command](options)
    except ValueError as error:  # a CheckpointError is one
        sys.stderr.write(without_controls(f"error: {error}\n"))
        return 2
    except OSError as error:  # a path that cannot be, or a full disk
        status = exit_status(error)
        if status is None:
            raise
        sys.stderr.write(without_controls(f"error: {error}\n"))
        return status
    except (MemoryError, RuntimeError) as error:  # a crafted file may claim tensors of any size
        file = getattr(options, "file", None) or options.source
        sys.stderr.write(f"error: {file} cannot be worked on here: {' '.join(str(error).split())[:300]}\n")
        return 2
    return 0


def _read(path: Path, options: argparse.Namespace) -> Checkpoint:
    """Read a checkpoint, with only those of its tensors that --prefix asks for."""
    checkpoint = read_checkpoint(path, options.ema)
    if not options.prefix:
        return checkpoint
    kept = {name: tensor for name, tensor in checkpoint.state_dict.items() if name.startswith(options.prefix)}
    if not kept:
        raise CheckpointError(
            f"{path} has no tensor under {options.prefix!r}; its first ones are "
            f"{some(list(checkpoint.state_dict)[:5])}."
        )
    return replace(checkpoint, state_dict=kept)


def _convert(options: argparse.Namespace) -> None:
    checkpoint = _read(options.source, options)
    found = checkpoint.require_davit()
    function = checkpoint.function
    converted, report = convert_with_report(checkpoint.state_dict, options.to, checkpoint.origin, function, found)
    report.notes = [*checkpoint.notes, *report.notes]
    # names that hide whose function it is must not make the file pass for another model's
    by_name = likely_function(recognise(converted), converted)
    metadata = {} if function == by_name else {FUNCTION_ENTRY: function}
    write_checkpoint(options.destination, converted, metadata, options.force)
    taken = " (the EMA weights)" * checkpoint.ema
    document = {
        **{"source": as_utf8(options.source), "destination": as_utf8(options.destination)},
        **{"layout": options.to, "ema": checkpoint.ema, "report": str(report)},
    }
    give(options, f"{options.source}{taken} -> {options.destination}\n{report}", document)


def _inspect(options: argparse.Namespace) -> None:
    require_writable(options.output)
    checkpoint = _read(options.file, options)
    found = checkpoint.require_davit()  # says what is there instead
    tensors = checkpoint.state_dict
    structure = structure_of(found, tensors)
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    count = sum(tensor.numel() for tensor in tensors.values())
    parts = _parts(tensors, found, structure)
    files = {file: sha256_of(file) for file in files_of(options.file)}
    lines = [
        *_said_of(options.file, files),
        f"weights     {'/'.join(checkpoint.wrapper) or 'the whole file'}" + checkpoint.ema * " (the EMA weights)",
        f"layout      {found.layout}" + (f", under {found.prefix!r}" if found.prefix else ""),
        f"function    {checkpoint.function}'s channel attention",
        f"model       {structure}",
        f"parameters  {count:,} in {len(tensors)} tensors of {', '.join(dtypes)}",
        *(f"note        {note}" for note in checkpoint.notes),
        "",
        *_table(parts),
    ]
    added = list(found.additions.values())
    for title, names in (("that no other DaViT has", added), (f"not under {found.prefix!r}", found.outside)):
        if names:
            lines.append(f"{len(names)} tensors {title}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}")
    gone, bad = lacking(found), [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if gone:
        lines.append(f"WARNING: {len(gone)} tensors are missing that the others need: {some(gone)}")
    if bad:
        lines.append(f"WARNING: NaN or infinite values in {len(bad)} tensors: {', '.join(bad[:4])}")
    lines += ["", "beside the weights"] if checkpoint.metadata or checkpoint.skipped else []
    lines += [f"  {name}: {_shortened(value)}" for name, value in checkpoint.metadata.items()]
    lines += [f"  {name}: (not shown)" for name in checkpoint.skipped]
    document = {
        "files": [{"file": as_utf8(one), "bytes": one.stat().st_size, "sha256": sha} for one, sha in files.items()],
        "weights": "/".join(checkpoint.wrapper),
        "ema": checkpoint.ema,
        "layout": found.layout,
        "prefix": found.prefix,
        "function": checkpoint.function,
        "model": str(structure),
        "parameters": count,
        "tensors": len(tensors),
        "dtypes": dict(dtypes),
        "notes": list(checkpoint.notes),
        "parts": parts,
        "added": added,
        "outside": list(found.outside),
        "lacking": list(gone),
        "nonfinite": bad,
        "beside": {str(name): _shortened(value) for name, value in checkpoint.metadata.items()},
        "not_shown": list(map(str, checkpoint.skipped)),
    }
    give(options, "\n".join(lines), document, parts)


def _said_of(path: Path, files: dict[Path, str]) -> list[str]:
    """Say which files were read: their sizes and hashes."""
    lines = [] if tuple(files) == (path,) else [f"folder      {path} ({len(files)} files)"]
    for file, sha256 in files.items():
        lines += [f"file        {file} ({file.stat().st_size / 1e6:.1f} MB)", f"sha256      {sha256}"]
    return lines


def _parts(tensors: dict[str, Tensor], found: Recognised, structure: Structure) -> list[dict[str, Any]]:
    """Count tensors and parameters of each stage, and of what follows the last one."""
    parts: dict[int | None, list[Tensor]] = defaultdict(list)
    for key, name in found.names.items():
        parts[None if key.slot in TAIL_SLOTS else key.stage].append(tensors[name])
    stages = [(f"stage {i}", width, structure.depths[i], i) for i, width in enumerate(structure.embed_dims)]
    return [
        {
            **{"part": title, "width": width, "pairs": pairs, "tensors": len(parts[part])},
            "parameters": sum(tensor.numel() for tensor in parts[part]),
        }
        for title, width, pairs, part in [*stages, ("norms, head", None, None, None)]
    ]


def _table(parts: list[dict[str, Any]]) -> list[str]:
    cells = [tuple(parts[0])]
    for part in parts:
        *others, parameters = part.values()
        cells.append((*("" if one is None else str(one) for one in others), f"{parameters:,}"))
    return ["  ".join(cell.rjust(11) if i else cell.ljust(11) for i, cell in enumerate(row)) for row in cells]


def _shortened(value: object) -> str:
    text = ", ".join(f"{key}={inner}" for key, inner in value.items()) if isinstance(value, dict) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 400 else text[:400] + " ..."


if __name__ == "__main__":
    sys.exit(main())
