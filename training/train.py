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
from samfast.types import PADDING_LABEL
from training import clicks, state
from training.augment import FIRST_EDITION, GENTLE, Augmentation, batch, draw, object_weights
from training.losses import Losses, Weights, losses
from training.muon import Muon, hidden_matrices
from training.network import Trainee, initialise
from training.score import score
from training.store import Store, load, share

CLICKS = 3
"""Most clicks on one object: the first prompt and two corrections."""

ROUNDS = (1, 2, 1, 1, 3, 1)
"""Prompts in turn, the first included, of successive steps."""

CLOCK_EVERY = 10
"""Steps between two looks at the clock, which every process then agrees on."""


@dataclass(frozen=True)
class Stage:
    """A part of the training at one crop size, with photos and objects per step and GPU.

    share    of the training's time, or of its steps where those are given
    borders  whether the loss has its terms for borders, which hold up a model that knows nothing
    """

    side: int
    photos: int
    objects: int
    share: float
    borders: bool


STAGES = (
    # 448 pixels are two windows of 14 tokens, so that none is padded.
    Stage(side=448, photos=64, objects=12, share=0.45, borders=False),
    Stage(side=1024, photos=14, objects=10, share=0.55, borders=True),
)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        help="folders with images/ and annotations.json",
    )
    add("--val", type=Path, help="such a folder to score on")
    add(
        "--out",
        type=Path,
        required=True,
        help="folder of state, log and weights, to resume from if it holds a state",
    )
    add("--init", type=Path, help="checkpoint to start from, instead of random weights")
    add("--model", default="vit_xs", choices=CONFIGS)
    add("--minutes", type=float, default=25, help="from the first step to the last")
    add("--steps", type=int, help="of the whole training, instead of --minutes")
    add("--photos", type=int, nargs=len(STAGES), help="photos per step and GPU, for each stage")
    add("--share", type=float, nargs=len(STAGES), help="of the time, for each stage")
    add(
        "--boost",
        nargs="*",
        default=[],
        metavar="SOURCE=FACTOR",
        help="draw photos of a source more often than by the square root of their number",
    )
    add("--optimizer", choices=("muon", "adamw"), default="muon")
    add("--lr", type=float, default=1e-3, help="of AdamW")
    add("--muon-lr", type=float, default=3e-3, help="of Muon, for the matrices")
    add("--warm-up", type=int, default=300, help="steps of rising rates, also after a resume")
    add("--decay-from", type=float, default=0.55, help="part after which learning rates fall to 0")
    add("--weight-decay", type=float, default=0.05)
    add("--drop-path", type=float, default=0.05)
    add("--ema", type=float, default=0.999)
    add("--border", type=float, default=Weights.border, help="additional weight near borders")
    add("--smooth", type=float, default=Weights.smooth, help="weight of needless borders")
    add("--first-edition", action="store_true", help="augment as for the weights of samfast 0.2")
    add("--gentle-from", type=float, default=0.8, help="part after which photos change less")
    add("--canvas", type=int, default=512, help="longest side of a stored photo, px")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--save-every", type=float, default=60, help="seconds between states")
    add("--score-every", type=float, default=math.inf, help="seconds between scores")
    add("--score-side", type=int, default=0, help="side to score at; 0: of the last stage trained")
    add("--score-min-area", type=int, default=1024, help="leave smaller masks out of scores, px")
    add("--no-compile", action="store_true")
    return parser.parse_args(argv)


def boosts(given: list[str]) -> dict[str, float]:
    """`SOURCE=FACTOR` arguments as a dictionary."""
    return {name: float(factor) for name, _, factor in (each.partition("=") for each in given)}


