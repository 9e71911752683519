"""Check that the attention that is shown is the one that the model computes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from davit import DaViTPyramid, create_model
from davit.kernels import conditions
from davit.model import attend_among_positions
from davit.visualize import attention_of
from davit.windows import window_partition, window_unpartition


def outputs(model: Any, image: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """The input and the output of every attention, by its name."""
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        module.register_forward_hook(lambda m, x, y, name=name: kept.__setitem__(name, (x[0], y)))
        for name, module in model.named_modules()
        if name.endswith("attn")
    ]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    return kept


def test_every_attention_in_order(small: Callable[..., Any], picture: Callable[..., Tensor]) -> None:
    found = attention_of(small(), picture(1, height=64, width=64))
    assert [view.stage for view in found.spatial] == [0, 1, 2, 2, 3] == [view.stage for view in found.channel]
    assert found.spatial[3].name == "main_blocks.2.1.0.attn" and found.channel[3].name == "main_blocks.2.1.1.attn"
    assert found.last(2) == (found.spatial[3], found.channel[3])
    only_spatial = attention_of(small(attention_types=["spatial"]), picture(1))
    assert only_spatial.channel == () and only_spatial.last(0)[1] is None


def test_own_hooks_are_not_said_to_slow_the_model(
    picture: Callable[..., Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    conditions._log.cache_clear()
    model = create_model("DaViT_nano").eval()
    with caplog.at_level("INFO", "davit.kernels"):
        attention_of(model, picture(1, height=64, width=64))
        assert caplog.records == []
        model.main_blocks[0][0][0].attn.register_forward_hook(lambda *_: None)  # a user's
        with torch.no_grad():
            model(picture(1, height=64, width=64))
    assert caplog.records


@pytest.mark.parametrize(
    ("size", "among_channels"), [((64, 64), "channel"), ((50, 71), "channel"), ((50, 71), "channel_qk")]
)
def test_the_attention_shown_gives_the_models_output(
    small: Callable[..., Any], picture: Callable[..., Tensor], size: tuple[int, int], among_channels: str
) -> None:
    """Applied to v (to q in DaViT's channel attention), projected and put back, it is what the module gave out."""
    model, image = small(attention_types=("spatial", among_channels)), picture(1, height=size[0], width=size[1])
    found, kept = attention_of(model, image), outputs(model, image)
    for rows in [view.attention_MGNN for view in found.spatial] + [view.attention_GDD for view in found.channel]:
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
        assert (rows >= 0).all() and rows.std() > 0
    for view in found.spatial:
        module = model.get_submodule(view.name)
        x, y = kept[view.name]
        H, W, C = x.shape[1:]
        x_MNC, tiling = window_partition(x, view.window)
        v_MGND = module.qkv(x_MNC)[..., 2 * C :].unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        mixed_MNC = (view.attention_MGNN @ v_MGND).transpose(1, 2).flatten(2)
        whole = window_unpartition(mixed_MNC, view.window, tiling, (H, W))
        torch.testing.assert_close(module.proj(whole), y, rtol=1e-4, atol=1e-5)
    for view in found.channel:
        module = model.get_submodule(view.name)
        x, y = kept[view.name]
        H, W, C = x.shape[1:]
        G = module.num_groups
        q, _, v = module.qkv(x).reshape(H * W, 3, G, C // G).unbind(1)
        mixed = torch.einsum("gij,pgj->pgi", view.attention_GDD, v if among_channels == "channel_qk" else q)
        torch.testing.assert_close(module.proj(mixed.reshape(1, H, W, C)), y, rtol=1e-4, atol=1e-5)
        departure = (mixed - mixed.mean(0)).square().mean(2).sqrt().T.reshape(G, H, W)
        torch.testing.assert_close(view.response_GHW, departure, rtol=1e-4, atol=1e-5)


def test_what_a_view_says(small: Callable[..., Any], picture: Callable[..., Tensor]) -> None:
    """Attention received is 1 on average in each window that needs no padding; padding takes its share."""
    found = attention_of(small(), picture(1, height=64, width=64))
    view = found.spatial[0]
    assert view.received_HW.shape == (16, 16) and view.received_HW.std() > 0.01
    torch.testing.assert_close(view.received_HW.reshape(4, 4, 4, 4).mean((1, 3)), torch.ones(4, 4))
    seen = view.seen_from(5, 14)
    assert [seen[4:8, 12:16].sum().item(), seen.sum().item()] == pytest.approx([1, 1], abs=1e-5)
    expected = view.attention_MGNN[1 * 4 + 3, :, 1 * 4 + 2].mean(0).reshape(4, 4)
    torch.testing.assert_close(seen[4:8, 12:16], expected)
    among_channels = found.channel[-1]
    flat = among_channels.response_GHW.flatten(1)
    assert among_channels.most_telling(2) == (flat.amax(1) / flat.mean(1)).argsort(descending=True)[:2].tolist()
    assert sorted(among_channels.most_telling(99)) == list(range(4))
    padded = attention_of(small(), picture(1, height=36, width=64)).spatial[0]  # 9 rows: three of the last window pad
    assert padded.received_HW.shape == (9, 16) and padded.received_HW[8].sum() < 4 * 4 * 4
    torch.testing.assert_close(padded.received_HW[:8].mean(), torch.tensor(1.0))


def test_the_model_is_left_as_it_was_and_another_is_refused(
    small: Callable[..., Any], picture: Callable[..., Tensor]
) -> None:
    model, image = small(), picture(1)
    before, hooks = model(image), [len(module._forward_pre_hooks) for module in model.modules()]
    attention_of(model, image)
    assert torch.equal(model(image), before)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    with pytest.raises(ValueError, match=r"\(2, 3"):
        attention_of(small(), picture(2))
    with pytest.raises(ValueError, match="DaViTPyramid"):
        attention_of(small(DaViTPyramid), picture(1))


def test_an_edited_formula_is_said_or_refused(
    small: Callable[..., Any],
    picture: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def edited(qkv: Tensor, heads: int, *temperature: float) -> tuple[Tensor, Tensor]:
        mixed, attention = attend_among_positions(qkv, heads)
        return mixed * 2, attention

    monkeypatch.setattr("davit.model.attend_among_positions", edited)
    attention_of(small(), picture(1))
    assert "attend_among_positions" in caplog.text
    monkeypatch.setattr("davit.visualize.attention.attend_among_positions", lambda qkv, heads, temperature: None)
    with pytest.raises(ValueError, match="temperature"):
        attention_of(small(), picture(1))
