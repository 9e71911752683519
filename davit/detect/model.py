"""Build detectors of the transformers library on DaViT, load them, and save them in that library's format."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, load_checkpoint, read_checkpoint
from ..limits import short
from ..pretrained import PUBLISHED, fetch_pretrained, read_source
from ..text import did_you_mean, some
from ..transformers import DavitConfig
from ..variants import VARIANTS
from .augment import MEAN, NOTHING, STD
from .heads import HEADS, is_detector, saved_folder

log = logging.getLogger(__name__)

STRIDE = 32  # of the last map: sides of images are multiples of it
_STAGES = ("stage2", "stage3", "stage4")  # strides 8, 16 and 32


class Detector(nn.Module):
    """A detector of the transformers library, as `davit.engine` runs models: with tensors as its targets.

    Attributes:
        net: the model of that library.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        config: Any = net.config
        self.num_classes = int(config.num_labels)

    @property
    def backbone(self) -> nn.Module:
        """The backbone, in the library's own model."""
        found: nn.Module = self.net.model.backbone.model  # type: ignore[union-attr,assignment]
        return found

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Any:
        """Compute logits (B, queries, classes) and boxes (B, queries, 4), or with targets (B, rows, 5) the loss."""
        if targets is None:
            found = self.net(images)
            return found.logits, found.pred_boxes
        try:
            loss: Tensor = self.net(images, labels=labels_of(targets)).loss
        except ValueError:
            if self._is_finite(images):
                raise
            # what is not finite cannot be matched with objects: the run's own report says where it comes from
            loss = torch.stack([p.float().sum() for p in self.parameters()]).sum() * torch.nan
        # no batch without objects leaves a parameter without a gradient, for which other processes would wait
        unused = [p.sum() for name, p in self.net.named_parameters() if "denoising_class_embed" in name]
        return loss + 0.0 * sum(unused)

    @torch.no_grad()
    def _is_finite(self, images: Tensor) -> bool:
        return all(bool(one.isfinite().all()) for one in self(images))

    def get_classifier(self) -> list[nn.Module]:
        """Return all but the backbone: what --head-lr-scale and --freeze all mean."""
        inner: Any = self.net.model
        beside = [module for name, module in self.net.named_children() if name != "model"]
        return [*(module for name, module in inner.named_children() if name != "backbone"), *beside]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions that group parameters by depth, for layer-wise learning rates (timm)."""
        inside = r"^net\.model\.backbone\.model\.davit\."
        if coarse:
            blocks: Any = inside + r"(?:patch_embeds|main_blocks)\.(\d+)"
        else:
            blocks = [(inside + r"patch_embeds\.(\d+)", None), (inside + r"main_blocks\.(\d+)\.(\d+)", None)]
        return {"stem": inside + r"patch_embeds\.0", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the blocks of the backbone be computed again in the backward pass."""
        self.backbone.gradient_checkpointing = enable  # type: ignore[assignment]


def labels_of(targets: Tensor) -> list[dict[str, Tensor]]:
    """Turn targets (B, rows, 5) into what the library's losses take."""
    found = []
    for rows in targets:
        own = rows[rows[:, 0] > NOTHING]
        found.append({"class_labels": own[:, 0].long(), "boxes": own[:, 1:]})
    return found


