"""Behaviour of ``tlhelpers.audit``: every trap is caught, its repaired twin passes."""

from __future__ import annotations

import html
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms import v2

import tlhelpers as tl
from tlhelpers import audit, models
from tlhelpers.splits import Dataset

CLASSES = 4


# --- small set-ups ------------------------------------------------------------------------


class Small(nn.Module):
    """Convolution, batch norm, dropout, pooling, head: every part that a trap needs."""

    def __init__(self, *, outputs: int = CLASSES, dropout: float = 0.0, track: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, stride=2),
            nn.BatchNorm2d(8, track_running_stats=track),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(8, outputs)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


def batch(n: int = 8, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, size, size, generator=generator), torch.arange(n) % CLASSES


def images(n: int = 60, *, classes: int = CLASSES, seed: int = 0) -> Dataset:
    """Float images of noise, no two alike."""
    x = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    split = np.array(["train", "train", "train", "validation", "test"] * (n // 5))
    return Dataset(
        name="noise",
        classes=tuple("abcdefgh"[:classes]),
        x=x,
        labels=torch.arange(n) // 5 % classes,
        split=split,
        ids=tuple(f"image {i}" for i in range(n)),
        split_name="in turn",
    )


def frozen_body(network: Small) -> Small:
    models.freeze(network.body)
    return network


def sgd(parameters: Any, lr: float = 0.01, **settings: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=lr, **settings)


def plain_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, *, zero_grad: bool = True
) -> Callable[[Tensor, Tensor], None]:
    def step(x: Tensor, y: Tensor) -> None:
        if zero_grad:
            optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()

    return step


def accuracy_of(network: nn.Module, data: Dataset, *, mode: bool = False) -> Callable[[], float]:
    def evaluate() -> float:
        network.train(mode)
        with torch.no_grad():
            right = network(data.validation.x).argmax(1) == data.validation.y
        return float(right.float().mean())

    return evaluate


# --- one broken set-up and its repaired twin for each trap --------------------------------


@dataclass(frozen=True)
class Twins:
    id: str
    make: Callable[[bool], dict[str, Any]]  # True: broken
    severity: str = audit.ERROR
    name: str = ""

    def __str__(self) -> str:
        return f"{self.id} {self.name}".strip()


TWINS: list[Twins] = []


def twins(
    name: str, severity: str = audit.ERROR
) -> Callable[[Callable[[bool], dict[str, Any]]], Callable[[bool], dict[str, Any]]]:
    def register(make: Callable[[bool], dict[str, Any]]) -> Callable[[bool], dict[str, Any]]:
        TWINS.append(Twins(name, make, severity, make.__name__.strip("_")))
        return make

    return register


@twins("batchnorm-drift")
def _requires_grad_alone(broken: bool) -> dict[str, Any]:
    network = Small()
    network.body.requires_grad_(False)
    return {"network": network if broken else frozen_body(network), "data": batch()}


@twins("batchnorm-drift")
def _said_to_be_frozen_without_data(broken: bool) -> dict[str, Any]:
    network = Small()
    network.body.requires_grad_(False)
    return {"network": network if broken else frozen_body(network), "frozen": "body"}


@twins("batchnorm-drift")
def _resnet_18(broken: bool) -> dict[str, Any]:
    network = torchvision.models.resnet18(weights=None)
    network.requires_grad_(False)
    if not broken:
        models.freeze(network)
    network.fc = nn.Linear(512, CLASSES)
    return {
        "network": network,
        "data": batch(size=32),
        "optimizer": sgd(network.fc.parameters()),
        "classes": CLASSES,
    }


@twins("eval-undone")
def _eval_before_train(broken: bool) -> dict[str, Any]:
    network = Small()
    network.body.requires_grad_(False).eval()
    return {"network": network if broken else frozen_body(network), "data": batch()}


@twins("eval-undone")
def _eval_before_train_without_data(broken: bool) -> dict[str, Any]:
    network = Small(dropout=0.5)
    network.body.requires_grad_(False).eval()
    return {"network": network if broken else frozen_body(network)}


@twins("dropout-in-frozen")
def _dropout(broken: bool) -> dict[str, Any]:
    network = Small(dropout=0.5)
    models.freeze(network.body)
    if broken:
        network.body[3].__dict__.pop("train")
        network.body[3].train()
    return {"network": network, "data": batch()}


@twins("dropout-in-frozen")
def _functional_dropout(broken: bool) -> dict[str, Any]:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.layer(x), 0.5, self.training)

    body = Noisy().requires_grad_(False)
    network = nn.Sequential(body if broken else models.freeze(body), nn.Linear(8, CLASSES))
    return {"network": network, "data": (torch.randn(8, 6), torch.arange(8) % CLASSES)}


