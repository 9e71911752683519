"""The first NaN or infinity is noticed, named and kept for replay."""

import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from davit import files
from davit.data import Batch
from davit.engine import nonfinite
from davit.engine.nonfinite import (
    NonFiniteError,
    first_nonfinite,
    first_nonfinite_gradient,
    is_finite,
    report_nonfinite,
)
from davit.engine.steps import OverflowCount
from davit.registry import create_model

KWARGS: dict[str, Any] = {
    "embed_dims": [8, 16, 32],
    "depths": [1, 1, 3],
    "num_heads": [1, 2, 4],
    "window_size": 4,
}
MIDDLE = "main_blocks.2.1.0"  # the spatial block of the second pair of three


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


NAMES = [f"class/{i}.png" for i in range(4)]


def spoil(model: nn.Module, name: str, value: float = math.inf) -> None:
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value


# -- noticing


def test_is_finite() -> None:
    good = torch.tensor(1.0)
    assert is_finite(good, torch.tensor(3.4e38), torch.tensor(1e300, dtype=torch.float64))
    assert is_finite(torch.tensor(3e38), torch.tensor(3e38))  # whose sum is not
    for bad in (math.nan, math.inf, -math.inf):
        assert not is_finite(good, torch.tensor(bad))
        assert not is_finite(torch.tensor([1.0, bad]), good)


def test_overflows_are_borne_until_the_scale_is_at_its_lowest() -> None:
    count = OverflowCount(limit=20)
    scale = 65536.0
    borne = 0
    while count.is_bearable(scale):
        borne += 1
        scale /= 2
    assert borne == 19  # at 1 after 16, and a few more
    falling = OverflowCount(limit=5)
    assert all(falling.is_bearable(2.0) for _ in range(50))  # lowering may still help
    again = OverflowCount(limit=5)
    for _ in range(10):
        assert all(again.is_bearable(1.0) for _ in range(4))
        again.reset()


def test_a_real_scaler_finds_its_scale_within_what_is_borne() -> None:
    parameter = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    overflows = OverflowCount()
    skipped = 0
    for _ in range(50):
        optimizer.zero_grad()
        loss = parameter * 1000
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        assert parameter.grad is not None
        if is_finite(loss, parameter.grad):
            overflows.reset()
        else:
            assert is_finite(loss)
            assert overflows.is_bearable(scaler.get_scale())
            skipped += 1
        before = parameter.item()
        scaler.step(optimizer)
        scaler.update()
        assert (parameter.item() == before) == (overflows.count > 0)
    assert 0 < skipped < 50


# -- tracing


class Overflowing(nn.Module):
    """Good parameters, a bad result."""

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.zeros(())


