"""From images to a bank of features: one pass through a frozen backbone, kept on disk.

A bank is the output of a backbone on a data set. It is a data set itself, so everything
downstream of a frozen backbone runs on it, in seconds and without the photographs.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import warnings
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from tlhelpers import models, runtime
from tlhelpers.models import LOGITS, Backbone
from tlhelpers.runtime import Run
from tlhelpers.splits import PARTS, Dataset

FORMAT = "tlhelpers-bank-1"
CHUNK = 256  # images between two writes to the cache: what an interruption can lose per core
CPU_BATCH = 8  # fits the caches of one core; 16 was no faster, 32 and more slower
ACCELERATOR_BATCH = 128
PIXELS = 2**18  # of a batch of images that go in as they are: 1,024 glyphs of 16 x 16


@dataclass(frozen=True)
class Provenance:
    """Where a bank comes from.

    Attributes:
        data: the data set's name.
        backbone: the backbone's name; torchvision's name of the architecture.
        weights: where its weights come from, in words.
        fingerprint: sha256 of the weights.
        preprocess: the settings of :class:`~tlhelpers.models.Preprocess`.
        at: the stage that was tapped.
        dtype: the dtype of the forward pass.
        torch: torch's version.
        date: day of the extraction, UTC.
        skipped: names of images that could not be read and were left out on request.
        command: the command that made the bank, where a script did.
        scores: what cannot be computed from the bank any more, such as the top-1 of the
            untrained head on each part.

    Example:
        >>> import tlhelpers as tl
        >>> made = tl.features.load("stanford_dogs/mobilenet_v2").provenance
        >>> made.backbone, made.at, made.preprocess["crop"]
        ('mobilenet_v2', 'features', 224)
        >>> round(made.scores["untrained_top1_test_of_120"], 3)  # of the head that was left out
        0.834
    """

    data: str
    backbone: str
    weights: str
    fingerprint: str
    preprocess: Mapping[str, Any]
    at: str
    dtype: str
    torch: str
    date: str
    skipped: tuple[str, ...] = ()
    command: str = ""
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Projection:
    """An affine map to principal components: ``x -> (x - mean) @ components.T``.

    Attributes:
        mean: (d,) mean of the training features.
        components: (k, d) orthonormal rows, the direction of largest variance first.
        explained: share of the training features' variance that the k directions hold, 0..1.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> project = tl.features.load("stanford_dogs/mobilenet_v2").projection
        >>> project(torch.zeros(2, 1280)).shape, round(project.explained, 2)
        (torch.Size([2, 128]), 0.73)
    """

    mean: Tensor
    components: Tensor
    explained: float

    def __call__(self, features: Tensor) -> Tensor:
        """(n, d) features to (n, k) coordinates."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(
                f"the projection takes (n, {len(self.mean)}) features of the backbone, found the "
                f"shape {tuple(features.shape)}."
            )
        return (features - self.mean) @ self.components.T


