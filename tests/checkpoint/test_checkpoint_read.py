"""Opening files: every wrapping found, nothing run, each mistake a paragraph that names file and remedy."""

import argparse
import collections
import contextlib
import os
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from davit.checkpoint import CheckpointError, read_checkpoint, read_contents, unwrap, write_checkpoint
from davit.engine.run_folder import FORMAT, read_any
from tests.checkpoint.conftest import built, same, under, weights_of

WEIGHTS = dict(weights_of())  # without the notes of a model's own state dict


def error_of(path, **options) -> str:
    """The error's text: one paragraph that names the file."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, **options)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and len(text) > 60
    assert isinstance(caught.value, ValueError)
    return text


# ---- wrappers ----


@pytest.mark.parametrize(
    "wrapper, name",
    [
        ((), "a.pth"),
        (("state_dict",), "a.pth.tar"),
        (("model",), "a.pt"),
        (("model", "state_dict"), "a.safetensors"),
        (("state_dict", "model"), "a"),
    ],
)
def test_weights_are_found_in_any_wrapping(saved, wrapper, name):
    contents = WEIGHTS
    for entry in reversed(wrapper):
        contents = {entry: contents, "epoch": 3}
    checkpoint = read_checkpoint(saved(contents, name))
    assert same(checkpoint.state_dict, WEIGHTS)
    assert checkpoint.wrapper == wrapper and not checkpoint.ema
    assert checkpoint.metadata == ({"epoch": 3} if wrapper else {})


@pytest.mark.parametrize("plain, entry", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_ema_weights_are_preferred_unless_asked_otherwise(saved, entry, plain):
    averaged = dict(weights_of(seed=2))
    path = saved({plain: WEIGHTS, entry: averaged, "metric": 81.5})
    contents, _ = read_contents(path)  # read once, for both
    for ema, expected in (("auto", averaged), ("always", averaged), ("never", WEIGHTS)):
        for checkpoint in (read_checkpoint(path, ema), unwrap(contents, str(path), ema)):
            assert same(checkpoint.state_dict, expected) and checkpoint.ema == (expected is averaged)
            assert checkpoint.metadata == {"metric": 81.5} and checkpoint.origin == str(path)
            assert checkpoint.ema == (checkpoint.skipped == (plain,))


def test_a_checkpoint_without_ema(saved):
    path = saved({"state_dict": WEIGHTS, "state_dict_ema": None})
    assert same(read_checkpoint(path).state_dict, WEIGHTS)
    assert "EMA" in error_of(path, ema="always")
    with pytest.raises(ValueError, match=r"'yes'.*'auto', 'always', 'never'"):
        read_checkpoint(path, "yes")


# ---- formats ----


def test_the_format_is_told_from_the_contents_not_the_suffix(saved, tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", WEIGHTS, {"epoch": "7"}, force=False)
    path = (tmp_path / "a.safetensors").rename(tmp_path / "really_safetensors.pth")
    checkpoint = read_checkpoint(path)
    assert checkpoint.metadata["epoch"] == "7" and checkpoint.wrapper == ()
    assert same(dict(sorted(checkpoint.state_dict.items())), dict(sorted(WEIGHTS.items())))
    assert same(read_checkpoint(str(saved({"state_dict": WEIGHTS}, "really_torch.safetensors"))).state_dict, WEIGHTS)


def test_parameters_in_the_format_of_pytorch_before_1_6_are_plain_tensors(saved):
    parameters = dict(built().named_parameters())
    path = saved({"model": parameters, "epoch": 5}, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    checkpoint = read_checkpoint(path)
    assert same(checkpoint.state_dict, parameters) and checkpoint.metadata == {"epoch": 5}
    assert all(type(tensor) is torch.Tensor and not tensor.requires_grad for tensor in checkpoint.state_dict.values())


# ---- what real training checkpoints carry ----


def test_timms_training_checkpoint_with_args_metric_and_optimizer(saved):
    args = argparse.Namespace(model="DaViT_tiny", lr=1e-3, output=Path("/data/out"), mean=(0.5, 0.4), device=None)
    numpys = {"metric": np.float64(82.25), "best": np.float32(0.5), "step": np.int64(7), "flag": np.bool_(True)}
    state = np.random.RandomState(0).get_state()
    contents = {
        **{"epoch": 12, "state_dict": WEIGHTS, "args": args, "scaler": {"scale": 65536.0}, **numpys, "rng": state},
        **{"device": torch.device("cuda"), "dtype": torch.float16, "version": torch.__version__},
        "history": collections.defaultdict(list, {"loss": [1.0]}),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []},
    }
    checkpoint = read_checkpoint(saved(contents))
    assert same(checkpoint.state_dict, WEIGHTS) and checkpoint.skipped == ("optimizer",)
    metadata = checkpoint.metadata
    assert (metadata.pop("rng")[1] == state[1]).all()
    assert metadata == {
        **{"epoch": 12, "args": {**vars(args), "output": "/data/out"}, "scaler": {"scale": 65536.0}, **numpys},
        **{"device": "cuda", "dtype": "torch.float16", "version": str(torch.__version__), "history": {"loss": [1.0]}},
    }
    assert type(metadata["metric"]) is float and type(metadata["version"]) is str


@pytest.mark.parametrize("numpy_name", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_both_generations_of_numpy_are_read(saved, numpy_name):
    path = saved({"state_dict": WEIGHTS, "metric": np.float64(1.5), "curve": np.arange(6.0).reshape(2, 3).T})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data.replace(b"numpy._core.multiarray", numpy_name.encode()))
    metadata = read_checkpoint(path).metadata
    assert metadata["metric"] == 1.5
    assert np.array_equal(metadata["curve"], np.arange(6.0).reshape(2, 3).T)


class HistoryBuffer:
    """OpenMMLab's, which pickles numpy arrays and references to its own methods."""

    def mean(self):
        pass

    def __getstate__(self):
        return {"_log_history": np.array([1.0, 2.0]), "statistics_methods": {"mean": HistoryBuffer.mean}}


