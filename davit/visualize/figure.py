"""Draw one figure of one image: its classes, the evidence for them, and what the attentions look at."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.imagenet import without_id
from ..files import write_atomically
from ..fonts import drawable
from ..model import DaViT
from ..predict import Prediction, Predictor
from ..predict.pictures import Picture, open_picture
from ..style import GREY, MAP, ORANGE, SKY, SMALL, figure_style
from ..text import as_line
from .attention import Attention, attention_of
from .evidence import Evidence, class_evidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS, _GROUPS, _EVIDENCES = 6, 3, 3
_EVIDENCE = "PuOr_r"
_WRAPPED = 38  # characters of a line below a map
_MAP_SIDE, _MAP_DPI = 2.6, 150  # inches of a map's longer side where it is an image of its own

#: How each map is read, in a sentence; the two kinds of evidence by their method.
HOW_TO_READ = {
    "exact": "Orange places speak for the class, violet ones against it; together they make its logit.",
    "occlusion": "Hiding an orange place lowers the score of the class; hiding a violet one raises it.",
    "attention received": "Bright positions are looked at most by the others of their window (white lines).",
    "seen from the cross": "Bright positions are what the one at the cross looks at in its window.",
    "responds": "Bright where this group of channels differs most from its own mean.",
    "channels": "Each row is a channel; bright cells are the channels of its group that it attends to.",
}
_SHORT, _LONGEST = 18, 34  # characters of a class's name


@dataclass(frozen=True)
class Look:
    """All that was computed from one image.

    Attributes:
        shown_HWC: the image as the model saw it, resized and cropped, 0 to 1; of more than three bands the first
            three, of fewer the first as grey.
        bands: how many the model saw.
        attention: None for a model other than DaViT.
        marked: the place of most evidence for the first class, as shares (down, right) of the image.
    """

    prediction: Prediction
    shown_HWC: np.ndarray[Any, Any]
    bands: int
    evidence: tuple[Evidence, ...]
    attention: Attention | None
    marked: tuple[float, float]


@dataclass(frozen=True)
class Map:
    """One map over the image, without margins, with its title and a sentence on how it is read."""

    title: str
    how: str
    image: Image.Image


@dataclass(frozen=True)
class MapRow:
    """Maps that belong together: the evidence, or those of a stage."""

    title: str
    maps: tuple[Map, ...]


def look(predictor: Predictor, picture: Picture, class_index: int | None = None) -> Look:
    """Classify an image and compute what the figure shows.

    Args:
        class_index: the class whose evidence is asked for; the most probable where None.

    Raises:
        ValueError: the image cannot be read, the class is unknown, or the model is an exported one.
    """
    if predictor.program is not None:
        raise ValueError(
            f"{predictor.program.path} is an exported model, and what it looks at is inside of its program: draw it "
            "by the checkpoint that it was made of."
        )
    prediction = predictor.predict(picture)  # which refuses what is too large
    image_CHW = predictor.transform(open_picture(picture, predictor.decoding))
    named = [guess.index for guess in prediction.guesses] or [prediction.index]
    classes = ([class_index] if class_index is not None else []) + [one for one in named if one != class_index]
    image_1CHW = image_CHW[None].to(predictor.device)
    evidence = class_evidence(predictor.model, image_1CHW, classes[:_EVIDENCES])
    attention = attention_of(predictor.model, image_1CHW) if isinstance(predictor.model, DaViT) else None
    H, W = evidence[0].map_HW.shape
    row, column = divmod(int(evidence[0].map_HW.argmax()), W)
    marked = ((row + 0.5) / H, (column + 0.5) / W)
    return Look(prediction, _shown(predictor, image_CHW), len(image_CHW), tuple(evidence), attention, marked)


def seen_image(predictor: Predictor, picture: Picture) -> Image.Image:
    """Return what the model sees of an image: its crop, of more or fewer bands than three the first as RGB."""
    shown_HWC = _shown(predictor, predictor.transform(open_picture(picture, predictor.decoding)))
    return Image.fromarray((255 * shown_HWC).round().astype("uint8"))


def _shown(predictor: Predictor, image_CHW: Tensor) -> Any:
    """Turn a prepared image into (H, W, 3) of 0 to 1."""
    if image_CHW.dtype == torch.uint8:  # of an exported model that normalises itself
        seen_CHW = image_CHW / 255
    else:
        mean, std = (torch.tensor(predictor.config[name])[:, None, None] for name in ("mean", "std"))
        seen_CHW = (image_CHW * std + mean).clamp(0, 1)
    return (seen_CHW[:3] if len(seen_CHW) >= 3 else seen_CHW[[0, 0, 0]]).permute(1, 2, 0).numpy()


def draw_picture(
    predictor: Predictor, picture: Picture, out: str | Path, class_index: int | None = None
) -> Prediction:
    """Write the figure of one image to a file in the format of its suffix, in one step.

    Args:
        class_index: as in `look`.

    Returns:
        What the model says of the image.

    Raises:
        ValueError: as `look` does, or an unknown format.
        OSError: the file cannot be written.
    """
    form = Path(out).suffix.lstrip(".").lower() or "png"
    seen = look(predictor, picture, class_index)
    figure = render(predictor, seen)
    try:
        write_atomically(out, lambda stream: figure.savefig(stream, format=form))
    except ValueError as error:
        raise ValueError(f"{out} cannot be drawn: {error}") from error
    return seen.prediction


def render(predictor: Predictor, seen: Look, stages: int | None = None) -> Any:
    """Draw the figure, as matplotlib's `Figure`: a row for the image, and one for each stage of a DaViT.

    A class whose name no font here can draw is called by its index.

    Args:
        stages: how many of them at most, from the first; None for all.
    """
    shown = [one.class_index for one in seen.evidence] + [guess.index for guess in seen.prediction.guesses]
    names = {index: drawable(_short(predictor.class_names[index], _LONGEST), index) for index in shown}
    file = as_line(Path(seen.prediction.file).name)
    with figure_style([*names.values(), file]):
        return _render(f"{predictor.name}: {file}", seen, names, stages_shown(predictor, seen)[:stages])


def _render(title: str, seen: Look, names: Mapping[int, str], stages: Sequence[int]) -> Any:
    from matplotlib.figure import Figure  # a second of import, paid when drawing

    figure = Figure(figsize=(2.15 * _COLUMNS + 0.5, 2.75 * (1 + len(stages)) + 0.35), layout="constrained")
    figure.suptitle(title)
    grid = figure.add_gridspec(1 + len(stages), _COLUMNS)

    def panel(row: int, columns: int | slice, title: str, how: str = "") -> Axes:
        axes = figure.add_subplot(grid[row, columns])
        axes.set_title(title, fontsize=SMALL)
        axes.set_xlabel(textwrap.fill(how, _WRAPPED), fontsize=SMALL - 1.5, color=GREY)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    some_bands = {1: "", 2: ": band 1 of 2", 3: ""}.get(seen.bands, f": bands 1 to 3 of {seen.bands}")
    sees = panel(0, 0, f"what the model sees{some_bands}", "The image as it was resized and cropped.")
    sees.imshow(seen.shown_HWC, interpolation="nearest")
    short = {index: _short(name) for index, name in names.items()}
    _draw_evidences(lambda place, *said: panel(0, place + 1, *said), seen, short)
    _draw_bars(panel(0, slice(4, 6), "classes"), seen.prediction, names)
    for row, stage in enumerate(stages, start=1):
        _draw_stage(partial(panel, row), seen, stage)
    return figure


def draw_maps(predictor: Predictor, seen: Look) -> list[MapRow]:
    """Draw each map of the figure as an image of its own, for pages that set titles and sentences themselves."""
    names = {one.class_index: as_line(predictor.class_names[one.class_index]) for one in seen.evidence}
    rows = [_row("evidence", seen, lambda panel: _draw_evidences(panel, seen, names))]
    for stage in stages_shown(predictor, seen):
        rows.append(_row(_title_of(seen, stage), seen, partial(_draw_stage, seen=seen, stage=stage)))
    return rows


def _row(title: str, seen: Look, draw: Callable[[Callable[[int, str, str], Axes]], None]) -> MapRow:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = seen.shown_HWC.shape[:2]
    scale = _MAP_SIDE / max(height, width)
    drawn: list[tuple[str, str, FigureCanvasAgg]] = []

    def panel(place: int, title: str, how: str) -> Axes:
        figure = Figure(figsize=(width * scale, height * scale), dpi=_MAP_DPI, facecolor="none")
        drawn.append((title, how, FigureCanvasAgg(figure)))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        return axes

    draw(panel)
    maps = []
    for name, how, canvas in drawn:
        canvas.draw()
        maps.append(Map(name, how, Image.fromarray(np.asarray(canvas.buffer_rgba()))))
    return MapRow(title, tuple(maps))


def stages_shown(predictor: Predictor, seen: Look) -> list[int]:
    """List the stages whose maps have more than one position: of one position a map says nothing."""
    if seen.attention is None:
        return []
    found = []
    for stage in range(len(predictor.model.main_blocks)):
        spatial, channel = seen.attention.last(stage)
        sizes = [view.received_HW.numel() for view in [spatial] if view is not None]
        sizes += [view.response_GHW[0].numel() for view in [channel] if view is not None]
        if max(sizes, default=0) > 1:
            found.append(stage)
    return found


def _draw_stage(panel: Callable[[int, str, str], Axes], seen: Look, stage: int) -> None:
    assert seen.attention is not None
    spatial, channel = seen.attention.last(stage)
    panels: list[Axes] = []
    if spatial is not None:
        H, W = spatial.received_HW.shape
        row, column = min(int(seen.marked[0] * H), H - 1), min(int(seen.marked[1] * W), W - 1)
        views = {"attention received": spatial.received_HW, "seen from the cross": spatial.seen_from(row, column)}
        for place, (title, map_HW) in enumerate(views.items()):
            panels.append(axes := panel(place, f"windows: {title}", HOW_TO_READ[title]))
            _overlay(axes, seen, map_HW, 0, float(map_HW.max()), cmap=MAP, interpolation="nearest")
            for draw_line, size in ((axes.axhline, H), (axes.axvline, W)):
                for edge in range(spatial.window, size, spatial.window):
                    draw_line(edge, color="white", linewidth=0.6)
        axes.plot(column + 0.5, row + 0.5, "x", color=ORANGE, markersize=6)
    if channel is not None:
        groups = channel.most_telling(_GROUPS)
        for place, group in enumerate(groups, start=2):
            panels.append(axes := panel(place, f"channel group {group + 1} responds", HOW_TO_READ["responds"]))
            map_HW = channel.response_GHW[group]
            _overlay(axes, seen, map_HW, 0, float(map_HW.max()), cmap=MAP, interpolation="bilinear")
        axes = panel(5, f"group {groups[0] + 1}: channel to channel", HOW_TO_READ["channels"])
        axes.imshow(channel.attention_GDD[groups[0]].cpu(), cmap=MAP, interpolation="nearest")
    panels[0].set_ylabel(_title_of(seen, stage).replace(": ", "\n"), fontsize=SMALL)


def _title_of(seen: Look, stage: int) -> str:
    assert seen.attention is not None
    spatial, channel = seen.attention.last(stage)
    H, W = spatial.received_HW.shape if spatial is not None else channel.response_GHW.shape[1:]  # type: ignore[union-attr]
    return f"stage {stage + 1}: {H} x {W} positions"


def _overlay(axes: Axes, seen: Look, map_HW: Tensor, low: float, high: float, **style: Any) -> None:
    """Draw a map over the greyscale image, on axes whose unit is a place of the map."""
    H, W = map_HW.shape
    height, width = seen.shown_HWC.shape[:2]
    place: dict[str, Any] = {"extent": (0, W, H, 0), "aspect": (height / H) / (width / W)}
    axes.imshow(seen.shown_HWC.mean(2), cmap="gray", vmin=0, vmax=1, interpolation="nearest", **place)
    axes.imshow(map_HW.cpu(), vmin=low, vmax=high or 1.0, alpha=0.7, **style, **place)


def _draw_evidences(panel: Callable[[int, str, str], Axes], seen: Look, names: Mapping[int, str]) -> None:
    for place, evidence in enumerate(seen.evidence):
        axes = panel(place, f"evidence for {names[evidence.class_index]}", HOW_TO_READ[evidence.method])
        _draw_evidence(axes, seen, evidence, is_marked=place == 0)


def _draw_evidence(axes: Axes, seen: Look, evidence: Evidence, is_marked: bool) -> None:
    """Draw a signed map, on one scale for all classes: orange speaks for the class, violet against it."""
    top = max(float(one.map_HW.abs().max()) for one in seen.evidence) or 1.0
    _overlay(axes, seen, evidence.map_HW, -top, top, cmap=_EVIDENCE, interpolation="bilinear")
    if is_marked:
        H, W = evidence.map_HW.shape
        axes.plot(seen.marked[1] * W, seen.marked[0] * H, "x", color="black", markersize=6)


def _draw_bars(axes: Axes, prediction: Prediction, names: Mapping[int, str]) -> None:
    guesses = prediction.guesses[::-1]
    axes.barh(range(len(guesses)), [100 * guess.probability for guess in guesses], color=SKY, height=0.55)
    for place, guess in enumerate(guesses):
        axes.text(1, place, f"{names[guess.index]}  {guess.probability:.1%}", va="center", fontsize=SMALL)
    axes.set(xlim=(0, 100), xticks=range(0, 101, 20))
    axes.tick_params(labelsize=SMALL - 1)
    axes.spines["bottom"].set_visible(True)


def _short(name: str, length: int = _SHORT) -> str:
    name = without_id(name)
    return name if len(name) <= length else name[: length - 1] + "…"


def evidence_image(seen: Look) -> Image.Image:
    """Draw the evidence for the first class over the image: as large as what the model saw, at least 320 px."""
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
