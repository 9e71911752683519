"""Tell images from other files, list folders of them, and find named ones: the one place that walks folders of data.

A file is an image by its suffix, in upper or lower case. A file without a suffix is one by its first bytes; and what
has no letter or has other signs than letters and digits (IMG.1234, a.jpg_large) is no suffix. Whatever else lies in a
folder is counted by its suffix and left out: `left_out` makes a sentence of it. Only regular files are opened.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

from PIL import Image

from ..text import install_extra, nearest, some
from .errors import DataError

# The kinds of images: suffixes in lower case, and the format that each stands for, by Pillow's name of it. Only
# raster formats: Pillow would start Ghostscript for EPS.
SUFFIXES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF"),
    **{".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".jp2": "JPEG2000", ".avif": "AVIF"},
    **{".npy": "NPY"},
}
_OURS = frozenset({"NPY"})  # read by `davit.data.decode` itself

# Formats that a package adds to Pillow: its module, and the remedy where it is absent.
_PACKAGES = {"HEIF": ("pillow_heif", install_extra("heif"))}
_NEWER = "pip install -U pillow"

# Formats by what a file begins with.
_BEGINNINGS = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("NPY", re.compile(rb"\x93NUMPY")),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("WEBP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
    ("BMP", re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)),
    ("PPM", re.compile(rb"P[1-6]\s+(#|\d)")),
    ("JPEG2000", re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51")),
    ("AVIF", re.compile(rb".{4}ftyp(avif|avis)", re.DOTALL)),
    ("HEIF", re.compile(rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)),
)
HEAD = 32  # bytes that these need

# What cameras, desktops and disk stations leave beside images, in lower case; names that begin with a dot
# (.DS_Store, ._a.jpg) are hidden without being listed here.
_HIDDEN_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_HIDDEN_FOLDERS = frozenset({"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"})

_SUFFIX = re.compile(r"\.(?=[0-9]*[a-z])[0-9a-z]{1,10}", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"(\d+)")
_NO_SUFFIX, _NOT_REGULAR, _UNREADABLE = "without suffix", "sockets, pipes or devices", "unreadable without suffix"

_SHOWN = 6  # suffixes in a sentence


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """List the suffixes of the formats that can be read here, in lower case."""
    return frozenset(suffix for suffix, form in SUFFIXES.items() if _is_readable(form))


@functools.cache
def _is_readable(form: str) -> bool:
    Image.init()
    known = form in _OURS or form in Image.OPEN
    return known or (form in _PACKAGES and importlib.util.find_spec(_PACKAGES[form][0]) is not None)


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in lower case, with its dot; "" where it has none."""
    stem, dot, rest = name.rpartition(".")
    if not stem or not _SUFFIX.fullmatch(dot + rest):
        return ""
    return f".{rest.lower()}"


def format_of(head: bytes) -> str | None:
    """Tell an image's format from the first 32 bytes of its file, by Pillow's name of it; None for another file."""
    return next((form for form, beginning in _BEGINNINGS if beginning.match(head)), None)


def kind_without_suffix(head: bytes) -> str | None:
    """Name the kind of a file without suffix by its first bytes, as `left_out` counts it; None for an image."""
    form = format_of(head)
    if form is None:
        return _NO_SUFFIX
    return None if _is_readable(form) else f"{_usual_suffix(form)} {_NO_SUFFIX}"


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Give the key that sorts img2 before img10, as timm sorts, and names that differ in case alone always alike."""
    parts: list[str | int] = list(_NUMBER.split(name.lower()))
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def is_hidden(path: str) -> bool:
    """Tell whether a path below a data folder leads to, or through, what cameras and desktops leave there."""
    *folders, name = path.split("/")
    return (
        any(part.startswith(".") and part not in (".", "..") for part in (*folders, name))
        or any(part.lower() in _HIDDEN_FOLDERS for part in folders)
        or name.lower() in _HIDDEN_FILES
    )


@dataclass
class Folder:
    """What one folder holds by name, hidden files left out.

    Attributes:
        folders: in natural order.
        pictures: in the order of the file system.
        left_out: other files, counted by suffix; a sentence by `left_out`.
    """

    folders: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass
class Listing:
    """The images at and below a folder.

    Attributes:
        pictures: paths below the folder, in natural order.
        left_out: other files, counted by suffix; a sentence by `left_out`.
    """

    pictures: list[str]
    left_out: Counter[str]


def list_pictures(folder: str | Path, deep: bool = True) -> Listing:
    """List the images in a folder and, where `deep`, in all that is below it.

    Raises:
        DataError: a folder is absent or cannot be read.
    """
    pictures: list[str] = []
    others: Counter[str] = Counter()
    for below, found in walk(folder) if deep else [("", list_folder(folder))]:
        pictures += [f"{below}/{name}" for name in found.pictures] if below else found.pictures
        others += found.left_out
    return Listing(sorted(pictures, key=natural_key), others)


def walk(root: str | Path, below: str = "") -> Iterator[tuple[str, Folder]]:
    """Yield (path below the root, contents) of a folder and of all that are below it, in natural order.

    Links are followed, and a folder that is reached again by one is left out, so that circles end.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [below]
    while waiting:
        here = waiting.pop()
        place = os.path.join(root, here) if here else os.fspath(root)  # noqa: PTH118 (many of them)
        with contextlib.suppress(OSError):  # listing it says why
            status = os.stat(place)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
        found = list_folder(place)
        yield here, found
        waiting += [f"{here}/{name}" if here else name for name in reversed(found.folders)]


