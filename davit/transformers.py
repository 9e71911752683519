"""Offer DaViT to the transformers library: a configuration, a backbone for its detectors and segmentors, a classifier.

Importing this module registers them: `DavitConfig` with AutoConfig, as "davit", `DavitBackbone` with AutoBackbone, and
`DavitForImageClassification` with AutoModelForImageClassification. D-FINE, RT-DETR, DETR and its successors,
Mask2Former, UperNet and all others that take a ``backbone_config`` then take a `DavitConfig`. A process that loads
such a model has to import this module too; ``import davit`` does not, as importing transformers takes seconds.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import is_exportable, is_scriptable
from torch import Tensor, nn

from . import kernels
from .checkpoint import Checkpoint, LoadReport, load_checkpoint
from .checkpoint.names import Structure, recognise, structure_of
from .checkpoint.read import open_source
from .limits import check_model_kwargs
from .model import ATTENTION_TYPES, DaViT
from .pretrained import PUBLISHED, fetch_pretrained, read_source
from .pyramid import DaViTPyramid
from .text import did_you_mean, nearest
from .variants import VARIANTS

try:
    from huggingface_hub.dataclasses import strict
    from transformers import (
        AutoBackbone,
        AutoConfig,
        AutoModelForImageClassification,
        BitImageProcessor,
        PreTrainedConfig,
        PreTrainedModel,
    )
    from transformers import initialization as init
    from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin, filter_output_hidden_states
    from transformers.image_utils import PILImageResampling
    from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutputWithNoAttention
    from transformers.utils.generic import can_return_tuple
except ImportError as error:
    raise ImportError(
        f"davit.transformers needs the transformers library, 5.24 or later ({error}): pip install "
        "'davit-torch[transformers]'."
    ) from error

_logger = logging.getLogger(__name__)

#: Fields of `DavitConfig` that are arguments of `davit.model.DualAttentionStages`, by the model's names.
_STAGES = {
    "in_chans": "num_channels",
    **{
        name: name
        for name in (
            *("depths", "patch_size", "embed_dims", "num_heads", "window_size", "mlp_ratio", "qkv_bias"),
            *("drop_path_rate", "attention_types", "ffn", "overlapped_patch", "cpe_act", "weight_init"),
        )
    },
}
_DEFAULT = "DaViT_tiny"


@strict
class DavitConfig(BackboneConfigMixin, PreTrainedConfig):
    """Hold the numbers of a DaViT, and which stages a backbone gives out.

    Its JSON holds the numbers and no name of a variant; `variant` finds the name.

    Args:
        variant: a name in `davit.VARIANTS`, whose numbers stand for those that are not given; DaViT_tiny by default.
        out_features, out_indices: the stages whose maps a backbone returns, in order, by name ("stage1" ...) or from
            0, as `DaViTPyramid` counts them; a negative index counts from the end. The last one by default.
        num_channels: of the image; ``in_chans`` is another name of it.
        depths ... weight_init: those of `davit.model.DualAttentionStages`.
        frozen_stages: of the backbone, as in `DaViTPyramid`: -1 freezes nothing, 0 the stem, k the first k stages.
        drop_rate, global_pool: of the classifier, as in `davit.DaViT`.
        accelerate: let kernels compute the blocks where they can (`davit.accelerate`).
        others: those of ``PreTrainedConfig``: num_labels, id2label, dtype ...

    Raises:
        ValueError: a variant, stage or argument is unknown, or a value is of another type.
    """

    model_type = "davit"
    attribute_map = {"in_chans": "num_channels", "hidden_sizes": "embed_dims"}  # noqa: RUF012

    num_channels: int = 3
    embed_dims: list[int] | tuple[int, ...] | None = None
    depths: list[int] | tuple[int, ...] | None = None
    num_heads: list[int] | tuple[int, ...] | None = None
    window_size: int | None = None
    overlapped_patch: bool | None = None
    attention_types: list[str] | tuple[str, ...] | None = None
    patch_size: int = 4
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    drop_path_rate: float | int = 0.1
    ffn: bool = True
    cpe_act: bool = False
    weight_init: str = ""
    frozen_stages: int = -1
    drop_rate: float | int = 0.0
    global_pool: str = "avg"
    accelerate: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        variant = kwargs.pop("variant", None)
        numbers = _numbers_of(_DEFAULT if variant is None else variant)
        for name, value in numbers.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name, value in vars(self).items():
            if isinstance(value, tuple):  # as JSON has it
                setattr(self, name, list(value))
        for name in kwargs.keys() - _ACCEPTED:  # transformers itself takes any
            if near := _OTHERS_NAMES.get(name, *nearest(name, [*_FIELDS, *_ACCEPTED], cutoff=0.7)):
                raise ValueError(f"DavitConfig has no argument {name!r}; did you mean {near!r}?")
        self.stage_names = [f"stage{stage}" for stage in range(1, 1 + len(self.depths or ()))]
        kwargs.pop("stage_names", None)  # derived, and in the JSON all the same
        self.set_output_features_output_indices(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        super().__post_init__(**kwargs)

    @property
    def variant(self) -> str | None:
        """The first variant that has all these numbers, None if none has; setting it replaces the numbers."""
        for name in VARIANTS:
            if all(getattr(self, key) == value for key, value in _numbers_of(name).items()):
                return name
        return None

    @variant.setter
    def variant(self, name: str) -> None:
        for key, value in _numbers_of(name).items():
            setattr(self, key, value)

    def set_output_features_output_indices(
        self, out_features: Sequence[str] | None, out_indices: Sequence[int] | None
    ) -> None:
        """Choose the stages of a backbone's maps by name or by index; the last one if neither is given."""
        stages = len(self.stage_names)
        if out_indices is not None and (
            not out_indices or any(not isinstance(i, int) or not -stages <= i < stages for i in out_indices)
        ):
            raise ValueError(
                f"out_indices={list(out_indices)} must name one or more stages of 0 to {stages - 1} "
                f"({', '.join(self.stage_names)}); a negative one counts from the end."
            )
        if out_features is not None and not out_features:
            raise ValueError(f"out_features=[] names no stage; there are {', '.join(self.stage_names)}.")
        super().set_output_features_output_indices(
            None if out_features is None else list(out_features), None if out_indices is None else list(out_indices)
        )

    def stages(self) -> dict[str, Any]:
        """Return the arguments of `davit.model.DualAttentionStages`."""
        return {name: getattr(self, field) for name, field in _STAGES.items()}


