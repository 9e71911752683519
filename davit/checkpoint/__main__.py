"""Look into a checkpoint, or convert one: ``python -m davit.checkpoint inspect|convert``."""

import argparse
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..choices import EMA_CHOICES
from ..commands import command_name, exit_status
from ..text import some, without_controls
from .convert import convert_with_report
from .function import FUNCTION_ENTRY, likely_function
from .names import (
    LAYOUTS,
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
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        options.run(options)
    except CheckpointError as error:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=command_name("python -m davit.checkpoint"), description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="say what a checkpoint holds")
    inspect.add_argument("file", type=Path, metavar="FILE", help="a file, or a folder of shards")
    inspect.set_defaults(run=_inspect)
    convert = commands.add_parser("convert", help="write the weights under the names of another layout")
    convert.add_argument("source", type=Path, metavar="SRC", help="a file, or a folder of shards")
    convert.add_argument(
        "destination",
        type=Path,
        metavar="DST",
        help=".safetensors, or .pth, .pth.tar, .pt, .bin for PyTorch's format",
    )
    convert.add_argument("--to", required=True, choices=LAYOUTS)
    convert.add_argument("--force", action="store_true", help="replace DST if it exists")
    convert.set_defaults(run=_convert)
    for command in (inspect, convert):
        command.add_argument(
            "--prefix",
            default="",
            help="take only the tensors whose names begin so: of a file with several models",
        )
        command.add_argument(
            "--ema",
            choices=EMA_CHOICES,
            default="auto",
            help="the running average of a training checkpoint: auto takes it where there is one (default)",
        )
    return parser


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
    sys.stdout.write(without_controls(f"{options.source}{taken} -> {options.destination}\n{report}\n"))


def _inspect(options: argparse.Namespace) -> None:
    checkpoint = _read(options.file, options)
    found = checkpoint.require_davit()  # says what is there instead
    tensors = checkpoint.state_dict
    structure = structure_of(found, tensors)
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    count = sum(tensor.numel() for tensor in tensors.values())
    lines = [
        *_files(options.file),
        f"weights     {'/'.join(checkpoint.wrapper) or 'the whole file'}" + checkpoint.ema * " (the EMA weights)",
        f"layout      {found.layout}" + (f", under {found.prefix!r}" if found.prefix else ""),
        f"function    {checkpoint.function}'s channel attention",
        f"model       {structure}",
        f"parameters  {count:,} in {len(tensors)} tensors of {', '.join(dtypes)}",
        *(f"note        {note}" for note in checkpoint.notes),
        "",
        *_table(tensors, found, structure),
    ]
    added = list(found.additions.values())
    for title, names in (("that no other DaViT has", added), (f"not under {found.prefix!r}", found.outside)):
        if names:
            lines.append(f"{len(names)} tensors {title}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}")
    if gone := lacking(found):
        lines.append(f"WARNING: {len(gone)} tensors are lacking that the rest calls for: {some(gone)}")
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        lines.append(f"WARNING: NaN or infinite values in {len(bad)} tensors: {', '.join(bad[:4])}")
    lines += ["", "beside the weights"] if checkpoint.metadata or checkpoint.skipped else []
    lines += [f"  {name}: {_shortened(value)}" for name, value in checkpoint.metadata.items()]
    lines += [f"  {name}: (not shown)" for name in checkpoint.skipped]
    sys.stdout.write(without_controls("\n".join(lines)) + "\n")


def _files(path: Path) -> list[str]:
    """Say which files were read: their sizes and hashes."""
    files = files_of(path)
    lines = [] if files == (path,) else [f"folder      {path} ({len(files)} files)"]
    for file in files:
        lines += [f"file        {file} ({file.stat().st_size / 1e6:.1f} MB)", f"sha256      {sha256_of(file)}"]
    return lines


def _table(tensors: dict[str, Tensor], found: Recognised, structure: Structure) -> list[str]:
    """Count tensors and parameters of each stage, and of what follows the last one."""
    parts: dict[int | None, list[Tensor]] = defaultdict(list)
    for key, name in found.names.items():
        parts[None if key.slot in TAIL_SLOTS else key.stage].append(tensors[name])
    rows = [("part", "width", "pairs", "tensors", "parameters")]
    stages = [(f"stage {i}", str(width), str(structure.depths[i]), i) for i, width in enumerate(structure.embed_dims)]
    for title, width, depth, part in [*stages, ("norms, head", "", "", None)]:
        count = sum(tensor.numel() for tensor in parts[part])
        rows.append((title, width, depth, str(len(parts[part])), f"{count:,}"))
    return ["  ".join(cell.rjust(11) if i else cell.ljust(11) for i, cell in enumerate(row)) for row in rows]


def _shortened(value: object) -> str:
    text = ", ".join(f"{key}={inner}" for key, inner in value.items()) if isinstance(value, dict) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 400 else text[:400] + " ..."


if __name__ == "__main__":
    sys.exit(main())