def list_folder(folder: str | Path) -> Folder:
    """List what a folder itself holds.

    A link to nothing is listed as what it would be by its name, so that opening it says what is wrong.

    Raises:
        DataError: it is absent or cannot be read.
    """
    found = Folder()
    suffixes = readable_suffixes()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if is_folder(entry):
                    if not is_hidden(f"{name}/"):
                        found.folders.append(name)
                elif is_hidden(name):
                    continue
                elif (suffix := suffix_of(name)) in suffixes and _may_be_opened(entry):
                    found.pictures.append(name)
                else:
                    kind = _kind(entry, suffix)
                    if kind is None:
                        found.pictures.append(name)
                    else:
                        found.left_out[kind] += 1
    except FileNotFoundError as error:
        raise DataError(f"the data folder {folder} does not exist{_there(Path(folder))}") from error
    except NotADirectoryError as error:
        raise DataError(f"{folder} is a file, and a folder is expected") from error
    except OSError as error:
        remedy = ": whoever runs this needs to read and search it" if error.errno == errno.EACCES else ""
        raise DataError(f"the folder {folder} cannot be read ({error.strerror}){remedy}") from error
    found.folders.sort(key=natural_key)
    return found


def _there(folder: Path) -> str:
    """Say what is there in place of an absent folder."""
    parent = folder.parent
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if is_folder(entry) and not is_hidden(f"{entry.name}/")]
        names.sort(key=natural_key)
    except OSError:
        return f", and {parent} is no folder that can be read: check the path"
    if near := nearest(folder.name, names, cutoff=0.75):
        return f": did you mean {parent / near[0]}?"
    return f"; {parent.absolute()} holds {f'the folders {some(names)}' if names else 'no folder'}"


def left_out(others: Mapping[str, int]) -> str:
    """Say what is left out, with the remedy where a package would read it; "" where nothing is.

    "18 files of other kinds are left out (10 .heic, 8 without suffix); pip install 'davit-torch[heif]' to read .heic".
    """
    count = sum(others.values())
    if not count:
        return ""
    kinds = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{number} {kind}" for kind, number in kinds[:_SHOWN])
    rest = sum(number for _, number in kinds[_SHOWN:])
    more = f", and {rest} of {len(kinds) - _SHOWN} more kinds" if rest else ""
    subject = "1 file of another kind is" if count == 1 else f"{count} files of other kinds are"
    remedies: defaultdict[str, list[str]] = defaultdict(list)
    for kind in sorted(others):
        if form := SUFFIXES.get(kind.partition(" ")[0]):
            remedies[_PACKAGES[form][1] if form in _PACKAGES else _NEWER].append(kind)
    advice = "".join(f"; {remedy} to read {' and '.join(which)}" for remedy, which in remedies.items())
    return f"{subject} left out ({listed}{more}){advice}"


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell a folder, also by a link, from anything else."""
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or into a folder that may not be searched
        return False


def _may_be_opened(entry: os.DirEntry[str]) -> bool:
    """Tell a regular file from pipes, sockets and devices; a link to nothing may be opened, which says so."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))  # noqa: PTH110
    except OSError:
        return True