@twins("nothing-trains")
def _all_frozen(broken: bool) -> dict[str, Any]:
    network = Small()
    optimizer = sgd([torch.zeros(1, requires_grad=True)])
    network.requires_grad_(False)
    if not broken:
        models.freeze(network.body)
        network.head.requires_grad_(True)
        optimizer = sgd(network.head.parameters())
    return {"network": network, "data": batch(), "loss": nn.functional.cross_entropy} | (
        {} if broken else {"optimizer": optimizer}
    )


@twins("nothing-trains")
def _head_frozen(broken: bool) -> dict[str, Any]:
    network = Small()
    network.head.requires_grad_(not broken)
    trained = [p for p in network.parameters() if p.requires_grad]
    return {"network": network, "data": batch(), "optimizer": sgd(trained)}


@twins("frozen-but-trained")
def _text_says_frozen(broken: bool) -> dict[str, Any]:
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    if not broken:
        models.freeze(network[0])
    optimizer = sgd(p for p in network.parameters() if p.requires_grad)
    return {
        "network": network,
        "frozen": network[0],
        "optimizer": optimizer,
        "step": plain_step(network, optimizer),
        "data": (torch.randn(8, 6), torch.arange(8) % CLASSES),
    }


@twins("frozen-but-trained")
def _optimiser_holds_everything(broken: bool) -> dict[str, Any]:
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    held = network.parameters() if broken else network[2].parameters()
    return {"network": network, "frozen": "0", "optimizer": sgd(held)}


@twins("optimizer-misses")
def _built_before_unfreezing(broken: bool) -> dict[str, Any]:
    network = frozen_body(Small())
    optimizer = sgd(p for p in network.parameters() if p.requires_grad)
    models.unfreeze(network.body)
    if not broken:
        optimizer.add_param_group({"params": list(network.body.parameters())})
    return {"network": network, "optimizer": optimizer}


@twins("optimizer-misses")
def _built_before_the_head(broken: bool) -> dict[str, Any]:
    network = Small(outputs=1000)
    optimizer = sgd(network.parameters())
    network.head = nn.Linear(8, CLASSES)
    return {
        "network": network,
        "optimizer": optimizer if broken else sgd(network.parameters()),
        "data": batch(),
    }


@twins("optimizer-holds-frozen")
def _momentum_goes_on(broken: bool) -> dict[str, Any]:
    network = Small()
    optimizer = sgd(network.parameters(), weight_decay=0.1)
    nn.functional.cross_entropy(network(batch()[0]), batch()[1]).backward()
    models.freeze(network.body)
    if not broken:
        optimizer = sgd(network.head.parameters(), weight_decay=0.1)
    return {"network": network, "optimizer": optimizer}


@twins("optimizer-holds-frozen", audit.NOTE)
def _idle(broken: bool) -> dict[str, Any]:
    network = frozen_body(Small())
    held = network.parameters() if broken else network.head.parameters()
    return {"network": network, "optimizer": sgd(held)}


@twins("optimizer-holds-frozen", audit.NOTE)
def _old_network(broken: bool) -> dict[str, Any]:
    network, other = Small(), Small()
    held = [*network.parameters(), *(other.parameters() if broken else ())]
    return {"network": network, "optimizer": sgd(held)}


@twins("missing-zero-grad")
def _no_zero_grad(broken: bool) -> dict[str, Any]:
    network = Small()
    optimizer = sgd(network.parameters())
    step = plain_step(network, optimizer, zero_grad=not broken)
    return {"network": network, "step": step, "data": batch()}


@twins("missing-zero-grad")
def _no_zero_grad_and_clipping(broken: bool) -> dict[str, Any]:
    network = Small(dropout=0.3)
    optimizer = torch.optim.AdamW(network.parameters())

    def step(x: Tensor, y: Tensor) -> None:
        nn.functional.cross_entropy(network(x), y).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.01)
        optimizer.step()
        if not broken:
            optimizer.zero_grad()

    return {"network": network, "optimizer": optimizer, "step": step, "data": batch()}


@twins("missing-zero-grad")
def _by_hand(broken: bool) -> dict[str, Any]:
    network = Small()

    def step(x: Tensor, y: Tensor) -> None:
        nn.functional.cross_entropy(network(x), y).backward()
        with torch.no_grad():
            for p in network.parameters():
                assert p.grad is not None
                p -= 0.01 * p.grad
        if not broken:
            network.zero_grad()

    return {"network": network, "step": step, "data": batch()}


@twins("one-rate", audit.NOTE)
def _one_high_rate(broken: bool) -> dict[str, Any]:
    network = Small()
    groups = [
        {"params": network.body.parameters(), "lr": 1e-3 if broken else 1e-4},
        {"params": network.head.parameters(), "lr": 1e-3},
    ]
    optimizer = torch.optim.AdamW(groups)
    return {"network": network, "optimizer": optimizer, "weights": models.Preprocess()}


@twins("missing-flatten")
def _children_and_linear(broken: bool) -> dict[str, Any]:
    body = list(torchvision.models.resnet18(weights=None).children())[:-1]
    flatten = [] if broken else [nn.Flatten()]
    network = nn.Sequential(*body, *flatten, nn.Linear(512, CLASSES))
    return {"network": network, "data": batch(size=32), "classes": CLASSES}


