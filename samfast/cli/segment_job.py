"""One run of `samfast segment` over its images: answers, files and messages, in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from samfast.automatic_masks.segment_stream import Answer
from samfast.cli.console import Console, printable
from samfast.cli.image_files import ImageFile
from samfast.cli.image_reader import ImageReader, ReadFile
from samfast.cli.prompt_files import Prompting
from samfast.cli.segment_everything import segment_everything
from samfast.cli.segment_formats import YOLO
from samfast.cli.segment_prompted import segment_prompted
from samfast.cli.segment_report import Tally, advice, describe_filters, plural
from samfast.cli.segment_results import (
    Outcome,
    ResultWriter,
    json_lines,
)
from samfast.device.loaded_objects import collections_paused, loaded_objects_kept
from samfast.device.ordered_jobs import MAX_WAITING, in_order

if TYPE_CHECKING:
    from samfast.automatic_masks.options import AutomaticOptions
    from samfast.engine import SamFast
    from samfast.outputs import CocoWriter
    from samfast.types import Progress


@dataclass(frozen=True)
class SegmentJob:
    """What to do with which images.

    prompting      the objects of each image; None: everything in it
    options        of `SamFast.segment_each`, as far as they were given
    all_masks      three masks for each object instead of the best
    coco           the COCO instances file to write, or None
    json           where to write a line for each image, "-" for stdout, or None
    skip_existing  whether to leave out images whose files are all there
    """

    files: list[ImageFile]
    writer: ResultWriter
    prompting: Prompting | None
    options: dict[str, Any]
    all_masks: bool
    coco: str | None
    json: str | None
    skip_existing: bool
    console: Console
    tally: Tally = field(default_factory=Tally)

    def run(self, load: Callable[[], SamFast]) -> None:
        """Do all images; load makes the engine, if there is anything left to do."""
        written = {f for f in self.files if self.skip_existing and self.writer.is_written(f)}
        remaining = [file for file in self.files if file not in written]
        with ExitStack() as stack:
            with collections_paused():
                reader = ImageReader(remaining)
                sam = load() if remaining else None
                # Before collections go on: else the next one would walk all that was loaded.
                stack.enter_context(loaded_objects_kept(collect=False))
            self.tally.started = time.perf_counter()
            try:
                self._run(sam, remaining, reader)
            except BaseException as ended:
                if not isinstance(ended, Exception):  # Ctrl-C
                    self.console.warn(f"{self.tally.describe()}; --skip-existing goes on from here")
                raise
        self.console.warn(self.tally.describe())

    def _run(self, sam: SamFast | None, remaining: list[ImageFile], reader: ImageReader) -> None:
        workers = self.writer.threads(beside_gpu=sam is not None and sam.device.type != "cpu")
        if self.json == "-":
            workers = 0  # whoever reads the pipe has an image's line before the next is begun
        with ExitStack() as stack:
            coco = stack.enter_context(self._coco_writer(self.coco)) if self.coco else None
            write_line = stack.enter_context(json_lines(self.json, self.console))
            advance = stack.enter_context(self.console.progress(len(self.files), "image"))
            self._write_classes()
            together = self._together(sam, workers)
            jobs = self._jobs(sam, remaining, reader, together)
            waiting = MAX_WAITING // together
            for outcomes in in_order(jobs, workers, max_waiting=waiting, name="samfast-writer"):
                with self.console.results_together():
                    for outcome in outcomes:
                        self._report(outcome, sam)
                        write_line(outcome)
                        if coco is not None:
                            self._add(outcome, coco)
                advance(len(outcomes))

    def _together(self, sam: SamFast | None, workers: int) -> int:
        """How many results a job writes. Answers to prompts come batch by batch, and each change of
        threads takes its time. What waits to be written waits in memory, so that is bounded.
        """
        if sam is None or self.prompting is None or workers != 1 or sam.batch_size > MAX_WAITING:
            return 1
        return sam.batch_size

    def _jobs(
        self, sam: SamFast | None, remaining: list[ImageFile], reader: ImageReader, together: int
    ) -> Iterator[Callable[[], list[Outcome]]]:
        """In the files' order, what writes the results of some files or reads an earlier one.

        together  results that one job writes
        """
        answers = self._answers(sam, remaining, reader) if sam is not None else iter(())
        to_do = set(remaining)
        taken: list[tuple[ReadFile, Answer]] = []
        answered = 0
        for file in self.files:
            if file not in to_do:
                if taken:
                    yield partial(self._write_all, taken)
                    taken = []
                yield partial(self._read_back, file)
                continue
            try:
                taken.append(next(answers))
            except Exception:  # raised again when the answers before it are on their way to files
                if taken:
                    yield partial(self._write_all, taken)
                raise
            answered += 1
            if answered % together == 0:
                yield partial(self._write_all, taken)
                taken = []
        if taken:
            yield partial(self._write_all, taken)

    def _write_all(self, answers: list[tuple[ReadFile, Answer]]) -> list[Outcome]:
        return [self.writer.write(read, answer) for read, answer in answers]

    def _read_back(self, file: ImageFile) -> list[Outcome]:
        return [self.writer.read_back(file, records=self.coco is not None)]

    def _answers(
        self, sam: SamFast, files: list[ImageFile], reader: ImageReader
    ) -> Iterator[tuple[ReadFile, Answer]]:
        if self.prompting is not None:
            objects = self.prompting.objects
            return segment_prompted(sam, files, objects.__getitem__, self.all_masks, reader)
        options = dict(self.options)
        if self.console.has_bar:
            options["progress"] = self._show_clicks(sam)
        return segment_everything(sam, files, options, reader)

    def _options(self, sam: SamFast) -> AutomaticOptions:
        """The options of the automatic search that are in force."""
        return sam.provenance.automatic_options(self.options)

    def _show_clicks(self, sam: SamFast) -> Progress:
        """A function that shows on the progress bar how far the clicks on a photo are."""
        total = self._options(sam).point_count

        def show(done: int, _: int | None) -> None:
            self.console.stage(f"{(done - 1) % total + 1}/{total} clicks")

        return show

    def _report(self, outcome: Outcome, sam: SamFast | None) -> None:
        """Count an image and say what became of it."""
        path, tally = printable(str(outcome.file.path)), self.tally
        for note in outcome.notes:
            self.console.warn(f"{path}: {note}")
        if outcome.error is not None:
            tally.failed += 1
            self.console.warn(f"{path}: {outcome.error}")
            return
        if self.json != "-":
            for written in () if outcome.skipped else outcome.paths:
                self.console.result(str(written))
        if outcome.skipped:
            tally.skipped += 1
        elif outcome.records is not None and sam is not None:
            tally.done += 1
            tally.masks += len(outcome.records)
            self._describe(outcome, sam)

    def _describe(self, outcome: Outcome, sam: SamFast) -> None:
        """Say how many masks an image has, and why no more if they are few."""
        assert outcome.records is not None
        name = printable(str(outcome.file.path))
        text = f"{name}: {plural(len(outcome.records), 'mask')}"
        counts, hint = getattr(outcome.records, "counts", None), None
        if counts is not None:
            filters = describe_filters(counts, self._options(sam))
            text, hint = f"{text}: {filters}", advice(counts)
        # With a bar, which has the number of images, only what matters.
        if hint or len(self.files) == 1 or not self.console.has_bar:
            self.console.warn(f"{text}; {hint}" if hint else text)

    def _add(self, outcome: Outcome, coco: CocoWriter) -> None:
        """Add an image to the COCO file, unless it failed."""
        if outcome.records is not None and outcome.size is not None:
            image_id = self.writer.image_id(outcome.file)
            coco.add(image_id, outcome.file.name, outcome.size, outcome.records)

    def _coco_writer(self, path: str) -> AbstractContextManager[CocoWriter]:
        from samfast.outputs import write_coco

        prompting = self.prompting
        if prompting is None:
            return write_coco(path)
        # Ids of annotations differ only if each has one mask.
        keep_ids = bool(prompting.image_ids) and not self.all_masks
        return write_coco(path, prompting.categories, keep_ids=keep_ids)

    def _write_classes(self) -> None:
        """Write the file that names YOLO's classes."""
        if YOLO in self.writer.formats:
            from samfast.outputs import write_yolo_dataset

            path = self.writer.out / "data.yaml"
            write_yolo_dataset(path, self.writer.class_names)
            if self.json != "-":
                self.console.result(str(path))
