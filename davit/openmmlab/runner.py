"""Run mmengine's loops with checkpoints that are read without running code, loaded with an audit, written whole."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import LoggerHook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseTTAModel, MMDistributedDataParallel, is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from ..checkpoint import Checkpoint, CheckpointError, LoadReport, load_checkpoint, read_checkpoint, unwrap
from ..engine.run_folder import newest_whole, read_state
from ..engine.run_log import plain
from ..files import write_bytes
from ..text import as_utf8, some

_WHOLE_FILES = "davit"  # the name of a backend for `mmengine.fileio`
_STATE_FILE = re.compile(r"(?:epoch|iter)_(\d+)\.pth")


@register_backend(_WHOLE_FILES, force=True)
class WholeFiles(LocalBackend):
    """Write local files so that none is ever half written."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file, and its folder where that is missing."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(filepath, obj)


@RUNNERS.register_module(force=True)
class DaViTRunner(Runner):
    """mmengine's `Runner`, whose checkpoints survive a crash, a damaged file and a malicious file.

    ``load_from`` takes detectors and segmentors of ours and of the original code base; every tensor is accounted
    for. Resuming without a file continues from the newest state that is whole.
    """

    _hooks: list[Any]
    optim_wrapper: Any
    param_schedulers: Any

    def load_checkpoint(self, filename: str) -> dict[str, Any]:
        """Load the weights of a whole detector or segmentor, or leave the model as it is and say why.

        Raises:
            CheckpointError: the file cannot be read safely, or does not fit.
        """
        checkpoint = read_checkpoint(filename)
        contents = {"state_dict": checkpoint.state_dict, "meta": checkpoint.metadata.get("meta", {})}
        self.call_hook("after_load_checkpoint", checkpoint=contents)
        may_adapt = self._train_loop is not None
        checkpoint = replace(checkpoint, state_dict=contents["state_dict"])  # which a hook may have changed
        load_whole(self._bare_model(), checkpoint, may_adapt=may_adapt, logger=self.logger)
        self._has_loaded = True
        return contents

    def resume(self, filename: str) -> None:
        """Go on from a state that this class wrote: weights, optimizer, schedule, epoch, iteration, logs.

        Raises:
            CheckpointError: the file is damaged, or another trainer's.
        """
        self._resume_state(filename, read_state(Path(filename)))

    def _resume_state(self, filename: str, state: dict[str, Any]) -> None:
        if not isinstance(state.get("meta"), dict) or "optimizer" not in state:
            raise CheckpointError(
                f"{filename} holds weights but no state of a training: start from it with --load-from, not --resume."
            )
        self._refuse_other_classes(filename, (state["meta"].get("dataset_meta") or {}).get("classes"))
        self.call_hook("after_load_checkpoint", checkpoint=state)
        weights = unwrap({"state_dict": state["state_dict"]}, filename)
        load_whole(self._bare_model(), weights, may_adapt=False, logger=self.logger)
        self.train_loop._epoch = state["meta"]["epoch"]
        self.train_loop._iter = state["meta"]["iter"]
        self._resume_seed(state["meta"].get("seed"))
        hub = state["message_hub"]
        buffers = {name: HistoryBuffer(*columns) for name, columns in hub["log_scalars"].items()}
        self.message_hub.load_state_dict({**hub, "log_scalars": buffers})
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        self.optim_wrapper.load_state_dict(state["optimizer"])
        if "param_schedulers" in state:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
            for scheduler, saved in zip(self.param_schedulers, state["param_schedulers"], strict=True):
                scheduler.load_state_dict(saved)
        self._has_loaded = True
        self.logger.info(f"Resumed from {filename}: epoch {self.epoch}, iteration {self.iter}.")

    def _refuse_other_classes(self, filename: str, trained: Any) -> None:
        """Refuse to continue with classes of other names or in another order than those of the state."""
        current = self.train_dataloader.dataset.metainfo.get("classes")
        if trained and current and list(trained) != list(current):
            raise CheckpointError(
                f"{filename} was trained on the classes {some(trained, 10)}, and this run has {some(current, 10)}. "
                f"Pass --classes with the first ones in their order, or start from it with --load-from {filename}."
            )

    def _resume_seed(self, seed: int | None) -> None:
        """Take the seed of the state, unless this run was given another."""
        current = self._randomness_cfg.get("seed")
        if seed is not None and seed != current:
            if current is not None:
                self.logger.warning(f"The seed was {seed} and is {current} from here on.")
            else:
                self._randomness_cfg.update(seed=seed)
                self.set_randomness(**self._randomness_cfg)

    def load_or_resume(self) -> None:
        """Load or resume as mmengine does, but resume from the newest state that is whole; damaged ones are logged."""
        if self._has_loaded or not self._resume or self._load_from is not None:
            super().load_or_resume()
            return
        folder = Path(self.work_dir)
        for partial in folder.glob(".*.pth.*.partial"):  # a killed process was writing it
            partial.unlink(missing_ok=True)
        states = {file: match for file in folder.glob("*.pth") if (match := _STATE_FILE.fullmatch(file.name))}
        newest_first = sorted(states, key=lambda file: int(states[file][1]), reverse=True)
        newest = newest_whole(newest_first, self.logger, "Start over with another --work-dir.")
        if newest is None:
            self.logger.info(f"Nothing to resume in {folder}: starting from the beginning.")
        else:
            self._resume_state(str(newest[0]), newest[1])

    def save_checkpoint(
        self, out_dir: str, filename: str, file_client_args: dict[str, Any] | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Save as mmengine does; on this machine's disks the file is whole, or is what it was, after any failure."""
        if "://" not in str(out_dir) and file_client_args is None and kwargs.get("backend_args") is None:
            kwargs["backend_args"] = {"backend": _WHOLE_FILES}
        super().save_checkpoint(out_dir, filename, file_client_args, *args, **kwargs)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call the hooks of a point in the run, and correct what mmengine's own do there."""
        if fn_name == "before_val" and self.distributed:
            for _, buffer in sorted(self._bare_model().named_buffers()):
                broadcast(buffer)  # each process has its own running means of a plain batch norm
        hooks = self._hooks
        if fn_name == "after_test_epoch" and self.rank != 0:  # else every process would write the file of results
            self._hooks = [hook for hook in hooks if not isinstance(hook, LoggerHook)]
        try:
            super().call_hook(fn_name, **kwargs)
        finally:
            self._hooks = hooks
        if fn_name == "before_save_checkpoint":  # after all hooks, which may add objects to it
            _make_plain(kwargs["checkpoint"])

    def build_visualizer(self, visualizer: Any = None) -> Any:
        """Name the visualizer after this run; under the config's name mmengine would return the first run's."""
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, "name": str(self.log_dir)}
        return super().build_visualizer(visualizer)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wrap as mmengine does; on CPUs use data parallelism with plain batch norm, as SyncBatchNorm needs GPUs."""
        if self.distributed and not torch.cuda.is_available() and model_wrapper_cfg is None:
            return MMDistributedDataParallel(revert_sync_batchnorm(model))
        return super().wrap_model(model_wrapper_cfg, model)

    def document(self) -> dict[str, Any]:
        """Describe a training that is done, for programs (--json)."""
        hub = self.message_hub
        last, best = (hub.runtime_info.get(f"{name}_ckpt") for name in ("last", "best"))
        measured = {
            name.removeprefix("val/"): float(buffer.current())
            for name, buffer in hub.log_scalars.items()
            if name.startswith("val/") and "time" not in name
        }
        return {
            "folder": as_utf8(self.work_dir),
            "epoch": self.epoch,
            "iteration": self.iter,
            "checkpoint": None if last is None else as_utf8(last),
            "best": None if best is None else as_utf8(best),
            "evaluation": measured,
        }

    def _bare_model(self) -> nn.Module:
        model = self.model.module if is_model_wrapper(self.model) else self.model
        return model.module if isinstance(model, BaseTTAModel) else model


def load_whole(
    model: nn.Module, checkpoint: Checkpoint, *, may_adapt: bool, logger: logging.Logger | None = None
) -> LoadReport:
    """Load a whole detector's or segmentor's weights by their names, every tensor accounted for.

    Args:
        may_adapt: for training: layers whose width is the number of classes may differ, and start again, as do
            tensors that an edit added to the backbone and the file lacks.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape; the model is unchanged.
    """
    try:
        return load_checkpoint(model, checkpoint, head="auto" if may_adapt else "require", logger=logger)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} Take the config that it was trained with, of the same size and classes (--classes); of a "
            f"classifier or a backbone alone, pass --cfg-options model.pretrained={checkpoint.origin}."
        ) from error


def _make_plain(checkpoint: dict[str, Any]) -> None:
    """Replace all objects of a state by plain values, so that it can be read without trusting a pickle."""
    hub = checkpoint["message_hub"]
    hub["log_scalars"] = OrderedDict(
        (name, [column.tolist() for column in buffer.data]) for name, buffer in hub["log_scalars"].items()
    )
    hub |= {name: plain(hub[name]) for name in ("runtime_info", "resumed_keys")}
    checkpoint["meta"] = plain(checkpoint["meta"])