@twins("missing-flatten")
def _maps_as_scores(broken: bool) -> dict[str, Any]:
    pool = [] if broken else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(nn.Conv2d(3, CLASSES, 3), *pool)
    return {"network": network, "data": batch(), "classes": CLASSES}


@twins("unpooled-features")
def _mobilenet_children(broken: bool) -> dict[str, Any]:
    network = torchvision.models.mobilenet_v2(weights=None)
    body = nn.Sequential(*list(network.children())[:-1])
    pool = [] if broken else [nn.AdaptiveAvgPool2d(1)]
    features = nn.Sequential(body, *pool, nn.Flatten())
    return {"network": network, "features": features, "data": batch(2, size=64)}


@twins("unpooled-features")
def _densenet_head(broken: bool) -> dict[str, Any]:
    body = torchvision.models.mobilenet_v2(weights=None).features
    pool = [] if broken else [nn.AdaptiveAvgPool2d(1)]
    head = nn.Linear(1280 * (4 if broken else 1), CLASSES)
    network = nn.Sequential(body, *pool, nn.Flatten(), head)
    return {"network": network, "data": batch(2, size=64), "classes": CLASSES}


@twins("unpooled-features")
def _flat_maps_into_a_narrow_head(broken: bool) -> dict[str, Any]:
    pool = [] if broken else [nn.AdaptiveAvgPool2d(1)]
    network = nn.Sequential(nn.Conv2d(3, 8, 3), *pool, nn.Flatten(), nn.Linear(8, CLASSES))
    return {"network": network, "data": batch(), "classes": CLASSES, "features": network[:-1]}


@twins("logits-as-features")
def _imagenet_scores(broken: bool) -> dict[str, Any]:
    network = Small(outputs=1000)
    features = network if broken else network.features
    return {"network": network, "features": features, "data": batch()}


@twins("logits-as-features")
def _own_scores(broken: bool) -> dict[str, Any]:
    network = Small()
    features = network.forward if broken else network.features
    return {"network": network, "features": features, "data": images()}


@twins("head-shape")
def _imagenet_head(broken: bool) -> dict[str, Any]:
    return {"network": Small(outputs=1000 if broken else CLASSES), "data": images()}


@twins("head-shape")
def _shots_times_classes(broken: bool) -> dict[str, Any]:
    network = Small(outputs=5 * CLASSES if broken else CLASSES)
    return {"network": network, "data": batch(), "classes": CLASSES}


@twins("softmax-before-loss")
def _softmax(broken: bool) -> dict[str, Any]:
    ends = [nn.Softmax(dim=1)] if broken else []
    return {
        "network": nn.Sequential(Small(), *ends),
        "data": batch(),
        "loss": nn.CrossEntropyLoss(label_smoothing=0.1),
    }


@twins("softmax-before-loss")
def _softmax_and_its_logarithm(broken: bool) -> dict[str, Any]:
    def loss(p: Tensor, y: Tensor) -> Tensor:
        return nn.functional.nll_loss(p.log_softmax(1) if broken else p.log(), y)

    return {"network": nn.Sequential(Small(), nn.Softmax(dim=1)), "data": batch(), "loss": loss}


@twins("softmax-before-loss", audit.NOTE)
def _log_softmax(broken: bool) -> dict[str, Any]:
    network = nn.Sequential(Small(), nn.LogSoftmax(dim=1))
    loss = nn.CrossEntropyLoss() if broken else nn.NLLLoss()
    return {"network": network, "data": batch(), "loss": loss}


@twins("evaluates-in-train-mode")
def _no_eval(broken: bool) -> dict[str, Any]:
    network, data = Small(dropout=0.2), images()
    return {"network": network, "data": data, "evaluate": accuracy_of(network, data, mode=broken)}


@twins("evaluates-in-train-mode")
def _no_eval_of_dropout(broken: bool) -> dict[str, Any]:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(3 * 16 * 16, CLASSES))

    def evaluate(x: Tensor) -> Tensor:
        return (network if broken else network.eval())(x).argmax(1)

    return {"network": network, "data": batch(), "evaluate": evaluate}


@twins("test-time-batch-statistics")
def _no_running_statistics(broken: bool) -> dict[str, Any]:
    network, data = Small(track=not broken), images()
    return {"network": network, "data": data, "evaluate": accuracy_of(network, data)}


@twins("test-time-batch-statistics")
def _queries_in_training_mode(broken: bool) -> dict[str, Any]:
    network = Small()

    def evaluate(x: Tensor) -> Tensor:
        return network.train(broken)(x).argmax(1)

    return {"network": network, "data": batch(), "evaluate": evaluate}


