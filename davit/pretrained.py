"""Fetch the published weights of DaViT once, and check them before use.

The three ImageNet-1k models of the authors are on the Hugging Face hub, in timm's port. A file put by hand into the
weights folder is used first (`weights_folder`; its name is as `Published.local_path` says, for instance
``davit_tiny.msft_in1k.safetensors``), then the hub's own cache, then the hub.

The hashes are those that the hub's pages of the files show (Git LFS details). None is known for DaViT_base, whose
files are therefore used unchecked.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from torch import nn

from .checkpoint import LoadReport, load_checkpoint, sha256_of
from .commands import USER_ERROR

_logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "DAVIT_WEIGHTS_DIR"


class PretrainedError(RuntimeError):
    """Say why published weights cannot be used, and how to get them by hand."""

    exit_status = USER_ERROR


@dataclass(frozen=True)
class Published:
    """Name the files of a hub repository with the weights of one variant; any will do, the first is preferred.

    Attributes:
        files: name to SHA-256 in hex, or None if that is not known.
    """

    hub_id: str
    files: dict[str, str | None]

    def local_path(self, name: str) -> Path:
        """Return where a file fetched by hand is looked for: in the folder that holds those of all variants."""
        return weights_folder() / (self.hub_id.split("/")[-1] + Path(name).suffix)


PUBLISHED: dict[str, Published] = {
    "DaViT_tiny": Published(
        "timm/davit_tiny.msft_in1k",
        {
            "model.safetensors": "085937207d2e51c1d1e0a3ee5f3156994cce718dc02aef7fa8cec502784adda8",
            "pytorch_model.bin": "8e5dd07e74925c9cc3831bb0f2acb06aabbb39b918ce93597e741f61f6325753",
        },
    ),
    "DaViT_small": Published(
        "timm/davit_small.msft_in1k",
        {
            "model.safetensors": "cef0f04c734989efdb4a76aef07a4cea8a968cdf74059d8bc15f38b74df25e8f",
            "pytorch_model.bin": "b96bf0cd3817365d1f23ea990979627aab01dc1ee1c6ea8a0caa50dec4625e22",
        },
    ),
    "DaViT_base": Published("timm/davit_base.msft_in1k", {"model.safetensors": None, "pytorch_model.bin": None}),
}


def weights_folder() -> Path:
    """Return where weights fetched by hand are looked for: $DAVIT_WEIGHTS_DIR, or else torch's downloads."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder).expanduser() if folder else Path(torch.hub.get_dir()) / "checkpoints"


def fetch_pretrained(variant: str) -> Path:
    """Return the file with a variant's published weights, downloaded if it is not here yet.

    Raises:
        ValueError: no weights of this variant are published; names those that have some.
        PretrainedError: no network, or a file that is not the published one.
    """
    published = PUBLISHED.get(variant)
    if published is None:
        raise ValueError(
            f"no pretrained weights of {variant!r} are published; there are some for {', '.join(PUBLISHED)}. "
            "Use pretrained=False, and load_checkpoint for weights of your own."
        )
    for name in published.files:
        if (path := published.local_path(name)).is_file():
            return _verified(path, name, variant)
    for name in published.files:
        cached = huggingface_hub.try_to_load_from_cache(published.hub_id, name)
        if isinstance(cached, str):
            return _verified(Path(cached), name, variant)
    return _download(published, variant)


def load_pretrained(model: nn.Module, variant: str, file: str | Path | None = None) -> LoadReport:
    """Load the published weights of a variant into a model, with the rules of `load_checkpoint`.

    Args:
        file: weights to use in place of the published ones; their hash is not checked.

    Raises:
        ValueError: nothing is published for this variant, or the weights do not fit (`CheckpointError`).
        PretrainedError: the published weights could not be fetched.
    """
    return load_checkpoint(model, fetch_pretrained(variant) if file is None else file)


def _download(published: Published, variant: str) -> Path:
    reason: Exception | None = None
    for name in published.files:
        try:
            # asks once; the download itself would try for half a minute where there is no network
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(published.hub_id, name))
            path = Path(huggingface_hub.hf_hub_download(published.hub_id, name))
        except RemoteEntryNotFoundError as error:
            reason = error  # this file is not published, the next may be
        except Exception as error:  # the hub's client lets any error of its transport through
            reason = error
            break
        else:
            return _verified(path, name, variant)
    text = f"{type(reason).__name__}: {' '.join(str(reason).split())[:200]}"
    raise PretrainedError(
        f"the pretrained weights of {variant} could not be downloaded ({text}). {_by_hand(published)}"
    ) from reason


def _verified(path: Path, name: str, variant: str) -> Path:
    published = PUBLISHED[variant]
    if (known := published.files[name]) is None:
        _logger.info("%s: using %s; its hash is not known, so it is not checked", variant, path)
    elif (digest := sha256_of(path)) != known:
        raise PretrainedError(
            f"{path} is not the published weights of {variant}: its sha256 is {digest}, theirs is "
            f"{known}. It is damaged or another file: delete it and try again; to use it as it is, "
            f"load it by its path (file={path!s}, or load_checkpoint). {_by_hand(published)}"
        )
    return path


def _by_hand(published: Published) -> str:
    first, *others = published.files
    elsewhere = " or ".join(f"{name} as {published.local_path(name).name}" for name in others)
    return (
        f"To fetch them by hand: get {first} of {published.hub_id} at "
        f"{huggingface_hub.hf_hub_url(published.hub_id, first)} and put it at "
        f"{published.local_path(first)} (or {elsewhere}; set {FOLDER_VARIABLE} for another folder)."
    )
