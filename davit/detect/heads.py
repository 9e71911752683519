"""Name the heads, and tell detectors of this room from other models; apart, so that a command is routed at once."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from ..files import read_small
from ..limits import MOST_YAML, read_yaml

#: name -> what transformers calls such a model in its config.json
HEADS = {"dfine": "d_fine", "rtdetrv2": "rt_detr_v2"}
DETECTION_METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")


def saved_folder(source: str | Path) -> Path | None:
    """Return the folder in transformers' format that a source names; None where it is none."""
    folder = Path(source)
    with suppress(OSError, ValueError, RecursionError):
        config = json.loads(read_small(folder / "config.json", MOST_YAML))
        if isinstance(config, dict) and config.get("model_type") in HEADS.values():
            return folder
    return None


def is_detector(source: str | Path) -> bool:
    """Tell whether a folder, or a checkpoint in the folder of a run, is of a detector of this room."""
    path = Path(source)
    try:
        if not path.exists():
            return False
    except (OSError, ValueError):
        return False
    if saved_folder(path) is not None:
        return True
    folder = path if path.is_dir() else path.parent
    if path.is_file() and not path.name.endswith((".pth.tar", ".pth", ".pt")):
        return False
    with suppress(OSError, ValueError):
        noted = read_yaml(read_small(folder / "args.yaml", MOST_YAML).decode())
        return isinstance(noted, dict) and noted.get("head") in HEADS
    return False