@twins("batch-averaged-loss")
def _mean_of_means(broken: bool) -> dict[str, Any]:
    network = Small()

    def loader_loss(batches: list[tuple[Tensor, Tensor]]) -> float:
        network.eval()
        weights = [1 if broken else len(y) for _, y in batches]
        losses = [float(nn.functional.cross_entropy(network(x), y)) for x, y in batches]
        return float(np.average(losses, weights=weights))

    return {"network": network, "data": batch(), "loader_loss": loader_loss}


PRESET = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
TENSOR = (v2.ToImage(), v2.ToDtype(torch.float32, scale=True))
NORMALISE = v2.Normalize(PRESET.mean, PRESET.std)


@twins("resize-without-crop")
def _no_crop(broken: bool) -> dict[str, Any]:
    crop = [] if broken else [v2.CenterCrop(32)]
    return {"network": Small(), "preprocess": v2.Compose([*TENSOR, v2.Resize(32), *crop])}


@twins("squashed", audit.NOTE)
def _both_sides(broken: bool) -> dict[str, Any]:
    resize = [v2.Resize((64, 64))] if broken else [v2.Resize(64), v2.CenterCrop(64)]
    return {"network": Small(), "preprocess_eval": v2.Compose([*TENSOR, *resize])}


@twins("wrong-normalisation")
def _half(broken: bool) -> dict[str, Any]:
    normalise = v2.Normalize([0.5] * 3, [0.5] * 3) if broken else NORMALISE
    return {
        "network": Small(),
        "preprocess": v2.Compose([*TENSOR, v2.Resize(64), v2.CenterCrop(64), normalise]),
        "weights": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    }


@twins("wrong-normalisation")
def _grey_levels(broken: bool) -> dict[str, Any]:
    scale = v2.ToDtype(torch.float32, scale=not broken)
    steps = [v2.ToImage(), scale, v2.Resize(64), v2.CenterCrop(64), NORMALISE]
    return {"network": Small(), "preprocess": v2.Compose(steps), "weights": models.Preprocess()}


@twins("wrong-normalisation")
def _not_at_all(broken: bool) -> dict[str, Any]:
    last = [] if broken else [NORMALISE]
    return {
        "network": Small(),
        "preprocess_eval": v2.Compose([*TENSOR, v2.Resize(64), v2.CenterCrop(64), *last]),
        "weights": "ResNet18_Weights.IMAGENET1K_V1",
    }


@twins("wrong-normalisation")
def _blue_first(broken: bool) -> dict[str, Any]:
    flip = [v2.Lambda(lambda t: t.flip(0))] if broken else []
    steps = [*TENSOR, *flip, v2.Resize(64), v2.CenterCrop(64), NORMALISE]
    return {"network": Small(), "preprocess": v2.Compose(steps), "weights": models.Preprocess()}


@twins("augmented-validation")
def _flips(broken: bool) -> dict[str, Any]:
    flip = [v2.RandomHorizontalFlip()] if broken else []
    steps = [*TENSOR, v2.Resize(40), v2.CenterCrop(32), *flip]
    return {"network": Small(), "preprocess_eval": v2.Compose(steps)}


@twins("labels")
def _from_one(broken: bool) -> dict[str, Any]:
    x, y = batch()
    return {"network": Small(), "data": (x, y + broken), "classes": CLASSES}


@twins("labels")
def _floats(broken: bool) -> dict[str, Any]:
    x, y = batch()
    return {"network": Small(), "data": (x, y.float() if broken else y)}


@twins("labels")
def _one_class(broken: bool) -> dict[str, Any]:
    x, y = batch()
    return {"network": Small(), "data": SimpleNamespace(train=(x, y * (not broken)))}


@twins("imbalanced-accuracy")
def _mostly_one_class(broken: bool) -> dict[str, Any]:
    data, y = images(100), torch.zeros(20, dtype=torch.int64)
    y[:CLASSES] = torch.arange(CLASSES)
    validation = replace(data.validation, y=y)
    metric = "accuracy" if broken else "macro_f1"
    part = SimpleNamespace(train=data.train, validation=validation)
    return {"network": Small(), "data": part, "metric": metric}


@twins("selected-on-test")
def _early_stopping(broken: bool) -> dict[str, Any]:
    chosen_on = "test" if broken else "validation"
    return {"network": Small(), "data": images(), "chosen_on": chosen_on}


@twins("selected-on-test")
def _some_ids(broken: bool) -> dict[str, Any]:
    data = images()
    ids = [*data.validation.ids, *(data.test.ids[:3] if broken else ())]
    return {"network": Small(), "data": data, "chosen_on": ids}


@twins("selected-on-test")
def _some_rows(broken: bool) -> dict[str, Any]:
    data = images()
    rows = torch.from_numpy(np.flatnonzero(data.split == ("test" if broken else "validation")))
    return {"network": Small(), "data": data, "chosen_on": rows}


@twins("selected-on-test")
def _a_list_of_rows(broken: bool) -> dict[str, Any]:
    data = images()
    rows = list(np.flatnonzero(data.split == ("test" if broken else "validation")))
    return {"network": Small(), "data": data, "chosen_on": rows}


