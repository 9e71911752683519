"""One figure of one picture: the classes, the evidence for them, and what each stage's attentions look at."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files import write_bytes
from ..model import DaViT
from ..predict import Prediction, Predictor
from ..predict.pictures import Picture, open_picture
from .attention import Attention, ChannelView, SpatialView, attention_of
from .evidence import Evidence, class_evidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS, _GROUPS, _EVIDENCES = 6, 3, 3
_SIDE, _GAP, _TITLE, _LEFT = 2.0, 0.12, 0.42, 0.75  # inches
_SEEN, _EVIDENCE = "viridis", "PuOr_r"
_FONT = 8


@dataclass(frozen=True)
class Look:
    """All that was computed of one picture.

    Attributes:
        shown_HWC: the picture as the model saw it, resized and cropped, 0 to 1.
        attention: None for a model other than DaViT.
        marked: the place of most evidence for the first class, as shares (down, right) of the picture.
    """

    prediction: Prediction
    shown_HWC: np.ndarray[Any, Any]
    evidence: tuple[Evidence, ...]
    attention: Attention | None
    marked: tuple[float, float]


def look(predictor: Predictor, picture: Picture, class_index: int | None = None) -> Look:
    """Classify a picture and compute what the figure shows.

    Args:
        class_index: the class whose evidence is asked for; the most probable where None.

    Raises:
        ValueError: the picture cannot be read, or the class is unknown.
    """
    image_CHW = predictor.transform(open_picture(picture))
    prediction = predictor.predict(picture)
    others = [guess.index for guess in prediction.guesses if guess.index != class_index]
    classes = ([class_index] if class_index is not None else []) + others
    image_1CHW = image_CHW[None].to(predictor.device)
    evidence = class_evidence(predictor.model, image_1CHW, classes[:_EVIDENCES])
    attention = attention_of(predictor.model, image_1CHW) if isinstance(predictor.model, DaViT) else None
    map_HW = evidence[0].map_HW
    row, column = divmod(int(map_HW.argmax()), map_HW.shape[1])
    marked = ((row + 0.5) / map_HW.shape[0], (column + 0.5) / map_HW.shape[1])
    return Look(prediction, _as_seen(image_CHW, predictor.config), tuple(evidence), attention, marked)


def draw_picture(
    predictor: Predictor, picture: Picture, out: str | Path, class_index: int | None = None
) -> Prediction:
    """Write the figure of one picture to a file in the format of its suffix, in one step.

    Args:
        class_index: as in `look`.

    Returns:
        What the model says of the picture.

    Raises:
        ValueError: as `look` does, or an unknown format.
        OSError: the file cannot be written.
    """
    form = Path(out).suffix.lstrip(".").lower() or "png"
    seen = look(predictor, picture, class_index)
    stream = io.BytesIO()
    try:
        render(predictor, seen).savefig(stream, format=form)
    except ValueError as error:
        raise ValueError(f"{out} cannot be drawn: {error}") from error
    write_bytes(out, stream.getvalue())
    return seen.prediction


def render(predictor: Predictor, seen: Look) -> Any:
    """The figure, as matplotlib's `Figure`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second of import, paid when drawing
    from matplotlib.figure import Figure

    stages = len(predictor.model.main_blocks) if seen.attention is not None else 0
    width = _LEFT + _COLUMNS * (_SIDE + _GAP)
    height = (1 + stages) * (_SIDE + _TITLE) + 0.35
    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)

    def panel(row: int, column: int, columns: int = 1, title: str = "") -> Axes:
        left = _LEFT + column * (_SIDE + _GAP)
        bottom = height - 0.3 - (row + 1) * (_SIDE + _TITLE) + _GAP
        spread = columns * _SIDE + (columns - 1) * _GAP
        axes = figure.add_axes((left / width, bottom / height, spread / width, _SIDE / height))
        axes.set_title(title, fontsize=_FONT)
        return axes

    name = Path(seen.prediction.file).name
    figure.text(0.5, 1 - 0.1 / height, f"{predictor.name}: {name}", ha="center", va="top", fontsize=11)
    _picture(panel(0, 0, title="what the model sees"), seen.shown_HWC)
    for column, evidence in enumerate(seen.evidence, start=1):
        title = f"evidence for {_short(predictor.class_names[evidence.class_index])}"
        _evidence(panel(0, column, title=title), seen, evidence, mark=column == 1)
    _bars(panel(0, 4, 2, title="classes"), seen.prediction)
    for stage in range(stages):
        assert seen.attention is not None
        spatial, channel = seen.attention.last(stage)
        _stage(figure, panel, stage, spatial, channel, seen)
        middle = height - 0.3 - (stage + 2) * (_SIDE + _TITLE) + _GAP + _SIDE / 2
        figure.text(0.3 / width, middle / height, _describe(stage, spatial, channel), **_BESIDE)
    return figure


_BESIDE: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center", "fontsize": _FONT}


def _describe(stage: int, spatial: SpatialView | None, channel: ChannelView | None) -> str:
    view = spatial or channel
    if view is None:
        return f"stage {stage + 1}"
    H, W = spatial.received_HW.shape if spatial is not None else channel.response_GHW.shape[1:]  # type: ignore[union-attr]
    return f"stage {stage + 1}\n{H} x {W} positions"


