"""Opening files: every wrapping found, nothing run, each mistake a paragraph that names file and remedy."""

import argparse
import collections
import io
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from davit.checkpoint import CheckpointError, read_checkpoint, read_contents, unwrap, write_checkpoint
from davit.engine.run_folder import FORMAT, read_any
from tests.checkpoint.conftest import built, same, weights_of


@pytest.fixture
def weights():
    return weights_of()


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
def test_weights_are_found_in_any_wrapping(weights, saved, wrapper, name):
    contents = weights
    for entry in reversed(wrapper):
        contents = {entry: contents, "epoch": 3}
    checkpoint = read_checkpoint(saved(contents, name))
    assert same(checkpoint.state_dict, weights)
    assert checkpoint.wrapper == wrapper and not checkpoint.ema
    assert checkpoint.metadata == ({"epoch": 3} if wrapper else {})


@pytest.mark.parametrize("plain, entry", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_ema_weights_are_preferred_unless_asked_otherwise(saved, entry, plain):
    trained, averaged = weights_of(seed=1), weights_of(seed=2)
    path = saved({plain: trained, entry: averaged, "metric": 81.5})
    contents, _ = read_contents(path)  # read once, for both
    for ema in ("auto", "always"):
        for checkpoint in (read_checkpoint(path, ema), unwrap(contents, str(path), ema)):
            assert same(checkpoint.state_dict, averaged) and checkpoint.ema
            assert checkpoint.skipped == (plain,) and checkpoint.origin == str(path)
    for checkpoint in (read_checkpoint(path, "never"), unwrap(contents, str(path), "never")):
        assert same(checkpoint.state_dict, trained) and not checkpoint.ema
        assert checkpoint.metadata == {"metric": 81.5}


def test_a_checkpoint_without_ema(weights, saved):
    path = saved({"state_dict": weights, "state_dict_ema": None})
    assert same(read_checkpoint(path).state_dict, weights)
    assert "EMA" in error_of(path, ema="always")
    with pytest.raises(ValueError, match=r"'yes'.*'auto', 'always', 'never'"):
        read_checkpoint(path, "yes")


def test_parameters_arrive_as_plain_tensors(saved):
    checkpoint = read_checkpoint(saved(dict(built().named_parameters())))
    assert all(type(tensor) is torch.Tensor and not tensor.requires_grad for tensor in checkpoint.state_dict.values())


# ---- formats ----


def test_the_format_is_told_from_the_contents_not_the_suffix(weights, tmp_path):
    safetensors.torch.save_file(weights, tmp_path / "really_safetensors.pth", {"epoch": "7"})
    torch.save({"state_dict": weights}, tmp_path / "really_torch.safetensors")
    checkpoint = read_checkpoint(tmp_path / "really_safetensors.pth")
    assert checkpoint.metadata["epoch"] == "7" and checkpoint.wrapper == ()
    assert checkpoint.state_dict.keys() == weights.keys()
    assert all(torch.equal(checkpoint.state_dict[name], weights[name]) for name in weights)
    assert same(read_checkpoint(str(tmp_path / "really_torch.safetensors")).state_dict, weights)


def test_the_format_of_pytorch_before_1_6_is_read(weights, saved):
    path = saved({"model": weights, "epoch": 5}, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    checkpoint = read_checkpoint(path)
    assert same(checkpoint.state_dict, weights) and checkpoint.metadata == {"epoch": 5}


# ---- what real training checkpoints carry ----


class _FakeModule(types.ModuleType):
    """A module that is not installed here, so that its classes can be pickled by name."""


@pytest.fixture
def foreign(monkeypatch):
    """``foreign(path, cls)`` makes a class picklable as ``path``; when the test reads, the class is gone."""

    def define(path: str, cls: type) -> type:
        module, _, name = path.rpartition(".")
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            package = ".".join(parts[:depth])
            if package not in sys.modules:
                monkeypatch.setitem(sys.modules, package, _FakeModule(package))
        monkeypatch.setattr(sys.modules[module], name, cls, raising=False)
        cls.__module__, cls.__qualname__, cls.__name__ = module, name, name
        for method in vars(cls).values():
            if isinstance(method, types.FunctionType):
                method.__module__, method.__qualname__ = module, f"{name}.{method.__name__}"
        return cls

    return define


def test_timms_training_checkpoint_with_args_metric_and_optimizer(weights, saved):
    model = built()
    optimizer = torch.optim.AdamW(model.parameters())
    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    args = argparse.Namespace(model="DaViT_tiny", lr=1e-3, output=Path("/data/out"), mean=(0.5, 0.4), device=None)
    path = saved(
        {
            "epoch": 12,
            "arch": "DaViT_tiny",
            "state_dict": weights,
            "optimizer": optimizer.state_dict(),
            "args": args,
            "amp_scaler": {"scale": 65536.0, "growth_factor": 2.0},
            "metric": np.float64(82.25),
            "best": np.float32(0.5),
            "step": np.int64(7),
            "flag": np.bool_(True),
            "rng": np.random.RandomState(0).get_state(),
            "device": torch.device("cuda"),
            "dtype": torch.float16,
            "version": torch.__version__,
            "history": collections.defaultdict(list, {"loss": [1.0]}),
        }
    )
    checkpoint = read_checkpoint(path)
    assert same(checkpoint.state_dict, weights)
    metadata = checkpoint.metadata
    assert metadata["args"] == {**vars(args), "output": "/data/out"}
    assert (metadata["epoch"], metadata["metric"], metadata["best"]) == (12, 82.25, 0.5)
    assert (metadata["step"], metadata["flag"]) == (7, True)
    assert type(metadata["metric"]) is float
    assert (metadata["rng"][1] == np.random.RandomState(0).get_state()[1]).all()
    assert (metadata["device"], metadata["dtype"]) == ("cuda", "torch.float16")
    assert metadata["version"] == str(torch.__version__) and type(metadata["version"]) is str
    assert metadata["history"] == {"loss": [1.0]}
    assert checkpoint.skipped == ("optimizer",)


@pytest.mark.parametrize("numpy_name", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_both_generations_of_numpy_are_read(weights, saved, numpy_name):
    path = saved({"state_dict": weights, "metric": np.float64(1.5), "curve": np.arange(6.0).reshape(2, 3).T})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data.replace(b"numpy._core.multiarray", numpy_name.encode()))
    metadata = read_checkpoint(path).metadata
    assert metadata["metric"] == 1.5
    assert np.array_equal(metadata["curve"], np.arange(6.0).reshape(2, 3).T)


def test_config_trees_are_read_as_dicts_without_their_libraries(weights, saved, foreign, monkeypatch):
    from yacs.config import CfgNode

    cfg = CfgNode({"MODEL": {"TYPE": "davit", "DEPTHS": [1, 1, 3, 1]}})
    config_dict = foreign("mmengine.config.config.ConfigDict", type("ConfigDict", (dict,), {}))
    path = saved({"model": weights, "config": cfg, "meta": config_dict(seed=3, classes=("a", "b"))})
    monkeypatch.delitem(sys.modules, "mmengine.config.config")
    monkeypatch.delitem(sys.modules, "yacs.config")
    metadata = read_checkpoint(path).metadata
    assert metadata["config"] == {"MODEL": {"TYPE": "davit", "DEPTHS": [1, 1, 3, 1]}}
    assert metadata["meta"] == {"seed": 3, "classes": ("a", "b")} and type(metadata["meta"]) is dict


def test_openmmlabs_message_hub_does_not_stop_the_reading(weights, saved, foreign, monkeypatch):
    """Its HistoryBuffer pickles numpy arrays and references to its own methods."""

    class HistoryBuffer:
        def __init__(self):
            self._log_history = np.array([1.0, 2.0])

        def mean(self):
            return self._log_history.mean()

        def __getstate__(self):
            return {**self.__dict__, "statistics_methods": {"mean": HistoryBuffer.mean}}

    foreign("mmengine.logging.history_buffer.HistoryBuffer", HistoryBuffer)
    path = saved(
        {
            "meta": {"epoch": 12, "CLASSES": ("cat", "dog")},
            "message_hub": {"log_scalars": collections.OrderedDict(loss=HistoryBuffer())},
            "state_dict": {f"backbone.{name}": tensor for name, tensor in weights.items()},
        }
    )
    monkeypatch.delitem(sys.modules, "mmengine.logging.history_buffer")
    checkpoint = read_checkpoint(path)
    assert same({name.removeprefix("backbone."): t for name, t in checkpoint.state_dict.items()}, weights)
    assert checkpoint.metadata["meta"] == {"epoch": 12, "CLASSES": ("cat", "dog")}
    assert "message_hub" in checkpoint.skipped


def test_the_users_own_allow_list_survives_the_reading(weights, saved):
    with torch.serialization.safe_globals([argparse.Namespace]):
        path = saved({"state_dict": weights, "args": argparse.Namespace(a=1)})
        read_checkpoint(path)
        assert argparse.Namespace in torch.serialization.get_safe_globals()
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(CheckpointError, match="Namespace"):
        read_contents(path, foreign=False)


# ---- files that would run something ----


class Bomb:
    """Touches a file when it is unpickled by anyone who runs pickles."""

    def __init__(self, path: Path, how: str):
        self.path, self.how = path, how

    def __reduce__(self):
        if self.how == "os.system":
            return os.system, (f"touch {self.path}",)
        if self.how == "builtins.eval":
            return eval, (f"open({str(self.path)!r}, 'w').close()",)
        if self.how == "pathlib.Path.touch":
            return Path.touch, (self.path,)
        return io.open, (str(self.path), "w")


def _nested(bomb, weights):
    return {
        "bare": bomb,
        "in_args": {"state_dict": weights, "args": argparse.Namespace(lr=bomb), "epoch": 3},
        "in_weights": {**weights, "zzz": bomb},
        "in_optimizer": {"model": weights, "optimizer": {"state": [1, {"x": bomb}]}},
    }


@pytest.mark.parametrize("place", ["bare", "in_args", "in_weights", "in_optimizer"])
@pytest.mark.parametrize(
    "how, named",
    [
        ("os.system", "system"),
        ("builtins.eval", "eval"),
        ("pathlib.Path.touch", "pathlib.Path"),
        ("io.open", "io.open"),
    ],
)
def test_a_malicious_pickle_is_not_run_and_is_named(weights, saved, tmp_path, place, how, named):
    target = tmp_path / "run"
    contents = _nested(Bomb(target, how), dict(list(weights.items())[:3]))[place]
    assert named in error_of(saved(contents))
    assert named in error_of(saved(contents, _use_new_zipfile_serialization=False))
    error_of(saved(contents, pickle_protocol=4))  # which torch's reader refuses as a whole
    for ema in ("always", "never"):
        error_of(saved(contents), ema=ema)
    assert not target.exists()


def test_the_bomb_is_a_bomb(saved, tmp_path):
    """Otherwise the test above proves nothing."""
    torch.load(saved(Bomb(tmp_path / "run", "os.system")), weights_only=False)
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_malicious_pickle_of_any_protocol_is_not_run(tmp_path, protocol):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "run", "os.system"), protocol=protocol))
    text = error_of(path)
    assert "system" in text or protocol >= 4
    assert not (tmp_path / "run").exists()