def check_side(side: int) -> None:
    """Raise `ValueError` for a side of images that the heads do not take."""
    if side % STRIDE:
        near = sorted({max(STRIDE, side // STRIDE * STRIDE), -(-side // STRIDE) * STRIDE})
        raise ValueError(
            f"--img-size {side}: the heads need a multiple of {STRIDE}; take {' or '.join(map(str, near))}."
        )


# ---- building ----


def build_detector(args: Namespace, class_names: Sequence[str]) -> Detector:
    """Build the detector of the flags with its starting weights, on the CPU.

    Raises:
        ValueError: flags do not fit one another or the head; a name is unknown.
        CheckpointError, PretrainedError: the weights cannot be had.
    """
    if args.pretrained and args.initial_checkpoint:
        raise ValueError(
            f"--pretrained and --initial-checkpoint {args.initial_checkpoint} both name weights; give one."
        )
    detector = Detector(_net_of(args, class_names))
    if args.grad_checkpointing:
        detector.set_grad_checkpointing()
    if args.pretrained:
        if args.model not in PUBLISHED:
            raise ValueError(f"--pretrained: {args.model} has no published weights; {', '.join(PUBLISHED)} have.")
        load_checkpoint(detector.backbone, read_source(fetch_pretrained(args.model)))
    elif args.initial_checkpoint:
        _start_from(detector, args.initial_checkpoint)
    return detector


def _net_of(args: Namespace, class_names: Sequence[str]) -> nn.Module:
    config_class, model_class = _classes_of(args.head)
    if args.model not in VARIANTS:
        near = did_you_mean(args.model, VARIANTS)
        raise ValueError(f"--model {args.model} is no variant of DaViT. {near}There are {', '.join(VARIANTS)}.")
    frozen = {} if args.freeze is None else {"frozen_stages": 4 if args.freeze == "all" else args.freeze}
    with _refused(f"--model {args.model}", "--model-kwargs", args.model_kwargs):
        given = {"variant": args.model, "drop_path_rate": args.drop_path, **args.model_kwargs, **frozen}
        backbone = DavitConfig(out_features=list(_STAGES), **given)
    widths = [backbone.stages()["embed_dims"][int(name[-1]) - 1] for name in _STAGES]
    known = set(vars(config_class())) | {"num_queries"}
    for name in args.head_kwargs:
        if name not in known or name in _SETTLED:
            near = did_you_mean(name, known - _SETTLED)
            why = "is settled by other flags" if name in _SETTLED else "is no argument of it"
            raise ValueError(f"--head-kwargs {name}: {why} ({config_class.__name__}). {near}")
    with _refused(f"--head {args.head}", "--head-kwargs", args.head_kwargs):
        config = config_class(
            backbone_config=backbone,
            encoder_in_channels=widths,
            id2label=dict(enumerate(class_names)),
            label2id={name: index for index, name in enumerate(class_names)},
            **args.head_kwargs,
        )
        net: nn.Module = model_class(config)
    return net


_SETTLED = {"backbone_config", "encoder_in_channels", "id2label", "label2id", "num_labels", "feat_strides"}


@contextmanager
def _refused(what: str, flag: str, given: Mapping[str, Any]) -> Iterator[None]:
    """Name the flag in errors of a constructor, which may be of any type."""
    try:
        yield
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"{what} cannot be built with {flag} {short(dict(given))} ({text}).") from error


def _classes_of(head: str) -> tuple[Any, Any]:
    from transformers import DFineConfig, DFineForObjectDetection, RTDetrV2Config, RTDetrV2ForObjectDetection

    return {
        "dfine": (DFineConfig, DFineForObjectDetection),
        "rtdetrv2": (RTDetrV2Config, RTDetrV2ForObjectDetection),
    }[head]


def _start_from(detector: Detector, source: str) -> None:
    """Load a detector's weights, without layers for other classes, or those of a classifier into the backbone."""
    if is_detector(source):
        checkpoint = read_checkpoint(_weights_of(Path(source)))
        prefix = "" if saved_folder(source) is not None else "net."
        names = {name.removeprefix(prefix): value for name, value in checkpoint.state_dict.items()}
        own = detector.net.state_dict()
        fitting = {name: value for name, value in names.items() if name in own and value.shape == own[name].shape}
        if len(fitting) < len(own) / 2:
            raise CheckpointError(
                f"{source} is a detector of another kind or size: {len(fitting)} of {len(own)} tensors fit."
            )
        detector.net.load_state_dict(fitting, strict=False)
        if left := [name for name in own if name not in fitting]:
            log.warning(
                "These tensors are not in %s, or not in this size, and keep their initial values: %s.",
                source,
                some(left, 4),
            )
        return
    load_checkpoint(detector.backbone, read_source(source))


# ---- loading and saving ----


@dataclass(frozen=True)
class LoadedDetector:
    """A trained detector, what it tells apart, and the side of its images in pixels."""

    detector: Detector
    class_names: tuple[str, ...]
    side: int
    origin: str
    data_dir: str | None = None


def load_detector(source: str | Path, device: torch.device) -> LoadedDetector:
    """Load a run's best checkpoint, a checkpoint, or a folder in the library's format, in eval mode.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    path = Path(source)
    if not is_detector(path):
        raise CheckpointError(
            f"{source} is no detector of `davit det train --head`: give the folder of a run, a checkpoint in it, or a "
            "folder that holds config.json and model.safetensors."
        )
    folder = saved_folder(path)
    loaded = _from_saved(folder) if folder is not None else _from_run(path)
    loaded.detector.to(device).eval()
    return loaded


def _weights_of(path: Path) -> Path:
    if path.is_file():
        return path
    if saved_folder(path) is not None:
        return path / "model.safetensors"
    file = next((path / name for name in ("model_best.pth.tar", "last.pth.tar") if (path / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{path} holds no checkpoint yet.")
    return file


def _from_run(path: Path) -> LoadedDetector:
    file = _weights_of(path)
    checkpoint = read_checkpoint(file)
    noted, names = checkpoint.metadata.get("args"), checkpoint.class_names
    if not isinstance(noted, dict) or noted.get("head") not in HEADS or names is None:
        raise CheckpointError(f"{file} is no checkpoint of a detector of `davit det train --head`.")
    start = {"pretrained": False, "initial_checkpoint": "", "grad_checkpointing": False, "freeze": None}
    detector = Detector(_net_of(Namespace(**{**noted, **start}), names))
    load_checkpoint(detector, checkpoint, head="require")
    side = int(str(noted["img_size"]).rpartition(",")[2])
    return LoadedDetector(detector, tuple(names), side, str(file), noted.get("data_dir"))


def _from_saved(folder: Path) -> LoadedDetector:
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    try:
        net = AutoModelForObjectDetection.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        size = AutoImageProcessor.from_pretrained(folder, local_files_only=True).size
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} cannot be read by transformers: {error}") from error
    names = tuple(str(net.config.id2label[index]) for index in range(net.config.num_labels))
    return LoadedDetector(Detector(net), names, int(size["height"]), str(folder))


def save_detector(detector: Detector, side: int, folder: Path) -> None:
    """Write a detector and its processor into a folder that `AutoModelForObjectDetection` reads."""
    from transformers import RTDetrImageProcessor

    net: Any = detector.net
    with _without_progress():
        net.save_pretrained(folder)
    RTDetrImageProcessor(
        size={"height": side, "width": side}, do_normalize=True, image_mean=list(MEAN), image_std=list(STD)
    ).save_pretrained(folder)


@contextmanager
def _without_progress() -> Iterator[None]:
    """Let transformers draw no progress bar, which it does for the one file of a small model too."""
    from transformers.utils import logging as theirs

    was_enabled = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            theirs.enable_progress_bar()
