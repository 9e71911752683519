"""Find the recipes and configs that come with DaViT, by name, without a checkout.

In a checkout they lie at its top, in configs/, mmdet/configs/ and mmseg/configs/; in a wheel setup.py puts them below
davit/configs/.
"""

from __future__ import annotations

from pathlib import Path, PurePath

from .text import nearest

_PACKAGE = Path(__file__).parent
_PLACES = {  # of each kind: in a checkout, in an installed package, and what files end in
    "recipe": ("configs", "configs", ".yaml"),
    "mmdet": ("mmdet/configs", "configs/mmdet", ".py"),
    "mmseg": ("mmseg/configs", "configs/mmseg", ".py"),
}


def folder_of(kind: str) -> Path:
    """Return the folder of a kind: 'recipe', 'mmdet' or 'mmseg'."""
    checkout, installed, _ = _PLACES[kind]
    packaged = _PACKAGE / installed
    return packaged if packaged.is_dir() else _PACKAGE.parent / checkout


def names_of(*kinds: str) -> list[str]:
    """List the names, without suffix, of what a command line may ask for."""
    return [
        name for kind in kinds for name in sorted(file.stem for file in folder_of(kind).glob(f"*{_PLACES[kind][2]}"))
    ]


def find(asked: str | PurePath, *kinds: str) -> Path:
    """Return the file that is asked for.

    Args:
        asked: a path, which is taken where it exists; or the name of one of ours, with or without suffix, also with
            the folders of a checkout in front: configs/davit_tiny_224.yaml.
        kinds: where to look for a name, in this order.

    Raises:
        ValueError: there is none; the nearest names are offered.
    """
    path = Path(asked)
    if path.exists() and not path.is_dir():
        return path
    for kind in kinds:
        checkout, _, suffix = _PLACES[kind]
        for place in (checkout, checkout.rpartition("/")[2], ""):
            if path.is_relative_to(place) and ".." not in path.parts and not path.is_absolute():
                name = str(path.relative_to(place))
                file = folder_of(kind) / (name if name.endswith(suffix) else name + suffix)
                if file.is_file():
                    return file
    raise ValueError(f"{path} does not exist{_advice(path, kinds)}")


def _advice(path: Path, kinds: tuple[str, ...]) -> str:
    suffixes = {_PLACES[kind][2] for kind in kinds}
    if path.is_dir():
        data = "" if "recipe" in kinds else f", and the folder of the data as --data-root {path}"
        return f" as a file: it is a folder. Give a config{data}; by name there are {', '.join(names_of(*kinds))}."
    beside = (
        sorted(file.name for suffix in suffixes for file in path.parent.glob(f"*{suffix}")) if path.parent.name else []
    )
    ours = names_of(*kinds)
    stem = path.name if path.suffix not in suffixes else path.stem
    near = nearest(path.name, beside, 3) + nearest(stem, ours, 3)
    if near:
        return f": did you mean {' or '.join(near)}?"
    there = f"; in {path.parent} there are {', '.join(beside)}" if beside else ""
    return f"{there}; by name there are {', '.join(ours)}."