@dataclass(frozen=True, eq=False, repr=False)
class FeatureBank(Dataset):
    """Features of a data set, see :class:`~tlhelpers.splits.Dataset` for the common part.

    Attributes:
        provenance: which backbone made the features, of what, how.
        projection: for a compressed bank, the map that was applied to the features.
        scale: for a compressed bank, (k,) step of each coordinate's int8 code.

    Raises:
        ValueError: if a feature is NaN or infinite.
    """

    provenance: Provenance | None = None
    projection: Projection | None = None
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        bad = ~torch.isfinite(self.x).all(dim=1)
        if bad.any():
            names = [self.ids[i] for i in bad.nonzero().flatten().tolist()[:3]]
            raise ValueError(
                f"{self.name}: features of {int(bad.sum())} of {len(self)} examples are NaN or "
                f"infinite ({', '.join(names)}). Extract them again in float32, or leave these "
                f"examples out."
            )

    @property
    def features(self) -> Tensor:
        """(n, d) float32."""
        return self.x

    def compress(self, dims: int = 128) -> FeatureBank:
        """The bank on its first principal components, each coordinate rounded to int8.

        The components are those of the *training* features alone. A 1280-dimensional float32
        bank becomes 40 times smaller at 128 dimensions.

        Args:
            dims: how many components to keep.

        Raises:
            ValueError: if the bank is compressed already, or has fewer dimensions.
        """
        train = self.train.x
        if self.projection is not None:
            raise ValueError(f"{self.name} is compressed already; compress the full bank instead.")
        if not 1 <= dims <= min(train.shape):
            raise ValueError(
                f"dims must lie in 1..{min(train.shape)} for {len(train)} training examples of "
                f"{train.shape[1]} features, found {dims}."
            )
        mean = train.double().mean(dim=0)
        # Eigenvectors of the covariance: exact, and small where features are fewer than images.
        variances, vectors = torch.linalg.eigh(torch.cov(train.double().T))
        # Rounded as they are stored, so that project() and the codes share one map.
        projection = Projection(
            mean=mean.half().float(),
            components=vectors.flip(1)[:, :dims].T.half().float().contiguous(),
            explained=float(variances.flip(0)[:dims].sum() / variances.sum()),
        )
        step = projection(train).abs().amax(dim=0) / 127
        scale = step.clamp_min(torch.finfo(torch.float32).tiny)
        small = dataclasses.replace(self, projection=projection, scale=scale)
        return dataclasses.replace(small, x=small.quantise(projection(self.x)))

    def quantise(self, coordinates: Tensor) -> Tensor:
        """(n, k) coordinates rounded to what their int8 codes stand for.

        Beyond the range of the training features, coordinates are clipped.
        """
        if self.scale is None:
            raise ValueError(f"{self.name} is not compressed, so it has no codes to round to.")
        return (coordinates / self.scale).round().clamp(-127, 127) * self.scale

    def project(self, features: Tensor | FeatureBank) -> Tensor:
        """Coordinates of new features in this bank's space, as float32.

        Args:
            features: (n, d) output of the same backbone, or a bank of it: a bank's fingerprint,
                preprocessing and stage are compared with this bank's.

        Raises:
            ValueError: if the features come from another backbone, or have another width.
        """
        if isinstance(features, FeatureBank):
            self._check_same_source(features)
            features = features.features
        return features if self.projection is None else self.projection(features)

    def _check_same_source(self, other: FeatureBank) -> None:
        if self.provenance is None or other.provenance is None:
            raise ValueError(
                "both banks need a provenance, to tell whether one backbone made them."
            )
        for key in ("fingerprint", "preprocess", "at"):
            mine, theirs = getattr(self.provenance, key), getattr(other.provenance, key)
            if mine != theirs:
                raise ValueError(
                    f"the features come from another source: this bank's {key} is {mine!r}, theirs "
                    f"is {theirs!r}. Features of different backbones cannot be mixed: extract with "
                    f"{self.provenance.backbone} and the weights {self.provenance.weights!r}."
                )

    def save(self, path: str | Path) -> Path:
        """Write the bank as one safetensors file, whole or not at all; returns its path."""
        tensors = {
            "labels": self.labels.to(torch.int32),
            "split": torch.tensor([PARTS.index(part) for part in self.split], dtype=torch.uint8),
            "ids": _pack("\n".join(self.ids)),
        }
        if self.scale is None or self.projection is None:
            tensors["features"] = self.x.contiguous()
        else:
            tensors["codes"] = (self.x / self.scale).round().to(torch.int8)
            tensors["scale"] = self.scale
            tensors["projection.mean"] = self.projection.mean.half()
            tensors["projection.components"] = self.projection.components.half()
        about = {
            "format": FORMAT,
            "name": self.name,
            "classes": self.classes,
            "split_name": self.split_name,
            "imagenet": self.imagenet,
            "explained": self.projection.explained if self.projection else None,
            "provenance": asdict(self.provenance) if self.provenance else None,
        }
        metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()}
        path = Path(path)
        runtime.write_whole(path, save(tensors, metadata))
        return path


