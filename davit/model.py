"""Define DaViT: Dual Attention Vision Transformers (Ding et al., ECCV 2022, arXiv 2204.03645).

Read top-down: the attentions as formulas, the layers, the block, the stages, the classifier. Kernels compute a block
(`davit.accelerate`) only while its text here is the one that they were tested against. After an edit the modules run
as they are written.

Shape legend, used as a suffix where a shape changes:
    B  batch                      H, W  height and width of a map, in positions
    C  channels of a stage        N     positions: of one window (spatial) or of the whole map (channel)
    G  heads = channel groups     D     channels of one head or group, C / G
    M  windows in the batch, B x ceil(H / window) x ceil(W / window)
    E  q, k and v side by side, 3 C

Maps are (B, H, W, C) in memory throughout, which linear layers, LayerNorms and (through a permuted view) channels-last
convolutions read without a copy. Only the inputs and outputs of the models are NCHW.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .windows import pad_odd, window_partition, window_unpartition

ATTENTION_TYPES = ("spatial", "channel", "channel_qk")
GLOBAL_POOLS = ("avg", "max", "avgmax", "")
WEIGHT_INITS = ("", "conv")

#: Builds the attention of a block from its channels and number of heads: a module that keeps the shape (B, H, W, C).
AttentionBuilder = Callable[[int, int], nn.Module]

for _leaf in ("pad_odd", "window_partition", "window_unpartition"):
    torch.fx.wrap(_leaf)  # these branch on sizes, which torch.fx cannot trace


def attend_among_positions(qkv_MNE: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Let each position attend to all positions of its window, head by head (section 3.1 of the paper).

    Returns:
        The mixed values (M, N, C), and the attention (M, G, N, N), whose rows sum to 1.
    """
    M, N, C = qkv_MNE.shape[0], qkv_MNE.shape[1], qkv_MNE.shape[2] // 3
    D = C // num_heads
    q_MGND, k_MGND, v_MGND = qkv_MNE.reshape(M, N, 3, num_heads, D).permute(2, 0, 3, 1, 4).unbind(0)
    attention_MGNN = ((q_MGND * D**-0.5) @ k_MGND.transpose(-2, -1)).softmax(dim=-1)
    return (attention_MGNN @ v_MGND).transpose(1, 2).reshape(M, N, C), attention_MGNN


