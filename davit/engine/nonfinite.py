"""Trace the first NaN or infinity of a run to the module it came from, and keep its batch for replay.

`Stepper` notices it, after the backward pass and before the optimizer's step, and raises what `report_nonfinite`
returns. ``python -m davit.engine.nonfinite FILE --checkpoint CKPT`` runs a kept batch again.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..checkpoint import load_checkpoint, read_checkpoint
from ..commands import NONFINITE, run_cli
from ..data import Batch
from ..files import write_atomically
from ..kernels.conditions import expect_plain
from ..parsing import Parser
from .distributed import init_world
from .evaluate import eval_mode
from .finetune import training_mode
from .run_folder import LAST

Autocast = Callable[[], AbstractContextManager[object]]

_FORMAT = 1


class NonFiniteError(FloatingPointError):
    """A loss or gradient that is NaN or infinite; the message is the report.

    Attributes:
        where: what `first_nonfinite` found, None where a second run of the batch was finite.
        dump: the file with the batch, None where it could not be written.
    """

    exit_status = NONFINITE

    def __init__(self, message: str, where: str | None = None, dump: Path | None = None) -> None:
        super().__init__(message)
        self.where = where
        self.dump = dump


def report_nonfinite(
    folder: str | Path,
    loss: float,
    grad_norm: float,
    batch: Batch,
    *,
    epoch: int,
    step: int,
    rank: int,
    model: nn.Module,
    filename: Callable[[int], str],
    autocast: Autocast = nullcontext,
    reseed: Callable[[], object] = lambda: None,
) -> NonFiniteError:
    """Find where a step's first NaN or infinity came from, keep its batch, and return the exception to raise.

    To be called before the optimizer's step, when parameters are still those of the failing forward pass. The
    batch goes to folder/nonfinite-eEPOCH-sSTEP-rRANK.pt, made if need be; a failure to write it is part of the
    message. Every process whose numbers are not finite reports its own batch.

    Args:
        loss: of this process's batch.
        grad_norm: after the gradients were averaged over processes, so not finite on all of them if on one.
        batch: the images as the model got them, and their targets.
        filename: tells an image's name from its index.
        reseed: sets the random states as before the failing forward pass, so that dropout and drop path draw
            the same again. Without it the run in training mode draws again.
    """
    folder = Path(folder)
    files = [filename(index) for index in batch.indices.tolist()]
    reseed()
    device = batch.images.device
    random_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    origin, found = _origin(model, batch.images, autocast)
    file = folder / f"nonfinite-e{epoch}-s{step}-r{rank}.pt"
    contents = {
        **{"format": _FORMAT, "epoch": epoch, "step": step, "rank": rank, "loss": loss, "grad_norm": grad_norm},
        # copies, since a view would be written with all that it is a view of
        **{name: getattr(batch, name).detach().to("cpu", copy=True) for name in ("images", "targets", "indices")},
        **{"found": found, "files": files, "device": device.type, "random_state": random_state},
    }
    dump: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda stream: torch.save(contents, stream))
        kept, dump = f"The batch is kept in {file}", file
    except OSError as error:
        kept = f"The batch could not be kept in {file} ({error})"
    what = f"Epoch {epoch}, step {step}, process {rank}: loss {loss:g}, gradient norm {grad_norm:g}."
    names = f" (images {', '.join(files[:3])}{', ...' if len(files) > 3 else ''})" if files else ""
    return NonFiniteError(" ".join([what, origin, f"{kept}{names}.", _afterwards(folder, dump)]), found, dump)


def _origin(model: nn.Module, images: Tensor, autocast: Autocast) -> tuple[str, str | None]:
    """Say in a sentence what is known of the origin; return it and what `first_nonfinite` found."""
    masks = ""
    order: list[str] = []
    try:
        found = first_nonfinite(model, images, autocast, order)
        if found is None:  # a block with the fault may have been dropped this time
            with eval_mode(model):
                found = first_nonfinite(model, images, autocast)
            masks = ", in a run without dropout and drop path"
    except RuntimeError as error:  # such as for want of memory; the report is worth more than its reason
        return f"The batch could not be run again to find the origin ({error}).", None
    gradient = first_nonfinite_gradient(model, order)
    back = f" The first gradient that is not finite is that of {gradient}." if gradient else ""
    if found is not None:
        return f"The first value that is not finite comes from {_described(found)}{masks}.{back}", found
    return (
        "Run again, every module's output is finite: it came from the loss, from the backward pass, or (on "
        f"several processes) from another one, whose report then names it.{back}"
    ), None


def _described(found: str) -> str:
    if found == "input":
        return "the input: an image, or what was done to it, holds NaN or infinity"
    if found.startswith(("parameter ", "buffer ")):
        return f"the model's {found}"
    return f"the module {found}" if found else "the model's own forward, outside any module"


def _afterwards(folder: Path, dump: Path | None) -> str:
    """Say what there still is and what to do."""
    last = folder / LAST
    if not last.exists():
        return (
            "No checkpoint was written in this folder yet. Lower --lr, clip with --clip-grad, or use "
            "--amp-dtype bf16 or none."
        )
    replay = f" To see it again: python -m davit.engine.nonfinite {dump} --checkpoint {last}." if dump else ""
    return (
        f"The last good checkpoint, {last}, is untouched.{replay} --auto-resume would repeat the failure as it "
        "was; continue with a lower --lr, with --clip-grad, or with --amp-dtype bf16 or none."
    )


# ---- replay ----


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when the batch ran, whatever was found, or 2 with one paragraph on stderr."""
    parser = Parser(
        prog="python -m davit.engine.nonfinite",
        description="Run a batch that gave a NaN or an infinity again, and say which module it comes from.",
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="batch that the run kept: nonfinite-*.pt in its folder"
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="the run's last.pth.tar")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or cuda:N for GPU number N")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    def work() -> None:
        sys.stdout.write(f"{replay(options.file, options.checkpoint, options.device)}\n")

    return run_cli(work)


