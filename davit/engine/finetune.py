"""Train a part of a model: freeze the rest, and give its head a learning rate of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from ..checkpoint import Checkpoint
from ..text import install_extra
from .run_log import plain

log = logging.getLogger(__name__)


def classifiers(model: nn.Module) -> list[nn.Module]:
    """List a model's classifiers, of which some have two, or those of a student in timm's module for its features."""
    student = getattr(model, "student", model)
    found = student.get_classifier() if hasattr(student, "get_classifier") else None  # type: ignore[operator]
    several = found if isinstance(found, tuple | list) else (found,)
    return [module for module in several if isinstance(module, nn.Module)]


def classifier_parameters(model: nn.Module) -> list[str]:
    """Name the parameters of a model's classifiers."""
    own = {id(parameter) for module in classifiers(model) for parameter in module.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in own]


def freeze(model: nn.Module, what: int | str) -> None:
    """Freeze the first stages of a model, or all of it but the classifier; `training_mode` then leaves them in eval.

    Args:
        what: "all", or the number of stages: 0 freezes the stem alone, k the stem and the first k stages. In a model
            without stages, such as a ViT, the blocks are counted.

    Raises:
        ValueError: the model has no such stages, or no classifier; or nothing would be left to train.
    """
    parameters = dict(model.named_parameters())
    if what == "all":
        kept = set(classifier_parameters(model))
        if not kept:
            raise ValueError(f"--freeze all: {type(model).__name__} has no classifier that could be trained.")
        frozen = [name for name in parameters if name not in kept]
    else:
        frozen = _first_stages(model, int(what))
    for name in frozen:
        parameters[name].requires_grad_(False)
    count = sum(parameters[name].numel() for name in frozen)
    log.info(
        "--freeze %s: %.2f of %.2f M parameters keep their values, and their layers are in eval mode.",
        *(what, count / 1e6, sum(parameter.numel() for parameter in parameters.values()) / 1e6),
    )


def _first_stages(model: nn.Module, count: int) -> list[str]:
    if not hasattr(model, "group_matcher"):
        raise ValueError(f"--freeze {count}: {type(model).__name__} does not name its stages; --freeze all may do.")
    groups = group_parameters(model, model.group_matcher(coarse=True))  # type: ignore[operator]
    stages = len(groups) - 2  # beside the stem, and the head or its norm
    if count > stages:
        raise ValueError(
            f"--freeze {count}: {type(model).__name__} has {stages} stages or blocks; give 0 (the stem) to {stages}, "
            "or all (everything but the classifier)."
        )
    return [name for group in range(count + 1) for name in groups[group]]


def add_lora(model: nn.Module, rank: int, alpha: float | None) -> dict[str, Any]:
    """Add low-rank adapters to the linear layers of a model, by peft, and freeze all else but the classifier.

    Hu et al., "LoRA" (ICLR 2022).

    Args:
        alpha: the adapters' outputs are multiplied by alpha / rank; None for twice the rank.

    Returns:
        The configuration, as adapter_config.json has it.

    Raises:
        ValueError: peft is not installed, or the model has no linear layer beside its classifier.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(f"--lora {rank} needs peft ({error}): {install_extra('lora')}") from error
    parameters = classifier_parameters(model)
    kept = {name.rpartition(".")[0] for name in parameters}
    layers = [name for name, one in model.named_modules() if type(one) is nn.Linear and name not in kept]
    if not layers:
        raise ValueError(f"--lora {rank}: {type(model).__name__} has no linear layers that could be adapted.")
    config = LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, target_modules=layers)  # type: ignore[arg-type]
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if name in parameters:
            parameter.requires_grad_(True)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.info(
        "--lora %d: %d layers have adapters; with the classifier %.3f M parameters are trained.",
        *(rank, len(layers), trained / 1e6),
    )
    saved = {**config.to_dict(), "target_modules": sorted(layers), "modules_to_save": sorted(kept - {""})}
    return {name: plain(value) for name, value in saved.items() if isinstance(value, str | int | float | list | None)}


def split_adapters(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a LoRA run's checkpoint that ``adapter_model.safetensors`` of peft has, by its names."""
    kept = tuple(f"{name}." for name in config["modules_to_save"])
    tensors = checkpoint.unmerged or {}
    return {
        f"base_model.model.{name.replace('.default.', '.')}": tensor
        for name, tensor in tensors.items()
        if ".lora_" in name or name.startswith(kept)
    }


