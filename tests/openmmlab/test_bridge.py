"""mmcv's operators from torchvision: equal to torchvision's, or to a plain computation where it has none."""

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchvision
from torch import Tensor

from davit.openmmlab import bridge, ops_status

mmcv_ops = pytest.importorskip("mmcv.ops")


def boxes(count: int, seed: int = 0, size: float = 60.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=draw) * size
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=draw) * size / 2], 1)


def rois(count: int, pictures: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randint(pictures, (count, 1), generator=draw).float(), boxes(count, seed + 1, 200.0)], 1)


@pytest.fixture
def install_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """``install_beside(source)``: install the bridge where an extension has that source; returns the one in use."""
    monkeypatch.delitem(sys.modules, bridge.EXTENSION)
    folders = sys.modules["mmcv"].__spec__.submodule_search_locations
    folders.insert(0, str(tmp_path))

    def install(source: str) -> ModuleType:
        (tmp_path / "_ext.py").write_text(source)
        bridge.install_bridge()
        return sys.modules[bridge.EXTENSION]

    yield install
    folders.remove(str(tmp_path))


def test_an_operator_that_is_not_served_says_so() -> None:
    module = sys.modules[bridge.EXTENSION]
    if ops_status() == "compiled":
        pytest.skip("mmcv has its operators")
    with pytest.raises(NotImplementedError, match=r"'deform_conv_forward'.*compiled mmcv"):
        module.deform_conv_forward(1, groups=2)
    assert module.__spec__ is not None and not hasattr(module, "__wrapped__")
    assert "torchvision" in module.get_compiler_version()


def test_an_extension_is_used_unless_it_is_broken(
    install_beside: Callable[[str], ModuleType], caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(install_beside("raise ImportError('undefined symbol')").nms)
    assert ops_status() == "bridged" and "undefined symbol" in caplog.text
    del sys.modules[bridge.EXTENSION]
    assert install_beside("nms = 'theirs'").nms == "theirs"
    assert bridge.install_bridge() == ops_status() == "compiled"


def test_without_mmcv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, bridge.EXTENSION)
    monkeypatch.setattr(bridge.importlib.util, "find_spec", lambda _: None)
    assert bridge.install_bridge() == ops_status() == "no mmcv"


def iou(box: Tensor, others: Tensor, offset: int) -> Tensor:
    sides = torch.minimum(box[2:], others[..., 2:]) - torch.maximum(box[:2], others[..., :2]) + offset
    inter = sides.clamp(min=0).prod(-1)
    areas = [(one[..., 2:] - one[..., :2] + offset).prod(-1) for one in (box, others)]
    return inter / (areas[0] + areas[1] - inter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offset", [0, 1])
def test_nms(offset: int, dtype: torch.dtype) -> None:
    them, scores = boxes(80).to(dtype), torch.rand(80, generator=torch.Generator().manual_seed(5)).to(dtype)
    found, kept = mmcv_ops.nms(them, scores, 0.4, offset)
    wide, expected = them.double(), []
    for i in scores.double().sort(descending=True, stable=True).indices.tolist():
        if not (iou(wide[i], wide[expected], offset) > 0.4).any():
            expected.append(i)
    assert kept.tolist() == expected
    assert found.dtype == dtype and torch.equal(found[:, :4], them[kept])


def test_nms_of_nothing_and_with_limits() -> None:
    found, kept = mmcv_ops.nms(torch.empty(0, 4), torch.empty(0), 0.5)
    assert found.shape == (0, 5) and kept.shape == (0,)
    them, scores = boxes(30), torch.rand(30, generator=torch.Generator().manual_seed(1))
    _, kept = mmcv_ops.nms(them, scores, 0.5, score_threshold=0.5, max_num=3)
    assert len(kept) <= 3 and (scores[kept] > 0.5).all()
    classes = torch.arange(30) % 3
    _, kept = mmcv_ops.batched_nms(them, scores, classes, {"type": "nms", "iou_threshold": 0.5})
    assert kept.tolist() == torchvision.ops.batched_nms(them, scores, classes, 0.5).tolist()


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms(method: str, offset: int) -> None:
    them, scores = boxes(25, seed=3), torch.rand(25, generator=torch.Generator().manual_seed(4))
    found, kept = mmcv_ops.soft_nms(them, scores, 0.3, 0.5, 0.05, method, offset)
    left, expected, order = dict(enumerate(scores.double().tolist())), [], []
    while left:
        best = max(left, key=left.get)
        expected.append(left.pop(best))
        order.append(best)
        for i in list(left):
            overlap = float(iou(them[best].double(), them[i].double(), offset))
            if method == "gaussian":
                left[i] *= math.exp(-(overlap**2) / 0.5)
            elif overlap >= 0.3:
                left[i] *= 0.0 if method == "naive" else 1 - overlap
            if left[i] < 0.05:
                del left[i]
    assert kept.tolist() == order
    assert found[:, 4].tolist() == pytest.approx(expected, abs=1e-6)
    assert mmcv_ops.soft_nms(torch.empty(0, 4), torch.empty(0))[1].shape == (0,)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2, None])
