"""Write a model card: what a model is, what was measured of it, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..checkpoint import Checkpoint
from ..engine.curves import read_summary
from ..engine.records import wilson
from ..text import as_line

UNKNOWN_LICENCE = "unknown"
_NAMED = 1000  # classes that a card lists; config.json has all
_FOLDED_FROM = 50  # classes, behind a line to click
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")
_LIKE_A_LICENCE = re.compile(r"[a-z0-9][a-z0-9.\-]*")


@dataclass(frozen=True)
class Result:
    """One figure that a training measured.

    Attributes:
        low, high: the 95 % interval of a share in percent; None where the number of images is not known.
        count: images it was measured on.
    """

    name: str
    value: float
    count: int | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Card:
    """What a card is written from.

    Attributes:
        source: how readers call the model: a repository, or the folder of an export.
        config: what config.json says.
        weights: which of several the weights are; may be empty.
        needs_davit: why the model cannot be read without davit; empty where it can.
    """

    name: str
    config: Mapping[str, Any]
    parameters: int
    results: Sequence[Result] = ()
    needs_davit: str = ""
    license: str = ""
    data: str = ""
    description: str = ""
    weights: str = ""
    source: str = "hf-hub:OWNER/NAME"


def results_of(checkpoint: Checkpoint) -> list[Result]:
    """Find what a training measured of the very weights of a checkpoint, in it or in the summary of its folder."""
    row = _row_in(checkpoint) or _row_beside(checkpoint)
    prefix = "ema_" if checkpoint.ema and f"ema_{'top1'}" in row else "eval_"
    found = {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
    pictures = _pictures(checkpoint)
    results = []
    for name, title in (("top1", "top-1 accuracy, %"), ("top5", "top-5 accuracy, %"), ("loss", "cross-entropy")):
        if name in found:
            correct, count = _counted(found[name], pictures) if name != "loss" else (None, _whole(pictures))
            low, high = None, None
            if correct is not None and count:
                low, high = (100 * end for end in wilson(correct, count))
            results.append(Result(title, found[name], count, low, high))
    noted = checkpoint.metadata.get("metric")
    if not results and isinstance(noted, int | float) and not isinstance(noted, bool):
        results.append(Result(f"metric {checkpoint.metadata.get('metric_name') or ''}".strip(), float(noted)))
    return results


def _row_in(checkpoint: Checkpoint) -> dict[str, float]:
    """Return what a state of our trainer holds of the epoch that it ends."""
    results, epoch = checkpoint.metadata.get("results"), checkpoint.metadata.get("epoch")
    ends_an_epoch = checkpoint.metadata.get("step") in (0, None, checkpoint.metadata.get("steps_per_epoch"))
    if not isinstance(results, dict) or not isinstance(epoch, int) or not ends_an_epoch:
        return {}
    row = results.get(epoch - 1, results.get(str(epoch - 1)))
    return _numbers(row) if isinstance(row, dict) else {}


def _row_beside(checkpoint: Checkpoint) -> dict[str, float]:
    """Return the row of summary.csv whose metric is the checkpoint's."""
    metric, epoch = checkpoint.metadata.get("metric"), checkpoint.metadata.get("epoch")
    summary = Path(checkpoint.origin).with_name("summary.csv")
    if not isinstance(metric, float) or not isinstance(epoch, int) or not summary.is_file():
        return {}
    try:
        rows = [_numbers(row) for row in read_summary(summary)]
    except (OSError, ValueError):
        return {}
    near = [row for row in rows if row.get("epoch") in (epoch, epoch - 1)]
    return next((row for row in near if any(abs(value - metric) < 1e-6 for value in row.values())), {})


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, value in row.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError):
            continue
    return numbers


def _pictures(checkpoint: Checkpoint) -> list[int]:
    """List the numbers of images that an evaluation of the training may have had, the likeliest first."""
    data, bad = checkpoint.metadata.get("data"), checkpoint.metadata.get("bad_images")
    val = data.get("val") if isinstance(data, dict) else None
    count = val.get("pictures") if isinstance(val, dict) else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        return []
    left_out = len(bad) if isinstance(bad, dict) else 0  # of both splits
    return [count - fewer for fewer in range(min(left_out, count - 1) + 1)]


def _whole(pictures: Sequence[int]) -> int | None:
    return pictures[0] if len(pictures) == 1 else None


def _counted(percent: float, pictures: Sequence[int]) -> tuple[int | None, int | None]:
    """Find how many of how many images a percentage is."""
    for count in pictures:
        correct = round(percent * count / 100)
        if abs(100 * correct / count - percent) < 1e-4:
            return correct, count
    return None, None


def licence_fields(value: str) -> dict[str, str]:
    """Return the fields of a card for a licence: an identifier of the hub, else "other" with its name."""
    text = " ".join(value.split()) or UNKNOWN_LICENCE
    if _LIKE_A_LICENCE.fullmatch(text.lower()):
        return {"license": text.lower()}
    return {"license": "other", "license_name": text}


