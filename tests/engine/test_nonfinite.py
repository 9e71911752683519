"""The first NaN or infinity is noticed, named and kept for replay."""

import errno
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from davit.data import Batch
from davit.engine import nonfinite, steps
from davit.engine.distributed import World
from davit.engine.nonfinite import NonFiniteError, first_nonfinite, first_nonfinite_gradient, report_nonfinite
from davit.engine.precision import Precision
from davit.engine.steps import Stepper
from davit.registry import create_model

KWARGS = {"embed_dims": [8, 16, 32], "depths": [1, 1, 3], "num_heads": [1, 2, 4], "window_size": 4}
MIDDLE = "main_blocks.2.1.0"  # the spatial block of the second pair of three
NAMES = [f"class/{i}.png" for i in range(4)]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return create_model("DaViT_nano", num_classes=5, drop_path_rate=0.0, **KWARGS).train()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def batch_of(images: Tensor) -> Batch:
    count = len(images)
    return Batch(images, torch.arange(count) % 5, torch.arange(count) + 100)


def spoil(model: nn.Module, name: str, value: float = math.inf) -> None:
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value


# -- noticing


def test_a_scaler_finds_its_scale_and_lasting_overflows_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "MOST_OVERFLOWS", 5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    optimizer, precision = torch.optim.SGD(net.parameters(), lr=1e-3), Precision("cpu", torch.float16)
    alone = World(0, 0, 1, torch.device("cpu"))
    stepper = Stepper(net, net, nn.CrossEntropyLoss(), optimizer, precision, alone, mixup=None, ema=None, seed=0)
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    skipped = []

    def step() -> None:
        before = net[1].weight.clone()
        result = stepper.step([batch_of(torch.ones(4, 3, 8, 8))], 0, 0, False, lambda *_: FloatingPointError())
        assert torch.equal(before, net[1].weight) == result.skipped
        skipped.append(result.skipped)

    while not skipped or skipped[-1]:
        step()
    assert len(skipped) > 2 * 5  # lowering helps still
    assert stepper.updates == 1
    net[1].weight.register_hook(lambda gradient: gradient * math.inf)
    stepper.scaler.update(1.0)
    with pytest.raises(FloatingPointError):
        for _ in range(6):
            step()
    assert skipped[-4:] == [True] * 4 and stepper.updates == 1


# -- tracing


class Overflowing(nn.Module):
    """Good parameters, a bad result."""

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.zeros(())


def _weights(model: nn.Module) -> None:
    spoil(model, f"{MIDDLE}.mlp.fc1.weight", math.nan)
    spoil(model, "head.weight")  # runs later
    spoil(model, "patch_embeds.2.proj.bias", 0.0)  # registered earlier, and good


def _two_norms(model: nn.Module) -> None:
    spoil(model, "main_blocks.0.0.0.norm1.bias")
    spoil(model, "patch_embeds.1.norm.bias")  # registered before all blocks, runs after those of stage 0


def _large_queries(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_submodule(f"{MIDDLE}.attn").qkv.weight.mul_(1e25)  # q, k and v are finite, their product is not


def _buffer(model: nn.Module) -> None:
    model.head = nn.Sequential(nn.BatchNorm1d(32).eval(), model.head)
    model.head[0].running_var[2] = math.nan


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (_weights, f"parameter {MIDDLE}.mlp.fc1.weight"),
        (_two_norms, "parameter main_blocks.0.0.0.norm1.bias"),
        (lambda model: setattr(model.get_submodule(f"{MIDDLE}.mlp"), "act", Overflowing()), f"{MIDDLE}.mlp.act"),
        (_large_queries, f"{MIDDLE}.attn"),
        (_buffer, "buffer head.0.running_var"),
    ],
    ids=["parameter", "order of execution", "a module's result", "code between modules", "buffer"],
)
@pytest.mark.parametrize("mixed", [False, True])
def test_the_first_place_is_named(
    model: nn.Module, images: Tensor, edit: Callable[[nn.Module], None], expected: str, mixed: bool
) -> None:
    context = partial(torch.autocast, "cpu", torch.bfloat16, enabled=mixed)
    assert first_nonfinite(model, images, context) is None
    edit(model)
    assert first_nonfinite(model, images, context) == expected


