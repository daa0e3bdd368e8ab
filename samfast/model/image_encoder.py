"""SAM's image encoder: a ViT with windowed and a few global attention blocks, then a conv neck.

Kirillov et al. 2023, section A ("Image encoder"), after ViTDet (Li et al. 2022); original
`modeling/image_encoder.py`, whose parameter names and constructor arguments these are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samfast.attention.reference import attend as reference_attend
from samfast.attention.windowing import partition, unpartition
from samfast.errors import InputError
from samfast.model.layers import LayerNorm2d, MLPBlock
from samfast.types import Size


class ImageEncoderViT(nn.Module):
    """Patch embedding and absolute positions, `depth` blocks, neck."""

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        out_chans: int = 256,
        qkv_bias: bool = True,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        use_abs_pos: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        window_size: int = 0,
        global_attn_indexes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.img_size = img_size
        patch = (patch_size, patch_size)
        self.patch_embed = PatchEmbed(patch, patch, in_chans=in_chans, embed_dim=embed_dim)
        grid = img_size // patch_size
        self.pos_embed: nn.Parameter | None = None
        if use_abs_pos:
            self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, embed_dim))
        self.blocks = nn.ModuleList(
            Block(
                dim=embed_dim,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                norm_layer=norm_layer,
                act_layer=act_layer,
                use_rel_pos=use_rel_pos,
                rel_pos_zero_init=rel_pos_zero_init,
                window_size=0 if index in global_attn_indexes else window_size,
                input_size=(grid, grid),
            )
            for index in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, out_chans, kernel_size=1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) normalised pixels -> (B, out_chans, S / patch, S / patch)."""
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return out


class Block(nn.Module):
    """A pre-norm transformer block with attention in windows, or global if window_size is 0."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        window_size: int = 0,
        input_size: Size | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(
            dim,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            use_rel_pos=use_rel_pos,
            rel_pos_zero_init=rel_pos_zero_init,
            input_size=(window_size, window_size) if window_size else input_size,
        )
        self.norm2 = norm_layer(dim)
        self.mlp = MLPBlock(embedding_dim=dim, mlp_dim=int(dim * mlp_ratio), act=act_layer)
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self._attend(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def _attend(self, x: Tensor) -> Tensor:
        if not self.window_size:
            out: Tensor = self.attn(x)
        elif _takes_window(self.attn):
            out = self.attn(x, self.window_size)
        else:
            windows = self.attn(partition(x, self.window_size))
            out = unpartition(windows, self.window_size, x.shape[1], x.shape[2])
        return out


def _takes_window(attn: nn.Module) -> bool:
    """Whether the attention can be given the whole grid and the window's size.

    An attention, qkv layer or hook that a caller has put in place was written for the original,
    whose attention is called with the windows as its batch; it is called likewise.
    """
    if not isinstance(attn, Attention) or type(attn).forward is not _ATTENTION_FORWARD:
        return False
    if "forward" in attn.__dict__:
        return False
    if not isinstance(attn.qkv, nn.Linear) and not getattr(attn.qkv, "pads_with_bias", False):
        return False
    return not any(_is_hooked(module) for module in (attn, attn.qkv, attn.proj))


def _is_hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


class Attention(nn.Module):
    """Multi-head attention with decomposed relative position.

    `attend` is the function of `samfast.attention` that computes it; a recipe chooses which.
    """

    attend: Callable[..., Tensor] = staticmethod(reference_attend)
    """Until a recipe or the drop-in chooses another; attentions that the original has pickled have
    none of their own."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        input_size: Size | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.use_rel_pos = use_rel_pos
        self.rel_pos_h: nn.Parameter | None = None
        self.rel_pos_w: nn.Parameter | None = None
        if use_rel_pos:
            if input_size is None:
                raise InputError("use_rel_pos needs input_size, (height, width) in tokens")
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * input_size[0] - 1, dim // num_heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * input_size[1] - 1, dim // num_heads))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a pickled state; the original has no tables where it does not use them."""
        if not state["use_rel_pos"]:
            state = {"rel_pos_h": None, "rel_pos_w": None, **state}
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, window: int = 0) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), in windows of `window` tokens a side, or global for 0."""
        out: Tensor = self.proj(
            self.attend(
                self.qkv(x),
                self.rel_pos_h,
                self.rel_pos_w,
                num_heads=self.num_heads,
                window=window,
                pad=self._padding_token(x) if window else None,
            )
        )
        return out

    def _padding_token(self, x: Tensor) -> Tensor | None:
        """(3 * C,): q, k, v of a zero token, with which the original pads incomplete windows.

        For an nn.Linear that is its bias, and for layers of other kinds that set `pads_with_bias`.
        """
        if type(self.qkv) is nn.Linear or getattr(self.qkv, "pads_with_bias", False):
            bias: Tensor | None = self.qkv.bias
            return bias
        out: Tensor = self.qkv(x.new_zeros(1, 1, 1, x.shape[-1]))
        return out[0, 0, 0]


_ATTENTION_FORWARD = Attention.forward
"""The method as it is written here, also where a caller has put another one into the class."""


class PatchEmbed(nn.Module):
    """Image to patch tokens, by a convolution whose stride is its kernel size."""

    def __init__(
        self,
        kernel_size: Size = (16, 16),
        stride: Size = (16, 16),
        padding: Size = (0, 0),
        in_chans: int = 3,
        embed_dim: int = 768,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(
            in_chans, embed_dim, kernel_size=kernel_size, stride=stride, padding=padding
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, S / patch, S / patch, C)."""
        out: Tensor = self.proj(x.to(self.proj.weight.dtype))
        return out.permute(0, 2, 3, 1)
