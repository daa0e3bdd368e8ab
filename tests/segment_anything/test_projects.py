"""Miniatures of what projects written for segment_anything do, on the original and on samfast.

Each pattern takes the package as `sam_package` (the original, or samfast installed under its name)
and returns numbers, which must be the same.
"""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests import oracle
from tests.pairs import SMALL, original, picture, randomise, relative_error

Pattern = Callable[[Any, Any], dict[str, torch.Tensor]]


def package() -> SimpleNamespace:
    """The package that `import segment_anything` gives now, with its modules."""
    return SimpleNamespace(
        top=importlib.import_module("segment_anything"),
        **{
            name: importlib.import_module(f"segment_anything.modeling.{name}")
            for name in (
                "common",
                "image_encoder",
                "mask_decoder",
                "prompt_encoder",
                "sam",
                "transformer",
            )
        },
        transforms=importlib.import_module("segment_anything.utils.transforms"),
    )


oracle.load()
ORIGINAL = package()


def encoder_of(modules: SimpleNamespace, kind: type | None = None) -> Any:
    """An encoder of the SMALL configuration, as projects build them."""
    return (kind or modules.image_encoder.ImageEncoderViT)(
        depth=SMALL.depth,
        embed_dim=SMALL.embed_dim,
        img_size=SMALL.image_size,
        mlp_ratio=4,
        norm_layer=torch.nn.LayerNorm,
        num_heads=SMALL.num_heads,
        patch_size=16,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=list(SMALL.global_attn_indexes),
        window_size=SMALL.window_size,
        out_chans=SMALL.out_chans,
    )


def decoder_arguments(modules: SimpleNamespace) -> dict[str, Any]:
    return {
        "num_multimask_outputs": 3,
        "transformer": modules.transformer.TwoWayTransformer(
            depth=2, embedding_dim=SMALL.out_chans, mlp_dim=SMALL.decoder_mlp_dim, num_heads=8
        ),
        "transformer_dim": SMALL.out_chans,
        "iou_head_depth": 3,
        "iou_head_hidden_dim": 256,
    }