def load(name: str | Path) -> FeatureBank:
    """A bank that the package ships, by name, or any bank file, by path.

    Raises:
        FileNotFoundError: if there is no such bank; the sentence lists those that exist.
        ValueError: if the file is not a bank.

    >>> load("stanford_dogs/mobilenet_v2").features.shape[1]
    128
    """
    path = Path(name)
    if path.suffix != ".safetensors":
        path = _shipped_folder() / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no bank {str(name)!r}. The package ships: {', '.join(shipped())}; a path "
            f"to a bank file ends in .safetensors."
        )
    try:
        with safe_open(path, framework="pt") as file:
            about = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.name} is not a bank of features: {error}.") from error
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path.name} should hold a bank of the format {FORMAT!r}, found "
            f"{about.get('format')!r}. Make it with FeatureBank.save."
        )
    projection = None
    if "codes" in tensors:
        projection = Projection(
            tensors["projection.mean"].float(),
            tensors["projection.components"].float(),
            about["explained"],
        )
    return FeatureBank(
        name=about["name"],
        classes=tuple(about["classes"]),
        x=tensors["codes"] * tensors["scale"] if projection else tensors["features"],
        labels=tensors["labels"].long(),
        split=np.array(PARTS)[tensors["split"].numpy()],
        ids=tuple(_unpack(tensors["ids"]).split("\n")),
        split_name=about["split_name"],
        imagenet=tuple(about["imagenet"]) if about["imagenet"] else None,
        provenance=_provenance(about["provenance"]),
        projection=projection,
        scale=tensors.get("scale"),
    )


def shipped() -> tuple[str, ...]:
    """The names of the banks in the package.

    Example:
        >>> import tlhelpers as tl
        >>> [name for name in tl.features.shipped() if name.startswith("stanford_dogs")]
        ['stanford_dogs/mobilenet_v2', 'stanford_dogs/squeezenet1_1']
    """
    folder = _shipped_folder()
    return tuple(
        sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.safetensors"))
    )


def _shipped_folder() -> Path:
    return Path(str(resources.files("tlhelpers"))) / "data" / "banks"


def _provenance(stored: dict[str, Any] | None) -> Provenance | None:
    if stored is None:
        return None
    stored["skipped"] = tuple(stored["skipped"])
    stored["preprocess"] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in stored["preprocess"].items()
    }
    return Provenance(**stored)


def _pack(text: str) -> Tensor:
    return torch.frombuffer(bytearray(zlib.compress(text.encode(), 9)), dtype=torch.uint8)


def _unpack(packed: Tensor) -> str:
    return zlib.decompress(packed.numpy().tobytes()).decode()


# --- extraction ---------------------------------------------------------------------------