@twins("labels")
def _all_ignored(broken: bool) -> dict[str, Any]:
    x, y = images().train.x, images().train.y
    return {"network": Small(), "data": (x, torch.full_like(y, -100) if broken else y)}


@twins("selected-on-test")
def _the_split(broken: bool) -> dict[str, Any]:
    data = images()
    return {
        "network": Small(),
        "data": data,
        "chosen_on": data.test if broken else data.validation,
    }


@twins("selected-on-test", audit.NOTE)
def _read_again(broken: bool) -> dict[str, Any]:
    data = images()
    for reason in ("probe", "fine-tuned")[: 1 + broken]:
        data.test.open(reason=reason)
    return {"network": Small(), "data": data}


@twins("duplicates")
def _copies(broken: bool) -> dict[str, Any]:
    data = images()
    if broken:
        data.x[data.split == "test"] = data.x[data.split == "train"][:12]
    return {"network": Small(), "data": data}


@twins("duplicates")
def _copies_of_features(broken: bool) -> dict[str, Any]:
    data = images()
    x = torch.randn(60, 32, generator=torch.Generator().manual_seed(0))
    if broken:
        x[data.split == "validation"] = x[data.split == "train"][:12]
    return {"network": nn.Linear(32, CLASSES), "data": replace(data, x=x)}


@twins("duplicates", audit.NOTE)
def _other_brightness(broken: bool) -> dict[str, Any]:
    data = images()
    if broken:
        data.x[data.split == "test"] = 0.8 * data.x[data.split == "train"][:12] + 0.1
    return {"network": Small(), "data": data}


@twins("unnamed-weights")
def _default(broken: bool) -> dict[str, Any]:
    weights = "ResNet50_Weights." + ("DEFAULT" if broken else "IMAGENET1K_V2")
    return {"network": Small(), "weights": weights}


@twins("unnamed-weights")
def _pretrained(broken: bool) -> dict[str, Any]:
    weights = True if broken else torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    return {"network": torchvision.models.resnet18(weights=None), "weights": weights}


@twins("step-fails")
def _wrong_shape(broken: bool) -> dict[str, Any]:
    network = Small()

    def step(x: Tensor, y: Tensor) -> None:
        if broken:
            raise RuntimeError("the step is out of order")
        nn.functional.cross_entropy(network(x), y).backward()

    return {"network": network, "step": step, "data": batch()}


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_the_broken_set_up_is_caught_and_its_twin_passes(case: Twins) -> None:
    caught = audit.check(**case.make(True))
    assert caught.ids == (case.id,), str(caught)
    finding = caught.findings[0]
    assert finding.severity == case.severity
    assert all(text.strip().endswith(".") for text in (finding.what, finding.why, finding.fix))
    assert not caught
    torch.manual_seed(0)
    repaired = audit.check(**case.make(False))
    assert repaired, str(repaired)
    assert case.id in repaired.passed, str(repaired)


def test_every_check_has_a_broken_set_up() -> None:
    assert {case.id for case in TWINS} == set(audit.CHECKS)


# --- nothing moves ------------------------------------------------------------------------


def state_of(setup: dict[str, Any]) -> dict[str, Any]:
    """Everything that an audit might disturb, as values to compare."""
    network, optimizer = setup["network"], setup["optimizer"]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = [*network.parameters(), *network.buffers(), *held]
    return {
        "modules": [(name, id(m), m.training) for name, m in network.named_modules()],
        "attributes": [sorted(vars(m)) for m in network.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()],
        "tensors": [(id(t), t.data_ptr(), t.requires_grad, as_bytes(t)) for t in tensors],
        "gradients": [None if t.grad is None else (id(t.grad), as_bytes(t.grad)) for t in tensors],
        "groups": [
            {k: [id(p) for p in v] if k == "params" else v for k, v in g.items()}
            for g in optimizer.param_groups
        ],
        "moments": [
            {k: as_bytes(v) if isinstance(v, Tensor) else v for k, v in optimizer.state[p].items()}
            for p in held
            if p in optimizer.state
        ],
        "states": len(optimizer.state),
        "torch": as_bytes(torch.random.get_rng_state()),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "readings": setup["data"].test.readings,
    }


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def full_set_up(*, raises: bool) -> dict[str, Any]:
    """Every argument, each callable with every side effect that we can think of."""
    network, data = Small(dropout=0.2), images()
    network.body[0].requires_grad_(False)
    network.body[0].eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    plain_step(network, optimizer)(*batch())  # gradients and moments from before

    def disturb() -> None:
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        torch.set_grad_enabled(False)
        data.test.open(reason="to peek")
        network.eval()
        network.requires_grad_(False)
        network.head = nn.Linear(8, 9)
        network.body.register_forward_hook(lambda *_: None)
        network.visits = 3  # type: ignore[assignment]
        network.half().float()
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        optimizer.state.clear()
        if raises:
            raise RuntimeError("out of order")

    def step(x: Tensor, y: Tensor) -> None:
        plain_step(network, optimizer)(x, y)
        disturb()

    def evaluate() -> float:
        network(data.validation.x)
        disturb()
        return 0.0

    def loader_loss(batches: list[tuple[Tensor, Tensor]]) -> float:
        value = float(sum(nn.functional.cross_entropy(network(x), y) for x, y in batches))
        disturb()
        return value

    def loss(z: Tensor, y: Tensor) -> Tensor:
        disturb()
        return nn.functional.cross_entropy(z, y)

    def features(x: Tensor) -> Tensor:
        found = network.features(x)
        disturb()
        return found

    def preprocess(image: Any) -> Tensor:
        if not isinstance(image, Tensor):
            raise TypeError("tensors alone")
        found = image.float() + torch.rand(()) + np.random.rand()  # noqa: NPY002
        if raises and not image.is_floating_point():
            raise RuntimeError("out of order")
        return found

    return {
        "network": network,
        "optimizer": optimizer,
        "data": data,
        "loss": loss,
        "frozen": "body",
        "step": step,
        "evaluate": evaluate,
        "preprocess": preprocess,
        "preprocess_eval": preprocess,
        "weights": models.Preprocess(),
        "loader_loss": loader_loss,
        "features": features,
        "chosen_on": "validation",
    }