def test_wrappers_are_taken_off(images: Tensor, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
    spoil(net, "1.weight")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(torch.compile(net, backend="eager"))
        assert first_nonfinite(wrapped, images) == "parameter 1.weight"
        assert first_nonfinite_gradient(wrapped) is None
    finally:
        torch.distributed.destroy_process_group()
    net.compile(backend="eager")  # in place
    net(images)
    assert first_nonfinite(net, images) == "parameter 1.weight"


def test_nothing_is_left_changed(images: Tensor) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(3600, 2))
    net[2].eval()
    net(images).sum().backward()
    for value in (1.0, math.inf):
        spoil(net, "4.bias", value)
        state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        modes, random = [m.training for m in net.modules()], torch.get_rng_state()
        assert (first_nonfinite(net, images) is None) == (value == 1.0)
        assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
        assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))  # type: ignore[arg-type]
        assert [m.training for m in net.modules()] == modes
        assert torch.equal(torch.get_rng_state(), random)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_gradient_nearest_to_the_output_is_the_first(model: nn.Module, images: Tensor) -> None:
    model(images).sum().backward()
    # a fault in stage 1 spoils the gradients of everything before it, and nothing after
    for name, parameter in model.named_parameters():
        if name.startswith(("main_blocks.0", "patch_embeds.0", "patch_embeds.1.norm")):
            assert parameter.grad is not None
            parameter.grad.view(-1)[0] = math.nan
    order = ["patch_embeds.0.norm", "main_blocks.0.0.1.mlp.fc2", "patch_embeds.1.norm"]
    found = first_nonfinite_gradient(model, order)
    assert found is not None
    assert found.rpartition(".")[0] == "patch_embeds.1.norm"


# -- reporting


def report(folder: Path, model: nn.Module, images: Tensor, loss: float = math.nan, **options: Any) -> NonFiniteError:
    known = {"epoch": 3, "step": 17, "rank": 0, "filename": lambda index: NAMES[index - 100], **options}
    return report_nonfinite(folder, loss, math.nan, batch_of(images), model=model, **known)


