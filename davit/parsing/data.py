"""Add the flags that say which images a command reads, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..limits import number

WORKERS = "processes that load images; no more than there are cores are started"


def add_data_form(add: Callable[..., Any]) -> None:
    """Add what all commands that read a data set call alike: its form, its columns, its classes."""
    add(
        "--dataset",
        "-d",
        default="",
        metavar="FORM",
        help="form of the data: folder, csv, parquet, wds (tar shards), torch/NAME or hfds/NAME (default: what is "
        "found there)",
    )
    add(
        "--class-map",
        default="",
        metavar="FILE",
        help="class names, one on a line; the first has index 0 (default: the names in the data, sorted)",
    )
    add_keys(add)


def add_keys(add: Callable[..., Any]) -> None:
    """Add where a table or a shard has its images and classes."""
    add(
        "--input-key",
        default="",
        metavar="NAME",
        help="where the images are: a column, or the suffix of the files in a shard (default: the usual names)",
    )
    add(
        "--target-key",
        default="",
        metavar="NAME",
        help="where the classes are: a column, or the suffix or JSON field in a shard (default: the usual names)",
    )


def add_skip_bad_images(add: Callable[..., Any]) -> None:
    """Add what is done about images that cannot be read."""
    add(
        "--skip-bad-images",
        action="store_true",
        help="skip and count images that cannot be read, instead of stopping at the first",
    )


def add_bands(add: Callable[..., Any], default: int | None = None) -> None:
    """Add how many bands images have, and how values of over 8 bits are scaled.

    Args:
        default: None leaves the number of bands to the checkpoint.
    """
    add(
        "--in-chans",
        **number("in_chans"),
        default=default,
        metavar="C",
        help="number of bands of the images (default: the checkpoint's, else 3: red, green and blue)",
    )
    add(
        "--bit-depth",
        **number("bit_depth"),
        help="bits that are used, where more than 8 are stored: values are divided by 2^N - 1 (default: as many as "
        "are stored)",
    )
    add(
        "--percentiles",
        **number("percentiles"),
        metavar=("LOW", "HIGH"),
        help="instead of --bit-depth: stretch each such image from its LOW to its HIGH percentile, 0 to 100",
    )


def add_split(add: Callable[..., Any], default: str = "validation") -> None:
    """Add which split is read."""
    add(
        "--split",
        default=default,
        metavar="NAME",
        help="split to read: a folder or part of file names; '.' reads all that is there; validation finds val too",
    )


def add_workers(add: Callable[..., Any], default: int | None) -> None:
    """Add how many processes load images; None for as many as there are cores."""
    said = WORKERS if default is not None else f"{WORKERS} (default: as many as there are cores)"
    add("-j", "--workers", **number("workers"), default=default, help=said)
