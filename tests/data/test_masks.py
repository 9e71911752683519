"""Labels of masks: how files state them, and those that teach nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from davit.data import DataError, masks
from davit.data.masks import IGNORED, Coding, check_pairs, compare_classes, count_labels, judge_labels

LABELS = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)
COLOURS = ((0, 0, 0), (200, 30, 30), (30, 200, 30))


def save(pixels: Any, file: Path, mode: str | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    (image.convert(mode, palette=Image.Palette.ADAPTIVE) if mode else image).save(file)
    return file


def counts(*found: dict[int, int]) -> Any:
    """Counts of labels, a row for each mask."""
    rows = np.zeros((len(found), 256), dtype=np.int64)
    for row, given in zip(rows, found, strict=True):
        row[list(given)] = list(given.values())
    return rows


# -- reading


@pytest.mark.parametrize("mode", [None, "RGBA", "P"])
def test_colours_are_labels(tmp_path: Path, mode: str | None) -> None:
    """In images of any kind; a listed colour that is no class is ignored."""
    coding = Coding(COLOURS[:2], (COLOURS[2],))
    file = save(np.array(COLOURS)[LABELS], tmp_path / "a.png", mode)
    assert np.array_equal(coding.read(file), np.where(LABELS == 2, IGNORED, LABELS))
    with pytest.raises(DataError, match=r"\(30, 200, 30\)"):
        Coding(COLOURS[:2]).read(file)


def test_palettes_are_labels_where_that_is_said(tmp_path: Path) -> None:
    image = Image.fromarray(LABELS, "P")
    image.putpalette([value for colour in COLOURS for value in colour])
    image.save(tmp_path / "a.png")
    save(np.zeros((20, 30, 3)), tmp_path / "b.png")
    pair = [tmp_path / "b.png"], [tmp_path / "a.png"]
    with pytest.raises(DataError, match="palette_is_labels"):
        check_pairs(*pair, Coding())
    for coding in (Coding(palette_is_labels=True), Coding(COLOURS)):
        check_pairs(*pair, coding)
        assert np.array_equal(coding.read(tmp_path / "a.png"), LABELS)


def test_one_bit_masks(tmp_path: Path) -> None:
    Image.fromarray(LABELS > 0).save(tmp_path / "a.png")
    assert np.array_equal(Coding().read(tmp_path / "a.png"), LABELS > 0)


def test_files_that_are_no_masks(tmp_path: Path) -> None:
    picture = save(np.zeros((20, 30, 3)), tmp_path / "picture.png")
    noise = save(np.random.default_rng(0).integers(0, 255, (20, 30, 3)), tmp_path / "noise.png")
    deep, cut = tmp_path / "deep.png", tmp_path / "cut.png"
    Image.fromarray(LABELS.astype(np.uint16)).save(deep)
    cut.write_bytes(save(LABELS, tmp_path / "whole.png").read_bytes()[:-60])
    for file, reason in ((picture, r"\[0, 0, 0\]"), (noise, "256 colours"), (deep, "16 bits"), (cut, "cut")):
        with pytest.raises(DataError, match=reason):
            check_pairs([picture], [file], Coding())
    with pytest.raises(DataError, match="3 channels"):
        Coding().read(picture)
    with pytest.raises(DataError, match="cut"):
        Coding().read(cut)
    with pytest.raises(DataError, match=r"30 x 20.* 1 more"):
        small = save(LABELS[:10], tmp_path / "small.png")
        check_pairs([picture, picture], [small, small], Coding())


def test_counts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run reads only what has changed; other codings are counted apart; a damaged cache is no fault."""
    files = [save(LABELS, tmp_path / f"{name}.png") for name in "ab"]
    read: list[Path] = []
    original = Coding.read
    monkeypatch.setattr(Coding, "read", lambda self, file: (read.append(file), original(self, file))[1])
    expected = np.bincount(LABELS.ravel(), minlength=256)
    for fresh in (2, 0):
        read.clear()
        assert np.array_equal(count_labels(files, Coding()), [expected, expected])
        assert len(read) == fresh
    save(np.zeros((4, 5)), files[1])
    assert count_labels(files, Coding())[1, 0] == 20 and read == [files[1]]
    count_labels(files[:1], Coding(palette_is_labels=True))
    assert read == [files[1], files[0]]
    kept = masks.cache_file("labels", masks._LAYOUT, str(tmp_path), Coding())
    for damaged in (b"{", b"[]", b'{"%s": 3}' % str(files[0]).encode()):
        kept.write_bytes(damaged)
        assert np.array_equal(count_labels(files[:1], Coding()), [expected])
    rows = {str(files[0]): [files[0].stat().st_size, files[0].stat().st_mtime_ns, {"x": 1}]}
    kept.write_text(str(rows).replace("'", '"'))
    assert np.array_equal(count_labels(files[:1], Coding()), [expected])