def replay(file: Path, checkpoint: Path, device: str = "cpu") -> str:
    """Run a kept batch through a run's model with the weights of a checkpoint, and say what was found.

    In training mode with the random state of the failing step (on a device of the same type), and if all is
    finite then, without dropout and drop path.

    Raises:
        ValueError: a file is no such batch or no checkpoint of a training run, or there is no such device.
    """
    dump = _read_dump(file)
    place = init_world(device).device
    model, autocast = _model_of(checkpoint, place)
    images = dump["images"].to(place)
    if dump["device"] == images.device.type:
        (torch.cuda.set_rng_state if images.is_cuda else torch.set_rng_state)(dump["random_state"])
    training_mode(model)
    found = first_nonfinite(model, images, autocast)
    mode = "in training mode"
    if found is None:
        found, mode = first_nonfinite(model.eval(), images, autocast), "without dropout and drop path"
    lines = [
        f"batch       {len(dump['indices'])} images of epoch {dump['epoch']}, step {dump['step']}, process "
        f"{dump['rank']}: loss {dump['loss']:g}, gradient norm {dump['grad_norm']:g}",
        f"then        {'every output was finite' if dump['found'] is None else _described(dump['found'])}",
        f"now         {'every output is finite' if found is None else f'{_described(found)}, {mode}'}",
    ]
    if found is None and dump["found"] is not None:
        lines.append("            The weights of this checkpoint are older than those of the failing step.")
    if found == "input":
        bad = ~torch.isfinite(images).flatten(1).all(1)
        names = [name for name, is_bad in zip(dump["files"], bad.tolist(), strict=False) if is_bad]
        lines.append(f"images    {', '.join(names) or f'{int(bad.sum())} of the batch'}")
    return "\n".join(lines)


def _read_dump(file: Path) -> dict[str, Any]:
    try:
        dump = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file} cannot be read as a batch kept by a run: {error}") from error
    if not isinstance(dump, dict) or dump.get("format") != _FORMAT or "images" not in dump:
        raise ValueError(f"{file} is no batch kept by a run (nonfinite-*.pt in the run's folder).")
    return dump