def _kind(entry: os.DirEntry[str], suffix: str) -> str | None:
    """Name the kind of a file by its suffix, or None for an image by its content, where it has no suffix."""
    if not _may_be_opened(entry):
        return _NOT_REGULAR
    if suffix or entry.name.endswith("~"):  # a~ is an editor's copy of a
        return suffix or f"{suffix_of(entry.name[:-1])}~"
    try:
        # not to wait for ever where another process has put a pipe into the file's place
        descriptor = os.open(entry.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return _UNREADABLE
    try:
        head = os.read(descriptor, HEAD) if S_ISREG(os.fstat(descriptor).st_mode) else b""
    except OSError:
        return _UNREADABLE
    finally:
        os.close(descriptor)
    return kind_without_suffix(head)


def _usual_suffix(form: str) -> str:
    return next(suffix for suffix, which in SUFFIXES.items() if which == form)


# --- named files ---


@dataclass(frozen=True)
class Located:
    """Where named files lie.

    Attributes:
        found: name -> path below the folder, as the file system spells it.
        respelled: those names that the file system spells otherwise, by what is other about them.
        missing: name -> why it is not found.
    """

    found: dict[str, str]
    respelled: dict[str, list[str]]
    missing: dict[str, str]


_SEPARATORS, _UNICODE, _CASE = "separators of another platform", "another Unicode form", "a suffix in another case"
_WITHOUT = "no suffix"


def locate(folder: str | Path, names: Iterable[str]) -> Located:
    r"""Find files by the names that a list or an annotation file gives them, below a folder or absolute.

    A name is taken as it stands, else with / for \ (as Windows writes), else in another Unicode form (macOS writes
    e and an accent where others write é), else with its suffix in another case, else, where it has no suffix of an
    image, with one. Each folder is listed once, which is quick for a hundred thousand names. A name for which
    several files fit is missing.
    """
    tree = _Tree(os.fspath(folder))
    found: dict[str, str] = {}
    missing: dict[str, str] = {}
    respelled: defaultdict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        if tree.has(name):
            found[name] = name
            continue
        spelled, reason = tree.respell(name)
        if spelled is None:
            missing[name] = reason
        else:
            found[name] = spelled
            respelled[reason].append(name)
    return Located(found, dict(respelled), missing)


def absent(files: Sequence[Path]) -> list[Path]:
    """Find the files that are not there, folder by folder, which is quick for a hundred thousand of them."""
    tree = _Tree("")
    return [file for file in files if not tree.has(str(file))]


class _Tree:
    """The folders below a root, each listed when it is first asked for."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._names: dict[str, frozenset[str]] = {}
        self._alike: dict[str, dict[str, list[str]]] = {}
        self._folded: dict[str, dict[str, str]] = {}
        self._stems: dict[str, dict[str, list[str]]] = {}

    def has(self, name: str) -> bool:
        folder, _, base = name.rpartition("/")
        return base in self._list(folder if folder or not name.startswith("/") else "/")

    def respell(self, name: str) -> tuple[str | None, str]:
        """Return the name as the file system has it and what differs, or None and why there is none."""
        differs: list[str] = []
        if "\\" in name:
            differs.append(_SEPARATORS)
            name = name.replace("\\", "/")
            if self.has(name):
                return name, _SEPARATORS
        if re.match(r"[A-Za-z]:/", name):
            return None, "an absolute path of Windows"
        parts = name.split("/")
        here = "/" if name.startswith("/") else ""
        for position, part in enumerate(parts):
            is_file = position == len(parts) - 1
            if part in ("", ".", "..") and not is_file:
                here = f"{here}{part}/" if part else here
                continue
            options = self._options(here.rstrip("/") or here, part, is_file)
            if len(options) != 1:
                several = f"{len(options)} files fit: {', '.join(options[:3])}"
                return None, several if options else self._nothing(here, part, is_file)
            (chosen,) = options
            if chosen != part:
                same_letters = _normal(chosen) == _normal(part)
                lacks_suffix = chosen.startswith(f"{part}.")
                differs.append(_UNICODE if same_letters else _WITHOUT if lacks_suffix else _CASE)
            here += chosen if is_file else f"{chosen}/"
        return here, " and ".join(dict.fromkeys(differs))

    def _options(self, folder: str, part: str, is_file: bool) -> list[str]:
        names = self._list(folder)
        if part in names:
            return [part]
        alike = self._alike.get(folder)
        if alike is None:
            groups: defaultdict[str, list[str]] = defaultdict(list)
            for name in names:
                groups[_alike(name)].append(name)
            alike = self._alike[folder] = groups
        near = sorted(alike.get(_alike(part), ()))
        same = [name for name in near if _normal(name) == _normal(part)]
        return same or ((near or self._with_suffix(folder, part)) if is_file else [])

    def _with_suffix(self, folder: str, part: str) -> list[str]:
        """List the images of a folder that are called so beside their suffix; none for a name that has one."""
        if suffix_of(part) in SUFFIXES:
            return []
        stems = self._stems.get(folder)
        if stems is None:
            stems = self._stems[folder] = defaultdict(list)
            for name in sorted(self._list(folder)):
                if (suffix := suffix_of(name)) in SUFFIXES:
                    stems[name[: -len(suffix)]].append(name)
        return stems.get(part, [])

    def _nothing(self, folder: str, part: str, is_file: bool) -> str:
        if not is_file:
            return f"there is no folder {os.path.join(self._root, folder, part)}"  # noqa: PTH118
        folder = folder.rstrip("/")
        if folder not in self._folded:
            self._folded[folder] = {name.casefold(): name for name in sorted(self._list(folder), reverse=True)}
        other = self._folded[folder].get(part.casefold())
        return "not there" if other is None else f"not there; {other} differs in case"

    def _list(self, folder: str) -> Collection[str]:
        names = self._names.get(folder)
        if names is None:
            try:
                names = frozenset(os.listdir(os.path.join(self._root, folder) or "."))  # noqa: PTH118, PTH208
            except (OSError, ValueError):  # none such, or a NUL in its name
                names = frozenset()
            self._names[folder] = names
        return names


def _normal(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _alike(name: str) -> str:
    stem, dot, suffix = _normal(name).rpartition(".")
    return f"{stem}{dot}{suffix.lower()}"