def write_card(card: Card) -> str:
    """Write the text of README.md: the fields that the hub reads, then the text for people."""
    parts = [
        f"---\n{yaml.safe_dump(_fields(card), sort_keys=False, allow_unicode=True, width=1000)}---",
        f"# {_escaped(card.name)}",
        _introduction(card),
        _facts(card),
        _data(card),
        _results(card),
        _loading(card),
        _classes(card.config),
        "The architecture is described in *DaViT: Dual Attention Vision Transformers* "
        "([arXiv 2204.03645](https://arxiv.org/abs/2204.03645))."
        if "davit" in str(card.config["architecture"]).lower()
        else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _fields(card: Card) -> dict[str, Any]:
    is_plain = not card.needs_davit
    tags = ["image-classification", "timm", *(["transformers"] if is_plain else []), "davit"]
    fields: dict[str, Any] = {
        **licence_fields(card.license),
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": tags if "davit" in str(card.config["architecture"]).lower() else tags[:-1],
    }
    metrics = [result for result in card.results if "accuracy" in result.name]
    if metrics:
        dataset = {"name": as_line(card.data) if card.data else "validation split of the training", "type": "other"}
        fields["metrics"] = ["accuracy"]
        fields["model-index"] = [
            {
                "name": as_line(card.name),
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image classification"},
                        "dataset": dataset,
                        "metrics": [
                            {"type": "accuracy", "value": round(result.value, 4), "name": result.name}
                            for result in metrics
                        ],
                    }
                ],
            }
        ]
    return fields


def _introduction(card: Card) -> str:
    count = card.config["num_classes"]
    text = f"An image classifier of {count:,} class{'es' if count != 1 else ''}, `{card.config['architecture']}`"
    text += f": {card.weights}." if card.weights else "."
    described = f"{card.description.strip()}\n\n" if card.description.strip() else ""
    needs = (
        "\n\n**It needs the package davit** (`import davit` before it is loaded, in timm as in transformers): "
        f"{_escaped(card.needs_davit)}."
        if card.needs_davit
        else ""
    )
    return described + text + needs


def _facts(card: Card) -> str:
    cfg = card.config["pretrained_cfg"]
    bands, height, width = cfg["input_size"]
    rows = [
        ("parameters", f"{card.parameters:,}"),
        ("images", f"{width} x {height} pixels, {bands} band{'s' if bands != 1 else ''}"),
        ("crop", f"{cfg['crop_pct']:.4g} of the side, {cfg['crop_mode']}, {cfg['interpolation']}"),
        ("mean", ", ".join(f"{value:.4g}" for value in cfg["mean"])),
        ("std", ", ".join(f"{value:.4g}" for value in cfg["std"])),
        (
            "licence",
            _escaped(licence_fields(card.license).get("license_name") or licence_fields(card.license)["license"]),
        ),
    ]
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _data(card: Card) -> str:
    return "## Data\n" + (card.data.strip() or "Not stated.")


def _results(card: Card) -> str:
    if not card.results:
        return "## Results\nNone are noted in the checkpoint."
    lines = ["## Results", "Measured at the end of training, on its validation split.", ""]
    lines += ["| figure | value | 95 % interval (Wilson) | images |", "|---|---|---|---|"]
    for result in card.results:
        interval = f"{result.low:.2f} to {result.high:.2f}" if result.low is not None else ""
        count = f"{result.count:,}" if result.count else "not known"
        lines.append(f"| {_escaped(result.name)} | {result.value:.5g} | {interval} | {count} |")
    return "\n".join(lines)


def _loading(card: Card) -> str:
    source = card.source
    imports = "import davit  # registers the architecture\n" if card.needs_davit else ""
    bands, height, width = card.config["pretrained_cfg"]["input_size"]
    with_timm = f'''With timm{" and davit" if card.needs_davit else ""} (`pip install timm`):
```python
import timm
import torch
{imports}
model = timm.create_model("{source}", pretrained=True).eval()
logits = model(torch.randn(1, {bands}, {height}, {width}))
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
```'''
    folder = source.partition(":")[2]
    with_transformers = f'''With transformers (`pip install transformers timm`):
```python
from transformers import pipeline

classify = pipeline("image-classification", model="{folder}")
print(classify("picture.jpg"))
```'''
    with_davit = f'''With davit:
```python
import davit

print(davit.load("{source}").predict("picture.jpg"))
```'''
    parts = ["## How to load it", with_timm]
    if bands == 3 and not card.needs_davit:
        parts.append(with_transformers)
    return "\n\n".join([*parts, with_davit])


def _classes(config: Mapping[str, Any]) -> str:
    names = config.get("label_names")
    if not names:
        return ""
    rows = [f"| {index} | {_escaped(name)} |" for index, name in enumerate(names[:_NAMED])]
    if len(names) > _NAMED:
        rows.append(f"| ... | {len(names) - _NAMED:,} more in config.json |")
    table = "\n".join(["| output | class |", "|---|---|", *rows])
    if len(names) >= _FOLDED_FROM:
        table = f"<details>\n<summary>{len(names):,} classes</summary>\n\n{table}\n\n</details>"
    return f"## Classes\n{table}"


def _escaped(text: object) -> str:
    """Write a text so that Markdown shows it as it is, in one line."""
    return _SPECIAL.sub(r"\\\1", as_line(text))