def extract(
    data: Dataset,
    backbone: Backbone,
    *,
    at: str = models.FEATURES,
    run: Run | None = None,
    on_error: str = "raise",
    engine: Engine | None = None,
) -> FeatureBank:
    """Run a frozen backbone once over a data set; the result is kept in the cache folder.

    The cache is keyed by content: the weights' fingerprint, the preprocessing, the stage, the
    dtype, and every image's bytes. A second call reads the file; an interrupted call continues
    where it stopped.

    On a CPU each core decodes and computes for itself: small batches with BatchNorm folded into
    the convolutions, channels last, in bfloat16 where the processor has it, with malloc told to
    keep its memory. On a GPU the cores decode and the GPU computes.

    A backbone without preprocessing, such as :func:`~tlhelpers.models.as_backbone` makes of a
    small network, takes a float tensor as it is: in large batches, on a CPU in float32, and
    without the cache, which would take longer to find than the features take to compute.

    Args:
        data: images with labels, such as ``datasets.stanford_dogs()``; or an (n, 3, h, w) uint8
            tensor as ``x``; or, for a backbone without preprocessing, a float tensor.
        backbone: from :func:`~tlhelpers.models.backbone` or
            :func:`~tlhelpers.models.as_backbone`.
        at: ``"features"``, ``"logits"`` or a stage, see
            :meth:`~tlhelpers.models.Backbone.at`. Logits are computed in float32, since their
            order matters.
        run: device, dtype and seed; None means the best device.
        on_error: what to do with images that cannot be read: ``"raise"``, or ``"skip"`` to leave
            them out with a warning that names them.
        engine: who computes the features of photographs; None for the cores of this machine,
            :class:`~tlhelpers.ray_extract.OnRay` for a cluster.

    Returns:
        a bank with an (n, d) float32 row for each image.

    Raises:
        ValueError: if images cannot be read (all of them are named), features are not finite, or
            the images are not what the backbone takes.
        RuntimeError: if an engine returned without having computed everything.
        OSError: if the cache cannot be written; the images done so far stay in it.

    Example:
        >>> import tlhelpers as tl
        >>> network = tl.models.small_resnet(weights="letters")
        >>> letters = tl.models.as_backbone(network, name="letters")
        >>> digits = tl.datasets.with_classes(tl.datasets.digits(), ["3", "5", "8"])
        >>> bank = tl.features.extract(digits, letters)
        >>> bank.name, bank.features.shape
        ('digits/letters', torch.Size([539, 64]))
        >>> few = tl.probe.fit(bank.few(5), ridge=0.1)
        >>> tl.evaluate.report(few, bank.test, name="5 labels a class").top1
        89.9 % [84.6, 94.6]
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', found {on_error!r}.")
    run = runtime.default(run)
    _check_images(data, backbone)
    as_they_are = backbone.preprocess is None
    exact = at == LOGITS or (as_they_are and run.device.type == "cpu")
    dtype = torch.float32 if exact else run.dtype
    unread: dict[int, str] = {}
    if backbone.preprocess is None:
        if engine is not None:
            raise ValueError(
                f"an engine shares out photographs, and {backbone.name} takes the tensor of "
                f"{data.name} as it is: leave the engine out."
            )
        network = _inference_network(backbone.at(at), run.device, dtype)
        rows = _forward_as_they_are(network, data.x, run.device, dtype)
    else:
        key = _cache_key(data, backbone, at, dtype)
        path = runtime.cache_folder() / "features" / f"{key}.safetensors"
        if path.is_file():
            rows, unread = _read_rows(path)
        else:
            network = _inference_network(backbone.at(at), run.device, dtype)
            work = Work(data.x, backbone.preprocess, network, run.device, dtype)
            rows, unread = _extract_in_chunks(work, path, engine or on_cores)
    bad = {data.ids[i]: reason for i, reason in unread.items()}
    if bad and on_error == "raise":
        listed = "; ".join(f"{name}: {reason}" for name, reason in list(bad.items())[:5])
        raise ValueError(
            f"{len(bad)} of {len(data)} images of {data.name} cannot be read ({listed}). Repair or "
            f"remove them, or pass on_error='skip' to leave them out."
        )
    if bad:
        warnings.warn(
            f"{len(bad)} of {len(data)} images of {data.name} cannot be read and were left out: "
            f"{', '.join(bad)}.",
            stacklevel=2,
        )
    kept = np.array([i for i in range(len(data)) if i not in unread])
    provenance = Provenance(
        data=data.name,
        backbone=backbone.name,
        weights=backbone.weights,
        fingerprint=backbone.fingerprint,
        preprocess=_settings(backbone),
        at=at,
        dtype=str(dtype).removeprefix("torch."),
        torch=torch.__version__,
        date=datetime.now(UTC).date().isoformat(),
        skipped=tuple(bad),
    )
    return FeatureBank(
        name=f"{data.name}/{backbone.name}" + ("" if at == models.FEATURES else f"@{at}"),
        classes=data.classes,
        x=rows[kept],
        labels=data.labels[kept],
        split=data.split[kept],
        ids=tuple(data.ids[i] for i in kept),
        split_name=data.split_name,
        imagenet=data.imagenet,
        log=data.log,
        provenance=provenance,
    )


def _cache_key(data: Dataset, backbone: Backbone, at: str, dtype: torch.dtype) -> str:
    settings = [FORMAT, backbone.fingerprint, _settings(backbone), at, str(dtype)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    if isinstance(data.x, Tensor):
        digest.update(data.x.contiguous().numpy().tobytes())
    else:
        digest.update(data.x.digest().encode())
    return digest.hexdigest()[:32]


def _settings(backbone: Backbone) -> dict[str, Any]:
    return {} if backbone.preprocess is None else backbone.preprocess.as_dict()


def _check_images(data: Dataset, backbone: Backbone) -> None:
    """A scale that is wrong by a factor of 255 would go unnoticed until the accuracy is read."""
    is_float = isinstance(data.x, Tensor) and data.x.is_floating_point()
    found = (
        f"{str(data.x.dtype).removeprefix('torch.')} of shape {tuple(data.x.shape)}"
        if isinstance(data.x, Tensor)
        else type(data.x).__name__
    )
    if backbone.preprocess is None and not is_float:
        raise ValueError(
            f"{backbone.name} has no preprocessing, so it takes a float tensor as it is, but the "
            f"images of {data.name} are {found}. Divide uint8 by 255, or give "
            f"models.as_backbone the preprocess that the network was trained with."
        )
    if backbone.preprocess is not None and is_float:
        raise ValueError(
            f"{backbone.name} resizes and normalises uint8 photographs, but the images of "
            f"{data.name} are {found}. Give uint8 images (0..255), or, for a network that takes "
            f"these as they are, models.as_backbone(network)."
        )


@torch.inference_mode()
def _forward_as_they_are(
    network: nn.Module, x: Tensor, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(n, d) float32 features of a float tensor, in large batches."""
    size = max(CPU_BATCH, PIXELS // max(x[:1, 0].numel(), 1))
    with runtime.keep_memory() if device.type == "cpu" else nullcontext():
        rows = [network(batch.to(device, dtype)).float().cpu() for batch in x.split(size)]
    return torch.cat(rows)


def _inference_network(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy for forward passes only: BatchNorm folded, channels last, in the given dtype."""
    network = copy.deepcopy(network).float().eval()
    if any(isinstance(part, nn.BatchNorm2d) for part in network.modules()):
        # What torch.fx cannot follow runs as it is.
        with suppress(torch.fx.proxy.TraceError):
            network = fuse(network)
    return network.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)


@dataclass(frozen=True, eq=False)
class Work:
    """What a worker, a thread or a process, needs to turn image numbers into features.

    Attributes:
        images: the lazy sequence, or (n, 3, h, w) uint8.
        preprocess: what each image goes through.
        network: normalised images to (n, d), for forward passes only, on the device.
        device: where the network is.
        dtype: of its weights.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from PIL import Image
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 40)).save(Path(folder, "a.png"))
        ...     Path(folder, "b.png").touch()
        ...     work = tl.features.Work(
        ...         images=tl.datasets.Images(tl.datasets.Folder(folder)),
        ...         preprocess=tl.models.Preprocess(resize=32, crop=32),
        ...         network=torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
        ...         device=torch.device("cpu"),
        ...         dtype=torch.float32,
        ...     )
        ...     rows, unread = work.features(range(2))
        >>> rows.shape, list(unread)
        (torch.Size([2, 3]), [1])
    """

    images: Any
    preprocess: models.Preprocess
    network: nn.Module
    device: torch.device
    dtype: torch.dtype

    def features(self, numbers: range) -> tuple[Tensor, dict[int, str]]:
        """(len(numbers), d) float32 rows, and the reason for each image that is unreadable.

        The row of an unreadable image is zero.
        """
        readable, rows, unread = [], [], {}
        batch: list[Tensor] = []
        size = CPU_BATCH if self.device.type == "cpu" else ACCELERATOR_BATCH
        for i in numbers:
            try:
                batch.append(self.preprocess.geometry(self.images[i]))
                readable.append(i - numbers.start)
            except ValueError as error:
                unread[i] = str(error)
            if batch and (len(batch) == size or i == numbers[-1]):
                rows.append(self._forward(_stack(batch)))
                batch.clear()
        if batch:
            rows.append(self._forward(_stack(batch)))
        if not rows:
            return torch.zeros(len(numbers), 0), unread
        done = torch.cat(rows)
        out = torch.zeros(len(numbers), done.shape[1])
        out[readable] = done
        return out, unread

    @torch.inference_mode()
    def _forward(self, images: Tensor) -> Tensor:
        images = images.to(self.device)
        out = self.network(self.preprocess.normalise(images, dtype=self.dtype))
        return out.float().cpu()


def _stack(images: list[Tensor]) -> Tensor:
    """Images of one size as one batch, with its channels last in memory, as they have them.

    By NumPy: small copies by torch wake its threads, which costs more than the copy.
    """
    batch = np.stack([image.permute(1, 2, 0).numpy() for image in images])
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


class Keep(Protocol):
    """What an engine hands its results to, from any thread; a chunk may come again later."""

    def __call__(self, chunk: range, rows: Tensor, unread: Mapping[int, str], /) -> None:
        """Write one chunk to the cache.

        Args:
            chunk: the numbers of its images.
            rows: (len(chunk), d) float32.
            unread: the reason for each image that is unreadable, by number.
        """


class Engine(Protocol):
    """Who turns chunks of image numbers into features, by ``work.features(chunk)``."""

    def __call__(self, work: Work, chunks: Sequence[range], keep: Keep, /) -> None:
        """Call ``keep`` once or more for each of the chunks, in any order."""


def _extract_in_chunks(work: Work, path: Path, engine: Engine) -> tuple[Tensor, dict[int, str]]:
    """Fill the cache chunk by chunk, then join the chunks into one file."""
    n = len(work.images)
    parts = path.with_suffix(".parts")
    chunks = [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    files = {chunk: parts / f"{chunk.start:09d}.safetensors" for chunk in chunks}
    missing = [chunk for chunk, file in files.items() if not file.is_file()]
    with runtime.progress(total=n, desc="features", unit="image") as bar:
        bar.update(n - sum(map(len, missing)))

        def keep(chunk: range, rows: Tensor, unread: Mapping[int, str]) -> None:
            runtime.write_whole(files[chunk], _rows_file(rows, unread))
            bar.update(len(chunk))

        if missing:
            engine(work, missing, keep)
    if lost := [chunk for chunk, file in files.items() if not file.is_file()]:
        raise RuntimeError(
            f"the engine returned without the features of {sum(map(len, lost)):,} of {n:,} images. "
            f"What is done is kept: call again, or leave the engine out."
        )
    found = [_read_rows(file) for file in files.values()]
    width = max(rows.shape[1] for rows, _ in found)
    # A chunk in which no image could be read does not know the width.
    rows = torch.cat(
        [rows if rows.shape[1] else rows.new_zeros(len(rows), width) for rows, _ in found]
    )
    unread = {i: reason for _, bad in found for i, reason in bad.items()}
    runtime.write_whole(path, _rows_file(rows, unread))
    for file in parts.iterdir():
        file.unlink()
    parts.rmdir()
    return rows, unread


def on_cores(work: Work, chunks: Sequence[range], keep: Keep) -> None:
    """The engine of one machine, an :class:`Engine`: each core decodes and computes for itself.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> work = tl.features.Work(
        ...     images=torch.zeros(10, 3, 40, 40, dtype=torch.uint8),
        ...     preprocess=tl.models.Preprocess(resize=32, crop=32),
        ...     network=torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
        ...     device=torch.device("cpu"),
        ...     dtype=torch.float32,
        ... )
        >>> bank = torch.full((10, 3), torch.nan)
        >>> def keep(chunk, rows, unread):
        ...     bank[list(chunk)] = rows
        >>> tl.features.on_cores(work, [range(0, 8), range(8, 10)], keep)
        >>> int(bank.isnan().sum())
        0
    """

    def compute(chunk: range) -> None:
        # Set here because torch's number of threads belongs to the thread that sets it.
        torch.set_num_threads(1)
        keep(chunk, *work.features(chunk))

    with (
        runtime.torch_threads(1),
        runtime.keep_memory() if work.device.type == "cpu" else nullcontext(),
        ThreadPoolExecutor(runtime.cores()) as pool,
    ):
        runtime.finish(pool, [pool.submit(compute, chunk) for chunk in chunks])


def _rows_file(rows: Tensor, unread: Mapping[int, str]) -> bytes:
    return save({"rows": rows.contiguous()}, {"unread": json.dumps(dict(unread))})


def _read_rows(path: Path) -> tuple[Tensor, dict[int, str]]:
    with safe_open(path, framework="pt") as file:
        unread = json.loads(file.metadata()["unread"])
        return file.get_tensor("rows"), {int(i): reason for i, reason in unread.items()}
