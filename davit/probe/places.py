"""Tell which models and which data a command line names."""

from __future__ import annotations

import argparse
from pathlib import Path

import timm

from ..engine.validate import Request
from ..text import did_you_mean

_ELSEWHERE = ("hf-hub:", "local-dir:")


def read_places(args: argparse.Namespace) -> tuple[list[Request], str]:
    """Return the models that are asked for, and the data.

    Raises:
        ValueError: no data or no model, or a word that is neither a file nor a model's name.
    """
    places, models = list(args.places), list(args.model)
    if not places and len(models) > 1 and not timm.is_model(models[-1]):
        places = [models.pop()]  # --model A B DATA
    if not places:
        raise ValueError("give CHECKPOINT and DATA: a checkpoint or a model's name, then the data as train.py takes.")
    *sources, data = places
    of_checkpoints: str | None = None
    requests = [request_of(source) for source in sources]
    has_files = any(request.checkpoint for request in requests)
    if models and has_files and not args.pretrained:
        if len(models) > 1:
            raise ValueError(
                f"--model {' '.join(models)} beside a checkpoint: add --pretrained for their published weights, or "
                "name the one model that the checkpoint is of."
            )
        of_checkpoints = models.pop()
    requests = [Request(request.model or of_checkpoints, request.checkpoint) for request in requests]
    requests += [Request(name) for name in models]
    if not requests:
        raise ValueError(f"give a model before {data}: a checkpoint, or a name such as DaViT_tiny.")
    return list(dict.fromkeys(requests)), data


def request_of(source: str) -> Request:
    """Tell a checkpoint, or where one lies on the hub, from the name of a model.

    Raises:
        ValueError: it is neither.
    """
    if Path(source).exists() or source.startswith(_ELSEWHERE):
        return Request(None, Path(source))
    if timm.is_model(source.partition(".")[0]):
        return Request(source)
    near = did_you_mean(source, timm.list_models())
    raise ValueError(
        f"{source} is neither a file nor the name of a model; {near}give a checkpoint, or one of timm.list_models()."
    )