@pytest.mark.parametrize("config_dict", ["yacs.config.CfgNode", "mmengine.config.config.ConfigDict"])
def test_config_trees_and_message_hubs_are_read_without_their_libraries(saved, monkeypatch, config_dict):
    tree = type("ConfigDict", (dict,), {})
    places = {config_dict: tree, "mmengine.logging.history_buffer.HistoryBuffer": HistoryBuffer}
    with monkeypatch.context() as installed:
        for path, cls in places.items():
            module, _, name = path.rpartition(".")
            parts = module.split(".")
            for depth in range(1, len(parts) + 1):
                package = ".".join(parts[:depth])
                installed.setitem(sys.modules, package, sys.modules.get(package, types.ModuleType(package)))
            installed.setattr(sys.modules[module], name, cls, raising=False)
            for thing in (cls, *(value for value in vars(cls).values() if isinstance(value, types.FunctionType))):
                thing.__module__, thing.__qualname__ = module, name if thing is cls else f"{name}.{thing.__name__}"
        contents = {
            "meta": tree(seed=3, classes=("a", "b"), inner=tree(x=[1, 2])),
            "message_hub": {"log_scalars": collections.OrderedDict(loss=HistoryBuffer())},
            "state_dict": under("backbone.", WEIGHTS),
        }
        path = saved(contents)
    checkpoint = read_checkpoint(path)
    assert same(checkpoint.state_dict, under("backbone.", WEIGHTS)) and checkpoint.skipped == ("message_hub",)
    assert checkpoint.metadata == {"meta": {"seed": 3, "classes": ("a", "b"), "inner": {"x": [1, 2]}}}
    assert type(checkpoint.metadata["meta"]) is dict


def test_the_users_own_allow_list_survives_the_reading(saved):
    path = saved({"state_dict": WEIGHTS, "args": argparse.Namespace(a=1)})
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_checkpoint(path)
        assert argparse.Namespace in torch.serialization.get_safe_globals()
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(CheckpointError, match="Namespace"):
        read_contents(path, foreign=False)


# ---- files that would run something ----


