"""Say what an exported model takes and gives: one JSON text under one key, in every format."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

KEY = "davit"
TASKS = ("classification", "features", "pyramid", "detection", "segmentation")
PREPROCESS = ("none", "uint8")
LAYOUTS = ("NCHW", "NHWC")
MOST_BYTES = 64 << 20  # of the JSON text; the names of a million classes


class MetadataError(ValueError):
    """A text is not the metadata of an export of ours."""


@dataclass(frozen=True)
class Metadata:
    """Say what an exported model takes and gives, and what it was made of.

    Attributes:
        task: one of `TASKS`.
        model: the architecture's name.
        input_size: (bands, height, width) that images are prepared to; a program of free sizes takes others too.
        output_names: in the order of the outputs.
        class_names: a name for each logit, label or class of a mask; None where they are not known.
        mean, std: of each band, for values of 0 to 1.
        crop_pct, crop_mode, interpolation: how an image becomes one of `input_size`; never part of the program.
        preprocess: "none": the program takes normalised float32; "uint8": it takes the bytes of the cropped image
            (RGB for three bands) and normalises them itself.
        layout: of the program's input: "NCHW" or "NHWC". An `ExportedModel` is always called with NCHW.
        decoding: how files are decoded: `bands`, `bit_depth`, `percentiles`, as in `davit.data.Decoding`.
        temperature: what logits are divided by before they become probabilities; not part of the program.
        axes: the sizes that `batch`, `height` and `width` can take: (least, most), most None where it is free.
        precision: of weights and computation: "float32", "float16" or "int8". Inputs and outputs are float32.
        format: as `davit.export --to` calls it.
        opset: of ONNX's operators; None for other formats.
        licence: of the weights, as far as it is known.
        checkpoint: what the weights were read from: a name, not a path.
        sha256: of that file; "" where the weights are no single file.
        davit: version that exported.
        versions: of the libraries that exported.
        function: whose channel attention it computes, as `davit.checkpoint` calls it.
        tolerance: largest difference from PyTorch that was allowed, relative to the largest value of an output; or,
            where that is more and no tolerance was asked for, twice PyTorch's own rounding.
        differences: what was measured before the file got its name, a dictionary for each input: `batch`, `height`,
            `width`, `difference` from the model in float64, and `pytorch`, the difference of PyTorch's own float32
            from it (None: the model does not compute in float64, and `difference` is from float32); empty where it
            could not be run, and then `unchecked` says why.
        int8: what was measured of a quantization; None for others.
        extra: facts of one task alone.
    """

    task: str
    model: str
    input_size: tuple[int, int, int]
    output_names: tuple[str, ...]
    class_names: tuple[str, ...] | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float = 1.0
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    preprocess: str = "none"
    layout: str = "NCHW"
    decoding: Mapping[str, Any] = field(default_factory=lambda: {"bands": 3, "bit_depth": None, "percentiles": None})
    temperature: float = 1.0
    axes: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    precision: str = "float32"
    format: str = ""
    opset: int | None = None
    licence: str = ""
    checkpoint: str = ""
    sha256: str = ""
    davit: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    function: str = ""
    tolerance: float | None = None
    differences: tuple[Mapping[str, Any], ...] = ()
    unchecked: str = ""
    int8: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def is_dynamic(self) -> bool:
        """Whether it takes images of more than one size."""
        return any(least != most for name, (least, most) in self.axes.items() if name != "batch")

    @property
    def bands(self) -> int:
        return self.input_size[0]

    def to_json(self) -> str:
        """Write it as one JSON text."""
        return json.dumps({name: getattr(self, name) for name in _NAMES}, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Metadata:
        """Read what `to_json` wrote; entries of later versions are left out.

        Raises:
            MetadataError: it is another text.
        """
        if len(text) > MOST_BYTES:
            raise MetadataError(f"its metadata are larger than {MOST_BYTES:,} bytes")
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise TypeError(f"a {type(values).__name__}, not an object")
            known: dict[str, Any] = {name: values[name] for name in _NAMES if name in values}
            for name in ("input_size", "output_names", "class_names", "mean", "std", "differences"):
                if known.get(name) is not None:
                    known[name] = tuple(known[name])
            known["axes"] = {name: tuple(ends) for name, ends in known.get("axes", {}).items()}
            return cls(**known)
        except MetadataError:
            raise
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise MetadataError(f"its metadata cannot be read ({error})") from error


_NAMES = tuple(one.name for one in fields(Metadata))


def _check(metadata: Metadata) -> None:
    """Raise a `MetadataError` for a value that no export of ours has."""
    bands = metadata.input_size[0] if metadata.input_size else 0
    texts = ("model", "crop_mode", "interpolation", "precision", "format", "licence", "checkpoint", "sha256", "davit")
    rules = {
        "task": metadata.task in TASKS,
        "preprocess": metadata.preprocess in PREPROCESS,
        "layout": metadata.layout in LAYOUTS,
        "input_size": len(metadata.input_size) == 3 and all(_is_whole(side) for side in metadata.input_size),
        "output_names": bool(metadata.output_names) and _are(str, metadata.output_names),
        "class_names": metadata.class_names is None or _are(str, metadata.class_names),
        "mean": len(metadata.mean) == bands and all(map(_is_number, metadata.mean)),
        "std": len(metadata.std) == bands and all(_is_number(value) and value > 0 for value in metadata.std),
        "crop_pct": _is_number(metadata.crop_pct) and 0 < metadata.crop_pct <= 4,
        "temperature": _is_number(metadata.temperature) and metadata.temperature > 0,
        "opset": metadata.opset is None or _is_whole(metadata.opset),
        "axes": all(
            len(ends) == 2 and _is_whole(ends[0]) and (ends[1] is None or _is_whole(ends[1]))
            for ends in metadata.axes.values()
        ),
        "tolerance": metadata.tolerance is None or _is_number(metadata.tolerance),
        "differences": all(isinstance(one, Mapping) for one in metadata.differences),
        "int8": metadata.int8 is None or isinstance(metadata.int8, Mapping),
        **{name: isinstance(getattr(metadata, name), Mapping) for name in ("decoding", "versions", "extra")},
        **{name: isinstance(getattr(metadata, name), str) for name in (*texts, "function", "unchecked")},
    }
    if wrong := [name for name, is_right in rules.items() if not is_right]:
        value = repr(getattr(metadata, wrong[0]))
        raise MetadataError(f"its metadata say {wrong[0]}={value[:80]}, which no export of davit's has")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _are(kind: type, values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, kind) for value in values)
