"""Ways to train a network on photographs, declared as values that can be printed and compared.

A :class:`Way` says everything that decides a training run beside the architecture, the data and
the seed: where the network starts, which of it learns, on what images, by which recipe.
:func:`learn` does what it says. Two ways that differ in one field differ in one decision.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tlhelpers import features, inside, models, probe, records, runtime, train
from tlhelpers.augment import PhotoAugment
from tlhelpers.models import Backbone, PhotoClassifier
from tlhelpers.pixels import PixelCache, pixel_cache
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset, Split
from tlhelpers.train import History, Recipe, Regulariser

STARTS = ("pretrained", "random")
HEADS = ("new", "probe")
FROZEN = ("body", "norms", "nothing")
PENALTIES = ("l2", "l2_sp")

_BATCH = 64


# --- the declaration ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """A penalty on the weights, made for a network when its training begins.

    Attributes:
        kind: ``"l2"`` pulls the body towards 0, ``"l2_sp"`` towards where it starts; the head is
            pulled towards 0 by both. See :func:`tlhelpers.train.l2_sp`.
        alpha: the weight of the body's term.
        beta: the weight of the head's term.

    Raises:
        ValueError: if there is no such kind.

    Example:
        >>> import tlhelpers as tl
        >>> network = tl.models.small_resnet(10, weights="letters")
        >>> for kind in ("l2", "l2_sp"):
        ...     regulariser = tl.ways.Penalty(kind=kind, alpha=0.1, beta=0.0)(network)
        ...     print(f"{kind:6} {regulariser(network).item():.1f}")
        l2     75.7
        l2_sp  0.0
    """

    kind: str
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        _one_of("Penalty: kind", self.kind, PENALTIES)

    def __call__(self, network: nn.Module) -> Regulariser:
        """The penalty on this network, whose weights are those it starts from."""
        make = train.l2 if self.kind == "l2" else train.l2_sp
        return make(network, alpha=self.alpha, beta=self.beta)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to train a torchvision network on photographs.

    Attributes:
        name: lower-case, for records and checkpoints.
        start: the body's first weights: ``"pretrained"`` or ``"random"``.
        head: ``"new"``: random weights; ``"probe"``: a linear probe on the features that the
            body has before it is trained, see :func:`begin`.
        frozen: ``"body"``: the head alone learns; ``"norms"``: batch normalisation keeps its
            parameters and statistics; ``"nothing"``.
        recipe: how it is trained; without ``augment`` and ``regulariser``, which are ``augment``
            and ``penalty`` below. None: not at all, the network stays as it begins.
        size: side in pixels of the images that the network works on. Training and test images
            show the same part of a photograph, its central square, unless ``augment`` cuts.
        stored: side in pixels of the squares in which photographs are cached, ``size`` or larger.
        augment: what happens to training images; its own ``size`` gives way to the one above.
        spread: the learning rate of the first stage of the body as a share of that of the last;
            the rates between fall evenly on a logarithmic scale, whatever the number of stages.
        penalty: on the weights, or None.
        least_steps: the run is not shorter than so many steps, however few the labels.

    Raises:
        ValueError: if a setting cannot be meant.

    Example:
        >>> import tlhelpers as tl
        >>> recipe = tl.train.Recipe(epochs=20, lr=1e-4, head_lr=1e-3)
        >>> way = tl.ways.Way(name="lp_ft", head="probe", recipe=recipe, least_steps=600)
        >>> smaller = way.at(size=128, epochs=10)
        >>> smaller.size, smaller.recipe.epochs, smaller.least_steps
        (128, 10, 300)
    """

    name: str
    start: str = "pretrained"
    head: str = "new"
    frozen: str = "nothing"
    recipe: Recipe | None
    size: int = 224
    stored: int = 224
    augment: PhotoAugment | None = None
    spread: float = 1.0
    penalty: Penalty | None = None
    least_steps: int = 0

    def __post_init__(self) -> None:
        _one_of("Way: start", self.start, STARTS)
        _one_of("Way: head", self.head, HEADS)
        _one_of("Way: frozen", self.frozen, FROZEN)
        if not 1 <= self.size <= self.stored:
            raise ValueError(
                f"Way: size must be 1 or more pixels, and no more than the {self.stored} of the "
                f"stored squares, found {self.size}."
            )
        if not 0 < self.spread <= 1:
            raise ValueError(f"Way: spread must be above 0 and at most 1, found {self.spread}.")
        recipe = self.recipe
        if recipe is None and self.head == "new":
            raise ValueError("Way: a new head that is not trained says nothing; give a recipe.")
        if recipe and (recipe.augment, recipe.regulariser, recipe.decay) != (None, None, 1.0):
            raise ValueError(
                "Way: its recipe must leave augment, regulariser and decay alone, since they "
                "depend on the size and the network. Give the way augment, penalty and spread."
            )

    def at(self, *, size: int | None = None, epochs: int | None = None) -> Way:
        """The same way on images of another size, or with another number of epochs.

        ``least_steps`` changes in proportion to the epochs.
        """
        recipe, least = self.recipe, self.least_steps
        if epochs is not None:
            if recipe is None:
                raise ValueError(f"the way {self.name!r} does not train, so it has no epochs.")
            least = round(least * epochs / recipe.epochs)
            recipe = dataclasses.replace(recipe, epochs=epochs)
        return dataclasses.replace(self, size=size or self.size, recipe=recipe, least_steps=least)


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}, found {value!r}.")