class Pickled:
    """Calls a function when it is unpickled by anyone who runs pickles."""

    def __init__(self, call: Callable[..., Any], arguments: tuple[Any, ...], state: Any = None):
        self.reduced = (call, arguments) if state is None else (call, arguments, state)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "call, argument, names",
    [
        (os.system, "touch {}", [f"{os.name}.system"]),
        (eval, "open('{}', 'w').close()", ["eval", "builtins.eval", "__builtin__.eval"]),
        (os.mkdir, "{}", [f"{os.name}.mkdir"]),
    ],
)
def test_a_malicious_pickle_is_not_run_and_is_named(saved, tmp_path, protocol, call, argument, names):
    target = tmp_path / "run"
    bomb = Pickled(call, (argument.format(target),))
    few = dict(list(WEIGHTS.items())[:3])
    places = {
        "bare": bomb,
        "in_args": {"state_dict": few, "args": argparse.Namespace(lr=bomb), "epoch": 3},
        "in_weights": {**few, "zzz": bomb},
        "in_optimizer": {"model": few, "optimizer": {"state": [1, {"x": bomb}]}},
    }
    for place, contents in places.items():
        paths = [tmp_path / f"{place}.pkl"]
        paths[0].write_bytes(pickle.dumps(bomb, protocol))
        if protocol >= 2:
            paths += [
                saved(contents, f"{place}{new}", pickle_protocol=protocol, _use_new_zipfile_serialization=new)
                for new in (True, False)
            ]
        for path in paths:
            for ema in ("auto", "always", "never"):
                text = error_of(path, ema=ema)
                assert any(repr(name) in text for name in names), text
    assert not target.exists()
    with contextlib.suppress(TypeError):
        pickle.loads(pickle.dumps(bomb, protocol))
    assert target.exists()  # or the above would prove nothing


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_crafted_array_makes_no_pointers(saved, form):
    """An array of one object at an address of the file's choice would end the process here, or worse."""
    dtype = Pickled(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))
    state = (1, (1,), dtype, False, b"A" * 8)
    array = Pickled(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state)
    path = saved({"state_dict": WEIGHTS, "x": array}, _use_new_zipfile_serialization=form == "zip")
    assert read_checkpoint(path).metadata == {"x": None}


def test_getattr_is_not_a_way_out_and_a_pickled_model_is_refused_by_its_class(saved):
    """The stand-in for getattr serves OpenMMLab's methods and nothing else."""
    assert "getattr" in error_of(saved({"x": Pickled(getattr, (argparse.Namespace, "mro"))}))
    text = error_of(saved(built()))
    assert "DaViT" in text and "state_dict()" in text


# ---- files that are no checkpoints ----


