"""Tell which channel attention weights were trained for, and which one a model computes.

DaViT's and Florence-2's have the same parameters and compute something else with them (`davit.model`). The names of
timm's ``davit_*_fl`` and of Florence-2 say which it is. Ours do not, so a state dict of `davit.model` notes its
attentions in its `_metadata`, which torch.save keeps; a file without that has an entry (`FUNCTION_ENTRY`), or names
the model that was trained, or has a config.json of timm's or of transformers' beside it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import timm.models.davit
from torch import Tensor, nn

from ..counterparts import TIMM_DAVITS
from ..model import ChannelAttention, ChannelAttentionQK
from ..variants import FLORENCE2, VARIANTS
from .names import DAVIT_FUNCTION, FLORENCE2_FUNCTION, SPELLINGS, Recognised, structure_of

FUNCTION_ENTRY = "channel_attention"  # of a file whose names hide whose function it is
MIXED = f"{DAVIT_FUNCTION}+{FLORENCE2_FUNCTION}"  # of an edited model that has both
REMEDY = "DaViT_base_fl or DaViT_large_fl, or timm's davit_base_fl or davit_huge_fl, for Florence-2's"

_OF_KIND = {"channel": DAVIT_FUNCTION, "channel_qk": FLORENCE2_FUNCTION}
_OF_MODULE: dict[type[nn.Module], str] = {
    ChannelAttention: DAVIT_FUNCTION,
    ChannelAttentionQK: FLORENCE2_FUNCTION,
    timm.models.davit.ChannelAttention: DAVIT_FUNCTION,
    timm.models.davit.ChannelAttentionV2: FLORENCE2_FUNCTION,
}
_DO_NOT_TELL = (SPELLINGS["davit"], SPELLINGS["timm"])  # names that both functions' weights may have
_TEXTS = {
    DAVIT_FUNCTION: "DaViT's channel attention (softmax of k^T v, scaled by channels^-0.5, applied to q)",
    FLORENCE2_FUNCTION: "Florence-2's channel attention (softmax of q^T k, scaled by positions^-0.5, applied to v)",
}
_TEXTS[MIXED] = " and ".join(_TEXTS.values())


def _joined(functions: Iterable[str | None]) -> str | None:
    found = {function for function in functions if function is not None}
    return MIXED if len(found) > 1 else next(iter(found), None)


def function_of_model(model: nn.Module, ours: Recognised) -> str:
    """Tell which channel attention a model computes: by its modules, or else by the names of its tensors."""
    return _joined(_OF_MODULE.get(type(module)) for module in model.modules()) or ours.function


def noted_in(state_dict: object) -> str | None:
    """Read which channel attention the model had that gave this state dict; None if that is not noted."""
    notes = getattr(state_dict, "_metadata", None)
    if not isinstance(notes, Mapping):
        return None
    kinds = [note.get("attentions") for note in notes.values() if isinstance(note, Mapping)]
    return _joined(
        _OF_KIND.get(kind) for some in kinds if isinstance(some, list) for kind in some if isinstance(kind, str)
    )


def with_note(state_dict: Mapping[str, Tensor], function: str) -> dict[str, Tensor]:
    """Copy a state dict and note its channel attention as a state dict of `davit.model` does; tensors are shared."""
    noted = OrderedDict(state_dict)
    kinds = ["spatial", *(kind for kind, one in _OF_KIND.items() if function in (one, MIXED))]
    noted._metadata = {"": {"version": 1, "attentions": kinds}}  # type: ignore[attr-defined]
    return noted


def said_beside(metadata: Mapping[str, Any]) -> str | None:
    """Read which channel attention weights were trained for from what a file holds beside them; None if nothing says.

    That is the entry of a conversion, or the model that was trained (args.model, arch) and its arguments.
    """
    entry = metadata.get(FUNCTION_ENTRY)
    if isinstance(entry, str) and entry in _TEXTS:
        return entry
    args = metadata.get("args")
    args = args if isinstance(args, Mapping) else {}
    kwargs = args.get("model_kwargs")
    if isinstance(kwargs, Mapping) and (kinds := kwargs.get("attention_types")) is not None:
        return _of_kinds(kinds)
    for name in (args.get("model"), metadata.get("arch")):
        if isinstance(name, str) and name in VARIANTS:
            return _of_kinds(VARIANTS[name].attention_types)
    return None


def said_by_config(config: Mapping[str, Any]) -> str | None:
    """Read which channel attention a model has from its config.json; None if it is not of a DaViT.

    That is timm's description of a model (`architecture`, `model_args`), or one of `davit.transformers`, also as the
    backbone of a detector.
    """
    args = config.get("model_args")
    args = args if isinstance(args, Mapping) else {}
    name = config.get("architecture")
    if isinstance(name, str) and name in VARIANTS:
        return _of_kinds(args.get("attention_types", VARIANTS[name].attention_types))
    if isinstance(name, str) and name in TIMM_DAVITS:
        return FLORENCE2_FUNCTION if {**TIMM_DAVITS[name], **args}["channel_attn_v2"] else DAVIT_FUNCTION
    if config.get("model_type") == "davit":
        return _of_kinds(config.get("attention_types") or ("channel",))
    inner = config.get("backbone_config")
    return said_by_config(inner) if isinstance(inner, Mapping) and "backbone_config" not in inner else None


def _of_kinds(kinds: object) -> str | None:
    return _joined(_OF_KIND.get(str(kind)) for kind in kinds) if isinstance(kinds, list | tuple) else None


def likely_function(found: Recognised, tensors: Mapping[str, Tensor]) -> str:
    """Tell the channel attention of weights beside which nothing is said: by their names, or else their shapes.

    Shapes tell only if all variants that have them are Florence-2's.
    """
    if found.spelling in _DO_NOT_TELL:
        variants = structure_of(found, tensors).variants()
        if variants and all(VARIANTS[name].attention_types == FLORENCE2 for name in variants):
            return FLORENCE2_FUNCTION
    return found.function


def why_another(stated: str | None, likely: str, theirs: Recognised, ours: str, origin: str) -> str | None:
    """Say that weights are of another channel attention than the model's; None if they may be loaded.

    Args:
        stated: what the file says (`noted_in`, `said_beside`).
        likely: what its names and shapes let expect (`likely_function`).
        ours: the function of the model.
    """
    silent = stated is None and theirs.spelling in _DO_NOT_TELL
    function = stated or likely
    if function == ours:
        return None
    if silent and likely == FLORENCE2_FUNCTION:
        holds = (
            f"{origin} does not say for which channel attention its weights were trained; its shapes are Florence-2's"
        )
    elif silent:
        holds = f"{origin} does not say for which channel attention its weights were trained, and may be DaViT's"
    else:
        holds = f"{origin} holds weights for {_TEXTS[function]}"
    return (
        f"{holds}, but the model computes {_TEXTS[ours]}: the weights would load and the output would be wrong. Use "
        f"the model that they are of ({REMEDY}), or, if you know better or only start a training from them, "
        "allow_different_function=True. Nothing was loaded."
    )
