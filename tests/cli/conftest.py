"""A stand-in for the engine with known masks, and fixtures that run commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samfast import coco_rle
from samfast.cli import segment_command
from samfast.cli.main import main
from samfast.errors import PromptError, SamfastError
from samfast.images import LoadedImage
from samfast.outputs import records_of
from samfast.prompted_masks.answer_stream import AnsweredImage
from samfast.provenance import Provenance
from samfast.types import FilterCounts, MaskRecords, Masks

SIDE = 64


class FakeSam:
    """A box gets its rectangle, clicks a square around the first one, an image two rectangles."""

    def __init__(self):
        self.image_size = SIDE
        self.batch_size = 1
        self.device = torch.device("cpu")
        self.provenance = Provenance("tiny")
        self.prefetch = 0  # images taken before the first answer
        self.embedded: list[int] = []
        self.asked: list[tuple] = []
        self.options: list[dict] = []
        self.interrupt_at: int | None = None

    def _tick(self, count):
        self.embedded.append(count)
        if self.interrupt_at is not None and sum(self.embedded) > self.interrupt_at:
            raise KeyboardInterrupt

    def answer_each(self, items, load, *, output_mode, best=False, single=False):
        assert output_mode == "coco_rle"
        items = list(items)
        for start in range(0, len(items), self.batch_size):
            some = items[start : start + self.batch_size]
            batch = [(item, self._loaded(load, item.image)) for item in some]
            self._tick(sum(isinstance(image, LoadedImage) for _, image in batch))
            for number, (item, image) in enumerate(batch, start):
                if isinstance(image, SamfastError):
                    yield AnsweredImage(None, [], image)
                    continue
                answers = []
                try:
                    for question in item.questions:
                        answers.append(self._records(number, question, image.size, best))
                except SamfastError as error:
                    yield AnsweredImage(image, [], error, len(answers))
                else:
                    yield AnsweredImage(image, answers)

    @staticmethod
    def _loaded(load, source):
        try:
            return load(source, 0)
        except SamfastError as error:
            return error

    def _records(self, number, question, size, best):
        prompt, (height, width) = question.prompts, size
        self.asked.append((prompt.points, prompt.labels, prompt.boxes, question.multimask))
        count = 3 if question.multimask else 1
        rectangles = self._rectangles(prompt)
        masks = torch.zeros(len(rectangles), count, height, width, dtype=torch.bool)
        for index, (x0, y0, x1, y1) in enumerate(rectangles):
            if x1 > width or y1 > height:
                raise PromptError(
                    f"image {number}, object {index}: outside the image of {width} x {height} px; "
                    "move it inside"
                )
            for which in range(count):
                masks[index, which, y0 : y1 - which, x0:x1] = True
        iou = torch.tensor([[0.5, 0.9, 0.7]])[:, :count].repeat(len(rectangles), 1)
        low_res = torch.zeros(len(rectangles), count, SIDE // 4, SIDE // 4)
        stability = torch.full((len(rectangles), count), 0.5)
        return records_of(Masks(masks, iou, low_res), stability, prompt.points, best=best)

    @staticmethod
    def _rectangles(prompt):
        if prompt.boxes is not None:
            return [tuple(map(int, box)) for box in prompt.boxes]
        clicks = [tuple(map(int, points[0])) for points in prompt.points]
        return [(max(0, x - 2), max(0, y - 2), x + 3, y + 3) for x, y in clicks]

    def segment(self, images, **options):
        return list(self.segment_each(iter(images), **options))

    def segment_each(self, images, *, progress=None, **options):
        self.options.append(options)
        waiting = []
        for image in images:
            self._tick(1)
            if progress is not None:
                progress(1024 * len(self.embedded), None)
            waiting.append(image)
            if len(waiting) > self.prefetch:
                yield self._everything(*waiting.pop(0).size)
        for image in waiting:
            yield self._everything(*image.size)

    def _everything(self, height, width):
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        masks[0, :, : width // 2] = True
        masks[1, : height // 2, : width // 4] = True
        records = [
            {
                "segmentation": coco_rle.encode(mask),
                "area": int(mask.sum()),
                "bbox": [0, 0, 1, 1],
                "predicted_iou": 0.9,
                "point_coords": [[1.0, 1.0]],
                "stability_score": 0.97,
                "crop_box": [0, 0, width, height],
            }
            for mask in masks
        ]
        counts = FilterCounts(1024, 3072, 40, 30, 30, 2, 2, 2)
        return MaskRecords(records, (height, width), counts)


@pytest.fixture
def sam(monkeypatch):
    fake = FakeSam()

    def load(args):
        fake.batch_size = args.batch_size or 1
        return fake

    monkeypatch.setattr(segment_command, "load_model", load)
    return fake


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A current directory with photos/a.png, b.png, c.png, 24 x 16 px."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, name in enumerate("abc"):
        pixels = np.full((16, 24, 3), 40 * index, np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return Path("photos")


@pytest.fixture
def run(capsys):
    """Run a command line in this process: (exit code, stdout, stderr)."""

    def call(*argv):
        code = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
