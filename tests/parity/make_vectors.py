"""The recipe of the reference vectors, and the script that keeps a copy of them in ``vectors/``.

The outputs were computed with the original authors' implementation (fp32, CPU, evaluation mode) and cannot be
made from this repository, which is what they are to test. All else follows from the recipe: every weight from
its state-dict key and shape (`weight`), every input from a seed (`image`).

``NAME.json``: ``input_shape``, ``input_seed``, ``params`` (total), ``state_dict`` (keys with shapes, in the
original's order), where given ``loss`` (mean cross-entropy with targets 0, 1, ...) and ``grad_norms`` (its
gradients, L2), and for each pyramid level mean, std and norm of the whole map. ``NAME.npz``: the outputs; a
pyramid level is subsampled by the ``strides`` of its json.

To copy them anew from the folder ``shared`` beside the checkout: ``python tests/parity/make_vectors.py``.
"""

import argparse
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

VECTORS = Path(__file__).parent / "vectors"
SIZE_LIMIT = 300_000  # bytes; all of them are kept, since all of them fit
NAMES = (
    "tiny_224",
    "tiny_225x257",
    "small_224",
    "base_224",
    "large_window12_384",
    "pyramid_tiny_200x304",
    "pyramid_small_cpe_act_130x170",
)


def weight(key: str, shape: tuple[int, ...]) -> Tensor:
    random = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
    values = random.standard_normal(shape)
    if key.endswith(".bias"):
        values = 0.05 * values
    elif len(shape) == 1:  # of a LayerNorm
        values = 1 + 0.1 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def image(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def fill(model: nn.Module) -> nn.Module:
    """Put the recipe's weights into a model, which may be on the meta device."""
    state = {key: weight(key, tuple(tensor.shape)) for key, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model


def files(folder: Path) -> list[Path]:
    return [folder / f"{name}.{suffix}" for name in NAMES for suffix in ("json", "npz")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[3] / "shared" / "parity"
    parser.add_argument("source", type=Path, nargs="?", default=default, help="folder with NAME.json and NAME.npz")
    source = parser.parse_args().source
    total = sum(file.stat().st_size for file in files(source))
    if total > SIZE_LIMIT:
        sys.exit(f"the vectors take {total:,} bytes, more than the {SIZE_LIMIT:,} that the repository keeps")
    VECTORS.mkdir(exist_ok=True)
    for file in files(source):
        shutil.copyfile(file, VECTORS / file.name)  # without the mode: the source may be read-only
    sys.stdout.write(f"{len(files(source))} files, {total:,} bytes, in {VECTORS}\n")


if __name__ == "__main__":
    main()
