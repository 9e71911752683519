"""Images and masks are paired by name, whatever their suffixes; what is left over is named."""

import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from davit.data import DataError
from davit.data.pairs import Pairs, pair_masks


def lay(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def found(pairs: Pairs) -> dict[str, str | None]:
    """Name each image's mask, without folders."""
    return {picture.name: mask and mask.name for picture, mask in zip(pairs.pictures, pairs.masks, strict=True)}


def test_any_suffix_in_any_case(tmp_path: Path) -> None:
    lay(
        tmp_path, "img/a.jpg", "img/b.JPG", "img/c.jpeg", "img/d.png", "img/sub/e.WebP", "img/._a.jpg", "img/notes.txt"
    )
    lay(tmp_path, "mask/a.png", "mask/b.PNG", "mask/c.bmp", "mask/d.tif", "mask/sub/e.gif", "mask/f.png")
    pairs = pair_masks(tmp_path / "img", tmp_path / "mask")
    expected = {"a.jpg": "a.png", "b.JPG": "b.PNG", "c.jpeg": "c.bmp", "d.png": "d.tif", "e.WebP": "e.gif"}
    assert found(pairs) == expected
    assert [mask.name for mask in pairs.without_picture] == ["f.png"]
    assert pairs.others == Counter({".txt": 1})
    assert len(list(pairs.notes())) == 2 and pairs.naming == ""


@pytest.mark.parametrize(
    ("pictures", "masks", "form"),
    [
        (("a.jpg", "b.jpg"), ("a_mask.png", "b_mask.png"), ("", "_mask")),
        (("a.jpg", "b.jpg"), ("a_L.png", "b_L.png"), ("", "_L")),
        (("1_sat.jpg", "2_sat.jpg"), ("1_mask.png", "2_mask.png"), ("", "_mask")),
        (("image_1.jpg", "image_2.jpg"), ("mask_1.png", "mask_2.png"), ("mask_", "")),
        (
            ("t/a_leftImg8bit.png",),
            ("t/a_gtFine_color.png", "t/a_gtFine_labelIds.png", "t/a_gtFine_labelTrainIds.png"),
            ("", "_gtFine_labelTrainIds"),
        ),
    ],
)
def test_masks_called_otherwise(
    tmp_path: Path, pictures: tuple[str, ...], masks: tuple[str, ...], form: tuple[str, str]
) -> None:
    lay(tmp_path / "img", *pictures)
    lay(tmp_path / "mask", *masks)
    pairs = pair_masks(tmp_path / "img", tmp_path / "mask")
    before, after = form
    assert pairs.form == form and pairs.naming
    assert len(found(pairs)) == len(pictures)
    assert all(mask and Path(mask).stem.startswith(before) for mask in found(pairs).values())
    assert all(mask and Path(mask).stem.endswith(after) for mask in found(pairs).values())


def test_suffixes_that_are_given(tmp_path: Path) -> None:
    """As mmseg has them: the end of the name; without a dot, the end of the stem."""
    lay(tmp_path / "img", "a_im.jpg", "a_im.PNG", "b_im.JPG", "other.jpg")
    lay(tmp_path / "mask", "a_lab.png", "b_lab.png", "b_lab.jpg", "other.png")
    pairs = pair_masks(tmp_path / "img", tmp_path / "mask", "_im.jpg", "_lab.png")
    assert found(pairs) == {"a_im.jpg": "a_lab.png", "b_im.JPG": "b_lab.png"}
    assert pairs.unasked == Counter({".jpg": 2, ".png": 2}) and not pairs.others
    with pytest.raises(DataError, match="a_im"):
        pair_masks(tmp_path / "img", tmp_path / "mask", "_im", "_lab.png")


def test_in_one_folder(tmp_path: Path) -> None:
    lay(tmp_path / "a", "a.jpg", "a_mask.png", "b.jpg", "b_mask.png", "_classes.csv")
    assert found(pair_masks(tmp_path / "a", tmp_path / "a")) == {"a.jpg": "a_mask.png", "b.jpg": "b_mask.png"}
    lay(tmp_path / "b", "a.jpg", "a.png", "b.jpg", "b.png", "c.jpg")
    pairs = pair_masks(tmp_path / "b", tmp_path / "b")
    assert found(pairs) == {"a.jpg": "a.png", "b.jpg": "b.png", "c.jpg": None}
    assert [picture.name for picture in pairs.without_mask] == ["c.jpg"]
    lay(tmp_path / "c", "a.png", "a_x.png", "b.png", "b_x.png")
    given = pair_masks(tmp_path / "c", tmp_path / "c", mask_suffix="_x.png")
    assert found(given) == {"a.png": "a_x.png", "b.png": "b_x.png"} and not given.unasked


def test_names_with_dots(tmp_path: Path) -> None:
    """What follows a dot is a suffix only if it is one of a file."""
    lay(tmp_path / "img", "v1.0.jpg", "v1.1.jpg", "sub.d/a.jpg")
    (tmp_path / "img" / "IMG.1234").write_bytes(b"\xff\xd8\xff\xe0")
    lay(tmp_path / "mask", "v1.0.png", "v1.1.png", "IMG.1234.png", "sub.d/a.png")
    assert not pair_masks(tmp_path / "img", tmp_path / "mask").without_mask


def test_masks_below_the_pictures(tmp_path: Path) -> None:
    lay(tmp_path, "a.jpg", "sub/b.jpg", "masks/a.png", "masks/sub/b.png")
    assert found(pair_masks(tmp_path, tmp_path / "masks")) == {"a.jpg": "a.png", "b.jpg": "b.png"}


def test_several_files_of_one_name_are_refused(tmp_path: Path) -> None:
    lay(tmp_path, "img/a.jpg", "img/a.png", "mask/a.png")
    with pytest.raises(DataError, match=r"a\.jpg and a\.png"):
        pair_masks(tmp_path / "img", tmp_path / "mask")
    assert found(pair_masks(tmp_path / "img", tmp_path / "mask", ".jpg")) == {"a.jpg": "a.png"}
    lay(tmp_path, "two/a.jpg", "masks/a.png", "masks/a.bmp")
    with pytest.raises(DataError, match=r"a\.bmp and a\.png"):
        pair_masks(tmp_path / "two", tmp_path / "masks")


def test_names_of_other_platforms(tmp_path: Path) -> None:
    """macOS writes é as two characters, and Windows does not tell A from a."""
    lay(tmp_path / "img", unicodedata.normalize("NFC", "café.jpg"), "IMG_1.JPG")
    lay(tmp_path / "mask", unicodedata.normalize("NFD", "café.png"), "img_1.png")
    pairs = pair_masks(tmp_path / "img", tmp_path / "mask")
    assert not pairs.without_mask and not pairs.without_picture


def test_lists_of_names(tmp_path: Path) -> None:
    """A line is a name, a file, or the paths of an image and its mask; the rest of the folder is no fault."""
    lay(tmp_path, *(f"img/{name}.jpg" for name in "abcd"), *(f"mask/{name}.png" for name in "abcd"))
    lines = ["b", "a.jpg", "/data/img/c.jpg /data/mask/c.png", "nowhere"]
    pairs = pair_masks(tmp_path / "img", tmp_path / "mask", names=lines)
    assert [*found(pairs)] == ["b.jpg", "a.jpg", "c.jpg"]
    assert pairs.absent == ["nowhere"] and not pairs.without_picture
    assert [*found(pair_masks(tmp_path / "img", None, names=["d"]))] == ["d.jpg"]