def test_report_names_origin_and_files_and_keeps_the_batch(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    spoil(model, f"{MIDDLE}.mlp.fc1.weight")
    last = tmp_path / "last.pth.tar"
    last.write_bytes(b"whole")
    error = report(tmp_path, model, torch.cat([images] * 50)[:4], rank=2, loss=math.inf)
    assert error.dump == tmp_path / "nonfinite-e3-s17-r2.pt"
    assert error.where == f"parameter {MIDDLE}.mlp.fc1.weight"
    for part in ("3", "17", "2", "inf", f"{MIDDLE}.mlp.fc1.weight", str(error.dump), str(last), NAMES[0]):
        assert part in str(error)
    assert f"python -m davit.engine.nonfinite {error.dump} --checkpoint {last}" in str(error)
    assert last.read_bytes() == b"whole"
    assert error.dump.stat().st_size < 100_000  # without what the images are a view of
    kept = torch.load(error.dump, weights_only=True)
    assert torch.equal(kept["images"], images)
    assert kept["targets"].tolist() == [0, 1, 2, 3]
    assert kept["indices"].tolist() == [100, 101, 102, 103]
    assert kept["files"] == NAMES
    assert (kept["epoch"], kept["step"], kept["rank"], kept["loss"]) == (3, 17, 2, math.inf)


def test_report_of_a_bad_gradient_alone(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    model(images).sum().backward()
    model.get_parameter("patch_embeds.2.proj.weight").grad.view(-1)[0] = math.inf  # type: ignore[union-attr]
    error = report(tmp_path, model, images, loss=2.0)
    assert error.where is None
    assert "patch_embeds.2.proj.weight" in str(error)


class Masked(nn.Module):
    """Bad for one draw of the random numbers in training, always in evaluation unless `hidden`."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            draw = torch.rand((), generator=torch.Generator().manual_seed(1234))
            return x / 0.0 if torch.rand(()) == draw else x
        return x if self.hidden else x / 0.0


def test_random_state_of_the_step_is_set_when_it_is_known(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), Masked(hidden=True)).train()
    assert report(tmp_path, net, images).where is None
    error = report(tmp_path, net, images, reseed=lambda: torch.manual_seed(1234))
    assert error.where == "1"
    assert error.dump is not None
    torch.set_rng_state(torch.load(error.dump, weights_only=True)["random_state"])
    assert first_nonfinite(net, images) == "1"
    # a block with the fault that was dropped this time
    net = nn.Sequential(nn.Flatten(), Masked(hidden=False)).train()
    assert report(tmp_path, net, images).where == "1"
    assert net.training and net[1].training


def test_neither_a_full_disk_nor_a_failing_second_run_hides_the_report(
    model: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starving = nn.Identity()
    starving.forward = Mock(side_effect=torch.OutOfMemoryError("no room"))  # type: ignore[method-assign]
    error = report(tmp_path / "kept", starving, images)
    assert error.dump is not None
    assert "no room" in str(error)
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    images[0] = math.inf
    error = report(tmp_path / "full", model, images)
    assert (error.dump, error.where) == (None, "input")
    assert "No space left" in str(error)
    assert list((tmp_path / "full").iterdir()) == []


# -- replaying


def saved(model: nn.Module, file: Path) -> Path:
    """A file as train.py writes it, as far as replay reads it."""
    args = {"model": "DaViT_nano", "model_kwargs": KWARGS, "num_classes": 5, "drop_path": 0.0, "pretrained": True}
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": None, "args": args}, file)
    return file


def run(*words: object) -> int:
    return nonfinite.main([str(word) for word in words])


def test_replay_names_the_module_then_and_now_and_bad_pictures(
    model: nn.Module, images: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = saved(model, tmp_path / "good.pth.tar")
    spoil(model, f"{MIDDLE}.mlp.fc1.weight")
    dump = report(tmp_path, model, images).dump
    for checkpoint in (good, saved(model, tmp_path / "bad.pth.tar")):
        assert run(dump, "--checkpoint", checkpoint) == 0
        _, then, now, *_ = capsys.readouterr().out.splitlines()
        assert f"{MIDDLE}.mlp.fc1.weight" in then
        assert (f"{MIDDLE}.mlp.fc1.weight" in now) == (checkpoint != good)
    images[2, 0, 3, 3] = math.nan
    assert run(report(tmp_path, model, images).dump, "--checkpoint", good, "--device", "cpu") == 0
    out = capsys.readouterr().out
    assert "class/2.png" in out and "class/1.png" not in out


def test_replay_refuses_other_files(
    model: nn.Module, images: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dump, good = report(tmp_path, model, images).dump, saved(model, tmp_path / "good.pth.tar")
    text, bare = tmp_path / "text.pt", tmp_path / "bare.pth"
    text.write_text("hello")
    torch.save(model.state_dict(), bare)
    mistakes = [((file, "--checkpoint", good), file) for file in (tmp_path / "absent.pt", text, good)]
    mistakes += [((dump, "--checkpoint", file), file) for file in (bare, tmp_path / "absent.pth")]
    for words, culprit in [*mistakes, ((dump, "--checkpoint", good, "--device", "toaster"), "toaster")]:
        caplog.clear()
        assert run(*words) == 2
        assert str(culprit) in caplog.text and "Traceback" not in caplog.text