class FakeDtype:
    """Pickles as numpy's dtype of objects whose flags say that they are plain bytes."""

    def __reduce__(self):
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)


class FakeArray:
    """Pickles as a numpy array of one object, at an address of the file's choice."""

    def __reduce__(self):
        state = (1, (1,), FakeDtype(), False, b"A" * 8)
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_crafted_array_makes_no_pointers(weights, saved, form):
    """numpy's own constructors would end the process here, or worse."""
    path = saved({"state_dict": weights, "x": FakeArray()}, _use_new_zipfile_serialization=form == "zip")
    assert read_checkpoint(path).metadata == {"x": None}


def test_getattr_is_not_a_way_out(tmp_path, saved):
    """The stand-in for getattr serves OpenMMLab's methods and nothing else."""
    text = error_of(saved({"x": type("X", (), {"__reduce__": lambda self: (getattr, (argparse.Namespace, "mro"))})()}))
    assert "getattr" in text


def test_a_whole_pickled_model_is_refused_by_its_class(saved):
    text = error_of(saved(built()))
    assert "DaViT" in text and "state_dict()" in text


# ---- files that are no checkpoints ----


def test_missing_files_folders_and_the_empty(tmp_path, weights, saved):
    saved(weights, "model_best.pth.tar")
    text = error_of(tmp_path / "model_bets.pth.tar")
    assert "does not exist" in text and "model_best.pth.tar" in text
    assert "folder" in error_of(tmp_path) and "model_best.pth.tar" in error_of(tmp_path)
    (tmp_path / "empty.pth").touch()
    assert "empty" in error_of(tmp_path / "empty.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    assert "regular file" in error_of(tmp_path / "pipe.pth")
    assert "does not exist" in error_of(tmp_path / "no_folder" / "a.pth")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_truncated_file(weights, saved, tmp_path, form, share):
    if form == "safetensors":
        safetensors.torch.save_file(weights, path := tmp_path / "weights.safetensors")
    else:
        path = saved(weights, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    error_of(path)


def test_a_damaged_file(weights, saved):
    path = saved(weights)
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes(64)
    path.write_bytes(bytes(whole))
    assert "checksum" in error_of(path)
    torch.serialization.set_crc32_options(False)
    try:
        assert same(read_checkpoint(saved(weights)).state_dict, weights)
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


def test_other_zip_archives(tmp_path):
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    (tmp_path / "arrays.npz").rename(tmp_path / "arrays.pth")
    assert "a.npy" in error_of(tmp_path / "arrays.pth")


def test_programs_are_refused_with_the_way_to_their_weights(tmp_path):
    module = torch.nn.Linear(2, 2)
    torch.jit.save(torch.jit.trace(module, torch.ones(1, 2)), tmp_path / "script.pt")
    text = error_of(tmp_path / "script.pt")
    assert "TorchScript" in text and "torch.jit.load" in text
    torch.export.save(torch.export.export(module, (torch.ones(1, 2),)), tmp_path / "export.pt")
    text = error_of(tmp_path / "export.pt")
    assert "torch.export" in text and "state_dict" in text


@pytest.mark.parametrize("contents", [{}, {"epoch": 3}, [1, 2], torch.ones(3), None, {"state_dict": {}}])
def test_a_file_without_weights(saved, contents):
    text = error_of(saved(contents))
    assert "holds" in text


def test_a_dict_that_holds_itself_is_no_endless_loop():
    loop: dict = {"x": torch.ones(1)}
    loop["model"] = loop
    with pytest.raises(CheckpointError, match="endlessly"):
        unwrap(loop, "loop")
    args: dict = {}
    args["args"] = args
    assert unwrap({"state_dict": {"w": torch.ones(1)}, **args}, "loop").skipped == ("args",)


# ---- writing ----


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth.tar"])
def test_what_is_written_is_read_back(weights, tmp_path, name):
    write_checkpoint(tmp_path / name, weights, {"note": "x"}, force=False)
    checkpoint = read_checkpoint(tmp_path / name)
    assert checkpoint.metadata["note"] == "x"
    assert all(torch.equal(checkpoint.state_dict[key], weights[key]) for key in weights)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_view_is_written_alone_and_shared_memory_twice(tmp_path):
    large = torch.randn(1000, 1000)
    write_checkpoint(tmp_path / "a.pth", {"row": large[0]}, {}, force=False)
    assert (tmp_path / "a.pth").stat().st_size < 10_000
    write_checkpoint(tmp_path / "b.safetensors", {"a": large[0], "b": large[0], "c": large.T[:2]}, {}, force=False)
    read = read_checkpoint(tmp_path / "b.safetensors").state_dict
    assert torch.equal(read["a"], large[0]) and torch.equal(read["c"], large.T[:2])


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_write_that_fails_leaves_what_was_there(weights, tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_bytes(b"precious")
    with pytest.raises(CheckpointError, match="force"):
        write_checkpoint(path, weights, {}, force=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_checkpoint(path, weights, {}, force=True)
    assert path.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(CheckpointError, match=r"\.safetensors, \.pth"):
        write_checkpoint(tmp_path / "a.onnx", weights, {}, force=False)
    with pytest.raises(CheckpointError, match="no"):
        write_checkpoint(tmp_path / "no" / "a.pth", weights, {}, force=False)


# ---- to resume from ----


def test_a_foreign_file_is_resumed_from_as_weights_average_and_epoch(weights, saved):
    averaged = weights_of(seed=2)
    read = read_any(saved({"model": weights, "model_ema": averaged, "epoch": 4, "args": argparse.Namespace(lr=1)}))
    assert read["epoch"] == 4 and same(read["state_dict"], weights) and same(read["state_dict_ema"], averaged)
    read = read_any(saved({"state_dict": weights}))  # of no trainer at all
    assert read["epoch"] == -1 and same(read["state_dict"], weights) and "state_dict_ema" not in read
    own = {"format": FORMAT, "state_dict": {"w": torch.ones(1)}, "optimizer": {"x": torch.ones(1)}}
    assert read_any(saved(own)).keys() == own.keys()