@pytest.mark.parametrize("raises", [False, True])
def test_nothing_moves_whatever_the_callables_do(raises: bool) -> None:
    setup = full_set_up(raises=raises)
    setup["data"].test.open(reason="before")
    before = state_of(setup)
    found = audit.check(**setup)
    after = state_of(setup)
    for what, value in before.items():
        assert after[what] == value, what
    assert ("step-fails" in found.ids) == raises


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_no_check_moves_anything(case: Twins) -> None:
    setup = case.make(True)
    setup.setdefault("optimizer", sgd([torch.zeros(1, requires_grad=True)]))
    data = setup.get("data")
    seen = setup | {"data": data if hasattr(data, "test") else images()}
    before = state_of(seen)
    audit.check(**{k: v for k, v in setup.items()})
    assert state_of(seen) == before


def test_the_state_of_an_optimiser_that_only_the_step_knows_comes_back() -> None:
    network = Small()
    hidden = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    step = plain_step(network, hidden)
    step(*batch())
    before = {k: v["momentum_buffer"].clone() for k, v in hidden.state.items()}
    audit.check(network, step=step, data=batch())
    assert all(torch.equal(hidden.state[k]["momentum_buffer"], v) for k, v in before.items())


# --- no false alarms ----------------------------------------------------------------------


def test_a_frozen_resnet_with_a_new_head_is_clean() -> None:
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    network = torchvision.models.resnet18(weights=None)
    models.freeze(network)
    network.fc = nn.Linear(512, CLASSES)
    optimizer = sgd(network.fc.parameters(), momentum=0.9, weight_decay=1e-4)

    def evaluate(x: Tensor) -> Tensor:
        network.eval()
        with torch.no_grad():
            return network(x).argmax(1)

    found = audit.check(
        network,
        optimizer=optimizer,
        data=batch(size=32),
        classes=CLASSES,
        loss=nn.CrossEntropyLoss(),
        frozen=["conv1", "bn1", "layer"],
        step=plain_step(network, optimizer),
        evaluate=evaluate,
        preprocess=weights.transforms(),
        preprocess_eval=weights.transforms(),
        weights=weights,
        chosen_on="validation",
    )
    assert found, str(found)
    assert len(found.passed) == len(audit.CHECKS) - len(found.skipped)
    assert set(found.skipped) == {
        "logits-as-features",
        "batch-averaged-loss",
        "imbalanced-accuracy",
        "duplicates",
    }


def test_fine_tuning_a_small_resnet_is_clean_in_every_check() -> None:
    data = tl.datasets.digits()
    network = models.small_resnet(10, dropout=0.2)
    optimizer = torch.optim.AdamW(
        models.param_groups(network, lr=1e-4, head_lr=1e-3, decay=0.5, weight_decay=1e-4)
    )

    def loader_loss(batches: list[tuple[Tensor, Tensor]]) -> float:
        network.eval()
        total = sum(float(nn.functional.cross_entropy(network(x), y)) * len(y) for x, y in batches)
        return total / sum(len(y) for _, y in batches)

    found = audit.check(
        network,
        optimizer=optimizer,
        data=data,
        loss=nn.CrossEntropyLoss(label_smoothing=0.1),
        frozen=[],
        step=plain_step(network, optimizer),
        evaluate=lambda: tl.evaluate.report(network, data.test, name="fine-tuned").top1.value,
        loader_loss=loader_loss,
        features=network.features,
        weights="letters",
        chosen_on=data.validation,
    )
    assert found, str(found)
    assert set(found.skipped) == {
        "resize-without-crop",
        "squashed",
        "wrong-normalisation",
        "augmented-validation",
    }
    assert data.test.readings == ()