def attend_among_channels(qkv_BNE: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Let each channel of a group attend to all channels of the group, over the whole map (section 3.2).

    The D x D attention is computed from k and v, and applied to q. The scale D^-0.5 is on the keys.

    Returns:
        The mixed queries (B, N, C), and the attention (B, G, D, D), whose rows sum to 1.
    """
    B, N, C = qkv_BNE.shape[0], qkv_BNE.shape[1], qkv_BNE.shape[2] // 3
    D = C // num_groups
    q_BGND, k_BGND, v_BGND = qkv_BNE.reshape(B, N, 3, num_groups, D).permute(2, 0, 3, 1, 4).unbind(0)
    attention_BGDD = ((k_BGND * D**-0.5).transpose(-2, -1) @ v_BGND).softmax(dim=-1)
    x_BGDN = attention_BGDD @ q_BGND.transpose(-2, -1)
    return x_BGDN.permute(0, 3, 1, 2).reshape(B, N, C), attention_BGDD


def attend_among_channels_qk(qkv_BNE: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Let each channel of a group attend to all channels of the group as Florence-2's towers do (arXiv 2311.06242).

    Against `attend_among_channels` the roles move by one: the D x D attention is computed from q and k, and applied to
    v. The scale N^-0.5 is on the queries: an entry of q^T k is a sum over positions, so N is what its size grows with.

    Returns:
        The mixed values (B, N, C), and the attention (B, G, D, D), whose rows sum to 1.
    """
    B, N, C = qkv_BNE.shape[0], qkv_BNE.shape[1], qkv_BNE.shape[2] // 3
    D = C // num_groups
    q_BGND, k_BGND, v_BGND = qkv_BNE.reshape(B, N, 3, num_groups, D).permute(2, 0, 3, 1, 4).unbind(0)
    attention_BGDD = ((q_BGND * N**-0.5).transpose(-2, -1) @ k_BGND).softmax(dim=-1)
    x_BGDN = attention_BGDD @ v_BGND.transpose(-2, -1)
    return x_BGDN.permute(0, 3, 1, 2).reshape(B, N, C), attention_BGDD


@torch.fx.wrap
def checked_image(image_BCHW: Tensor, in_chans: int) -> Tensor:
    """Return the input, or raise a ValueError that says what is wrong with it."""
    if image_BCHW.dim() != 4:
        raise ValueError(
            f"DaViT reads a batch of images of shape (B, {in_chans}, H, W), but the input has "
            f"{image_BCHW.dim()} dimensions; a single image needs image.unsqueeze(0)."
        )
    if image_BCHW.shape[1] != in_chans:
        raise ValueError(
            f"the model was built with in_chans={in_chans}, but the input has {image_BCHW.shape[1]} channels "
            f"(axis 1 of (B, C, H, W)); build it with in_chans={image_BCHW.shape[1]} or convert the images."
        )
    if image_BCHW.shape[2] < 1 or image_BCHW.shape[3] < 1:
        raise ValueError(
            f"the input is {image_BCHW.shape[2]} x {image_BCHW.shape[3]} pixels: too small; DaViT needs at least "
            "1 x 1, so that one position is left in every stage."
        )
    return image_BCHW


class PatchEmbed(nn.Module):
    """Down-sample in front of a stage (section 3.3 of the paper): a strided convolution and a LayerNorm.

    The stem is a 7x7 convolution of the image, followed by the norm. A later embedding normalises its input, and
    halves it with a 2x2 convolution (3x3 if ``overlapped``). Sizes are rounded up, so no pixel is lost. The original
    pads to a multiple of the stride; here only the 2x2 convolution needs that, as the others' own padding is enough.

    Args:
        in_chans: channels of the input.
        embed_dim: channels of the output.
        stride: pixels or positions per output position.
        stem: read an NCHW image rather than a (B, H, W, C) map.
        overlapped: overlap the patches of a later embedding (the stem always does).
    """

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        stride: int,
        stem: bool,
        overlapped: bool,
        norm_layer: Callable[[int], nn.Module],
    ):
        super().__init__()
        self.stem = stem
        self.halving = not stem and not overlapped
        kernel, padding = (7, 3) if stem else (3, 1) if overlapped else (2, 0)
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel, stride=stride, padding=padding)
        self.norm = norm_layer(embed_dim if stem else in_chans)

    def forward(self, x: Tensor) -> Tensor:
        if self.stem:
            return self.norm(self.proj(x).permute(0, 2, 3, 1))
        x_BHWC = self.norm(x)
        if self.halving:
            x_BHWC = pad_odd(x_BHWC)
        return self.proj(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvPosEnc(nn.Module):
    """Add a convolutional position encoding: x + depthwise 3x3 convolution of x, with a GELU on it if ``act``."""

    def __init__(self, dim: int, act: bool):
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.activation = nn.GELU() if act else nn.Identity()

    def forward(self, x_BHWC: Tensor) -> Tensor:
        encoding_BCHW = self.activation(self.proj(x_BHWC.permute(0, 3, 1, 2)))
        return x_BHWC + encoding_BCHW.permute(0, 2, 3, 1)


class Mlp(nn.Module):
    """Apply linear, exact GELU, linear to each position."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class WindowAttention(nn.Module):
    """Let the positions of each window attend to each other, with several heads (section 3.1 of the paper).

    Windows do not overlap or shift, and there is no position bias. A map whose size is no multiple of the window is
    padded with zeros in front of the qkv layer. So q, k and v of a padded position are the layer's bias, as in the
    original, whose released weights were trained that way.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, qkv_bias: bool):
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_MNC, tiling = window_partition(x_BHWC, self.window_size)
        x_MNC = attend_among_positions(self.qkv(x_MNC), self.num_heads)[0]
        return self.proj(window_unpartition(x_MNC, self.window_size, tiling, (x_BHWC.shape[1], x_BHWC.shape[2])))


