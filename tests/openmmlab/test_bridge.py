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
    with pytest.raises(NotImplementedError, match=r"'carafe_forward'.*compiled mmcv"):
        module.carafe_forward(1, groups=2)
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


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("size", [(1, 1), (9, 48), (48, 40), (50, 12)])
def test_the_gradient_of_averages(aligned: bool, ratio: int, size: tuple[int, int]) -> None:
    """Of maps that are small or not, and of RoIs over all edges, tiny, turned round or outside: torchvision's."""
    image = torch.randn(3, 5, *size, dtype=torch.float64, requires_grad=True)
    corner = torch.rand(60, 2, dtype=torch.float64) * 500 - 100
    extent = torch.rand(60, 2, dtype=torch.float64) * torch.tensor([1.0, 30, 400]).repeat(20)[:, None] - 0.5
    where = torch.cat([torch.randint(2, (60, 1)).double(), corner, corner + extent], 1)  # none of the third image
    ours = mmcv_ops.RoIAlign((7, 5), 1 / 8, ratio, "avg", aligned)(image, where)
    usable = where if ratio else torch.cat([where[:, :3], torch.maximum(where[:, 1:3], where[:, 3:])], 1)
    theirs = torchvision.ops.roi_align(image, usable, (7, 5), 1 / 8, ratio, aligned)
    gradient = torch.randn_like(ours)
    found, expected = (torch.autograd.grad(out, image, gradient)[0] for out in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert not found[2].any()


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


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_of_boxes_that_are_none(mode: str, aligned: bool, ratio: int) -> None:
    """Boxes that are turned round or not finite change nothing for the others, and end no process."""
    image = torch.randn(1, 3, 20, 20, dtype=torch.float64, requires_grad=True)
    good = torch.tensor([[0.0, 1, 1, 30, 30], [0.0, 4, 8, 12, 20]], dtype=torch.float64)
    turned = torch.tensor([[0.0, 10, 10, 30, 5], [0.0, 30, 3, 10, 9], [0.0, 9, 9, 2, 2]], dtype=torch.float64)
    lost = torch.tensor([[0.0, torch.nan, 1, 5, 5], [0.0, 1, 1, torch.inf, 5]], dtype=torch.float64)
    layer = mmcv_ops.RoIAlign((3, 4), 0.5, ratio, mode, aligned)
    alone, found = layer(image, good), layer(image, torch.cat([turned, good, lost]))
    assert torch.equal(found[3:5], alone)
    assert found[5:].isnan().all() and found[:3].isfinite().all()
    if mode == "avg" and ratio == 0 and aligned:
        assert not found[:3].any()  # no sample lies in a box without an extent
    gradient = torch.randn_like(alone)
    (expected,) = torch.autograd.grad(alone, image, gradient)
    padded = torch.zeros_like(found)
    padded[3:5] = gradient
    torch.testing.assert_close(torch.autograd.grad(found, image, padded)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("levels", [[(5, 7), (3, 4), (1, 1)], [(6, 6)]])
def test_deformable_attention(levels: list[tuple[int, int]]) -> None:
    """The operator that mmcv calls on CUDA equals mmcv's formula for CPUs, and its gradient is right."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

    draw = torch.Generator().manual_seed(0)
    shapes = torch.tensor(levels)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    value = torch.randn(2, int(shapes.prod(1).sum()), 3, 4, dtype=torch.float64, generator=draw)
    places = torch.rand(2, 5, 3, len(levels), 2, 2, dtype=torch.float64, generator=draw) * 1.4 - 0.2  # some outside
    weights = torch.rand(2, 5, 3, len(levels), 2, dtype=torch.float64, generator=draw)
    tensors = [one.requires_grad_() for one in (value, places, weights)]

    def ours(value: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, places, weights, 64)

    found, theirs = ours(*tensors), multi_scale_deformable_attn_pytorch(value, shapes, places, weights)
    assert torch.allclose(found, theirs, rtol=0, atol=1e-10)
    gradient = torch.randn(found.shape, dtype=torch.float64, generator=draw)
    for mine, other in zip(*(torch.autograd.grad(out, tensors, gradient) for out in (found, theirs)), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-10)
    assert torch.autograd.gradcheck(ours, tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_deformable_attention_in_half_precision(dtype: torch.dtype) -> None:
    """It is computed wide and rounded once, as are its gradients."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction as Attention

    shapes, starts = torch.tensor([[4, 6]]), torch.tensor([0])
    given = [torch.rand(1, 24, 2, 8), torch.rand(1, 3, 2, 1, 4, 2), torch.rand(1, 3, 2, 1, 4)]
    half = [one.to(dtype).requires_grad_() for one in given]
    wide = [one.detach().float().requires_grad_() for one in half]
    found, expected = (Attention.apply(one[0], shapes, starts, *one[1:], 64) for one in (half, wide))
    assert found.dtype == dtype and torch.equal(found, expected.to(dtype))
    for out in (found, expected):
        out.sum().backward()
    for narrow, full in zip(half, wide, strict=True):
        assert narrow.grad is not None and torch.equal(narrow.grad, full.grad.to(dtype))


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(
    "numbers",
    [
        {"stride": 1, "padding": 1},
        {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2), "groups": 2, "deform_groups": 2},
    ],
    ids=["plain", "groups"],
)
def test_deformable_convolution(modulated: bool, numbers: dict) -> None:
    """Both kinds equal torchvision's, with all gradients."""
    draw = torch.Generator().manual_seed(0)
    kind = mmcv_ops.ModulatedDeformConv2d if modulated else mmcv_ops.DeformConv2d
    layer = kind(4, 6, (3, 3), bias=modulated, **numbers).double()
    steps = {name: numbers[name] for name in ("stride", "padding", "dilation") if name in numbers}
    image = torch.randn(3, 4, 9, 8, dtype=torch.float64, generator=draw, requires_grad=True)
    with torch.no_grad():
        size = torch.nn.functional.conv2d(image, layer.weight, groups=numbers.get("groups", 1), **steps).shape[-2:]
    samples = 9 * numbers.get("deform_groups", 1)
    offset = torch.randn(3, 2 * samples, *size, dtype=torch.float64, generator=draw, requires_grad=True)
    mask = torch.rand(3, samples, *size, dtype=torch.float64, generator=draw, requires_grad=True)
    extra, tensors = (
        ([mask], [image, offset, mask, *layer.parameters()])
        if modulated
        else ([], [image, offset, *layer.parameters()])
    )
    found = layer(image, offset, *extra)
    bias = layer.bias if modulated else None
    theirs = torchvision.ops.deform_conv2d(
        image, offset, layer.weight, bias, **steps, mask=mask if modulated else None
    )
    assert torch.allclose(found, theirs, rtol=0, atol=1e-12)
    gradient = torch.randn(found.shape, dtype=torch.float64, generator=draw)
    for mine, other in zip(*(torch.autograd.grad(out, tensors, gradient) for out in (found, theirs)), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-12)
    half = kind(4, 6, 3, padding=1).bfloat16()
    narrow = [torch.rand(1, 4, 5, 5), torch.rand(1, 18, 5, 5), *([torch.rand(1, 9, 5, 5)] if modulated else [])]
    assert half(*(one.bfloat16() for one in narrow)).dtype == torch.bfloat16


def test_offsets_of_a_larger_map() -> None:
    """An image's numbers are read one after another, as mmcv's kernel does, on which DyHead's weights rely."""
    layer = mmcv_ops.ModulatedDeformConv2d(2, 3, 3, padding=1).double()
    image = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    offset = torch.randn(2, 18, 8, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 9, 8, 8, dtype=torch.float64, requires_grad=True)
    found = layer(image, offset, mask)
    read = [one.detach().reshape(2, -1)[:, : one.shape[1] * 16].reshape(2, -1, 4, 4) for one in (offset, mask)]
    assert torch.equal(found, layer(image, *read))
    found.sum().backward()
    for tensor in (offset, mask):
        unread = tensor.grad.reshape(2, -1)[:, tensor.shape[1] * 16 :]
        assert not unread.any() and tensor.grad.any()
    with pytest.raises(ValueError):
        layer(image, offset[..., :3, :3].contiguous(), mask[..., :3, :3].contiguous())