def test_a_step_of_the_package_s_own_loop_is_clean() -> None:
    data = tl.datasets.digits().few(5, draw=0)
    one_each = data.few(1).train  # a data set has an example of each class
    network = models.small_resnet(10)
    for part in (network.stem, network.stage1):
        models.freeze(part)
    recipe = tl.train.Recipe(steps=1, batch_size=64, clip=1.0, schedule="constant")

    def step(x: Tensor, y: Tensor) -> None:
        rows = torch.cat([x, one_each.x]), torch.cat([y, one_each.y])
        split, ids = np.array(["train"] * len(rows[0])), tuple(map(str, range(len(rows[0]))))
        some = Dataset("batch", data.classes, *rows, split, ids, "none")
        tl.train.fit(network, some, recipe)

    found = audit.check(
        network,
        data=data,
        frozen=["stem", "stage1"],
        step=step,
        evaluate=lambda: tl.evaluate.validate(network, data.validation),
    )
    assert found, str(found)
    assert {"frozen-but-trained", "missing-zero-grad"} <= set(found.passed)


def test_a_frozen_mobilenet_whose_dropout_belongs_to_the_head_is_clean() -> None:
    network = torchvision.models.mobilenet_v2(weights=None)
    models.freeze(network.features)
    network.classifier[1] = nn.Linear(1280, CLASSES)
    optimizer = sgd(network.classifier.parameters())
    found = audit.check(
        network,
        optimizer=optimizer,
        data=batch(4, size=64),
        classes=CLASSES,
        features=lambda x: network.features(x).mean((2, 3)),
        step=plain_step(network, optimizer),
    )
    assert found, str(found)


def test_a_plain_network_that_flattens_its_maps_is_clean() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 49, CLASSES)
    )
    optimizer = torch.optim.Adam(network.parameters())
    found = audit.check(
        network,
        optimizer=optimizer,
        data=images(),
        step=plain_step(network, optimizer),
        features=network[:4],
        loss=nn.functional.cross_entropy,
    )
    assert found, str(found)


def test_other_fair_practices_are_clean() -> None:
    network = Small(outputs=1)
    x, y = batch()
    binary = audit.check(network, data=(x, (y % 2).float()), classes=2)
    assert binary, str(binary)

    calls = 0
    optimizer = sgd(network.parameters())

    def accumulate(x: Tensor, y: Tensor) -> None:
        nonlocal calls
        calls += 1
        (network(x).squeeze(1) - y).square().mean().backward()
        if calls % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()

    on_purpose = audit.check(network, data=(x, y), step=accumulate)
    assert on_purpose, str(on_purpose)

    own = torch.Generator().manual_seed(0)

    def augment(x: Tensor, y: Tensor) -> None:
        noisy = x + torch.randn(x.shape, generator=own)
        optimizer.zero_grad()
        (network(noisy).squeeze(1) - y).square().mean().backward()
        optimizer.step()

    undecided = audit.check(network, data=(x, y), step=augment)
    assert undecided, str(undecided)
    assert "same gradients twice" in undecided.skipped["missing-zero-grad"]
    assert audit.check(Small().requires_grad_(False), data=batch())  # features alone: no training

    headless = Small()
    headless.head = nn.Identity()
    probed = audit.check(headless, data=(x, y), classes=CLASSES, features=headless)
    assert probed, str(probed)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
def test_torchvision_s_own_transforms_are_clean(name: str) -> None:
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    for preprocess in (
        weights.transforms(),
        models.Preprocess.from_torchvision(weights.transforms()),
    ):
        found = audit.check(
            Small(), preprocess=preprocess, preprocess_eval=preprocess, weights=weights
        )
        assert found, str(found)


def test_usual_augmentation_of_training_images_is_clean() -> None:
    train = v2.Compose(
        [
            v2.RandomResizedCrop(64),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3, 0.1),
            *TENSOR,
            NORMALISE,
            v2.RandomErasing(),
        ]
    )
    found = audit.check(Small(), preprocess=train, weights=models.Preprocess())
    assert found, str(found)


def test_grey_images_and_their_pipeline_are_clean() -> None:
    data = tl.datasets.glyphs("latin_upper", per_class=10, shift=tl.datasets.Shift(noise=0.1))
    found = audit.check(
        models.small_resnet(26),
        data=data,
        preprocess=v2.Normalize([0.5], [0.5]),
        preprocess_eval=v2.Normalize([0.5], [0.5]),
        weights=models.Preprocess(),
    )
    assert "duplicates" in found.passed
    assert found, str(found)
    assert found.skipped["wrong-normalisation"] == "images in colour"


def test_every_copy_counts_even_where_all_are_copies() -> None:
    bright = next(case for case in TWINS if case.name == "other_brightness")
    evidence = audit.check(**bright.make(True)).findings[0].evidence
    assert evidence["almost"] == {"train/validation": 0, "train/test": 12, "validation/test": 0}