_BASE = PreTrainedConfig.__dataclass_fields__
_FIELDS = [name for name in DavitConfig.__dataclass_fields__ if name not in _BASE and not name.startswith("_")]
_ACCEPTED = {"variant", "out_features", "out_indices", "in_chans", "num_labels"}
_OTHERS_NAMES = {"num_classes": "num_labels"}


def _numbers_of(variant: str) -> dict[str, Any]:
    if variant not in VARIANTS:
        hint = did_you_mean(variant, VARIANTS)
        raise ValueError(f"variant={variant!r} is unknown; {hint}There are {', '.join(VARIANTS)}.")
    numbers = {"attention_types": ATTENTION_TYPES, **VARIANTS[variant].model_kwargs()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in numbers.items()}


class DavitPreTrainedModel(PreTrainedModel):
    """Do what backbone and classifier share: how weights are made, saved, loaded and spared memory.

    Attention is DaViT's own, by kernels or as it is written, so ``attn_implementation`` "eager" and "sdpa" compute the
    same. With activation checkpointing each block keeps its input alone.
    """

    config: DavitConfig
    config_class = DavitConfig
    base_model_prefix = "davit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["DualAttentionBlock", "FusedBlock", "PatchEmbed", "FusedPatchEmbed"]  # noqa: RUF012
    davit: DaViT | DaViTPyramid

    #: What `from_davit` loaded; None for weights from elsewhere.
    load_report: LoadReport | None = None

    @classmethod
    def from_davit(
        cls, source: str | Path | Checkpoint | Mapping[str, Any], *, ema: str = "auto", **config: Any
    ) -> Any:
        """Build a model for a checkpoint of a DaViT from anywhere, and load it (`davit.checkpoint.load_checkpoint`).

        Args:
            source: a file, folder or repository of the hub as `davit.pretrained` lists them (``hf-hub:OWNER/NAME``), a
                name of `davit.pretrained.PUBLISHED`, or a `Checkpoint` or state dict.
            ema: which weights of a training's checkpoint: "auto" takes averaged ones where there are any.
            config: arguments of `DavitConfig` that replace what the checkpoint tells: ``out_indices=(1, 2, 3)``,
                ``drop_path_rate=0.2``, ``variant`` or numbers where shapes do not tell them ...

        Returns:
            The model, on the CPU and in eval mode; its `load_report` says what came in and what did not.

        Raises:
            CheckpointError: the file cannot be read, or does not fit the configuration.
            ValueError: the checkpoint does not tell which variant it is of, or an argument is unknown.
            PretrainedError: the hub does not have it, or cannot be reached.
        """
        if isinstance(source, str | Path):
            checkpoint = read_source(fetch_pretrained(source) if source in PUBLISHED else source, ema)
        else:
            checkpoint = open_source(source, ema)
        model = cls(_config_of(checkpoint, config, with_labels=cls is not DavitBackbone))
        model.load_report = load_checkpoint(model, checkpoint)
        return model.eval()

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass; transformers sets it for all parts of a model."""
        return self.davit.grad_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.davit.set_grad_checkpointing(enable)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill a layer that no checkpoint filled, as `davit.model` does; `init` leaves alone what was loaded."""
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d) and self.config.weight_init == "conv":
            init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d):  # as torch does
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)
            return
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
        else:
            return
        if module.bias is not None:
            init.zeros_(module.bias)

    def _accelerated(self) -> None:
        """Finish the construction: initialise, and let kernels compute what they can."""
        self.post_init()
        if self.config.accelerate and not is_scriptable() and not is_exportable():
            kernels.accelerate(self)

    def _pixels(self, pixel_values: Tensor) -> Tensor:
        """Return the images in the dtype of the weights, so that a model in bfloat16 reads what a processor gives."""
        return pixel_values.to(next(self.davit.parameters()).dtype)