class Training:
    """One process of a training, with a share of the photos and the whole model."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        self.started = time.perf_counter()
        # Photos are read by forked processes, hence before the first use of the GPU.
        photos = load(options.data, options.canvas, held_out=False) if self.rank == 0 else None
        device = torch.device(options.device)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        if self.world > 1:
            cuda = device.type == "cuda"
            dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
        self.device = device
        self.store: Store = share(photos, device)
        self.stages = self._stages()
        torch.manual_seed(options.seed)
        torch.set_float32_matmul_precision("high")
        torch._dynamo.config.recompile_limit = 64
        sam = build(CONFIGS[options.model])
        initialise(sam)
        if options.init:
            sam.load_state_dict(state.read_checkpoint(options.init))
        self.trainee = Trainee(sam.to(device), options.drop_path, not options.no_compile).train()
        self.losses: Any = losses
        if not options.no_compile:
            self.losses = torch.compile(losses, dynamic=False)
        self._make_optimizers(sam)
        self.average = state.Average(sam, options.ema)
        self.progress = state.Progress()
        self.state_file = options.out / "state.safetensors"
        if self.state_file.exists():
            self.progress = state.restore(self.state_file, sam, self.average)
        self.resumed_at = self.progress.step
        self.generator = torch.Generator(device).manual_seed(
            options.seed * 1000 + self.rank + 7919 * self.resumed_at
        )
        self.photo_generator = torch.Generator().manual_seed(options.seed + self.resumed_at)
        self.saved = self.scored = self.began = time.perf_counter()
        self.weights = Weights(options.border, options.smooth)

    def _stages(self) -> list[Stage]:
        options, stages = self.options, list(STAGES)
        for i, stage in enumerate(stages):
            if options.photos:
                stage = replace(stage, photos=options.photos[i])
            if options.share:
                stage = replace(stage, share=options.share[i] / sum(options.share))
            stages[i] = stage
        return stages

    def _make_optimizers(self, sam: Sam) -> None:
        options = self.options
        matrices = hidden_matrices(sam) if options.optimizer == "muon" else []
        self.muon = Muon(matrices, options.weight_decay, compiled=not options.no_compile)
        by_muon = {id(parameter) for _, parameter in matrices}
        rest = [p for p in sam.parameters() if id(p) not in by_muon]
        self.adamw = torch.optim.AdamW(
            [
                {"params": [p for p in rest if p.ndim > 1], "weight_decay": options.weight_decay},
                {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=options.lr,
            betas=(0.9, 0.98),
            fused=self.device.type == "cuda",
        )

    @property
    def sam(self) -> Sam:
        """The model that is trained."""
        return self.trainee.sam

    def stage(self) -> int:
        """The number of the stage at which the training is."""
        total = 0.0
        for i, stage in enumerate(self.stages):
            total += stage.share
            if self.progress.fraction < total - 1e-9:
                return i
        return len(self.stages) - 1

    def augmentation(self) -> Augmentation:
        """How far photos are changed now."""
        if self.options.first_edition:
            return FIRST_EDITION
        return GENTLE if self.progress.fraction >= self.options.gentle_from else Augmentation()

    def rate(self) -> float:
        """The learning rates' factor: warm-up, then 1, at last a straight fall to 1 %."""
        warm = min(1.0, (self.progress.step - self.resumed_at + 1) / self.options.warm_up)
        left = (1 - self.progress.fraction) / (1 - self.options.decay_from)
        factor: float = warm * min(1.0, max(left, 0.01))
        return factor

    def run(self) -> None:
        """Train to the end, and save regularly."""
        self.options.out.mkdir(parents=True, exist_ok=True)
        weights = self.store.sampling_weights(boosts(self.options.boost))
        self.say(
            f"{len(self.store)} photos after {time.perf_counter() - self.started:.1f} s, "
            f"{sum(p.numel() for p in self.sam.parameters())} parameters"
        )
        tick, recent, last = time.perf_counter(), 0, self.stage()
        while self.progress.fraction < 1:
            number = self.stage()
            stage = self.stages[number]
            if number != last:
                self.save(f"stage_{last}.safetensors")
                tick, recent, last = time.perf_counter(), 0, number
            result = self.step(stage, weights)
            self.progress.step += 1
            self.progress.photos += stage.photos * self.world
            recent += 1
            if self.progress.step % CLOCK_EVERY == 0 or self.options.steps:
                self.look_at_clock()
            if self.progress.step % 50 == 0:
                now = time.perf_counter()
                self.log(stage, result, recent * stage.photos * self.world / (now - tick))
                tick, recent = now, 0
                if now - self.saved > self.options.save_every:
                    self.save()
                if now - self.scored > self.options.score_every:
                    self.report_score()
        self.save()
        if self.rank == 0:
            state.export(
                self.average.state_dict(), self.options.out / f"{self.options.model}.safetensors"
            )
            self.report_score()
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()

    def look_at_clock(self) -> None:
        """Set how much of the training is done: by steps, or by the first process's clock."""
        if self.options.steps:
            self.progress.fraction = min(1.0, self.progress.step / self.options.steps)
            return
        seconds = self.progress.seconds + time.perf_counter() - self.began
        done = torch.tensor(seconds / (self.options.minutes * 60), device=self.device)
        if self.world > 1:
            dist.broadcast(done, 0)
        self.progress.fraction = min(1.0, float(done))

    def step(self, stage: Stage, weights: Tensor) -> Losses:
        """One step: augment, one to three rounds of prompts, backward, update."""
        device, generator = self.device, self.generator
        # Every process draws the same photos, and takes its share of them.
        drawn = torch.multinomial(
            weights, stage.photos * self.world, replacement=True, generator=self.photo_generator
        )
        index = drawn[self.rank :: self.world]
        frame = self.sam.image_encoder.img_size
        how = self.augmentation()
        photos = batch(self.store, index, stage.side, frame, how, device, generator)
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
        terms = self.weights if stage.borders else Weights(0.0, 0.0)
        previous: Tensor | None = None
        rounds = ROUNDS[self.progress.step % len(ROUNDS)]
        first: Losses | None = None
        with torch.autocast(device.type, dtype=torch.bfloat16):
            features = self.trainee.encode(photos.pixels, corner)
        # Each round goes back as far as the features, so that only one is in memory at a time.
        shared = features.detach().requires_grad_()
        for turn in range(rounds):
            if previous is not None:
                coords, labels = coords.clone(), labels.clone()
                coords[:, turn], labels[:, turn] = clicks.correction(previous, truth, generator)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits, iou = self.trainee.decode(
                    shared, corner, coords, labels, box, has_box, previous
                )
            result = self.losses(logits, iou, truth.float(), counts, terms)
            first = first or result
            (result.total / rounds).backward()
            best = iou.detach().argmax(1)
            previous = logits.detach()[torch.arange(count, device=device), best]
        features.backward(shared.grad)  # type: ignore[no-untyped-call]
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
            parts = torch.split(flat, [g.numel() for g in grads])
            torch._foreach_copy_(grads, [p.view_as(g) for p, g in zip(parts, grads, strict=True)])
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        rate = self.rate()
        for group in self.adamw.param_groups:
            group["lr"] = self.options.lr * rate
        self.adamw.step()
        self.muon.step(self.options.muon_lr * rate)
        for parameter in parameters:
            parameter.grad = None
        if self.rank == 0:
            self.average.update(self.sam)

    def log(self, stage: Stage, result: Losses, speed: float) -> None:
        """Log progress, losses and IoUs of the last step, and photos per second."""
        if self.rank:
            return
        row = {name: round(float(value.detach()), 5) for name, value in vars(result).items()}
        row |= {"side": stage.side, "step": self.progress.step, "rate": round(self.rate(), 4)}
        row |= {
            "done": round(self.progress.fraction, 4),
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

    def save(self, name: str = "state.safetensors") -> None:
        """Write the state that a later run resumes from."""
        self.saved = time.perf_counter()
        if self.rank == 0:
            spent = self.progress.seconds + self.saved - self.began
            state.save(
                self.options.out / name,
                self.sam,
                self.average,
                replace(self.progress, seconds=spent),
            )

    def report_score(self) -> None:
        """Score the average on the --val folder, if there is one."""
        self.scored = time.perf_counter()
        if self.rank or self.options.val is None:
            return
        sam = build(CONFIGS[self.options.model])
        sam.load_state_dict({k: v.cpu() for k, v in self.average.state_dict().items()})
        side = self.options.score_side or self.stages[self.stage()].side
        scores = score(
            sam.to(self.device),
            load([self.options.val], self.options.canvas),
            self.device,
            side,
            self.options.score_min_area,
        )
        self.write({"score": scores, "side": side, "step": self.progress.step})


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    Training(arguments(argv)).run()


if __name__ == "__main__":
    main()