# -- judging


@pytest.mark.parametrize("reduced", [False, True])
def test_masks_of_0_and_255(reduced: bool) -> None:
    """255 is ignored, so that the class would never be learned; once it is renamed, all is well."""
    found = counts({0: 50, 255: 50}, {0: 90, 255: 10})
    with pytest.raises(DataError, match=r"0/255.*label_map\.255=1"):
        judge_labels(found, "ab", ("bg", "crack"), reduce_zero_label=reduced)
    report = judge_labels(found, "ab", ("bg", "crack"), label_map={255: 1})
    assert report.present == ("bg", "crack") and report.ignored == 0.0 and not report.warnings


@pytest.mark.parametrize(
    ("found", "remedy"),
    [
        ({0: 5, 127: 5, 255: 5}, "label_map.127=1"),
        ({0: 5, 100: 5, 200: 5}, "label_map.100=1 label_map.200=2"),
        ({1: 5, 2: 5, 3: 5}, "reduce_zero_label=True"),
        ({0: 5, 7: 5, 1: 3, 2: 4}, "ignored_labels=[7]"),
        (dict.fromkeys(range(0, 256, 5), 3), "JPEG"),
    ],
)
def test_labels_past_the_classes(found: dict[int, int], remedy: str) -> None:
    with pytest.raises(DataError) as error:
        judge_labels(counts({0: 9}, found), ("fine.png", "bad.png"), ("a", "b", "c"))
    assert remedy in str(error.value) and "bad.png" in str(error.value)


def test_classes_that_never_occur() -> None:
    report = judge_labels(counts({0: 9, 2: 3}), "a", ("ground", "disc", "bar"))
    assert report.present == ("ground", "bar")
    (warning,) = report.warnings
    assert "'disc'" in warning and "'bar'" not in warning
    (warning,) = judge_labels(counts({0: 9}), "a", ("ground", "disc"), of_all=500).warnings
    assert all(word in warning for word in ("'disc'", "'ground'", "500"))


def test_reducing_drops_a_used_class() -> None:
    """Of labels 0 to 2, where 0 is a class, 0 would be ignored and the last class never occur."""
    found = counts({0: 5, 1: 5, 2: 5})
    (warning,) = judge_labels(found, "a", ("ground", "disc", "bar"), reduce_zero_label=True).warnings
    assert "reduce_zero_label=False" in warning and "'bar'" in warning
    assert not judge_labels(counts({0: 1, 1: 5, 2: 5, 3: 5}), "a", ("x", "y", "z"), reduce_zero_label=True).warnings


def test_pixels_that_are_ignored() -> None:
    two = ("a", "b")
    assert not judge_labels(counts({0: 4, 1: 4, 255: 4}), "a", two).warnings
    report = judge_labels(counts({0: 2, 1: 2, 255: 12}), "a", two)
    assert report.ignored == 0.75 and "75.0 %" in report.warnings[0]
    with pytest.raises(DataError, match="every pixel"):
        judge_labels(counts({3: 12}), "a", two, label_map={3: IGNORED})


def test_classes_that_only_validation_has() -> None:
    names = ("a", "b", "c")
    train, val = (judge_labels(counts(row), "a", names) for row in ({0: 1, 1: 1}, {0: 1, 2: 1}))
    (text,) = compare_classes([train], val)
    assert "'c'" in text and "'b'" not in text
    assert not list(compare_classes([train], train))


def test_a_mask_of_a_turned_picture_is_never_to_be_scaled(tmp_path: Path) -> None:
    """It was drawn on the stored pixels, so that scaling it to the upright size would misplace all labels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    mask = save(LABELS, tmp_path / "a.png")
    with pytest.raises(DataError, match="exiftool"):
        check_pairs([tmp_path / "a.jpg"], [mask], Coding())
    check_pairs([tmp_path / "a.jpg"], [save(LABELS.T, tmp_path / "b.png")], Coding())