class DavitBackbone(BackboneMixin, DavitPreTrainedModel):
    """Return the maps of several stages of DaViT, each normalised by a norm of its own (`DaViTPyramid`).

    Its ``channels``, ``num_features``, ``stage_names``, ``out_features`` and ``out_indices`` are as transformers has
    them. Stages behind the last one given out, and the norms of the others, do not exist.
    """

    davit: DaViTPyramid
    has_attentions = False
    _keys_to_ignore_on_load_unexpected = [r"\bdavit\.(norms|head)\."]  # noqa: RUF012, of a classifier

    def __init__(self, config: DavitConfig):
        super().__init__(config)
        self.num_features = config.stages()["embed_dims"]
        self.davit = DaViTPyramid(
            out_indices=config.out_indices, frozen_stages=config.frozen_stages, **config.stages()
        )
        self._accelerated()

    def _refuse(self, stages: Any) -> None:
        raise ValueError(
            f"the stages of a built backbone are fixed, to {self.out_features}: build it again for {stages} "
            "(DavitConfig, or from_pretrained(..., out_indices=...))."
        )

    out_features = property(BackboneMixin.out_features.fget, _refuse)
    out_indices = property(BackboneMixin.out_indices.fget, _refuse)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: Tensor, output_attentions: bool | None = None, **kwargs: Any) -> BackboneOutput:
        """Compute the maps (B, C, H / stride, W / stride), sizes rounded up, of images (B, num_channels, H, W).

        Args:
            output_hidden_states: return also the maps of every stage that was computed, without a norm.

        Raises:
            ValueError: attentions are asked for, which `davit.visualize` shows.
        """
        if output_attentions:
            raise ValueError(
                "output_attentions=True: DaViT's two kinds of attention are not among its outputs; "
                "`python -m davit.visualize` draws them."
            )
        maps = self.davit.forward_stages(self._pixels(pixel_values))
        return BackboneOutput(
            feature_maps=self.davit.forward_levels(maps),
            hidden_states=tuple(x_BHWC.permute(0, 3, 1, 2) for x_BHWC in maps),
            attentions=None,
        )


class DavitForImageClassification(DavitPreTrainedModel):
    """Classify images by a `davit.DaViT` with ``num_labels`` outputs, named by ``id2label``."""

    davit: DaViT
    accepts_loss_kwargs = False  # the loss is a mean over the batch, whatever the Trainer accumulates

    def __init__(self, config: DavitConfig):
        super().__init__(config)
        if config.frozen_stages != -1:
            raise ValueError(
                f"frozen_stages={config.frozen_stages} is for a backbone; of a classifier, call requires_grad_(False) "
                "on parts of model.davit."
            )
        self.num_labels = config.num_labels
        self.davit = DaViT(
            num_classes=config.num_labels,
            drop_rate=config.drop_rate,
            global_pool=config.global_pool,
            **config.stages(),
        )
        self._accelerated()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """Compute the logits (B, num_labels) of images (B, num_channels, H, W), and with labels the loss.

        Args:
            output_hidden_states: return also the map of every stage, (B, C, H / stride, W / stride).
        """
        maps = [x_BHWC.permute(0, 3, 1, 2) for x_BHWC in self.davit.forward_stages(self._pixels(pixel_values))]
        logits = self.davit.forward_head(maps[-1])
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=tuple(maps))


