"""micro-sam as a library: saved embeddings, automatic masks, boxes in a batch, and a volume.

micro_sam_masks.py CHECKPOINT PHOTO OUT.npz
"""

from __future__ import annotations

import sys

import imageio.v3 as imageio
import numpy as np
import torch
from micro_sam.inference import batched_inference
from micro_sam.instance_segmentation import AutomaticMaskGenerator
from micro_sam.models.sam_3d_wrapper import get_sam_3d_model
from micro_sam.util import get_sam_model, precompute_image_embeddings


def main(checkpoint: str, photo: str, out: str) -> None:
    predictor = get_sam_model("vit_b", device="cpu", checkpoint_path=checkpoint)
    image = imageio.imread(photo)[..., :3].mean(axis=2).astype(np.uint8)
    embeddings = precompute_image_embeddings(
        predictor, image, save_path="embeddings.zarr", ndim=2, verbose=False
    )
    generator = AutomaticMaskGenerator(predictor, points_per_side=4)
    generator.initialize(image, image_embeddings=embeddings)
    everything = generator.generate(
        pred_iou_thresh=-1e9, stability_score_thresh=0, box_nms_thresh=1, output_mode="binary_mask"
    )
    boxes = np.array([[20, 30, 200, 180], [210, 60, 390, 300], [5, 5, 90, 60]])
    records = batched_inference(  # without an image: the embeddings are set
        predictor, None, batch_size=2, boxes=boxes, return_instance_segmentation=False
    )
    torch.manual_seed(0)
    volume = get_sam_3d_model(
        "cpu", n_classes=3, image_size=256, lora_rank=2, checkpoint_path=checkpoint
    ).eval()
    slices = torch.rand(3, 2, 256, 256) * 255
    with torch.no_grad():
        inputs = [{"image": slices, "original_size": (256, 256)}]
        answer = volume(inputs, multimask_output=True)[0]
    np.savez(
        out,
        features=np.asarray(embeddings["features"]),
        count=len(everything),
        masks=np.stack([record["segmentation"] for record in everything]),
        boxes=np.stack([np.asarray(record["segmentation"]) for record in records]),
        logits=np.stack([np.asarray(record["logits"]) for record in records]),
        volume=answer["low_res_logits"].numpy(),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
