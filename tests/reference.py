"""DaViT once more, written from the paper's formulas with a loop for every window and every group.

It shares no code with the package: functions of a state dict, in the dtype of the state dict (double
in the tests). Slow on purpose.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def stage_maps(
    state: State,
    image: Tensor,
    num_heads: Sequence[int],
    window: int,
    patch_size: int = 4,
    overlapped_patch: bool = False,
    cpe_act: bool = False,
    attention_types: Sequence[str] = ("spatial", "channel"),
) -> list[Tensor]:
    """The map (B, C, H, W) of every stage; depths, widths and what is left out: as the state dict says."""
    maps = []
    x = image
    for stage, heads in enumerate(num_heads):
        x = patch_embed(state, f"patch_embeds.{stage}", x, stage, patch_size, overlapped_patch)
        pair = 0
        while f"main_blocks.{stage}.{pair}.0.norm1.weight" in state:
            for i, kind in enumerate(attention_types):
                x = block(state, f"main_blocks.{stage}.{pair}.{i}", x, kind, heads, window, cpe_act)
            pair += 1
        assert pair > 0
        maps.append(x)
    return maps


def patch_embed(state: State, key: str, x: Tensor, stage: int, patch_size: int, overlapped: bool) -> Tensor:
    weight, bias = state[f"{key}.proj.weight"], state[f"{key}.proj.bias"]
    if stage == 0:
        x = padded(x, patch_size)
        return norm(state, f"{key}.norm", F.conv2d(x, weight, bias, stride=patch_size, padding=3))
    x = padded(norm(state, f"{key}.norm", x), 2)
    return F.conv2d(x, weight, bias, stride=2, padding=1 if overlapped else 0)


def block(state: State, key: str, x: Tensor, kind: str, heads: int, window: int, cpe_act: bool) -> Tensor:
    attention = {"spatial": window_attention, "channel": channel_attention}[kind]
    x = position_encoding(state, f"{key}.cpe.0.proj", x, cpe_act)
    x = x + attention(state, f"{key}.attn", norm(state, f"{key}.norm1", x), heads, window)
    x = position_encoding(state, f"{key}.cpe.1.proj", x, cpe_act)
    if f"{key}.mlp.fc1.weight" in state:
        hidden = linear(state, f"{key}.mlp.fc1", norm(state, f"{key}.norm2", x).movedim(1, -1))
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + linear(state, f"{key}.mlp.fc2", hidden).movedim(-1, 1)
    return x


def window_attention(state: State, key: str, x: Tensor, heads: int, window: int) -> Tensor:
    """Padding comes before the linear layer, so that padded positions hold its bias."""
    B, C, H, W = x.shape
    padding = padded(x, window)
    out = torch.zeros_like(padding)
    for b in range(B):
        for top in range(0, padding.shape[2], window):
            for left in range(0, padding.shape[3], window):
                window_slice = (b, slice(None), slice(top, top + window), slice(left, left + window))
                tokens = padding[window_slice].reshape(C, -1).T
                result = []
                for q, k, v in per_head(linear(state, f"{key}.qkv", tokens), heads):
                    scores = torch.stack([(k * q[i]).sum(1) for i in range(len(q))]) / math.sqrt(C // heads)
                    result.append(softmax(scores) @ v)
                out[window_slice] = torch.cat(result, dim=1).T.reshape(C, window, window)
    return linear(state, f"{key}.proj", out[:, :, :H, :W].movedim(1, -1)).movedim(-1, 1)


def channel_attention(state: State, key: str, x: Tensor, groups: int, window: int) -> Tensor:
    """The channels of a group attend to each other: A = softmax(K^T V / sqrt(c)), result (A Q^T)^T."""
    B, C, H, W = x.shape
    out = torch.zeros_like(x)
    for b in range(B):
        tokens = x[b].reshape(C, -1).T
        result = []
        for q, k, v in per_head(linear(state, f"{key}.qkv", tokens), groups):
            scores = torch.stack([(v.T * k[:, i]).sum(1) for i in range(k.shape[1])]) / math.sqrt(C // groups)
            result.append((softmax(scores) @ q.T).T)
        out[b] = torch.cat(result, dim=1).T.reshape(C, H, W)
    return linear(state, f"{key}.proj", out.movedim(1, -1)).movedim(-1, 1)


def classify(state: State, last_map: Tensor) -> Tensor:
    pooled = last_map.flatten(2).mean(2)
    return linear(state, "head", norm(state, "norms", pooled))


def per_head(qkv: Tensor, heads: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    q, k, v = qkv.split(qkv.shape[1] // 3, dim=1)
    c = q.shape[1] // heads
    return [(q[:, i : i + c], k[:, i : i + c], v[:, i : i + c]) for i in range(0, q.shape[1], c)]


def position_encoding(state: State, key: str, x: Tensor, act: bool) -> Tensor:
    encoding = F.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], padding=1, groups=x.shape[1])
    return x + (F.gelu(encoding) if act else encoding)


def norm(state: State, key: str, x: Tensor) -> Tensor:
    """LayerNorm over axis 1."""
    mean = x.mean(1, keepdim=True)
    variance = ((x - mean) ** 2).mean(1, keepdim=True)
    shape = [1, -1] + [1] * (x.dim() - 2)
    weight, bias = state[f"{key}.weight"].reshape(shape), state[f"{key}.bias"].reshape(shape)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def linear(state: State, key: str, x: Tensor) -> Tensor:
    out = x @ state[f"{key}.weight"].T
    return out + state[f"{key}.bias"] if f"{key}.bias" in state else out


def softmax(scores: Tensor) -> Tensor:
    exponentials = torch.exp(scores - scores.max())
    return exponentials / exponentials.sum(1, keepdim=True)


def padded(x: Tensor, multiple: int) -> Tensor:
    return F.pad(x, (0, -x.shape[3] % multiple, 0, -x.shape[2] % multiple))