def image_processor(config: Mapping[str, Any]) -> BitImageProcessor:
    """Build the processor that prepares images as timm does: resize the shorter side, crop the centre, normalise.

    Args:
        config: timm's ``pretrained_cfg`` or resolved data config, such as ``davit.load(FILE).config``.

    Raises:
        ValueError: its crop mode is none that this processor has.
    """
    height, width = config["input_size"][-2:]
    share, mode = config.get("crop_pct") or 1.0, config.get("crop_mode") or "center"
    if mode == "center" and height == width:
        size = {"shortest_edge": int(height / share)}
    elif mode == "squash":
        size = {"height": int(height / share), "width": int(width / share)}
    else:
        raise ValueError(
            f"crop_mode={mode!r} for images of {height} x {width} is none of this processor's: it has 'squash', and "
            "'center' for squares; prepare images by davit.data.eval_transform instead."
        )
    return BitImageProcessor(
        size=size,
        crop_size={"height": height, "width": width},
        resample=PILImageResampling[config["interpolation"].upper()],
        image_mean=list(config["mean"]),
        image_std=list(config["std"]),
    )


def _config_of(checkpoint: Checkpoint, given: Mapping[str, Any], with_labels: bool) -> DavitConfig:
    """Find the configuration that a checkpoint is of: as its training noted, else by the shapes of its weights."""
    davit = checkpoint.davit or recognise(checkpoint.state_dict, checkpoint.origin)
    structure = structure_of(davit, checkpoint.state_dict)
    found: dict[str, Any] = {"num_channels": structure.in_chans or 3, **_noted(checkpoint)}
    if with_labels:
        names = checkpoint.class_names
        if names is not None and len(names) == structure.num_classes:
            found.update(id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
        elif structure.num_classes is not None:
            found["num_labels"] = structure.num_classes
    if "num_labels" in given or "id2label" in given:
        found = {name: value for name, value in found.items() if name not in ("num_labels", "id2label", "label2id")}
    config = {**found, **{"num_channels" if name == "in_chans" else name: value for name, value in given.items()}}
    if "variant" not in config and not {"embed_dims", "depths", "num_heads", "window_size"} <= config.keys():
        config["variant"] = _variant_of(checkpoint, structure)
    return DavitConfig(**config)


def _noted(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a training by train.py noted of its model, as arguments of `DavitConfig`."""
    args = checkpoint.metadata.get("args")
    noted = args if isinstance(args, dict) else {}
    kwargs = noted.get("model_kwargs") or {}
    check_model_kwargs(kwargs, checkpoint.origin)
    found = {_STAGES[name]: value for name, value in kwargs.items() if name in _STAGES}
    if noted.get("model") in VARIANTS:
        found["variant"] = noted["model"]
    if noted.get("gp"):
        found["global_pool"] = noted["gp"]
    return found


def _variant_of(checkpoint: Checkpoint, structure: Structure) -> str:
    """Find the variant whose stages have these shapes and whose channel attention is that of the weights."""
    stages = len(structure.depths)
    names = [
        name
        for name, variant in VARIANTS.items()
        if (variant.embed_dims[:stages], variant.depths[:stages]) == (structure.embed_dims, structure.depths)
        and (stages == 1 or variant.overlapped_patch == structure.overlapped_patch)
        and ("channel_qk" in _numbers_of(name)["attention_types"]) == (checkpoint.function == "florence2")
    ]
    if not names:
        raise ValueError(
            f"{checkpoint.origin} has {structure}, which is no variant's: give `variant=NAME` of "
            f"{', '.join(VARIANTS)}, or its numbers, `embed_dims`, `depths`, `num_heads` and `window_size`."
        )
    if len(names) > 1:
        _logger.warning(
            "%s has the shapes of %s; taking the first. Give `variant=NAME` for another.",
            *(checkpoint.origin, " and ".join(names)),
        )
    return names[0]


AutoConfig.register(DavitConfig.model_type, DavitConfig, exist_ok=True)
AutoBackbone.register(DavitConfig, DavitBackbone, exist_ok=True)
AutoModelForImageClassification.register(DavitConfig, DavitForImageClassification, exist_ok=True)
