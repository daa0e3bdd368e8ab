"""`recipe="auto"`: the recipe for a device and a checkpoint, and the reason."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from samfast.device.machine import AMD, INTEL_AMX, UNTESTED, cpu_kind
from samfast.errors import RecipeError, shown
from samfast.model.config import CONFIGS
from samfast.recipes import evidence
from samfast.recipes.device_support import native_bf16, refusal
from samfast.recipes.evidence import MINIMUM_PHOTOS, Evidence, Speed, rounding
from samfast.recipes.recipe import Recipe
from samfast.recipes.table import get

BUDGET = 0.3
"""Points of mean IoU that a recipe may cost, unless the caller says otherwise."""

MIN_SPEEDUP = 1.05
"""A lossy or compiled recipe must be faster than the best plain one by this factor: less is within
the spread of the measurements."""

MIN_COMPILE_BATCH = 16
"""Least batch size at which a compiled recipe is chosen, if it is faster: its first call in a
process can take minutes, and compile time is repaid only by many images, so by large batches."""

DEFAULT_MODEL = "vit_b"

_BY_SPEED = operator.attrgetter("images_per_second")

UNMEASURED = ("bf16_folded", "fp16_sdpa", "fp32_sdpa"), ("bf16_blocked", "fp32_blocked")
"""In order of preference on GPUs and on CPUs, if no measured row is packaged for that kind of
device."""


UNTESTED_RECIPE = "fp32_sdpa"
"""On the devices of UNTESTED, of which there are no measurements."""


FAST_BF16 = (AMD, INTEL_AMX)
"""Kinds of processors whose products in bfloat16, where they have them, are faster than in float32.
On Intel's without AMX they are slower: benchmarks/results/cpu_peers_intel.json."""


@dataclass(frozen=True)
class Choice:
    """A recipe's name and the reason for it, for a user."""

    name: str
    reason: str


def choose(
    device: torch.device,
    *,
    fingerprint: str | None = None,
    model: str | None = None,
    batch_size: int | None = None,
    budget: float = BUDGET,
    random: bool = False,
) -> Choice:
    """The fastest recipe on that device that is unquantized, or whose measured loss on this
    checkpoint is within the budget.

    fingerprint  of the checkpoint (`evidence.checkpoint_fingerprint`); None: unknown. A checkpoint
                 without evidence is neither quantized nor made sparse
    model        "vit_b", ...: the order of recipes differs between sizes; None: vit_b's
    batch_size   images encoded at a time; None: 1 on a CPU, 8 on a GPU
    budget       points of mean IoU, of 100, that a lossy recipe may lose
    random       the weights are random, so no evidence applies

    Raises RecipeError for a budget that is not a number of at least 0.
    """
    check_budget(budget)
    if device.type in UNTESTED:
        return Choice(UNTESTED_RECIPE, f"plain PyTorch; samfast was not tested on {device.type}")
    request = _Request(
        device,
        *_hardware(device),
        cpu_kind() if device.type == "cpu" else None,
        model or DEFAULT_MODEL,
        batch_size or (8 if device.type == "cuda" else 1),
        budget,
        random,
        () if random or fingerprint is None else evidence.evidence(fingerprint),
    )
    groups = list(_groups(evidence.speeds(), request))
    for least in (2, 1):  # a single row was compared with nothing: the last resort
        for group in groups:
            plain = [row for row in group if request.plain(row)]
            if len(plain) >= least:
                return _pick(group, plain, request)
    return _unmeasured(request)


def check_budget(budget: float) -> None:
    """RecipeError unless it is a number of at least 0."""
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget >= 0:
        raise RecipeError(
            f"accuracy budget {shown(budget)}; give points of mean IoU, 0 or more (the default is "
            f"{BUDGET})"
        )


def _hardware(device: torch.device) -> tuple[str | None, str | None]:
    """The GPU's name and compute capability ("9.0"); None and None for a CPU."""
    if device.type != "cuda":
        return None, None
    if not torch.cuda.is_available():
        return "an unknown GPU", None
    major, minor = torch.cuda.get_device_capability(device)
    return torch.cuda.get_device_name(device), f"{major}.{minor}"