def build(modules: SimpleNamespace, encoder: Any = None, decoder: Any = None) -> Any:
    """A Sam of a package's classes with fixed random weights."""
    sam = modules.sam.Sam(
        image_encoder=encoder or encoder_of(modules),
        prompt_encoder=modules.prompt_encoder.PromptEncoder(
            embed_dim=SMALL.out_chans,
            image_embedding_size=(16, 16),
            input_image_size=(256, 256),
            mask_in_chans=16,
        ),
        mask_decoder=decoder or modules.mask_decoder.MaskDecoder(**decoder_arguments(modules)),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    sam.load_state_dict(randomised(sam.state_dict()))
    return sam.eval()


def randomised(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Values that depend on a key's name only, so that both packages get the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = original(SMALL)
    randomise(reference, 1)
    known = reference.state_dict()
    out = {}
    for key, value in state.items():
        generator = torch.Generator().manual_seed(sum(map(ord, key)))
        out[key] = known.get(key, 0.1 * torch.randn(value.shape, generator=generator))
    return out


def image(batch: int = 1) -> torch.Tensor:
    stacked = np.stack([picture(256, 256, seed) for seed in range(batch)])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"grad {name}": p.grad for name, p in module.named_parameters() if p.grad is not None}


class LoraQkv(nn.Module):
    """SAMed: low-rank updates of q and v, added in place to a 4-D (B, H, W, 3C)."""

    def __init__(self, qkv: nn.Module, rank: int = 2) -> None:
        super().__init__()
        self.qkv = qkv
        self.dim = qkv.in_features
        self.a_q, self.b_q = (
            nn.Linear(self.dim, rank, bias=False),
            nn.Linear(rank, self.dim, bias=False),
        )
        self.a_v, self.b_v = (
            nn.Linear(self.dim, rank, bias=False),
            nn.Linear(rank, self.dim, bias=False),
        )
        generator = torch.Generator().manual_seed(0)
        for layer in (self.a_q, self.b_q, self.a_v, self.b_v):
            layer.weight.data = 0.3 * torch.randn(layer.weight.shape, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x)
        assert qkv.dim() == 4
        qkv[:, :, :, : self.dim] += self.b_q(self.a_q(x))
        qkv[:, :, :, -self.dim :] += self.b_v(self.a_v(x))
        return qkv


class ConvQkv(nn.Module):
    """Conv-LoRA: the update depends on neighbouring tokens, so windows must stay separate."""

    def __init__(self, qkv: nn.Module) -> None:
        super().__init__()
        self.qkv = qkv
        self.conv = nn.Conv2d(qkv.in_features, qkv.out_features, 3, padding=1)
        generator = torch.Generator().manual_seed(0)
        self.conv.weight.data = 0.1 * torch.randn(self.conv.weight.shape, generator=generator)
        nn.init.ones_(self.conv.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.qkv(x) + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def with_qkv(kind: type) -> Pattern:
    def pattern(modules: Any, sam: Any) -> dict[str, torch.Tensor]:
        for parameter in sam.image_encoder.parameters():
            parameter.requires_grad = False
        for block in sam.image_encoder.blocks:
            block.attn.qkv = kind(block.attn.qkv)
        embedding = sam.image_encoder(image(2))
        embedding.square().mean().backward()
        return {"embedding": embedding, **gradients(sam.image_encoder)}

    return pattern


def subclassed_linear(modules: Any, sam: Any) -> dict[str, torch.Tensor]:
    """loralib: a subclass of Linear."""

    class LoraLinear(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0.5 * (x + 1).repeat(1, 1, 1, 3)

    for block in sam.image_encoder.blocks:
        old = block.attn.qkv
        block.attn.qkv = LoraLinear(old.in_features, old.out_features)
        block.attn.qkv.load_state_dict(old.state_dict())
    with torch.no_grad():
        return {"embedding": sam.image_encoder(image())}


def medsam(modules: Any, sam: Any) -> dict[str, torch.Tensor]:
    """MedSAM: fine-tunes encoder and decoder on boxes, prompt encoder frozen."""

    class MedSam(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image_encoder, self.mask_decoder = sam.image_encoder, sam.mask_decoder
            self.prompt_encoder = sam.prompt_encoder
            for parameter in self.prompt_encoder.parameters():
                parameter.requires_grad = False

        def forward(self, pixels: torch.Tensor, box: np.ndarray) -> torch.Tensor:
            embedding = self.image_encoder(pixels)
            with torch.no_grad():
                boxes = torch.as_tensor(box, dtype=torch.float32)
                if len(boxes.shape) == 2:
                    boxes = boxes[:, None, :]
                sparse, dense = self.prompt_encoder(points=None, boxes=boxes, masks=None)
            low_res, _ = self.mask_decoder(
                image_embeddings=embedding,
                image_pe=self.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            return F.interpolate(
                low_res,
                size=(pixels.shape[2], pixels.shape[3]),
                mode="bilinear",
                align_corners=False,
            )

    model = MedSam()
    model.train()
    optimizer = torch.optim.SGD(
        [*sam.image_encoder.parameters(), *sam.mask_decoder.parameters()], lr=0.01
    )
    logits = model(image(), np.array([[20, 30, 200, 210]]))
    loss = F.binary_cross_entropy_with_logits(logits, (image()[:, :1] > 0.5).float())
    loss.backward()
    before = gradients(model)
    optimizer.step()
    return {"logits": logits, "after": model(image(), np.array([[20, 30, 200, 210]])), **before}


def hq_sam(modules: Any, sam: Any) -> dict[str, torch.Tensor]:
    """HQ-SAM: a decoder with one more token, an encoder that also returns its global blocks."""
    plain_decoder = modules.mask_decoder.MaskDecoder
    mlp, norm = modules.mask_decoder.MLP, modules.common.LayerNorm2d

    class MaskDecoderHQ(plain_decoder):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__(**decoder_arguments(modules))
            dim = SMALL.out_chans
            self.hf_token = nn.Embedding(1, dim)
            self.hf_mlp = mlp(dim, dim, dim // 8, 3)
            self.num_mask_tokens: int = 5
            self.compress_vit_feat = nn.Sequential(
                nn.ConvTranspose2d(SMALL.embed_dim, dim, kernel_size=2, stride=2),
                norm(dim),
                nn.GELU(),
                nn.ConvTranspose2d(dim, dim // 8, kernel_size=2, stride=2),
            )

        def forward(
            self,
            image_embeddings,
            image_pe,
            sparse_prompt_embeddings,
            dense_prompt_embeddings,
            multimask_output,
            interm_embeddings,
        ):
            features = self.compress_vit_feat(interm_embeddings[0].permute(0, 3, 1, 2))
            masks, iou_pred = self.predict_masks(
                image_embeddings=image_embeddings,
                image_pe=image_pe,
                sparse_prompt_embeddings=sparse_prompt_embeddings,
                dense_prompt_embeddings=dense_prompt_embeddings,
                hq_features=features,
            )
            return masks[:, 1:], iou_pred[:, 1:]

        def predict_masks(
            self,
            image_embeddings,
            image_pe,
            sparse_prompt_embeddings,
            dense_prompt_embeddings,
            hq_features,
        ):
            output_tokens = torch.cat(
                [self.iou_token.weight, self.mask_tokens.weight, self.hf_token.weight], dim=0
            )
            output_tokens = output_tokens.unsqueeze(0).expand(
                sparse_prompt_embeddings.size(0), -1, -1
            )
            tokens = torch.cat((output_tokens, sparse_prompt_embeddings), dim=1)
            src = torch.repeat_interleave(image_embeddings, tokens.shape[0], dim=0)
            src = src + dense_prompt_embeddings
            pos_src = torch.repeat_interleave(image_pe, tokens.shape[0], dim=0)
            b, c, h, w = src.shape
            hs, src = self.transformer(src, pos_src, tokens)
            iou_token_out = hs[:, 0, :]
            mask_tokens_out = hs[:, 1 : (1 + self.num_mask_tokens), :]
            src = src.transpose(1, 2).view(b, c, h, w)
            upscaled = self.output_upscaling(src)
            upscaled_hq = upscaled + hq_features.repeat(b, 1, 1, 1)
            hyper = [
                (self.output_hypernetworks_mlps[i] if i < 4 else self.hf_mlp)(
                    mask_tokens_out[:, i, :]
                )
                for i in range(self.num_mask_tokens)
            ]
            hyper_in = torch.stack(hyper, dim=1)
            b, c, h, w = upscaled.shape
            masks_sam = (hyper_in[:, :4] @ upscaled.view(b, c, h * w)).view(b, -1, h, w)
            masks_hq = (hyper_in[:, 4:] @ upscaled_hq.view(b, c, h * w)).view(b, -1, h, w)
            return torch.cat([masks_sam, masks_hq], dim=1), self.iou_prediction_head(iou_token_out)

    class ImageEncoderHQ(modules.image_encoder.ImageEncoderViT):  # type: ignore[misc,name-defined]
        def forward(self, x):
            x = self.patch_embed(x)
            if self.pos_embed is not None:
                x = x + self.pos_embed
            interm_embeddings = []
            for blk in self.blocks:
                x = blk(x)
                if blk.window_size == 0:
                    interm_embeddings.append(x)
            return self.neck(x.permute(0, 3, 1, 2)), interm_embeddings

    model = build(modules, encoder_of(modules, ImageEncoderHQ), MaskDecoderHQ())
    embedding, interm = model.image_encoder(image())
    sparse, dense = model.prompt_encoder(
        points=(torch.tensor([[[60.0, 70]], [[200, 100]]]), torch.ones(2, 1)),
        boxes=None,
        masks=None,
    )
    masks, iou = model.mask_decoder(
        image_embeddings=embedding,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        interm_embeddings=interm,
    )
    masks.square().mean().backward()
    return {
        "masks": masks,
        "iou": iou,
        "interm": torch.stack(interm),
        **gradients(model.mask_decoder),
    }


def adapter(modules: Any, sam: Any) -> dict[str, torch.Tensor]:
    """SAM-Adapter: a block's parts called one by one, an adapter between them."""
    functions = modules.image_encoder

    class AdapterBlock(nn.Module):
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.block = block
            self.adapter = nn.Linear(SMALL.embed_dim, SMALL.embed_dim)
            nn.init.eye_(self.adapter.weight)
            nn.init.constant_(self.adapter.bias, 0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            blk = self.block
            shortcut = x
            x = blk.norm1(x)
            if blk.window_size > 0:
                height, width = x.shape[1], x.shape[2]
                x, pad_hw = functions.window_partition(x, blk.window_size)
            x = self.adapter(blk.attn(x))
            if blk.window_size > 0:
                x = functions.window_unpartition(x, blk.window_size, pad_hw, (height, width))
            x = shortcut + x
            return x + blk.mlp(blk.norm2(x))

    sam.image_encoder.blocks = nn.ModuleList(
        AdapterBlock(block) for block in sam.image_encoder.blocks
    )
    embedding = sam.image_encoder(image())
    embedding.square().mean().backward()
    return {"embedding": embedding, **gradients(sam.image_encoder)}


def own_attention(modules: Any, sam: Any) -> dict[str, torch.Tensor]:
    """Attention on the original's helpers: as a subclass, and as a method of an instance."""
    functions = modules.image_encoder

    def attend(self: Any, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, _ = x.shape
        qkv = (
            self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        )
        q, k, v = qkv.reshape(3, batch * self.num_heads, height * width, -1).unbind(0)
        attn = (q * self.scale * 0.9) @ k.transpose(-2, -1)
        if self.use_rel_pos:
            size = (height, width)
            attn = functions.add_decomposed_rel_pos(
                attn, q, self.rel_pos_h, self.rel_pos_w, size, size
            )
        x = attn.softmax(dim=-1) @ v
        x = (
            x.view(batch, self.num_heads, height, width, -1)
            .permute(0, 2, 3, 1, 4)
            .reshape(batch, height, width, -1)
        )
        return self.proj(x)

    class OwnAttention(functions.Attention):  # type: ignore[misc,name-defined]
        forward = attend

    first, second = sam.image_encoder.blocks[0].attn, sam.image_encoder.blocks[2].attn
    first.__class__ = OwnAttention
    second.forward = attend.__get__(second)
    with torch.no_grad():
        return {"embedding": sam.image_encoder(image())}


def hooks(modules: Any, sam: Any) -> dict[str, torch.Tensor]:
    """Hooks on attentions and their parts are called with windows, as the original's are."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            seen[f"{name} in"], seen[f"{name} out"] = inputs[0].detach(), output.detach()

        return hook

    blocks = sam.image_encoder.blocks
    handles = [blocks[0].attn.register_forward_hook(keep("windows"))]
    handles.append(blocks[1].attn.register_forward_hook(keep("global")))
    handles.append(blocks[2].attn.qkv.register_forward_hook(keep("qkv")))
    handles.append(blocks[0].register_forward_hook(keep("block")))
    handles.append(sam.image_encoder.neck.register_forward_hook(keep("neck")))
    blocks[2].attn.proj.register_full_backward_hook(lambda m, i, o: seen.update(back=o[0].detach()))
    embedding = sam.image_encoder(image())
    embedding.square().mean().backward()
    for handle in handles:
        handle.remove()
    return {"embedding": embedding, **seen}


def whole_model(modules: Any, sam: Any) -> dict[str, torch.Tensor]:
    """Sam.forward with batched input, the way the original's notebook calls it."""
    resize = modules.transforms.ResizeLongestSide(sam.image_encoder.img_size)
    records = []
    for size, boxes in [
        ((60, 90), [[10, 10, 50, 40], [5, 5, 80, 50]]),
        ((120, 70), [[3, 30, 60, 100]]),
    ]:
        array = picture(*size)
        pixels = torch.as_tensor(resize.apply_image(array)).permute(2, 0, 1).contiguous()
        records.append(
            {
                "image": pixels,
                "boxes": resize.apply_boxes_torch(torch.tensor(boxes), array.shape[:2]),
                "original_size": array.shape[:2],
            }
        )
    out: dict[str, torch.Tensor] = {}
    for index, answer in enumerate(sam(records, multimask_output=False)):
        out |= {f"{key} {index}": value for key, value in answer.items() if key != "masks"}
    return out


def copies(modules: Any, sam: Any) -> dict[str, torch.Tensor]:
    """Deep copies and pickles, and a training loop's frozen teacher."""
    student = copy.deepcopy(sam)
    teacher = pickle.loads(pickle.dumps(sam))
    with torch.no_grad():
        return {
            "student": student.image_encoder(image()),
            "teacher": teacher.image_encoder(image()),
        }


def predictor_subclass(modules: Any, sam: Any) -> dict[str, torch.Tensor]:
    """A predictor whose features are restored by the caller, asked for logits."""

    class Cached(modules.top.SamPredictor):  # type: ignore[misc,name-defined]
        def restore(self, saved: dict[str, Any]) -> None:
            self.features, self.original_size, self.input_size = (
                saved["features"],
                saved["original_size"],
                saved["input_size"],
            )
            self.is_image_set = True

    first = modules.top.SamPredictor(sam)
    first.set_image(picture(80, 120))
    saved = {
        "features": first.features,
        "original_size": first.original_size,
        "input_size": first.input_size,
    }
    second = Cached(sam)
    second.restore(saved)
    masks, iou, low = second.predict(np.array([[30, 40]]), np.array([1]), return_logits=True)
    return {
        "masks": torch.from_numpy(masks),
        "iou": torch.from_numpy(iou),
        "low": torch.from_numpy(low),
    }


PATTERNS: dict[str, Pattern] = {
    "lora": with_qkv(LoraQkv),
    "conv-lora": with_qkv(ConvQkv),
    "loralib": subclassed_linear,
    "medsam": medsam,
    "hq-sam": hq_sam,
    "adapter": adapter,
    "own attention": own_attention,
    "hooks": hooks,
    "whole model": whole_model,
    "copies": copies,
    "predictor subclass": predictor_subclass,
}


@pytest.mark.parametrize("name", PATTERNS)
def test_project(name: str, request: pytest.FixtureRequest) -> None:
    assert ORIGINAL.sam.Sam.__module__ == "segment_anything.modeling.sam"
    expected = PATTERNS[name](ORIGINAL, build(ORIGINAL))
    request.getfixturevalue("installed")
    modules = package()
    assert modules.sam.Sam.__module__ == "samfast.model.sam"
    answer = PATTERNS[name](modules, build(modules))
    assert set(answer) == set(expected)
    largest = max(
        (float(v.norm()) for k, v in expected.items() if k.startswith("grad")), default=0.0
    )
    for key, value in expected.items():
        if key.startswith("grad"):
            assert (
                float((answer[key] - value).norm()) <= 1e-4 * float(value.norm()) + 1e-6 * largest
            ), key
        else:
            assert relative_error(answer[key].detach(), value.detach()) <= 1e-4, key