class BadBetween(nn.Module):
    """Its own code, between two good layers, divides by zero."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(dim, dim)
        self.second = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) / torch.zeros(()))


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_weight_in_the_middle_is_named(
    model: nn.Module, images: Tensor, value: float, autocast: torch.dtype | None
) -> None:
    context = lambda: torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None)  # noqa: E731
    assert first_nonfinite(model, images, context) is None
    spoil(model, f"{MIDDLE}.mlp.fc1.weight", value)
    spoil(model, "head.weight", value)  # runs later
    spoil(model, "patch_embeds.2.proj.bias", 0.0)  # registered earlier, and good
    assert first_nonfinite(model, images, context) == f"parameter {MIDDLE}.mlp.fc1.weight"


def _two_norms(model: nn.Module) -> None:
    spoil(model, "main_blocks.0.0.0.norm1.bias")
    spoil(model, "patch_embeds.1.norm.bias")  # registered before all blocks, runs after those of stage 0


def _large_queries(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_submodule(f"{MIDDLE}.attn").qkv.weight.mul_(1e25)  # q, k and v are finite, their product is not


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (_two_norms, "parameter main_blocks.0.0.0.norm1.bias"),
        (lambda model: setattr(model.get_submodule(f"{MIDDLE}.mlp"), "act", Overflowing()), f"{MIDDLE}.mlp.act"),
        (lambda model: setattr(model.get_submodule(MIDDLE), "attn", BadBetween(32)), f"{MIDDLE}.attn"),
        (_large_queries, f"{MIDDLE}.attn"),
    ],
    ids=["order of execution", "a module's result", "code between modules", "inside window attention"],
)
def test_the_first_place_is_named(
    model: nn.Module, images: Tensor, edit: Callable[[nn.Module], None], expected: str
) -> None:
    edit(model)
    assert first_nonfinite(model, images) == expected


def test_nan_pixel_is_the_input(model: nn.Module, images: Tensor) -> None:
    images[2, 1, 5, 7] = math.nan
    assert first_nonfinite(model, images) == "input"


def test_buffer_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    net[1].running_var[2] = math.nan
    assert first_nonfinite(net, torch.ones(1, 3, 2, 2)) == "buffer 1.running_var"


def test_wrappers_are_taken_off(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    spoil(model, f"{MIDDLE}.norm1.weight")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(torch.compile(model, backend="eager"))
        assert first_nonfinite(wrapped, images) == f"parameter {MIDDLE}.norm1.weight"
        assert first_nonfinite_gradient(wrapped) is None
    finally:
        torch.distributed.destroy_process_group()


def test_compiled_in_place(model: nn.Module, images: Tensor) -> None:
    model.compile(backend="eager")
    model(images)
    spoil(model, f"{MIDDLE}.norm1.weight")
    assert first_nonfinite(model, images) == f"parameter {MIDDLE}.norm1.weight"


def test_nothing_is_left_changed(images: Tensor) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(3600, 2))
    net[2].eval()
    net(images).sum().backward()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    modes = [m.training for m in net.modules()]
    random = torch.get_rng_state()
    for value in (1.0, math.inf):
        spoil(net, "4.bias", value)
        state["4.bias"] = net[4].bias.detach().clone()
        assert (first_nonfinite(net, images) is None) == (value == 1.0)
        assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
        assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))  # type: ignore[arg-type]
        assert [m.training for m in net.modules()] == modes
        assert torch.equal(torch.get_rng_state(), random)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_gradient_nearest_to_the_output_is_the_first(model: nn.Module, images: Tensor) -> None:
    model(images).sum().backward()
    assert first_nonfinite_gradient(model) is None
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


def report(folder: Path, model: nn.Module, images: Tensor, **options: Any) -> NonFiniteError:
    options = {"loss": math.nan, "grad_norm": math.nan, "files": NAMES, **options}
    return report_nonfinite(folder, epoch=3, step=17, model=model, batch=batch_of(images), **options)


def test_report_names_origin_and_files_and_keeps_the_batch(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    spoil(model, f"{MIDDLE}.mlp.fc1.weight")
    last = tmp_path / "last.pth.tar"
    last.write_bytes(b"whole")
    error = report(tmp_path, model, images, rank=2, loss=torch.tensor(math.inf))
    assert error.dump == tmp_path / "nonfinite-e3-s17-r2.pt"
    assert error.where == f"parameter {MIDDLE}.mlp.fc1.weight"
    for part in ("3", "17", "2", "inf", f"{MIDDLE}.mlp.fc1.weight", str(error.dump), str(last), NAMES[0]):
        assert part in str(error)
    assert f"python -m davit.engine.nonfinite {error.dump} --checkpoint {last}" in str(error)
    assert last.read_bytes() == b"whole"
    kept = torch.load(error.dump, weights_only=True)
    assert torch.equal(kept["images"], images)
    assert kept["targets"].tolist() == [0, 1, 2, 3]
    assert kept["indices"].tolist() == [100, 101, 102, 103]
    assert kept["files"] == NAMES
    assert (kept["epoch"], kept["step"], kept["rank"], kept["loss"]) == (3, 17, 2, math.inf)


def test_views_are_kept_without_what_they_are_views_of(model: nn.Module, tmp_path: Path) -> None:
    large = torch.zeros(400, 3, 32, 32)
    large[0, 0, 0, 0] = math.nan
    error = report(tmp_path, model, large[:4])
    assert error.where == "input"
    assert error.dump is not None
    assert error.dump.stat().st_size < 100_000


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
            return x / 0.0 if torch.rand(()) == Masked.draw(1234) else x
        return x if self.hidden else x / 0.0

    @staticmethod
    def draw(seed: int) -> Tensor:
        return torch.rand((), generator=torch.Generator().manual_seed(seed))


def test_random_state_of_the_step_is_set_when_it_is_known(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), Masked(hidden=True)).train()
    assert report(tmp_path, net, images).where is None
    error = report(tmp_path, net, images, reseed=lambda: torch.manual_seed(1234))
    assert error.where == "1"
    assert error.dump is not None
    torch.set_rng_state(torch.load(error.dump, weights_only=True)["random_state"])
    assert first_nonfinite(net, images) == "1"


def test_dropped_block_is_found_without_dropping(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), Masked(hidden=False)).train()
    error = report(tmp_path, net, images)
    assert error.where == "1"
    assert net.training
    assert net[1].training


def test_full_disk_does_not_hide_the_report(
    model: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files._RawFile, "write", full)
    images[0] = math.inf
    error = report(tmp_path, model, images)
    assert error.dump is None
    assert error.where == "input"
    assert "No space left" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_failing_second_run_does_not_hide_the_report(images: Tensor, tmp_path: Path) -> None:
    class OutOfMemory(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("no room")

    error = report(tmp_path, OutOfMemory(), images)
    assert error.dump is not None
    assert "no room" in str(error)


# -- replaying


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[nn.Module], Path]:
    """A file as train.py writes it, as far as replay reads it."""

    def save(model: nn.Module) -> Path:
        args = {"model": "DaViT_nano", "model_kwargs": KWARGS, "num_classes": 5, "drop_path": 0.0, "pretrained": True}
        torch.save({"state_dict": model.state_dict(), "state_dict_ema": None, "args": args}, tmp_path / "last.pth.tar")
        return tmp_path / "last.pth.tar"

    return save


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = nonfinite.main([str(word) for word in words])
    output = capsys.readouterr()
    return status, output.out, output.err


@pytest.mark.parametrize("has_good_weights", [False, True])
def test_replay_names_the_module_then_and_now(
    model: nn.Module,
    images: Tensor,
    tmp_path: Path,
    checkpoint: Callable[[nn.Module], Path],
    capsys: pytest.CaptureFixture[str],
    has_good_weights: bool,
) -> None:
    good = checkpoint(model)
    spoil(model, f"{MIDDLE}.mlp.fc1.weight")
    error = report(tmp_path, model, images)
    status, out, _ = run(capsys, error.dump, "--checkpoint", good if has_good_weights else checkpoint(model))
    assert status == 0
    then, now = (next(line for line in out.splitlines() if line.startswith(word)) for word in ("then", "now"))
    assert f"{MIDDLE}.mlp.fc1.weight" in then
    assert (f"{MIDDLE}.mlp.fc1.weight" in now) != has_good_weights


def test_replay_names_the_bad_pictures(
    model: nn.Module,
    images: Tensor,
    tmp_path: Path,
    checkpoint: Callable[[nn.Module], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    images[2, 0, 3, 3] = math.nan
    error = report(tmp_path, model, images)
    status, out, _ = run(capsys, error.dump, "--checkpoint", checkpoint(model), "--device", "cpu")
    assert status == 0
    assert "class/2.png" in out and "class/1.png" not in out


def test_replay_refuses_other_files(
    model: nn.Module,
    images: Tensor,
    tmp_path: Path,
    checkpoint: Callable[[nn.Module], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    dump = report(tmp_path, model, images).dump
    good = checkpoint(model)
    text = tmp_path / "text.pt"
    text.write_text("hello")
    bare = tmp_path / "bare.pth"
    torch.save(model.state_dict(), bare)
    for words in (
        (tmp_path / "absent.pt", "--checkpoint", good),
        (text, "--checkpoint", good),
        (good, "--checkpoint", good),
        (dump, "--checkpoint", bare),
        (dump, "--checkpoint", tmp_path / "absent.pth"),
        (dump, "--checkpoint", good, "--device", "toaster"),
    ):
        status, out, err = run(capsys, *words)
        assert status == 2
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        culprit = "toaster" if "toaster" in words else str(words[0] if words[2] == good else words[2])
        assert culprit in err