@dataclass(frozen=True)
class _Request:
    """The arguments of `choose`, the device's hardware, and the evidence of the checkpoint."""

    device: torch.device
    gpu: str | None
    capability: str | None
    cpu_kind: str | None
    model: str
    batch: int
    budget: float
    random: bool
    evidence: tuple[Evidence, ...]

    def sensible(self, recipe: Recipe) -> bool:
        """Whether the recipe's dtype may be chosen on the device."""
        if recipe.dtype == torch.bfloat16 and self.device.type == "cpu":
            return native_bf16()  # the measured rows are from CPUs that do not emulate it
        if recipe.dtype == torch.float16:
            # Only without bfloat16: some checkpoint's activations may overflow float16.
            return refusal(replace(recipe, dtype=torch.bfloat16), self.device) is not None
        return True

    def runs(self, recipe: Recipe) -> bool:
        """Whether the device runs the recipe, in a dtype that may be chosen."""
        return self.sensible(recipe) and refusal(recipe, self.device) is None

    def plain(self, row: Speed) -> bool:
        """Whether the row's recipe runs, is unquantized, and does not compile."""
        recipe = get(row.recipe)
        return self.runs(recipe) and not recipe.lossy and recipe.compile is None

    def proof(self, recipe: Recipe) -> Evidence | None:
        """The best evidence of the recipe's loss on this checkpoint.

        A score against annotated masks is preferred to agreement with fp32, which only bounds the
        loss; then the newest.
        """
        rows = [row for row in self.evidence if row.rounding == rounding(recipe)]
        return max(reversed(rows), key=lambda row: (row.kind == "miou", _date(row)), default=None)

    def objection(self, row: Speed) -> str | None:
        """The reason against a row's recipe, which is faster than the plain ones; None if none."""
        recipe = get(row.recipe)
        why = refusal(recipe, self.device)
        if why is not None:
            return f"does not run here: {why}"
        if recipe.compile is not None and self.batch < MIN_COMPILE_BATCH:
            seconds = f", {row.compile_seconds:.0f} s there" if row.compile_seconds else ""
            least = MIN_COMPILE_BATCH
            return f"compiles at the first call{seconds}, so it is taken from batch {least} on"
        if not recipe.lossy:
            return None
        if recipe.sparsify is not None:
            # Pruning needs photos and a file for its result, and that file states its formats.
            return "needs weights that were pruned for it: samfast quantize"
        if self.random:
            return "rounds further, and with random weights nothing shows what that loses"
        proof = self.proof(recipe)
        if proof is None:
            return "has no accuracy row for this checkpoint: samfast calibrate CHECKPOINT IMAGES"
        if proof.photos < MINIMUM_PHOTOS:
            return (
                f"was measured on {proof.photos} photos, at least {MINIMUM_PHOTOS} are "
                "needed: samfast calibrate"
            )
        if not proof.loss_points <= self.budget:
            return f"{_loss(proof)}, the budget is {self.budget:g}"
        return None


def _pick(group: Sequence[Speed], plain: Sequence[Speed], request: _Request) -> Choice:
    """The choice among the rows of one comparison; plain rows can always be chosen."""
    best = max(plain, key=_BY_SPEED)
    skipped: dict[str, list[str]] = {}
    chosen = best
    for row in sorted(group, key=_BY_SPEED, reverse=True):
        if row.images_per_second < MIN_SPEEDUP * best.images_per_second:
            break
        if request.sensible(get(row.recipe)):
            objection = request.objection(row)
            if objection is None:
                chosen = row
                break
            skipped.setdefault(objection, []).append(f"{row.recipe} ({_times(row, best)} as fast)")
    words = [_measurement(chosen, best, plain, request)]
    proof = request.proof(get(chosen.recipe))
    if proof is not None:
        words.append(f"on this checkpoint it {_loss(proof)}")
    for objection, names in skipped.items():
        words.append(f"passed over: {', '.join(names)} {objection}")
    return Choice(chosen.recipe, "; ".join(words))