def _stage(
    figure: Any, panel: Any, stage: int, spatial: SpatialView | None, channel: ChannelView | None, seen: Look
) -> None:
    if spatial is not None:
        axes = panel(stage + 1, 0, title="windows: attention received")
        _overlay(axes, seen.shown_HWC, spatial.received_HW, _SEEN, smooth=False)
        _grid(axes, spatial, seen.shown_HWC)
        H, W = spatial.received_HW.shape
        here = min(int(seen.marked[0] * H), H - 1), min(int(seen.marked[1] * W), W - 1)
        axes = panel(stage + 1, 1, title="windows: seen from the cross")
        _overlay(axes, seen.shown_HWC, spatial.seen_from(*here), _SEEN, smooth=False)
        _grid(axes, spatial, seen.shown_HWC)
        height, width = seen.shown_HWC.shape[:2]
        axes.plot((here[1] + 0.5) * width / W, (here[0] + 0.5) * height / H, "x", color="#d55e00", markersize=6)
    if channel is not None:
        for column, group in enumerate(channel.most_telling(_GROUPS), start=2):
            axes = panel(stage + 1, column, title=f"channel group {group + 1} responds")
            _overlay(axes, seen.shown_HWC, channel.response_GHW[group], _SEEN, smooth=True)
        group = channel.most_telling(1)[0]
        axes = panel(stage + 1, 5, title=f"group {group + 1}: channel to channel")
        axes.imshow(channel.attention_GDD[group].cpu(), cmap=_SEEN, interpolation="nearest")
        axes.set_axis_off()


def _as_seen(image_CHW: Tensor, config: dict[str, Any]) -> np.ndarray[Any, Any]:
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    return (image_CHW * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


def _picture(axes: Axes, shown_HWC: np.ndarray[Any, Any]) -> None:
    axes.imshow(shown_HWC, interpolation="nearest")
    axes.set_axis_off()


def _overlay(axes: Axes, shown_HWC: np.ndarray[Any, Any], map_HW: Tensor, colours: str, smooth: bool) -> None:
    """The map over the greyscale picture, from 0 to its maximum."""
    height, width = shown_HWC.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(shown_HWC.mean(2), cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    top = float(map_HW.max()) or 1.0
    interpolation = "bilinear" if smooth else "nearest"
    axes.imshow(map_HW.cpu(), cmap=colours, vmin=0, vmax=top, alpha=0.7, extent=extent, interpolation=interpolation)
    axes.set_axis_off()


def _evidence(axes: Axes, seen: Look, evidence: Evidence, mark: bool) -> None:
    """Signed, on one scale for all classes: orange speaks for the class, violet against it."""
    height, width = seen.shown_HWC.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(seen.shown_HWC.mean(2), cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    top = max(float(one.map_HW.abs().max()) for one in seen.evidence) or 1.0
    colours: dict[str, Any] = {"cmap": _EVIDENCE, "vmin": -top, "vmax": top, "alpha": 0.7, "extent": extent}
    axes.imshow(evidence.map_HW.cpu(), interpolation="bilinear", **colours)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_axis_off()
    if mark:
        axes.plot(seen.marked[1] * width - 0.5, seen.marked[0] * height - 0.5, "x", color="black", markersize=6)
    note = {"exact": "its places add up to the logit", "occlusion": "what is lost when hidden"}[evidence.method]
    axes.text(0.5, -0.03, note, transform=axes.transAxes, ha="center", va="top", fontsize=_FONT - 1.5)


def _grid(axes: Axes, spatial: SpatialView, shown_HWC: np.ndarray[Any, Any]) -> None:
    """The borders of the windows."""
    height, width = shown_HWC.shape[:2]
    H, W = spatial.received_HW.shape
    for edge in range(spatial.window, H, spatial.window):
        axes.axhline(edge * height / H - 0.5, color="white", linewidth=0.6)
    for edge in range(spatial.window, W, spatial.window):
        axes.axvline(edge * width / W - 0.5, color="white", linewidth=0.6)


def _bars(axes: Axes, prediction: Prediction) -> None:
    guesses = prediction.guesses[::-1]
    axes.barh(range(len(guesses)), [100 * guess.probability for guess in guesses], color="#56b4e9", height=0.55)
    for place, guess in enumerate(guesses):
        axes.text(1, place, f"{_short(guess.name, 34)}  {guess.probability:.1%}", va="center", fontsize=_FONT)
    axes.set_xlim(0, 100)
    axes.set_yticks([])
    axes.tick_params(labelsize=_FONT - 1)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _short(name: str, length: int = 18) -> str:
    name = name.partition(" (n0")[0]
    return name if len(name) <= length else name[: length - 1] + "…"


def evidence_image(seen: Look) -> Image.Image:
    """The evidence for the first class over the picture, for a page: as large as what the model saw, or 320 px."""
    from matplotlib import colormaps

    height, width = seen.shown_HWC.shape[:2]
    scale = max(1.0, 320 / min(height, width))
    size = (round(width * scale), round(height * scale))
    map_HW = seen.evidence[0].map_HW.cpu().numpy()
    top = float(np.abs(map_HW).max()) or 1.0
    smooth = Image.fromarray((map_HW / top).astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    colour = colormaps[_EVIDENCE](0.5 + 0.5 * np.asarray(smooth))[..., :3]
    grey = Image.fromarray((255 * seen.shown_HWC.mean(2)).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    mixed = 0.65 * colour + 0.35 * np.asarray(grey)[..., None] / 255
    return Image.fromarray((255 * mixed).round().astype(np.uint8))