def _model_of(checkpoint: Path, device: torch.device) -> tuple[nn.Module, Autocast]:
    """Build the model of the training run that wrote a checkpoint; return it and its precision's context."""
    from .build import build_model
    from .flags import train_parser  # these draw in all of timm, which a training has already
    from .precision import precision_from

    read = read_checkpoint(checkpoint, ema="never")
    saved = read.metadata.get("args")
    if not isinstance(saved, dict) or "num_classes" not in saved:
        raise ValueError(f"{checkpoint} does not say how its model was built; give a checkpoint that train.py wrote.")
    args = argparse.Namespace(**{**vars(train_parser().parse_args([])), **saved})
    args.pretrained, args.initial_checkpoint = False, ""
    model = build_model(args, saved["num_classes"])
    load_checkpoint(model, read, head="require")
    precision = precision_from(args, device)
    precision.say()
    return model.to(device, precision.weights), precision.autocast


# ---- the first non-finite value ----


def first_nonfinite(
    model: nn.Module, inputs: Tensor, autocast: Autocast = nullcontext, order: list[str] | None = None
) -> str | None:
    """Run a batch again and say where the first NaN or infinity appears, in the order of execution.

    By hooks, and no TorchDispatchMode: under one, other kernels would run than in training, and an infinity that is
    meant, such as in the mask of a softmax, would be taken for the fault.

    Args:
        model: wrapped by DistributedDataParallel or torch.compile or not; what runs is the bare model, in eager
            mode. It keeps its mode, buffers and gradients, and the random states are put back.
        inputs: (N, C, H, W) images.
        autocast: the context of the forward pass.
        order: gets the names of the modules that ran until then, in that order.

    Returns:
        "input"; "parameter NAME" or "buffer NAME" of the first module with a bad output, if one of its own is
        the cause; the name of that module; the name of the module whose own code, between two of its
        submodules, made the first bad value ("" is the model itself); or None where all is finite. Dropout and
        drop path draw as the random states are: for a failing step, set those first.
    """
    model = unwrap_model(model)
    if not inputs.isfinite().all():
        return "input"
    running: list[str] = []

    def is_finite(nest: Any) -> bool:
        floats = (leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor) and leaf.is_floating_point())
        return all(tensor.isfinite().all() for tensor in floats)

    def before(name: str, _: nn.Module, arguments: Any) -> None:
        if not is_finite(arguments):
            raise _FoundError(running[-1])  # all modules so far were finite, so it was the code around them
        if order is not None:
            order.append(name)
        running.append(name)

    def after(name: str, module: nn.Module, _: Any, output: Any) -> None:
        running.pop()
        if not is_finite(output):
            raise _FoundError(_own_cause(name, module) or name)

    with _undisturbed(model, inputs.device), ExitStack() as hooks, expect_plain():
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(partial(before, name)))
            hooks.enter_context(module.register_forward_hook(partial(after, name)))
        try:
            # with gradients, as in training: the kernels may be others without
            with torch.enable_grad(), autocast(), torch.compiler.set_stance("force_eager"):
                model(inputs)
        except _FoundError as error:
            return str(error)
    return None


def first_nonfinite_gradient(model: nn.Module, order: Sequence[str] = ()) -> str | None:
    """Name the parameter whose gradient was the first to be NaN or infinite, or return None.

    The backward pass goes from the output to the input, so it is the one nearest to the output. `order` are
    names of modules in the order they ran; without it parameters are taken to be registered in that order.
    """
    place = {name: number for number, name in enumerate(order)}
    bad = [
        (place.get(name.rpartition(".")[0], -1), number, name)
        for number, (name, parameter) in enumerate(unwrap_model(model).named_parameters())
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    return max(bad)[2] if bad else None


class _FoundError(Exception):
    """Ends a forward pass that has nothing more to show; its argument is what was found."""


def _own_cause(name: str, module: nn.Module) -> str | None:
    """Name a tensor of a module itself that is not finite."""
    prefix = f"{name}." if name else ""
    for kind, tensors in (("parameter", module.named_parameters), ("buffer", module.named_buffers)):
        for inner, tensor in tensors(recurse=False):
            if not tensor.isfinite().all():
                return f"{kind} {prefix}{inner}"
    return None


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put back what a forward pass changes: random states, and buffers such as batch norm's.

    Synchronised batch norms, which would wait for other processes that have stopped elsewhere, evaluate.
    """
    with ExitStack() as after:
        for module in model.modules():
            if isinstance(module, nn.SyncBatchNorm):
                after.enter_context(eval_mode(module))
        for buffer in model.buffers():
            after.callback(buffer.copy_, buffer.clone())
        after.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        yield


if __name__ == "__main__":
    sys.exit(main())