def test_missing_files_folders_and_the_empty(tmp_path, saved):
    saved(WEIGHTS, "model_best.pth.tar")
    text = error_of(tmp_path / "model_bets.pth.tar")
    assert "does not exist" in text and "model_best.pth.tar" in text
    assert "folder" in error_of(tmp_path) and "model_best.pth.tar" in error_of(tmp_path)
    (tmp_path / "empty.pth").touch()
    assert "empty" in error_of(tmp_path / "empty.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    assert "regular file" in error_of(tmp_path / "pipe.pth")
    assert "does not exist" in error_of(tmp_path / "no_folder" / "a.pth")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_truncated_file(saved, tmp_path, form):
    path = tmp_path / "a.safetensors"
    if form == "safetensors":
        safetensors.torch.save_file(WEIGHTS, path)
    else:
        path = saved(WEIGHTS, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    for share in (0.001, 0.5, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        error_of(path)


def test_a_damaged_file(saved):
    path = saved(WEIGHTS)
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes(64)
    path.write_bytes(bytes(whole))
    assert "checksum" in error_of(path)
    torch.serialization.set_crc32_options(False)
    try:
        assert same(read_checkpoint(saved(WEIGHTS)).state_dict, WEIGHTS)
    finally:
        torch.serialization.set_crc32_options(True)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_damage_anywhere_is_a_checkpoint_error_or_nothing(saved, form):
    """Random bytes overwritten, in the pickle above all: the reader never fails in another way."""
    contents = {"state_dict": {"w": torch.ones(4)}, "args": argparse.Namespace(a=1), "metric": np.float64(2)}
    path = saved(contents, _use_new_zipfile_serialization=form == "zip")
    whole, random, refused = path.read_bytes(), np.random.RandomState(0), 0
    for _ in range(100):
        damaged = bytearray(whole)
        for place in random.randint(len(whole), size=3):
            damaged[place] = random.randint(256)
        path.write_bytes(bytes(damaged))
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "start, says",
    [
        (b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>", "web page"),
        (b"\n  <html>\n<body>login</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0859\nsize 113454432\n", "git lfs pull"),
        ("Gewichte für das Modell\n".encode(), "Gewichte für das Modell"),
        (b'{"message": "Not Found"}', "Not Found"),
        (b"\x1f\x8b\x08\x00" + bytes(100), "gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), ".safetensors"),
        (bytes(257) + b"ustar" + bytes(300), "tar"),
        (b"\x00", "damaged"),
    ],
)
def test_other_files_are_told_what_to_do_about(tmp_path, start, says):
    (tmp_path / "weights.pth").write_bytes(start)
    assert says in error_of(tmp_path / "weights.pth")


def test_other_zip_archives_are_told_what_to_do_about(tmp_path):
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    assert "a.npy" in error_of(tmp_path / "arrays.npz")
    module = torch.nn.Linear(2, 2)
    torch.jit.save(torch.jit.script(module), tmp_path / "script.pt")
    assert "torch.jit.load" in error_of(tmp_path / "script.pt")
    torch.export.save(torch.export.export(module, (torch.ones(1, 2),)), tmp_path / "export.pt")
    assert "torch.export.load" in error_of(tmp_path / "export.pt")


@pytest.mark.parametrize("contents", [{}, {"epoch": 3}, [1, 2], torch.ones(3), None, {"state_dict": {}}])
def test_a_file_without_weights(saved, contents):
    assert "holds" in error_of(saved(contents))


def test_dicts_that_hold_themselves_are_no_endless_loop():
    loop: dict = {"x": torch.ones(1)}
    loop["model"] = loop["args"] = loop
    with pytest.raises(CheckpointError, match="endlessly"):
        unwrap(loop, "loop")
    many: dict = {}
    many.update({str(i): many for i in range(1000)})
    billions: Any = 0
    for _ in range(18):
        billions = [billions] * 10
    checkpoint = unwrap({"model": many, "state_dict": {"w": torch.ones(1)}, "list": billions}, "loop")
    assert checkpoint.skipped == ("model", "list")


# ---- writing ----


def test_a_view_is_written_alone_and_shared_memory_twice(tmp_path):
    large = torch.randn(1000, 1000)
    write_checkpoint(tmp_path / "a.pth", {"row": large[0]}, {}, force=False)
    assert (tmp_path / "a.pth").stat().st_size < 10_000
    write_checkpoint(tmp_path / "b.safetensors", {"a": large[0], "b": large[0], "c": large.T[:2]}, {}, force=False)
    read = read_checkpoint(tmp_path / "b.safetensors").state_dict
    assert torch.equal(read["a"], large[0]) and torch.equal(read["c"], large.T[:2])


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_bytes(b"precious")
    with pytest.raises(CheckpointError, match="force"):
        write_checkpoint(path, WEIGHTS, {}, force=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_checkpoint(path, WEIGHTS, {}, force=True)
    assert path.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(CheckpointError, match=r"\.safetensors, \.pth"):
        write_checkpoint(tmp_path / "a.onnx", WEIGHTS, {}, force=False)
    with pytest.raises(CheckpointError, match="no"):
        write_checkpoint(tmp_path / "no" / "a.pth", WEIGHTS, {}, force=False)


# ---- to resume from ----


def test_a_foreign_file_is_resumed_from_as_weights_average_and_epoch(saved):
    averaged = dict(weights_of(seed=2))
    read = read_any(saved({"model": WEIGHTS, "model_ema": averaged, "epoch": 4, "args": argparse.Namespace(lr=1)}))
    assert read["epoch"] == 4 and same(read["state_dict"], WEIGHTS) and same(read["state_dict_ema"], averaged)
    read = read_any(saved({"state_dict": WEIGHTS}))  # of no trainer at all
    assert read["epoch"] == -1 and same(read["state_dict"], WEIGHTS) and "state_dict_ema" not in read
    own = {"format": FORMAT, "state_dict": {"w": torch.ones(1)}, "optimizer": {"state": {}, "param_groups": []}}
    assert read_any(saved(own)).keys() == own.keys()


@pytest.mark.parametrize(("noted", "names"), [(3, None), (["a", 1], None), (None, None), (["b", "a"], ["b", "a"])])
def test_class_names_are_a_list_of_texts_or_none(tmp_path, noted, names):
    torch.save({"state_dict": {"x": torch.zeros(2)}, "class_names": noted}, tmp_path / "c.pth")
    assert read_checkpoint(tmp_path / "c.pth").class_names == names
