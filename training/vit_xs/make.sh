#!/bin/sh
# Make the weights again: training/vit_xs/make.sh DATA OUT [options of all trainings]
# DATA holds train, train_more, val and val_more; GPUS is how many GPUs to use. The packaged weights
# were made with four for the first training, two for the second and one for the third.
set -eu
data=$1
out=$2
shift 2
train() {
  python -m torch.distributed.run --nproc-per-node "${GPUS:-4}" -m training.train \
    --data "$data/train" "$data/train_more" "$@"
}
train --out "$out/first" --minutes 11 --save-every 200 --gentle-from 1 \
  --boost coco=5 coco_more=4.5 bsds=5 clothing=3 camvid=3 pennfudan=2.5 \
  leaf=0.3 nuclei=0.5 emps=0.5 "$@"
train --out "$out/second" --minutes 18 --save-every 100 --init "$out/first/vit_xs.safetensors" \
  --share 0 1 --muon-lr 1.5e-3 --decay-from 0.4 --gentle-from 0.8 \
  --boost coco=5 coco_more=4.5 bsds=5 clothing=4 camvid=3.5 pennfudan=2.5 \
  leaf=0.3 nuclei=0.5 emps=0.5 "$@"
train --out "$out/third" --minutes 21.5 --save-every 100 --init "$out/second/vit_xs.safetensors" \
  --share 0 1 --photos 28 28 --canvas 640 --muon-lr 1.5e-3 --decay-from 0.4 --gentle-from 0.8 \
  --seed 2 --boost coco=8 coco_more=7 bsds=6 clothing=4 camvid=3.5 pennfudan=2.5 \
  leaf=0.3 nuclei=0.5 emps=0.5 "$@"
python -m training.mix "$out/second/vit_xs.safetensors" "$out/third/vit_xs.safetensors" \
  "$out/vit_xs.safetensors" --share 0.6
python -m training.calibrate "$out/vit_xs.safetensors" "$out/calibrated.safetensors" \
  --data "$data/train" "$data/train_more"
python -m training.table "$out/calibrated.safetensors" "$data/val" "$data/val_more" \
  > "$out/table.json"
