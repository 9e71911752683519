"""Images in tar files: which there are, their classes and order, and what damage and malice do."""

from __future__ import annotations

import gzip
import io
import logging
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from davit.data import (
    BadImageError,
    DataError,
    EpochSampler,
    EvalLoader,
    TrainLoader,
    eval_transform,
    open_dataset,
    ranges,
    shards,
)
from davit.data.shards import ShardSource, index_shards
from tests.forms import as_shards, as_tar, write_tar

MakeFolder = Callable[..., Path]


AB = {"a": 0, "b": 1}


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, format="PNG")
    return stream.getvalue()


def samples(*pairs: tuple[str, str], ending: str = "cls") -> list[tuple[str, bytes]]:
    """Members of samples with these keys and classes."""
    return [
        member
        for number, (key, label) in enumerate(pairs)
        for member in ((f"{key}.png", png(number)), (f"{key}.{ending}", label.encode()))
    ]


def test_shards_have_the_order_classes_and_pictures_of_the_folder(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder(classes=("bee", "ant", "crow"))
    folder = open_dataset(root, "train")
    for place in (as_shards(root, tmp_path / "wds"), as_tar(root, tmp_path / "tar"), tmp_path / "tar"):
        ours = open_dataset(place, "train")
        assert (ours.class_to_idx, ours.source.targets()) == (folder.class_to_idx, folder.source.targets())
        for index in range(len(folder)):
            assert np.array_equal(np.asarray(ours[index][0]), np.asarray(folder[index][0]))
            assert ours[index][1] == folder[index][1]
        assert len(open_dataset(place, "validation")) == 10


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_shards_and_evaluation_has_each_picture_once(
    make_folder: MakeFolder, tmp_path: Path, workers: int
) -> None:
    dataset = open_dataset(as_shards(make_folder(), tmp_path / "wds"), "train", transform=eval_transform(img_size=8))
    seen: list[int] = []
    for rank in range(3):
        loader = EvalLoader(dataset, batch_size=4, rank=rank, world_size=3, workers=workers)
        seen += [index for batch in loader.batches() for index in batch.indices.tolist()]
        loader.close()
    assert sorted(seen) == list(range(40))


def test_a_source_goes_through_pickle_without_its_open_files(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = open_dataset(as_shards(make_folder(), tmp_path / "wds"), "train").source
    first, _ = source.open(0)
    copy, _ = pickle.loads(pickle.dumps(source)).open(0)
    assert copy.read() == first.read()  # type: ignore[union-attr]


def test_more_shards_than_files_may_be_open(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_OPEN_FILES", 2)
    dataset = open_dataset(as_shards(make_folder(), tmp_path / "wds"), "train")
    before = len([*Path("/proc/self/fd").iterdir()])
    for index in range(40):
        dataset.read(index)
    assert len([*Path("/proc/self/fd").iterdir()]) <= before + 2


# Classes


@pytest.mark.parametrize(
    ("members", "options", "classes", "targets"),
    [
        (samples(("b", "ant"), ("a", "bee")), {}, {"ant": 0, "bee": 1}, [0, 1]),
        (samples(("0", "2"), ("1", "0")), {}, {"0": 0, "1": 1, "2": 2}, [0, 2]),
        (samples(("x/0", '{"label": 1}'), ("x/1", '{"label": 0.0}'), ending="json"), {}, {"0": 0, "1": 1}, [0, 1]),
        (samples(("0", '{"k": "b"}'), ("1", '{"k": "a"}'), ending="json"), {"target_key": "k"}, AB, [0, 1]),
        (samples(("0", "b"), ("1", "a"), ending="txt"), {"target_key": "txt"}, {"a": 0, "b": 1}, [0, 1]),
        (samples(("v1.2", "b"), ("v1.3", "a")), {}, {"a": 0, "b": 1}, [0, 1]),
        ([("a/0.png", png()), ("./b/0.PNG", png(1))], {}, {"a": 0, "b": 1}, [0, 1]),
        ([("1/0.png", png()), ("2/0.png", png(1))], {}, {"1": 0, "2": 1}, [0, 1]),  # folders are names
        ([("x/a/0.png", png()), ("x/b/0.png", png(1))], {}, {"a": 0, "b": 1}, [0, 1]),
        (samples(("0", "b"), ("1", "c")), {"class_map": {"b": 4, "c": 2}}, {"b": 4, "c": 2}, [4, 2]),
        (samples(("0", "1"), ("1", "0")), {"class_map": {"x": 0, "y": 1}}, {"x": 0, "y": 1}, [0, 1]),
    ],
)  # fmt: skip
def test_where_a_class_stands(members, options, classes, targets, tmp_path: Path) -> None:
    file = write_tar(tmp_path / "train.tar", members)
    source = open_dataset(file, "train", **options).source
    assert (source.class_to_idx, source.targets()) == (classes, targets)


def test_a_label_beside_the_class_of_another_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A .cls counts before a .json; further images and files of a sample are counted in one line."""
    members = [
        *samples(("0", "a"), ("1", "b")),
        ("0.json", b'{"label": "z"}'),
        ("0.mask.png", png(5)),
        ("1.txt", b"-"),
    ]
    with caplog.at_level(logging.INFO):
        dataset = open_dataset(write_tar(tmp_path / "train.tar", members), "train")
    assert dataset.class_names == ["a", "b"] and dataset.filenames() == ["0.png", "1.png"]
    (line,) = warnings_in(caplog)
    assert "1 .txt" in line and "1 further .mask.png" in line
    other = open_dataset(tmp_path / "train.tar", "train", input_key="mask.png")
    assert other.filenames() == ["0.mask.png"]


def test_a_sample_with_two_pictures_needs_a_choice(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "train.tar", [*samples(("0", "a")), ("0.jpg", png())])
    with pytest.raises(DataError, match="input_key"):
        open_dataset(file, "train")
    assert open_dataset(file, "train", input_key="jpg").filenames() == ["0.jpg"]


@pytest.mark.parametrize(
    "members", [[("0.png", png())], [("0.png", png()), ("0.txt", b"a cat")], [("0.txt", b"")], []]
)
def test_pictures_without_classes_are_refused(members: list[tuple[str, bytes]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.tar"):
        open_dataset(write_tar(tmp_path / "train.tar", members), "train")


def test_a_picture_without_label_among_others_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [*samples(("0", "a"), ("1", "b"), ("2", "\xff")), ("3.png", png())]
    members[5] = ("2.cls", b"\xff\x00")
    dataset = open_dataset(write_tar(tmp_path / "train.tar", members), "train")
    assert dataset.filenames() == ["0.png", "1.png"]
    assert "2 images without a label" in caplog.text


# Damage


def test_what_desktops_pack_beside_pictures_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A zip of macOS, made a tar, has a second tree of names; a disk station puts small copies beside images."""
    odd = ("__MACOSX/cat/0.png", "cat/@eaDir/0.png", "cat/._0.png", "cat/Thumbs.db", "desktop.ini")
    members = [("cat/0.png", png()), ("dog/1.png", png(1)), *((name, png(2)) for name in odd)]
    source = ShardSource([write_tar(tmp_path / "train.tar", members)])
    assert [source.filename(at) for at in range(len(source))] == ["cat/0.png", "dog/1.png"]
    assert not warnings_in(caplog)


def test_of_members_of_one_name_the_last_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As for tar, which appends in place of replacing."""
    folders = [("cat/0.png", png(0)), ("dog/1.png", png(1)), ("cat/0.png", png(2))]
    keyed = [*samples(("k", "0"), ("l", "1")), ("k.png", png(2)), ("k.cls", b"1")]
    for number, (members, targets) in enumerate(((folders, [0, 1]), (keyed, [1, 1]))):
        source = ShardSource([write_tar(tmp_path / f"{number}.tar", members)])
        assert source.targets() == targets
        stored, _ = source.open(0)
        assert stored.read() == png(2)
        assert len(warnings_in(caplog)) == number + 1


def test_members_without_suffix_are_known_by_their_content(tmp_path: Path) -> None:
    members = [
        ("cat/0", png()),
        ("cat/IMG.1234", png(1)),
        ("dog/notes", b"no image"),
        ("dog/empty", b""),
        ("dog/2", png(2)),
    ]
    assert len(ShardSource([write_tar(tmp_path / "train.tar", members)])) == 3


@pytest.mark.parametrize(("ending", "label"), [("cls", "1"), ("json", '{"label": 1}')])
def test_a_label_may_begin_with_a_byte_order_mark(ending: str, label: str, tmp_path: Path) -> None:
    members = samples(("a", f"\ufeff{label}"), ("b", label.replace("1", "0")), ending=ending)
    assert ShardSource([write_tar(tmp_path / "train.tar", members)]).targets() == [0, 1]


@pytest.mark.parametrize("above", ["", "Data/"])
def test_splits_in_upper_case(above: str, tmp_path: Path) -> None:
    members = [(f"{above}{split}/{name}/0.png", png()) for split in ("Train", "VAL") for name in "ab"]
    write_tar(tmp_path / "set.tar", members)
    for split in ("train", "validation"):
        assert open_dataset(tmp_path, split).class_to_idx == AB


def test_joined_tars_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = [write_tar(tmp_path / f"{name}.tar", [(f"{name}/0.png", png())]).read_bytes() for name in "ab"]
    (tmp_path / "both.tar").write_bytes(b"".join(parts))
    assert len(ShardSource([tmp_path / "both.tar"])) == 1
    assert len(warnings_in(caplog)) == 1


def cut(file: Path, size: int) -> None:
    with file.open("r+b") as stream:
        stream.truncate(size)


def last_picture(file: Path) -> tarfile.TarInfo:
    with tarfile.open(file) as tar:
        return [member for member in tar if member.name.endswith(".png")][-1]


@pytest.mark.parametrize("label_first", [True, False])
def test_a_truncated_shard_is_named_with_its_member(
    tmp_path: Path, label_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    members = samples(*((f"{number:03d}", "ab"[number % 2]) for number in range(8)))
    if label_first:
        members = [members[place ^ 1] for place in range(len(members))]
    file = write_tar(tmp_path / "train-000.tar", members)
    write_tar(tmp_path / "train-001.tar", samples(("100", "a"), ("101", "b")))
    member = last_picture(file)
    cut(file, member.offset_data + member.size // 2)
    for _ in range(2):  # the second time from the kept index
        caplog.clear()
        dataset = open_dataset(tmp_path, "train", transform=eval_transform(img_size=8))
        assert len(dataset) == 10
        assert "train-000.tar" in caplog.text and "007.png" in caplog.text
    place = dataset.filenames().index("007.png")
    with pytest.raises(BadImageError) as raised:
        dataset[place]
    assert raised.value.file == str(file / "007.png")
    loader = EvalLoader(dataset, batch_size=4, skip_bad_images=True)
    assert sum(len(batch.indices) for batch in loader.batches()) == 9
    assert list(loader.bad_images) == [str(file / "007.png")]
    training = TrainLoader(dataset, EpochSampler(10, batch_size=5), skip_bad_images=True)
    assert sum(len(batch.indices) for batch in training.batches(0)) == 10
    assert list(training.bad_images) == [str(file / "007.png")]


def test_a_shard_cut_between_members_or_overwritten_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = samples(("0", "a"), ("1", "b"), ("2", "a"))
    file = write_tar(tmp_path / "train.tar", members)
    with tarfile.open(file) as tar:
        third = tar.getmember("2.png").offset
    whole = file.read_bytes()
    for content in (whole[:third], whole[:third] + b"\xff" * 512 + whole[third + 512 :], whole[: third + 100]):
        file.write_bytes(content)
        caplog.clear()
        assert open_dataset(file, "train").filenames() == ["0.png", "1.png"]
        assert str(file) in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>not found</html>" * 50, gzip.compress(b"x" * 2000, mtime=0)],
    ids=["empty", "web page", "gzip"],
)
def test_what_is_no_tar_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.tar"):
        open_dataset(tmp_path, "train")


def test_a_packed_tar_is_refused_with_the_remedy(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder()
    (tmp_path / "out").mkdir()
    for split in ("train", "val"):
        with tarfile.open(tmp_path / "out" / f"{split}.tar.gz", "w:gz") as tar:
            tar.add(root / split, arcname=".")
    with pytest.raises(DataError, match="gzip"):
        open_dataset(tmp_path / "out", "train")


def test_links_devices_and_names_that_lead_elsewhere_are_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "train.tar"
    (tmp_path / "secret.png").write_bytes(png())
    with tarfile.open(file, "w") as tar:
        for name, kind, target in (
            ("a/link.png", tarfile.SYMTYPE, str(tmp_path / "secret.png")),
            ("a/hard.png", tarfile.LNKTYPE, "a/0.png"),
            ("a/device.png", tarfile.CHRTYPE, ""),
            ("a/pipe.png", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
        for name in ("../../a/up.png", "/a/root.png", "a/._0.png", "a/0.png", "b/0.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png())
            tar.addfile(member, io.BytesIO(png()))
    dataset = open_dataset(file, "train")
    assert dataset.filenames() == ["a/0.png", "b/0.png"]
    assert "4 links" in caplog.text and "2 names" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.png", "train.tar"]


def test_hostile_headers_end_with_an_error_and_little_memory(tmp_path: Path) -> None:
    """A record of a name of 1 GB, and a size that leads backwards for ever."""
    file = tmp_path / "train.tar"
    good = write_tar(tmp_path / "good.tar", samples(("0", "a"), ("1", "b"))).read_bytes().rstrip(b"\0")
    good += b"\0" * (-len(good) % 512)
    long = tarfile.TarInfo("long")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    for record in (long.tobuf(), tarfile.TarInfo.create_pax_global_header({"size": "-100000"}), _backwards()):
        with file.open("wb") as stream:
            stream.write(good + record)
            stream.truncate(1 << 31)  # sparse: no disk is used
        (index,) = index_shards([str(file)])
        assert list(index.ranges.names) == ["0.png", "1.png"]


def _backwards() -> bytes:
    member = tarfile.TarInfo("back.png")
    member.pax_headers = {"size": "-5000"}
    return member.tobuf(tarfile.PAX_FORMAT)


def test_a_member_that_claims_to_be_huge_is_a_bad_picture(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "train.tar", [("a/0.png", png()), ("b/0.png", png())])
    member = tarfile.TarInfo("a/1.png")
    member.size = 1 << 40
    with tarfile.open(file) as tar:
        end = tar.getmember("b/0.png").offset_data + 512
    with file.open("r+b") as stream:
        stream.seek(end)
        stream.write(member.tobuf())
        stream.truncate(1 << 41)
    dataset = open_dataset(file, "train")
    with pytest.raises(BadImageError, match=r"a/1\.png"):
        dataset[dataset.filenames().index("a/1.png")]


def test_names_of_any_length_and_bytes(tmp_path: Path) -> None:
    file = tmp_path / "train.tar"
    names = ["a/" + "n" * 300 + ".png", "b/" + "\u00e9" * 90 + ".png", "b/caf\udce9.png", "b/1\u00b22.png"]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(file, "w", format=form, errors="surrogateescape", encoding="utf-8") as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(png())
                tar.addfile(member, io.BytesIO(png()))
        dataset = open_dataset(file, "train")
        assert sorted(dataset.filenames()) == sorted(names)
        dataset.read(3)


# The kept index


def test_an_index_is_made_once_and_again_when_the_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAVIT_CACHE_DIR", str(tmp_path / "cache"))
    made: list[str] = []
    make = shards._make
    monkeypatch.setattr(shards, "_make", lambda shard, *rest: made.append(shard) or make(shard, *rest))
    file = write_tar(tmp_path / "train.tar", samples(("0", "a"), ("1", "b")))
    for _ in range(2):
        assert len(ShardSource([file])) == 2
    assert len(made) == 1
    write_tar(file, samples(("0", "a"), ("1", "b"), ("2", "b")))
    assert len(ShardSource([file])) == 3
    before = file.stat()
    write_tar(file, samples(("0", "a"), ("1", "b"), ("2", "a")))  # as large as before
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert ShardSource([file]).targets() == [0, 0, 1]
    assert len(made) == 3
    for kept in (tmp_path / "cache" / "shards").iterdir():
        kept.write_bytes(kept.read_bytes()[:100])
    assert len(ShardSource([file])) == 3
    assert len(made) == 4


def test_without_a_place_for_it_the_index_is_made_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DAVIT_CACHE_DIR", str(tmp_path / "file" / "below"))
    file = write_tar(tmp_path / "train.tar", samples(("0", "a"), ("1", "b")))
    for _ in range(2):
        caplog.clear()
        assert len(ShardSource([file])) == 2
        assert "DAVIT_CACHE_DIR" in caplog.text


def test_a_shard_that_changes_or_goes_while_it_is_read(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "train.tar", samples(("0", "a"), ("1", "b")))
    source = ShardSource([file])
    os.utime(file, ns=(1, 1))
    with pytest.raises(DataError):
        source.open(0)
    file.unlink()
    with pytest.raises(BadImageError):
        source.open(0)
