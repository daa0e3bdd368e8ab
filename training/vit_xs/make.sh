#!/bin/sh
# Make the second edition of the weights: training/vit_xs/make.sh DATA OUT [options of training.train]
# DATA holds train, train_more, val and val_more; GPUS is how many GPUs to use (4).
# To go on from finished weights instead of random ones, add
#   --init training/vit_xs/second_edition.safetensors
set -eu
data=$1
out=$2
shift 2
python -m torch.distributed.run --nproc-per-node "${GPUS:-4}" -m training.train \
  --data "$data/train" "$data/train_more" --out "$out" --minutes 11 --save-every 200 \
  --boost coco=5 coco_more=4.5 bsds=5 clothing=3 camvid=3 pennfudan=2.5 \
  leaf=0.3 nuclei=0.5 emps=0.5 "$@"
python -m training.calibrate "$out/vit_xs.safetensors" "$out/calibrated.safetensors" \
  --data "$data/train" "$data/train_more"
python -m training.table "$out/calibrated.safetensors" "$data/val" "$data/val_more" \
  > "$out/table.json"
