"""samgeo as its notebooks use it: everything in a photo, then one click and one box.

samgeo_masks.py CHECKPOINT PHOTO OUT.npz
"""

from __future__ import annotations

import sys

import numpy as np
from samgeo import SamGeo


def main(checkpoint: str, photo: str, out: str) -> None:
    options = {"points_per_side": 6, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.7}
    everything = SamGeo("vit_xs", checkpoint=checkpoint, device="cpu", sam_kwargs=options)
    everything.generate(photo, output="labels.tif", foreground=True, unique=True)
    prompted = SamGeo("vit_xs", checkpoint=checkpoint, device="cpu", automatic=False)
    prompted.set_image(photo)
    prompted.predict(point_coords=[[300, 150]], point_labels=[1], output="click.tif")
    click, click_scores = prompted.masks, prompted.scores
    prompted.predict(boxes=[[150, 50, 450, 330]], multimask_output=False, output="box.tif")
    np.savez(
        out,
        labels=everything.objects,
        masks=np.stack([record["segmentation"] for record in everything.masks]),
        click=click,
        click_scores=click_scores,
        box=np.asarray(prompted.masks),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