def _measurement(chosen: Speed, best: Speed, plain: Sequence[Speed], request: _Request) -> str:
    """The measurement of the choice: where, when, and how much faster it is than the next."""
    lossy = get(chosen.recipe).lossy
    kind = "recipe within the accuracy budget" if lossy else "unquantized recipe"
    text = (
        f"the fastest {kind} for {chosen.model} at batch {chosen.batch_size} on {_device(chosen)}: "
        f"{chosen.images_per_second:.3g} images/s ({chosen.date})"
    )
    others = [row for row in (*plain, best) if row.recipe != chosen.recipe]
    if others:
        second = max(others, key=_BY_SPEED)
        text += f", {_times(chosen, second)} as fast as {second.recipe}"
    if request.gpu is not None and request.gpu != chosen.gpu:
        detail = f" (compute capability {request.capability})" if request.capability else ""
        text += f"; nothing was measured on this {request.gpu}{detail}, whose order may differ"
    if request.cpu_kind != chosen.cpu_kind:
        here = request.cpu_kind
        text += f"; nothing was measured on a CPU of this kind ({here}), whose order may differ"
    if request.model != chosen.model:
        text += f"; {request.model} was not measured there, so {chosen.model} stands for it"
    return text


def _unmeasured(request: _Request) -> Choice:
    """The first of the preferred recipes that runs, if no row is of this kind of device."""
    names = UNMEASURED[request.gpu is None]
    kind = "CPU" if request.gpu is None else "GPU"
    # Where none runs, `apply` refuses the last one and gives the reason.
    chosen = next((name for name in names if request.runs(get(name))), names[-1])
    reason = f"the first of {', '.join(names)} that runs here"
    return Choice(chosen, f"{reason}; no speed measured on a {kind} is packaged")


def _groups(rows: Sequence[Speed], request: _Request) -> Iterator[list[Speed]]:
    """The rows grouped by device, model and batch size, the group most like the request first.

    Only speeds within a group are compared; it has the newest row of each recipe.
    """
    groups: dict[tuple[str | None, str, int], dict[str, Speed]] = {}
    for row in sorted(rows, key=_date):
        if (row.gpu is None) == (request.gpu is None):
            device = row.gpu or row.cpu_kind
            groups.setdefault((device, row.model, row.batch_size), {})[row.recipe] = row

    def distance(group: list[Speed]) -> tuple[float, ...]:
        row = group[0]
        return (
            _hardware_distance(row, request),
            abs(_width(row.model) - _width(request.model)),
            abs(math.log2(row.batch_size / request.batch)),
            row.batch_size,
        )

    yield from sorted((list(group.values()) for group in groups.values()), key=distance)


def _hardware_distance(row: Speed, request: _Request) -> float:
    """0 for the same GPU, then by compute capability; infinite if that is unknown. 0 for the same
    kind of CPU, then by whether bfloat16 is fast.
    """
    if request.gpu is None:
        if row.cpu_kind == request.cpu_kind:
            return 0.0
        return 1.0 + ((row.cpu_kind in FAST_BF16) != (request.cpu_kind in FAST_BF16))
    if row.gpu == request.gpu:
        return 0.0
    if row.capability is None or request.capability is None:
        return math.inf
    return 1.0 + abs(float(row.capability) - float(request.capability))


def _width(model: str) -> float:
    """The width of the model's encoder; of the default model for an unknown one."""
    return CONFIGS[model if model in CONFIGS else DEFAULT_MODEL].embed_dim


def _date(row: Speed | Evidence) -> str:
    return str(row.environment.get("date", ""))


def _times(row: Speed, other: Speed) -> str:
    return f"{row.images_per_second / other.images_per_second:.2f} times"


def _device(row: Speed) -> str:
    if row.gpu is not None:
        return f"an {row.gpu}"
    return f"a CPU ({row.environment.get('cpu')}, {row.environment.get('threads')} threads)"


def _loss(proof: Evidence) -> str:
    """The evidence for a user: "loses 0.12 points of mean IoU (...)"."""
    verb = "loses" if proof.kind == "miou" else "may lose"
    return (
        f"{verb} {max(0.0, proof.loss_points):.2f} points of mean IoU (as {proof.recipe} on "
        f"{proof.photos} photos, {proof.photo_set}, {proof.date})"
    )