def test_average_and_pool(aligned: bool, ratio: int | None) -> None:
    """RoIAlign with averages, and for no ratio RoIPool, equal torchvision's."""
    image = torch.randn(2, 3, 20, 30, dtype=torch.float64, requires_grad=True)
    where = rois(30, 2).double()
    if ratio is None:
        ours = mmcv_ops.RoIPool((4, 6), 1 / 8)(image, where)
        theirs = torchvision.ops.roi_pool(image, where, (4, 6), 1 / 8)
    else:
        ours = mmcv_ops.RoIAlign((4, 6), 1 / 8, ratio, "avg", aligned)(image, where)
        theirs = torchvision.ops.roi_align(image, where, (4, 6), 1 / 8, ratio, aligned)
    assert torch.equal(ours, theirs)
    gradient = torch.randn_like(ours)
    assert torch.allclose(*(torch.autograd.grad(out, image, gradient)[0] for out in (ours, theirs)), atol=1e-12)


def slow_max_pool(
    image: Tensor, roi: Tensor, grid: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    """One RoI by loops, with torchvision's average over a single sample as the reader of a point."""
    x1, y1, x2, y2 = (roi[1:] * scale - (0.5 if aligned else 0.0)).tolist()
    width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
    rows, columns = (ratio or max(1, -int(-side // cells)) for side, cells in ((height, grid[0]), (width, grid[1])))
    best = torch.full((image.shape[1], *grid), -torch.inf, dtype=image.dtype)
    for i in range(grid[0] * rows):
        for j in range(grid[1] * columns):
            y, x = y1 + (i + 0.5) * height / grid[0] / rows, x1 + (j + 0.5) * width / grid[1] / columns
            point = torch.tensor([[float(roi[0]), x - 0.5, y - 0.5, x + 0.5, y + 0.5]], dtype=image.dtype)
            value = torchvision.ops.roi_align(image, point, 1, 1.0, 1, False)[0, :, 0, 0]
            cell = best[:, i // rows, j // columns]
            cell.copy_(torch.maximum(cell, value))
    return best


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_maximum(aligned: bool, ratio: int) -> None:
    image = torch.randn(2, 3, 14, 17, dtype=torch.float64, requires_grad=True)
    where = rois(12, 2, seed=7).double() * torch.tensor([1, 0.8, 0.8, 0.8, 0.8])  # some lie beyond the map
    layer = mmcv_ops.RoIAlign((2, 3), 1 / 8, ratio, "max", aligned)
    ours = layer(image, where)
    expected = torch.stack([slow_max_pool(image.detach(), roi, (2, 3), 1 / 8, ratio, aligned) for roi in where])
    assert torch.allclose(ours, expected, atol=1e-10)
    gradient, step = torch.randn_like(ours), 1e-6 * torch.randn_like(image)
    (found,) = torch.autograd.grad(ours, image, gradient)
    with torch.no_grad():
        change = ((layer(image + step, where) - layer(image - step, where)) * gradient).sum() / 2
    assert float((found * step).sum()) == pytest.approx(float(change), rel=1e-5)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align_in_half_precision_and_of_no_rois(mode: str) -> None:
    layer = mmcv_ops.RoIAlign(7, 1 / 8, 0, mode)
    for dtype in (torch.float16, torch.bfloat16):
        image = torch.randn(1, 4, 30, 30).to(dtype).requires_grad_()
        where = rois(9, 1).to(dtype)
        half = layer(image, where)
        assert half.dtype == dtype
        assert torch.equal(half, layer(image.detach().float(), where.float()).to(dtype))  # computed wide, rounded once
        half.float().sum().backward()
        assert image.grad is not None and image.grad.dtype == dtype and torch.isfinite(image.grad).all()
    image = torch.randn(1, 4, 8, 8, requires_grad=True)
    found = layer(image, torch.empty(0, 5))
    assert found.shape == (0, 4, 7, 7)
    found.sum().backward()
    assert torch.equal(image.grad, torch.zeros_like(image))


@pytest.mark.parametrize("weighted", [False, True])
def test_focal_loss(weighted: bool) -> None:
    logits = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 4, 4, 4, 0, 1, 2, 4, 3])  # 4 is background
    weight = torch.rand(4, dtype=torch.float64) if weighted else None
    ours = mmcv_ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, "none")
    p = logits.sigmoid()
    one_hot = torch.eye(5, dtype=torch.float64)[target][:, :4]
    expected = -0.25 * one_hot * (1 - p) ** 2 * p.log() - 0.75 * (1 - one_hot) * p**2 * (1 - p).log()
    if weight is not None:
        expected = expected * torch.cat([weight, torch.ones(1, dtype=torch.float64)])[target][:, None]
    assert torch.allclose(ours, expected, atol=1e-12)
    gradient = torch.randn_like(ours)
    grads = [torch.autograd.grad(out, logits, gradient, retain_graph=True)[0] for out in (ours, expected)]
    assert torch.allclose(*grads, atol=1e-10)
    half = mmcv_ops.sigmoid_focal_loss(logits.detach().half(), target, 2.0, 0.25, None, "sum")
    assert half.dtype == torch.float16