def training_mode(model: nn.Module, forward: nn.Module | None = None) -> None:
    """Put a model into training mode, except the modules whose parameters are all frozen.

    So batch norms in frozen layers keep their statistics, and frozen blocks have no drop path.

    Args:
        forward: the same model as it is wrapped for the forward pass.
    """
    model.train()
    if forward is not None:
        forward.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    layer_decay: float | None,
    layer_decay_min_scale: float,
    head_scale: float,
    student: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Group parameters as timm's optimizers do, with the classifier's in groups of their own.

    Args:
        student: the classifier inside `model`, where that holds more, such as a projection of its features to those
            of a teacher; that has the plain rate.
        layer_decay: factor on the rate for each layer towards the input; None for none.
        layer_decay_min_scale: the least that these factors come to.
        head_scale: factor on the classifier's rate.
    """
    if student is not None and student is not model:
        groups = parameter_groups(
            student,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            layer_decay_min_scale=layer_decay_min_scale,
            head_scale=head_scale,
        )
        students = {id(parameter) for parameter in student.parameters()}
        beside = nn.Module()
        for name, parameter in model.named_parameters():
            if id(parameter) not in students:
                beside.register_parameter(name.replace(".", "_"), parameter)
        return [*groups, *param_groups_weight_decay(beside, weight_decay)]
    never = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    if layer_decay is None:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=never)
    else:
        groups = param_groups_layer_decay(
            model, weight_decay, never, layer_decay=layer_decay, min_scale=layer_decay_min_scale
        )
    parameters = dict(model.named_parameters())
    head = {id(parameters[name]) for name in classifier_parameters(model)}
    if not head and head_scale != 1:
        raise ValueError(f"--head-lr-scale {head_scale:g}: {type(model).__name__} has no classifier.")
    split: list[dict[str, Any]] = []
    for group in groups:
        rest = [parameter for parameter in group["params"] if id(parameter) not in head]
        own = [parameter for parameter in group["params"] if id(parameter) in head]
        if rest:
            split.append({**group, "params": rest})
        if own:
            split.append({**group, "params": own, "lr_scale": head_scale * group.get("lr_scale", 1.0)})
    return split


def head_group(optimizer: torch.optim.Optimizer, model: nn.Module) -> int:
    """Return the index of the group that holds the classifier's first parameter, 0 where no group does."""
    names: Sequence[str] = classifier_parameters(model)[:1]
    parameters = dict(model.named_parameters())
    for number, group in enumerate(optimizer.param_groups):
        if any(parameter is parameters[name] for name in names for parameter in group["params"]):
            return number
    return 0


def scale_head(model: nn.Module, scale: float | None, bias: float | None) -> None:
    """Multiply a classifier's weights and biases, or set its biases, as timm's flags of these names do.

    Raises:
        ValueError: the model has no linear classifier.
    """
    linear = [one for one in classifiers(model) if isinstance(getattr(one, "weight", None), nn.Parameter)]
    if not linear:
        raise ValueError(
            f"--head-init-scale and --head-init-bias: {type(model).__name__} has no classifier with a weight."
        )
    with torch.no_grad():
        for classifier in linear:
            if scale is not None:
                for parameter in classifier.parameters():
                    parameter.mul_(scale)
            if bias is not None:
                if not isinstance(classifier.bias, nn.Parameter):
                    raise ValueError(
                        f"--head-init-bias {bias:g}: a classifier of {type(model).__name__} has no biases."
                    )
                classifier.bias.fill_(bias)