# --- one run ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Learnt:
    """What a way has made of a network.

    Attributes:
        way: the way.
        network: in evaluation mode, on the run's device; takes photographs, see
            :class:`~tlhelpers.models.PhotoClassifier`.
        history: a row for each evaluation; empty where nothing was trained.
        images: the number of training images.
        stages: a row for each stage of the body, and ``"features"`` for all of it: ``stage``,
            ``moved``, the norm of the change of its weights over the norm they began with, and
            ``cka``, how alike its outputs on validation images are before and after (see
            :func:`tlhelpers.inside.cka`); NaN where a stage is not one module. No rows where the
            body was frozen or began with random weights.
        peak_bytes: the most memory that training took: allocated on the device for CUDA, resident
            in the process (the photographs that it read from the cache among it) for a CPU under
            Linux; None elsewhere.
        seconds: of training and its evaluations, in all calls that continued one another.
        waited: the part of them that earlier calls took.
        commit: the git commit of the code that trained it; None outside a checkout.
        clean: whether that checkout was clean, and the same in all of these calls.
    """

    way: Way
    network: PhotoClassifier
    history: History
    images: int
    stages: pd.DataFrame
    peak_bytes: int | None
    seconds: float
    waited: float
    commit: str | None
    clean: bool | None

    def __repr__(self) -> str:
        name = f"{self.way.name}, {self.network.name} at {self.way.size} px"
        if self.history.empty:
            return f"{name}: not trained"
        return f"{name}: {self.history.summary()}"

    @property
    def images_per_second(self) -> float:
        """Training images a second, the evaluations' time included; NaN if nothing was trained."""
        if self.history.empty:
            return float("nan")
        batch = self.way.recipe.batch_size if self.way.recipe else 1
        epochs, rest = divmod(int(self.history.step.iloc[-1]), -(-self.images // batch))
        return (epochs * self.images + rest * batch) / self.seconds


def stored(data: Dataset, size: int) -> Dataset:
    """The data set with its photographs as squares of a size, from the cache of pixels.

    A tensor stays as it is, and so does a cache of this size. Do this before ``few``: a part of a
    data set would get a cache of its own.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i, colour in enumerate(["red", "green", "blue"] * 2):
        ...         place = Path(folder) / "ab"[i % 2]
        ...         place.mkdir(exist_ok=True)
        ...         Image.new("RGB", (60, 40), colour).save(place / f"{colour}.png")
        ...     data = tl.ways.stored(tl.datasets.image_folder(folder), 32)
        >>> data.x.shape
        (6, 3, 32, 32)
        >>> tl.ways.stored(data, 32) is data
        True
    """
    if isinstance(data.x, Tensor) or (isinstance(data.x, PixelCache) and data.x.size == size):
        return data
    return pixel_cache(data, size=size)


def begin(
    way: Way,
    data: Dataset,
    architecture: str,
    *,
    weights: str | Path = "imagenet",
    run: Run | None = None,
) -> PhotoClassifier:
    """The network before its first step.

    The network works on the whole square, scaled to ``way.size``; torchvision's presets would cut
    off an eighth of it on each side, and with crops of dogs, ears and tails.

    A head from a probe is fitted to features of these images at this size, with its ridge weight
    chosen on validation (LP-FT; Kumar et al. 2022). Its logits are divided by the temperature that
    fits validation best: the classes it predicts stay the same, but a head that is too timid
    would have the first steps change the features for nothing more than larger logits.

    Args:
        way: the way.
        data: photographs, see :func:`stored`; test images are not looked at.
        architecture: torchvision's name of the network.
        weights: ``"imagenet"`` or a file, see :func:`tlhelpers.models.backbone`; not read where
            the way starts from random weights.
        run: seed of what is random, and device.

    Raises:
        ValueError: if ``frozen`` is ``"norms"`` and the network has none, and as
            :func:`tlhelpers.models.backbone`.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> import tlhelpers as tl
        >>> x, names = (
        ...     torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8),
        ...     tuple(map(str, range(12))),
        ... )
        >>> parts = np.repeat(["train", "validation", "test"], 4)
        >>> data = tl.splits.Dataset(
        ...     "noise", ("a", "b"), x, torch.arange(12) % 2, parts, names, "made"
        ... )
        >>> recipe = tl.train.Recipe(epochs=1)
        >>> way = tl.ways.Way(name="head", start="random", frozen="body", recipe=recipe, size=32)
        >>> network = tl.ways.begin(way, data, "squeezenet1_1")
        >>> [name for name, p in network.named_parameters() if p.requires_grad]
        ['head.weight', 'head.bias']
    """
    run = runtime.default(run)
    data = stored(data, way.stored)
    given = weights if way.start == "pretrained" else None
    backbone = models.backbone(architecture, weights=given, seed=run.seed)
    assert backbone.preprocess is not None
    preprocess = dataclasses.replace(backbone.preprocess, resize=way.size, crop=way.size)
    backbone = dataclasses.replace(backbone, preprocess=preprocess)
    network = PhotoClassifier(backbone, len(data.classes), seed=run.seed).eval()
    if way.head == "probe":
        linear = _probe(data, backbone, run).to_linear()
        network.head.load_state_dict(linear.state_dict())
    if way.frozen == "body":
        models.freeze(network.body)
    elif way.frozen == "norms":
        _freeze_norms(network)
    return network


def _probe(data: Dataset, backbone: Backbone, run: Run) -> probe.Probe:
    seen = data.subset(np.flatnonzero(data.split != "test"))
    return probe.fit(features.extract(seen, backbone, run=run), run=run).calibrated()


def has_norms(architecture: str) -> bool:
    """Whether one of torchvision's networks has batch normalisation, which could be frozen.

    Example:
        >>> import tlhelpers as tl
        >>> [tl.ways.has_norms(name) for name in ("squeezenet1_1", "mobilenet_v2")]
        [False, True]
    """
    return bool(_norms(models.backbone(architecture, weights=None).network))


def _norms(network: nn.Module) -> list[nn.Module]:
    return [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]


def _freeze_norms(network: PhotoClassifier) -> None:
    norms = _norms(network)
    if not norms:
        raise ValueError(
            f"{network.name} has no batch normalisation that could be frozen. Choose a network "
            f"that has some, such as mobilenet_v2, or leave `frozen` at 'nothing'."
        )
    for part in norms:
        models.freeze(part)


def recipe_for(way: Way, network: PhotoClassifier, images: int) -> Recipe:
    """The whole recipe by which :func:`learn` trains this network on so many images.

    Raises:
        ValueError: if the way does not train.

    Example:
        >>> import tlhelpers as tl
        >>> recipe = tl.train.Recipe(epochs=2, batch_size=32)
        >>> way = tl.ways.Way(name="slow", recipe=recipe, spread=0.1, least_steps=100)
        >>> network = tl.models.photo_classifier("squeezenet1_1", 2, weights=None, size=64)
        >>> whole = tl.ways.recipe_for(way, network, images=320)
        >>> whole.steps, round(whole.decay, 2)
        (100, 0.75)
    """
    if way.recipe is None:
        raise ValueError(f"the way {way.name!r} does not train.")
    gaps = len(_stages(network)) - 1
    recipe = dataclasses.replace(
        way.recipe,
        augment=None if way.augment is None else dataclasses.replace(way.augment, size=way.size),
        regulariser=None if way.penalty is None else way.penalty(network),
        decay=way.spread ** (1 / max(gaps, 1)),
    )
    if recipe.total_steps(images) < way.least_steps:
        recipe = dataclasses.replace(recipe, steps=way.least_steps)
    return recipe


def learn(
    way: Way,
    data: Dataset,
    architecture: str,
    *,
    weights: str | Path = "imagenet",
    run: Run | None = None,
    first: PhotoClassifier | None = None,
    checkpoint: str | Path | None = None,
) -> Learnt:
    """Train a network in a way.

    Forward passes run in ``run.dtype``, on a CPU too: where the processor computes in bfloat16, a
    ResNet trains about twice as fast. (A MobileNet, with its small filters for each channel, does
    not; ``benchmarks/epoch.py`` compares.) The test split is not touched.

    Args:
        way: the way.
        data: photographs with a validation split, see :func:`stored`.
        architecture: torchvision's name of the network.
        weights: see :func:`begin`.
        run: seed, device and dtype; None for seed 0 on the best device.
        first: the network to begin with, which is trained in place; None for :func:`begin`.
        checkpoint: a file from which an interrupted run continues, and a finished one comes back
            at once, see :func:`tlhelpers.train.fit`. Beside it lies a file of the same name with
            ``.json``, which remembers the commit and the memory of the calls before.

    Raises:
        ValueError: if the checkpoint is of another run, and as :func:`begin`.
        tlhelpers.train.Diverged: if a loss becomes NaN or infinite.

    Warns:
        UserWarning: if the checkpoint was begun by another commit than the one that runs now.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> import tlhelpers as tl
        >>> x, names = (
        ...     torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8),
        ...     tuple(map(str, range(12))),
        ... )
        >>> parts = np.repeat(["train", "validation", "test"], 4)
        >>> data = tl.splits.Dataset(
        ...     "noise", ("a", "b"), x, torch.arange(12) % 2, parts, names, "made"
        ... )
        >>> recipe = tl.train.Recipe(epochs=2, batch_size=2)
        >>> way = tl.ways.Way(name="scratch", start="random", recipe=recipe, size=32)
        >>> learnt = tl.ways.learn(way, data, "squeezenet1_1", run=tl.runtime.Run())
        >>> learnt.history[["epoch", "step"]]
           epoch  step
        0      1     2
        1      2     4
        >>> learnt.network(x).shape
        torch.Size([12, 2])
    """
    run = runtime.default(run)
    data = stored(data, way.stored)
    path = None if checkpoint is None else Path(checkpoint)
    code = records.provenance(learn, command="learn")
    network = first
    if network is None:
        network = begin(way, data, architecture, weights=weights, run=run)
    if way.recipe is None:
        return Learnt(
            way=way,
            network=network.to(run.device),
            history=History(columns=list(train.COLUMNS)),
            images=len(data.train),
            stages=_no_stages(),
            peak_bytes=None,
            seconds=0.0,
            waited=0.0,
            commit=code["commit"],
            clean=code["clean"],
        )
    began = copy.deepcopy(network)
    recipe = recipe_for(way, network, len(data.train))
    notes = _Notes.open(path, code["commit"], code["clean"])
    notes.write()
    start = time.perf_counter()
    with _peak_memory(run.device) as peak:
        history = train.fit(network, data, recipe, run, mixed=True, checkpoint=path)
    elapsed = time.perf_counter() - start
    notes = notes.end(peak[0])
    notes.write()
    seconds = float(history.seconds.iloc[-1])
    moved = way.start == "pretrained" and way.frozen != "body"
    return Learnt(
        way=way,
        network=network,
        history=history,
        images=len(data.train),
        stages=compare(began.to(run.device), network, data.validation) if moved else _no_stages(),
        peak_bytes=notes.peak_bytes,
        seconds=seconds,
        waited=max(0.0, seconds - elapsed),
        commit=notes.commit,
        clean=notes.clean,
    )


def _no_stages() -> pd.DataFrame:
    return pd.DataFrame(columns=["stage", "moved", "cka"])


@dataclass(frozen=True)
class _Notes:
    """What is remembered beside a checkpoint, over all calls that continue one another."""

    path: Path | None
    commit: str | None
    clean: bool | None
    peak_bytes: int | None = None
    finished: bool = False

    @classmethod
    def open(cls, checkpoint: Path | None, commit: str | None, clean: bool | None) -> _Notes:
        path = checkpoint and checkpoint.with_name(f"{checkpoint.name}.json")
        if checkpoint is None or path is None or not (checkpoint.is_file() and path.is_file()):
            return cls(path, commit, clean)
        before = cls(path, **json.loads(path.read_text(encoding="utf-8")))
        if before.commit != commit:
            done = "was trained" if before.finished else "was begun"
            warnings.warn(
                f"{checkpoint.name} {done} by the code of commit {before.commit}, and {commit} "
                f"runs now. If what changed matters for training, delete {checkpoint} and call "
                f"again.",
                stacklevel=3,
            )
        if before.finished:
            return before
        same = before.commit == commit
        return dataclasses.replace(before, clean=(before.clean and clean) if same else False)

    def end(self, peak: int | None) -> _Notes:
        """The notes when training has ended; those of a run that ended before stay."""
        if self.finished:
            return self
        known = [value for value in (self.peak_bytes, peak) if value is not None]
        return dataclasses.replace(self, peak_bytes=max(known, default=None), finished=True)

    def write(self) -> None:
        if self.path is not None:
            kept = dataclasses.asdict(self)
            del kept["path"]
            runtime.write_whole(self.path, json.dumps(kept).encode())


@contextlib.contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[int | None]]:
    """A list with one number, set when the block ends: the most bytes in use within it."""
    peak: list[int | None] = [None]
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    known = on_cuda or (device.type == "cpu" and _forget_peak())
    yield peak
    if on_cuda:
        peak[0] = torch.cuda.max_memory_allocated(device)
    elif known:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        peak[0] = 1024 * int(line.split()[1])


def _forget_peak() -> bool:
    """Have Linux begin anew with the peak of this process's memory; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


# --- what training has changed ------------------------------------------------------------


def compare(before: PhotoClassifier, after: PhotoClassifier, split: Split) -> pd.DataFrame:
    """How far each stage of the body has moved, and how alike its outputs still are.

    Args:
        before: the network as it began.
        after: the same network, trained.
        split: images to compare outputs on.

    Returns:
        the columns of ``Learnt.stages``; stages as in
        :func:`tlhelpers.models.param_groups`, from input to output, without their ``"body."``.

    Example:
        >>> import copy
        >>> import torch
        >>> import tlhelpers as tl
        >>> before = tl.models.photo_classifier("squeezenet1_1", 2, weights=None, size=32)
        >>> after = copy.deepcopy(before)
        >>> _ = after.body.features[12].expand3x3.weight.data.mul_(2)
        >>> images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
        >>> split = tl.splits.Split("validation", images, torch.arange(8) % 2, tuple("abcdefgh"))
        >>> table = tl.ways.compare(before, after, split)
        >>> table[table.moved > 0][["stage", "moved"]].round(1)
                 stage  moved
        8  features.12    0.7
        9     features    0.3
    """
    old = dict(before.named_parameters())
    stages = _stages(after)
    seen = [_outputs(network, tuple(stages), split) for network in (before, after)]
    rows = []
    for stage, parameters in (*stages.items(), ("features", _joined(stages))):
        change = [(p.detach().cpu() - old[name].detach().cpu()) for name, p in parameters.items()]
        began = [old[name].detach().cpu() for name in parameters]
        known = all(stage in outputs for outputs in seen)
        rows.append(
            {
                "stage": stage.removeprefix("body."),
                "moved": _norm(change) / _norm(began),
                "cka": inside.cka(seen[0][stage], seen[1][stage]) if known else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def _stages(network: PhotoClassifier) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters of the body that learn, by stage and by name, from input to output."""
    names = {id(p): name for name, p in network.named_parameters()}
    groups = models.param_groups(network, lr=1.0, decay=0.5)
    return {
        group["name"]: {names[id(p)]: p for p in group["params"]}
        for group in groups
        if group["name"] != "head"
    }


def _joined(stages: dict[str, dict[str, nn.Parameter]]) -> dict[str, nn.Parameter]:
    return {name: p for parameters in stages.values() for name, p in parameters.items()}


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt())


@torch.inference_mode()
def _outputs(network: PhotoClassifier, stages: tuple[str, ...], split: Split) -> dict[str, Tensor]:
    """(n, d) outputs of each stage that is a module, averaged over the plane, and the features."""
    device = network.head.weight.device
    modules = dict(network.named_modules())
    seen: dict[str, list[Tensor]] = {name: [] for name in stages if name in modules}
    seen["features"] = []

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen[name].append(_averaged(output).float().cpu())

        return hook

    hooks = [modules[name].register_forward_hook(keep(name)) for name in stages if name in modules]
    try:
        with runtime.keep_memory() if device.type == "cpu" else contextlib.nullcontext():
            for images, _ in split.batches(_BATCH):
                seen["features"].append(network.features(images.to(device)).float().cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def _averaged(out: Tensor) -> Tensor:
    """Maps (n, d, h, w), or tokens (n, t, d), averaged to (n, d)."""
    if out.ndim == 4:
        return out.mean(dim=(2, 3))
    return out.mean(dim=1) if out.ndim == 3 else out