@pytest.mark.parametrize("name", ["stanford_dogs/mobilenet_v2", "stanford_dogs/squeezenet1_1"])
def test_the_shipped_banks_hold_a_few_siblings_and_no_copies(name: str) -> None:
    bank = tl.features.load(name)
    found = audit.check(nn.Linear(bank.x.shape[1], 120), data=bank)
    assert found.ids == ("duplicates",)
    assert found.findings[0].severity == audit.NOTE
    assert sum(found.findings[0].evidence["equal"].values()) == 0
    assert 0 < sum(found.findings[0].evidence["almost"].values()) < 25


# --- the audit itself ---------------------------------------------------------------------


def test_an_audit_says_what_ran_and_what_it_lacked() -> None:
    clean = audit.check(Small(), data=batch())
    assert clean
    assert str(clean).count("\n") == 0
    assert "clean" in str(clean)
    assert "optimizer" in str(clean)
    assert clean.raise_if_any() is clean
    assert set(clean.passed).isdisjoint(clean.skipped)
    assert {*clean.passed, *clean.skipped} == set(audit.CHECKS)


def test_findings_print_as_sentences_errors_first() -> None:
    network = frozen_body(Small(outputs=1000))
    found = audit.check(network, optimizer=sgd(network.parameters()), data=images())
    assert found.ids == ("head-shape", "optimizer-holds-frozen")
    assert [f.id for f in found.errors] == ["head-shape"]
    assert [f.id for f in found.notes] == ["optimizer-holds-frozen"]
    assert str(found).splitlines()[0].startswith("head-shape: ")
    assert f"nn.Linear(in_features, {CLASSES})" in str(found)
    assert "<strong>head-shape</strong>" in found._repr_html_()
    with pytest.raises(audit.AuditError, match="head-shape"):
        found.raise_if_any()
    frame = found.to_frame()
    assert list(frame["id"]) == list(audit.CHECKS)
    assert set(frame["outcome"]) == {"error", "note", "passed", "skipped"}


def test_notes_raise_only_on_request() -> None:
    network = frozen_body(Small())
    found = audit.check(network, optimizer=sgd(network.parameters()))
    assert found.raise_if_any() is found
    with pytest.raises(audit.AuditError):
        found.raise_if_any(notes=True)


def test_html_tells_the_whole_audit_and_marks_its_outcome() -> None:
    network = frozen_body(Small())
    note = audit.check(network, optimizer=sgd(network.parameters()))
    error = audit.check(Small(outputs=1000), data=images())
    clean = audit.check(Small(), data=batch())
    edges = set()
    for found in (note, error, clean):
        shown = found._repr_html_()
        text = html.unescape(re.sub("<[^>]+>", "", shown))
        assert str(found).splitlines()[-1] in text
        assert all(f"{f.what} {f.fix}" in text for f in found.findings)
        edges |= set(re.findall("border-left: ([^;]+);", shown))
    assert len(edges) == 3


def test_html_is_escaped() -> None:
    def step(x: Tensor, y: Tensor) -> None:
        raise ValueError("<script>")

    found = audit.check(Small(), data=batch(), step=step)
    assert "<script>" in str(found)
    assert "<script>" not in found._repr_html_()


def test_a_network_that_fails_is_a_finding() -> None:
    found = audit.check(Small(), data=(torch.rand(4, 1, 8, 8), torch.arange(4)), classes=4)
    assert found.ids == ("step-fails",)
    assert "network raises RuntimeError" in found.findings[0].what


def test_evidence_holds_the_figures() -> None:
    resnet = next(case for case in TWINS if case.name == "resnet_18")
    drift = audit.check(**resnet.make(True)).findings[0].evidence
    assert (drift["moved"], drift["buffers"]) == (60, 60)
    half = next(case for case in TWINS if case.name == "half")
    evidence = audit.check(**half.make(True)).findings[0].evidence
    assert evidence["mean"] == pytest.approx((0.5,) * 3, abs=1e-3)
    assert evidence["expected_std"] == pytest.approx(PRESET.std)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"network": "resnet18"}, TypeError, "nn.Module"),
        ({"network": nn.LazyLinear(3)}, ValueError, "lazy layer"),
        ({"frozen": "layer9"}, ValueError, "It has: body, head"),
        ({"frozen": nn.Linear(2, 2)}, ValueError, "part of the network"),
        ({"frozen": 3}, TypeError, "frozen"),
        ({"data": 3}, TypeError, "a batch"),
        ({"data": (torch.rand(0, 3, 8, 8), torch.zeros(0))}, ValueError, "empty"),
        ({"data": (torch.rand(3, 3, 8, 8), torch.zeros(2))}, ValueError, "as many labels"),
    ],
)
def test_what_cannot_be_checked_is_refused_with_a_sentence(
    change: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        audit.check(**({"network": Small()} | change))


def test_a_number_is_no_choice_of_data() -> None:
    with pytest.raises(TypeError, match="chosen_on should be 'validation', a split"):
        audit.check(Small(), chosen_on=3)
