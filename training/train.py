"""Train a SAM from scratch: `python -m training.train --data DIR --out DIR`.

On several GPUs: `torchrun --nproc-per-node N -m training.train ...`. See training/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from samfast.model.config import CONFIGS
from samfast.model.sam import Sam, build
from samfast.recipes import use_attention
from samfast.types import PADDING_LABEL
from training import clicks, state
from training.augment import Augmentation, batch, draw, object_weights
from training.losses import Losses, losses
from training.network import Trainee, initialise
from training.score import score
from training.store import Store, load

CLICKS = 3
"""Most clicks on one object: the first prompt and two corrections."""


@dataclass(frozen=True)
class Stage:
    """A part of the training at one crop size. `share` of the time, unless steps are given."""

    side: int
    photos: int
    objects: int
    share: float


STAGES = (
    Stage(side=512, photos=32, objects=12, share=0.55),
    Stage(side=1024, photos=12, objects=10, share=0.45),
)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with images/ and annotations.json"
    )
    parser.add_argument(
        "--val", type=Path, help="such a folder to score on; may be added while training"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of state, log and weights, to resume from if it holds a state",
    )
    parser.add_argument("--model", default="vit_xs", choices=CONFIGS)
    parser.add_argument(
        "--minutes", type=float, default=25, help="time for all stages, without compilation"
    )
    parser.add_argument(
        "--steps", type=int, nargs=len(STAGES), help="steps of each stage, instead of --minutes"
    )
    parser.add_argument(
        "--photos", type=int, nargs=len(STAGES), help="photos per step and GPU, for each stage"
    )
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--drop-path", type=float, default=0.1)
    parser.add_argument("--ema", type=float, default=0.9995)
    parser.add_argument(
        "--canvas", type=int, default=640, help="longest side of a stored photo, px"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-every", type=float, default=60, help="seconds between states")
    parser.add_argument("--score-every", type=float, default=300, help="seconds between scores")
    parser.add_argument(
        "--score-min-area",
        type=int,
        default=1024,
        help="leave smaller masks out of scores, in pixels",
    )
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args(argv)


class Training:
    """One process of a training, with a share of the photos and the whole model."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        device = torch.device(options.device)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        if self.world > 1:
            cuda = device.type == "cuda"
            dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
        self.device = device
        torch.manual_seed(options.seed)
        torch.set_float32_matmul_precision("high")
        sam = build(CONFIGS[options.model])
        initialise(sam)
        use_attention(sam, "folded")
        self.trainee = Trainee(sam.to(device), options.drop_path).train()
        decayed = [p for p in sam.parameters() if p.ndim > 1]
        rest = [p for p in sam.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": options.weight_decay},
                {"params": rest, "weight_decay": 0.0},
            ],
            lr=options.lr,
            betas=(0.9, 0.98),
            fused=device.type == "cuda",
        )
        self.average = state.Average(sam, options.ema)
        self.progress = state.Progress(0, 0, list(options.steps or [0] * len(STAGES)))
        self.state_file = options.out / "state.safetensors"
        self.resumed_at = 0
        if self.state_file.exists():
            self.progress = state.restore(self.state_file, sam, self.average)
            self.resumed_at = self.done()
        self.generator = torch.Generator(device).manual_seed(
            options.seed * 1000 + self.rank + 7919 * self.resumed_at
        )
        self.photo_generator = torch.Generator().manual_seed(options.seed + self.resumed_at)
        self.store: Store | None = None
        self.started = time.perf_counter()
        self.saved = self.scored = self.started
        self.encode: Any = self.trainee.encode
        self.decode: Any = self.trainee.decode
        if not options.no_compile:
            self.encode = torch.compile(self.trainee.encode, dynamic=False)
            self.decode = torch.compile(self.trainee.decode, dynamic=False)

    @property
    def sam(self) -> Sam:
        """The model that is trained."""
        return self.trainee.sam

    def done(self) -> int:
        """Steps taken so far, over all stages."""
        return sum(self.progress.steps[: self.progress.stage]) + self.progress.step

    def fraction(self) -> float:
        """The part of the training that is done, by the stages' shares."""
        total = 0.0
        shares = [stage.share for stage in STAGES]
        for i, share in enumerate(shares):
            if i < self.progress.stage:
                total += share
            elif i == self.progress.stage and self.progress.steps[i]:
                total += share * self.progress.step / self.progress.steps[i]
        return total / sum(shares)

    def rate(self) -> float:
        """Learning rate: 500 steps of warm-up (also after a resume), then half a cosine to 1 %."""
        warm = min(1.0, (self.done() - self.resumed_at + 1) / 500)
        value: float = (
            self.options.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.fraction())))
        )
        return value

    def run(self) -> None:
        """Train to the end, and save regularly."""
        self.options.out.mkdir(parents=True, exist_ok=True)
        self.store = load(self.options.data, self.options.canvas)
        weights = self.store.sampling_weights()
        if self.device.type == "cuda":
            self.store = self.store.to(self.device)
        self.say(
            f"{len(self.store)} photos, {sum(p.numel() for p in self.sam.parameters())} parameters"
        )
        for index in range(self.progress.stage, len(STAGES)):
            stage = STAGES[index]
            if self.options.photos:
                stage = replace(stage, photos=self.options.photos[index])
            if index > self.progress.stage:
                self.progress.stage, self.progress.step = index, 0
            self.run_stage(stage, weights)
        self.save()
        if self.rank == 0:
            state.export(
                self.average.state_dict(), self.options.out / f"{self.options.model}.safetensors"
            )
            self.report_score()
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()

    def run_stage(self, stage: Stage, weights: Tensor) -> None:
        """All steps of one stage; with a budget in minutes, their number is set by timing a few."""
        progress, timed_from, begun, first = self.progress, 0.0, 0, self.progress.step
        warm, timed = 12, 40
        tick, recent = time.perf_counter(), 0
        while progress.steps[progress.stage] == 0 or progress.step < progress.steps[progress.stage]:
            result = self.step(stage, weights)
            progress.step += 1
            progress.photos += stage.photos * self.world
            recent += 1
            if progress.steps[progress.stage] == 0:
                if progress.step - first == warm:
                    self.synchronise()
                    timed_from, begun = time.perf_counter(), progress.step
                elif progress.step - first == warm + timed:
                    self.synchronise()
                    each = (time.perf_counter() - timed_from) / (progress.step - begun)
                    budget = self.options.minutes * 60 * stage.share / sum(s.share for s in STAGES)
                    steps = torch.tensor(
                        [max(progress.step, int(budget / each))], device=self.device
                    )
                    if self.world > 1:
                        dist.broadcast(steps, 0)
                    progress.steps[progress.stage] = int(steps)
                    self.say(f"stage {progress.stage}: {int(steps)} steps of {each:.3f} s")
            if progress.step % 50 == 0:
                now = time.perf_counter()
                self.log(stage, result, recent * stage.photos * self.world / (now - tick))
                tick, recent = now, 0
                if now - self.saved > self.options.save_every:
                    self.save()
                if now - self.scored > self.options.score_every:
                    self.report_score()

    def step(self, stage: Stage, weights: Tensor) -> Losses:
        """One step: augment, one to three rounds of prompts, backward, update."""
        assert self.store is not None
        device, generator = self.device, self.generator
        # Every process draws the same photos, and takes its share of them.
        drawn = torch.multinomial(
            weights, stage.photos * self.world, replacement=True, generator=self.photo_generator
        )
        index = drawn[self.rank :: self.world]
        frame = self.sam.image_encoder.img_size
        photos = batch(self.store, index, stage.side, frame, Augmentation(), device, generator)
        planes, ids, has = draw(object_weights(photos.labels, 16), stage.objects, generator)
        rows = torch.arange(stage.photos, device=device)[:, None]
        truth = (photos.labels[rows, planes] == ids[:, :, None, None]).flatten(0, 1)
        counts = has.repeat_interleave(stage.objects).float()
        room = (frame - stage.side) // 16 + 1
        corner = torch.randint(room, (2,), generator=generator, device=device)

        count = len(truth)
        coords = torch.zeros(count, CLICKS, 2, device=device)
        labels = torch.full((count, CLICKS), PADDING_LABEL, device=device)
        kind = torch.rand(count, generator=generator, device=device)
        has_box, has_point = kind < 0.5, kind > 0.42
        box = clicks.boxes(truth, 0.5, generator)
        coords[:, 0] = clicks.click(truth, 0.6, generator)
        labels[:, 0] = torch.where(has_point, 1, PADDING_LABEL)
        previous: Tensor | None = None
        rounds = (1, 2, 1, 3)[self.progress.step % 4]
        total = torch.zeros((), device=device)
        first: Losses | None = None
        with torch.autocast(device.type, dtype=torch.bfloat16):
            features = self.encode(photos.pixels, corner)
        for turn in range(rounds):
            if previous is not None:
                coords, labels = coords.clone(), labels.clone()
                coords[:, turn], labels[:, turn] = clicks.correction(previous, truth, generator)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits, iou = self.decode(features, corner, coords, labels, box, has_box, previous)
            result = losses(logits, iou, truth.float(), counts)
            first = first or result
            total = total + result.total / rounds
            best = iou.detach().argmax(1)
            previous = logits.detach()[torch.arange(count, device=device), best]
        total.backward()  # type: ignore[no-untyped-call]
        self.update()
        assert first is not None
        return first

    def update(self) -> None:
        """Average gradients over processes, clip, step."""
        parameters = [p for p in self.sam.parameters() if p.grad is not None]
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.world > 1:
            flat = torch.cat([g.flatten() for g in grads])
            dist.all_reduce(flat, op=dist.ReduceOp.SUM)
            flat /= self.world
            start = 0
            for grad in grads:
                grad.copy_(flat[start : start + grad.numel()].view_as(grad))
                start += grad.numel()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.rank == 0:
            self.average.update(self.sam)

    def log(self, stage: Stage, result: Losses, speed: float) -> None:
        """Log progress, losses and IoUs of the last step, and photos per second."""
        if self.rank:
            return
        row = {name: round(float(value.detach()), 5) for name, value in vars(result).items()}
        row |= {
            "stage": self.progress.stage,
            "side": stage.side,
            "step": self.done(),
            "lr": self.rate(),
        }
        row |= {
            "done": round(self.fraction(), 4),
            "photos": self.progress.photos,
            "photos_per_second": round(speed, 1),
        }
        self.write(row)
        if not math.isfinite(row["total"]):
            raise SystemExit("the loss is no longer finite; lower --lr")

    def write(self, row: dict[str, Any]) -> None:
        """Append one JSON line to log.jsonl and print it."""
        row["seconds"] = round(self.progress.seconds + time.perf_counter() - self.started, 1)
        line = json.dumps(row)
        with (self.options.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        self.say(line)

    def say(self, line: str) -> None:
        """Print a line on stderr, in the first process only."""
        if self.rank == 0:
            print(line, file=sys.stderr, flush=True)

    def save(self) -> None:
        """Write the state that a later run resumes from."""
        self.saved = time.perf_counter()
        if self.rank == 0:
            spent = self.progress.seconds + self.saved - self.started
            state.save(
                self.state_file, self.sam, self.average, replace(self.progress, seconds=spent)
            )

    def report_score(self) -> None:
        """Score the average on the --val folder, if it exists."""
        self.scored = time.perf_counter()
        if (
            self.rank
            or self.options.val is None
            or not (self.options.val / "annotations.json").is_file()
        ):
            return
        sam = build(CONFIGS[self.options.model])
        sam.load_state_dict({k: v.cpu() for k, v in self.average.state_dict().items()})
        use_attention(sam, "folded")
        validation = load(self.options.val, self.options.canvas)
        scores = score(sam.to(self.device), validation, self.device, self.options.score_min_area)
        self.write({"score": scores, "step": self.done(), "done": round(self.fraction(), 4)})

    def synchronise(self) -> None:
        """Wait for the device before reading a clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    Training(arguments(argv)).run()


if __name__ == "__main__":
    main()