class ChannelAttention(nn.Module):
    """Let the channels of each group attend to each other; each is a token that sees the whole map (section 3.2)."""

    def __init__(self, dim: int, num_groups: int, qkv_bias: bool):
        super().__init__()
        self.num_groups = num_groups
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BNC = attend_among_channels(self.qkv(x_BHWC.flatten(1, 2)), self.num_groups)[0]
        return self.proj(x_BNC.reshape(x_BHWC.shape))


class ChannelAttentionQK(nn.Module):
    """Let channels attend to each other by their queries and keys, as in Florence-2's vision towers.

    Parameters have the names and shapes of `ChannelAttention`'s, and another meaning: weights trained for the one are
    no weights for the other.
    """

    def __init__(self, dim: int, num_groups: int, qkv_bias: bool):
        super().__init__()
        self.num_groups = num_groups
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BNC = attend_among_channels_qk(self.qkv(x_BHWC.flatten(1, 2)), self.num_groups)[0]
        return self.proj(x_BNC.reshape(x_BHWC.shape))


class DualAttentionBlock(nn.Module):
    """Apply one transformer block, spatial or channel by the attention that it holds (figure 3 of the paper).

    Position encoding, residual attention, position encoding, residual MLP. Without an MLP (``mlp_ratio`` None) both
    position encodings remain.
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        mlp_ratio: float | None,
        drop_path: float,
        cpe_act: bool,
        norm_layer: Callable[[int], nn.Module],
    ):
        super().__init__()
        self.cpe = nn.ModuleList([ConvPosEnc(dim, cpe_act), ConvPosEnc(dim, cpe_act)])
        self.norm1 = norm_layer(dim)
        self.attn = attention
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.ffn = mlp_ratio is not None
        if mlp_ratio is not None:
            self.norm2 = norm_layer(dim)
            self.mlp: nn.Module = Mlp(dim, int(dim * mlp_ratio))
        else:  # TorchScript compiles the branch that uses them
            self.norm2 = nn.Identity()
            self.mlp = nn.Identity()

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BHWC = self.cpe[0](x_BHWC)
        x_BHWC = x_BHWC + self.drop_path(self.attn(self.norm1(x_BHWC)))
        x_BHWC = self.cpe[1](x_BHWC)
        if self.ffn:
            x_BHWC = x_BHWC + self.drop_path(self.mlp(self.norm2(x_BHWC)))
        return x_BHWC


class DualAttentionStages(nn.Module):
    """Run the stages, without head or output norms: the part that classifier and pyramid share.

    The defaults are those of DaViT_tiny.

    Args:
        in_chans: channels of the image.
        depths: number of block pairs in each stage.
        patch_size: stride of the stem; later stages halve the size.
        embed_dims: channels of each stage.
        num_heads: heads of window attention and groups of channel attention, for each stage.
        window_size: side of a window, in positions.
        mlp_ratio: hidden width of the MLP divided by the stage's channels.
        qkv_bias: whether the layer that makes q, k and v has a bias.
        drop_path_rate: rate of stochastic depth in the last block; it rises linearly from 0 over all blocks.
        norm_layer: builds a norm of the last axis from the number of channels.
        attention_types: the blocks of a "pair", in order, each 'spatial', 'channel', 'channel_qk' (Florence-2's in
            place of DaViT's channel attention), or a callable that builds another attention from the stage's channels
            and number of heads (`AttentionBuilder`).
        ffn: whether blocks have their MLP.
        overlapped_patch: overlapping 3x3 patch embeddings between stages instead of 2x2.
        cpe_act: GELU in the position encodings.
        weight_init: '' as released: linear layers truncated normal with std 0.02, convolutions as in PyTorch;
            'conv': also convolutions normal with std 0.02 and zero bias.
        block_layer: builds a block from the arguments of `DualAttentionBlock`, such as a subclass of it.

    Raises:
        ValueError: an argument is outside its choices, or the lists differ in length.
    """

    def __init__(
        self,
        in_chans: int = 3,
        depths: Sequence[int] = (1, 1, 3, 1),
        patch_size: int = 4,
        embed_dims: Sequence[int] = (96, 192, 384, 768),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.1,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        attention_types: Sequence[str | AttentionBuilder] = ("spatial", "channel"),
        ffn: bool = True,
        overlapped_patch: bool = False,
        cpe_act: bool = False,
        weight_init: str = "",
        block_layer: Callable[..., nn.Module] = DualAttentionBlock,
    ):
        super().__init__()
        _check_stages(depths, embed_dims, num_heads)
        _check_choice("weight_init", weight_init, WEIGHT_INITS)
        if isinstance(attention_types, str) or not attention_types:
            raise ValueError(
                f"attention_types={attention_types!r} must be a non-empty list of {_quoted(ATTENTION_TYPES)} or "
                "callables that build an attention."
            )
        for kind in attention_types:
            if not callable(kind):
                _check_choice("attention_types", kind, ATTENTION_TYPES)
        for name, value in (("in_chans", in_chans), ("patch_size", patch_size), ("window_size", window_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of 1 or more.")
        if not mlp_ratio > 0:
            raise ValueError(f"mlp_ratio={mlp_ratio!r} must be above 0; use ffn=False for blocks without an MLP.")
        _check_rate("drop_path_rate", drop_path_rate)

        self.in_chans = in_chans
        self.embed_dims = tuple(embed_dims)
        self.depths = tuple(depths)
        self.num_stages = len(depths)
        self.grad_checkpointing = False
        self.patch_embeds = nn.ModuleList(
            PatchEmbed(
                in_chans=in_chans if stage == 0 else embed_dims[stage - 1],
                embed_dim=dim,
                stride=patch_size if stage == 0 else 2,
                stem=stage == 0,
                overlapped=overlapped_patch,
                norm_layer=norm_layer,
            )
            for stage, dim in enumerate(embed_dims)
        )

        def block(stage: int, kind: str | AttentionBuilder, drop_path: float) -> nn.Module:
            dim, heads = embed_dims[stage], num_heads[stage]
            if kind == "spatial":
                attention: nn.Module = WindowAttention(dim, heads, window_size, qkv_bias)
            elif kind == "channel":
                attention = ChannelAttention(dim, heads, qkv_bias)
            elif kind == "channel_qk":
                attention = ChannelAttentionQK(dim, heads, qkv_bias)
            else:
                attention = kind(dim, heads)  # type: ignore[operator]
            return block_layer(dim, attention, mlp_ratio if ffn else None, drop_path, cpe_act, norm_layer)

        # one rate per block, so the two blocks of a pair differ
        blocks = len(attention_types) * sum(depths)
        rates = iter([drop_path_rate * i / max(blocks - 1, 1) for i in range(blocks)])
        self.main_blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.Sequential(*(block(stage, kind, next(rates)) for kind in attention_types)) for _ in range(depth))
            )
            for stage, depth in enumerate(depths)
        )
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": dim, "reduction": patch_size * 2**stage, "module": f"main_blocks.{stage}"}
            for stage, dim in enumerate(embed_dims)
        ]
        self.register_state_dict_post_hook(_note_attentions)
        self.register_load_state_dict_pre_hook(_require_noted_attention)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks for the backward pass and recompute the rest: less memory, more time."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Name no parameter beyond biases and norms, which timm excludes by itself."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions that group parameters by depth, for layer-wise learning rates (timm)."""
        if coarse:
            return {"stem": r"^patch_embeds\.0", "blocks": r"^(?:patch_embeds|main_blocks)\.(\d+)"}
        return {
            "stem": r"^patch_embeds\.0",
            "blocks": [
                (r"^patch_embeds\.(\d+)", None),
                (r"^main_blocks\.(\d+)\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }

    def forward_stages(self, image_BCHW: Tensor, last_stage: int = -1) -> list[Tensor]:
        """Run the stages up to ``last_stage`` (-1: all) on NCHW images; return their maps as (B, H, W, C)."""
        maps: list[Tensor] = []
        x = checked_image(image_BCHW, self.in_chans)
        for stage, (patch_embed, blocks) in enumerate(zip(self.patch_embeds, self.main_blocks)):  # noqa: B905
            if last_stage < 0 or stage <= last_stage:
                x = patch_embed(x)
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    for pair in blocks.children():
                        for block in pair.children():
                            x = checkpoint(block, x)
                else:
                    x = blocks(x)
                maps.append(x)
        return maps


class DaViT(DualAttentionStages):
    """Classify images by DaViT, with the protocol of timm's models and the state-dict keys of the original.

    Args:
        num_classes: width of the linear head; 0 leaves it out.
        drop_rate: dropout before the linear head.
        global_pool: 'avg', 'max', 'avgmax', or '' for none (then ``num_classes`` must be 0).
        stages: the arguments of `DualAttentionStages`.

    Shapes:
        input (B, in_chans, H, W), any H and W of at least one pixel; output (B, num_classes) logits.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        weight_init: str = "",
        **stages: Any,
    ):
        super().__init__(norm_layer=norm_layer, weight_init=weight_init, **stages)
        _check_rate("drop_rate", drop_rate)
        self.num_features = self.head_hidden_size = self.embed_dims[-1]
        self.norms: nn.Module = norm_layer(self.num_features)
        self.head_drop = nn.Dropout(drop_rate)
        self._set_head(num_classes, global_pool)
        init_weights(self, weight_init)

    def _set_head(self, num_classes: int, global_pool: str) -> None:
        _check_choice("global_pool", global_pool, GLOBAL_POOLS)
        if not isinstance(num_classes, int) or num_classes < 0:
            raise ValueError(f"num_classes={num_classes!r} must be a whole number of 0 (no head) or more.")
        if num_classes > 0 and not global_pool:
            raise ValueError(f"global_pool='' keeps the map, so num_classes must be 0, not {num_classes}.")
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a newly initialised one of ``num_classes``; 0 removes it."""
        like = next(self.parameters())
        self._set_head(num_classes, self.global_pool if global_pool is None else global_pool)
        init_weights(self.head, "")
        self.head.to(device=like.device, dtype=like.dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map, before any norm: (B, C, H, W), in channels-last memory."""
        return self.forward_stages(x)[-1].permute(0, 3, 1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, normalise and classify the map that `forward_features` returned.

        Returns:
            The logits (B, num_classes), or with ``pre_logits`` the normalised features (B, C).
        """
        if self.global_pool == "":
            return self.norms(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.global_pool == "avg":
            x_BC = x.mean((2, 3))
        elif self.global_pool == "max":
            x_BC = x.amax((2, 3))
        else:
            x_BC = 0.5 * (x.mean((2, 3)) + x.amax((2, 3)))
        x_BC = self.head_drop(self.norms(x_BC))
        return x_BC if pre_logits else self.head(x_BC)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the maps of several stages (timm's protocol).

        Args:
            indices: stages to return; an int means the last so many, None all.
            norm: apply the head's norm to each position of the last stage's map.
            stop_early: do not run the stages after the last one asked for.
            output_fmt: 'NCHW' or 'NHWC'.
            intermediates_only: return the list alone.

        Returns:
            The map of the last stage that ran, as `forward_features` gives it, and the list of maps asked for.
        """
        _check_choice("output_fmt", output_fmt, ("NCHW", "NHWC"))
        take, last = feature_take_indices(len(self.main_blocks), indices)
        maps = self.forward_stages(x, last if stop_early else -1)
        final = maps[-1]
        if norm and len(maps) == self.num_stages:
            maps[-1] = self.norms(final)
        if output_fmt == "NCHW":
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        taken = [maps[stage] for stage in take]
        return taken if intermediates_only else (final.permute(0, 3, 1, 2), taken)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last one of ``indices``, and the head that reads them (timm's protocol)."""
        take, last = feature_take_indices(len(self.main_blocks), indices)
        shortened = last < self.num_stages - 1
        self.patch_embeds = self.patch_embeds[: last + 1]
        self.main_blocks = self.main_blocks[: last + 1]
        if prune_norm or shortened:
            self.norms = nn.Identity()
        if prune_head or shortened:
            self.num_features = self.head_hidden_size = self.embed_dims[last]
            self._set_head(0, "")
        return take


def _note_attentions(
    stages: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Note in a state dict's metadata which attentions its weights are for, since neither names nor shapes tell."""
    classes = (WindowAttention, ChannelAttention, ChannelAttentionQK)
    here = {type(module) for module in stages.modules()}
    local_metadata["attentions"] = [kind for kind, cls in zip(ATTENTION_TYPES, classes, strict=True) if cls in here]


def _require_noted_attention(
    stages: nn.Module,
    state_dict: Mapping[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Refuse weights that were noted to be for the other channel attention (`_note_attentions`)."""
    noted = {*local_metadata.get("attentions", ())} - {"spatial"}
    here: dict[str, Any] = {}
    _note_attentions(stages, {}, prefix, here)
    ours = {*here["attentions"]} - {"spatial"}
    if noted and ours and noted.isdisjoint(ours):
        error_msgs.append(
            f"the weights are for the channel attention {min(noted)!r}, and the model has {min(ours)!r}, which "
            "computes something else with them: build the model with their attention_types, or, if you only start a "
            "training from them, use davit.checkpoint.load_checkpoint with allow_different_function=True."
        )


def init_weights(module: nn.Module, weight_init: str) -> None:
    """Initialise the linear layers of a module, and with 'conv' its convolutions too."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            trunc_normal_(layer.weight, std=0.02)
        elif isinstance(layer, nn.Conv2d) and weight_init == "conv":
            nn.init.normal_(layer.weight, std=0.02)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _check_stages(depths: Sequence[int], embed_dims: Sequence[int], num_heads: Sequence[int]) -> None:
    if not len(depths) == len(embed_dims) == len(num_heads) or not depths:
        raise ValueError(
            "depths, embed_dims and num_heads need one entry for each stage, but have "
            f"{len(depths)}, {len(embed_dims)} and {len(num_heads)}: {depths=}, {embed_dims=}, {num_heads=}."
        )
    for name, values in (("depths", depths), ("embed_dims", embed_dims), ("num_heads", num_heads)):
        if any(not isinstance(value, int) or value < 1 for value in values):
            raise ValueError(f"{name}={values!r} must hold whole numbers of 1 or more.")
    for stage, (dim, heads) in enumerate(zip(embed_dims, num_heads, strict=True)):
        if dim % heads:
            choices = [n for n in range(1, dim + 1) if dim % n == 0]
            raise ValueError(
                f"num_heads[{stage}]={heads} does not divide embed_dims[{stage}]={dim}; "
                f"numbers of heads that do: {choices}."
            )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose from {_quoted(choices)}.")


def _check_rate(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name}={value!r} must be at least 0 and below 1.")


def _quoted(choices: Sequence[str]) -> str:
    return ", ".join(repr(choice) for choice in choices)
