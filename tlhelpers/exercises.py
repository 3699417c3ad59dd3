"""Checks for the exercises of the book: right, or a hint.

``tl.check("04.1", answer)`` runs what a reader wrote on examples made on the spot and says
what goes wrong with it. A check computes what is right as it needs it and never prints it.
The text of an exercise is the docstring of its check, see :func:`text`.
"""

from __future__ import annotations

import copy
import html
import inspect
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

Check = Callable[[Any], None]


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check found; true where the answer is right.

    Attributes:
        id: the exercise, such as ``"04.1"``.
        passed: whether the answer is right.
        message: what the answer has shown, or a hint.
    """

    id: str
    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'✓' if self.passed else '✗'} {self.id} {self.message}"

    def _repr_html_(self) -> str:
        # A paragraph breaks its lines where the page ends; plain output is cut off there.
        return f'<p class="tl-verdict">{html.escape(repr(self))}</p>'


class Hint(Exception):
    """Raised by a check to tell the reader what is wrong."""


@dataclass(frozen=True)
class _Exercise:
    check: Check
    praise: str
    text: str


_exercises: dict[str, _Exercise] = {}


def check(id: str, answer: Any) -> Verdict:
    """Check an answer to an exercise; display the verdict as the last line of a cell.

    Whatever an answer does to torch's random state is undone.

    Args:
        id: the exercise's number, such as ``"04.1"``.
        answer: what the exercise asks for, usually a function.

    Raises:
        KeyError: if there is no such exercise; the known ones are listed.

    >>> check("04.1", lambda d, m: "a head")
    ✗ 04.1 head(8, 3) should return a torch module, but it returned a value of type str.
    """
    exercise = _find(id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            exercise.check(answer)
        except Hint as hint:
            return Verdict(id, False, str(hint))
    return Verdict(id, True, exercise.praise)


def text(id: str) -> str:
    """What the exercise asks for, in Markdown."""
    return _find(id).text


def ids() -> list[str]:
    """The numbers of the exercises that have a check, sorted."""
    return sorted(_exercises)


def exercise(id: str, praise: str) -> Callable[[Check], Check]:
    """Register a check: a function that raises :class:`Hint` unless the answer is right.

    Args:
        id: the chapter and the number of the exercise, such as ``"04.1"``.
        praise: what a right answer has shown, one sentence.
    """

    def register(function: Check) -> Check:
        if id in _exercises:
            raise ValueError(f"exercise {id} has a check already: {_exercises[id].check.__name__}.")
        if not function.__doc__:
            raise ValueError(f"the check of exercise {id} needs a docstring: the exercise's text.")
        _exercises[id] = _Exercise(function, praise, inspect.cleandoc(function.__doc__))
        return function

    return register


def _find(id: str) -> _Exercise:
    if id not in _exercises:
        raise KeyError(f"there is no exercise {id!r}; there are {', '.join(ids())}.")
    return _exercises[id]


def _ask(function: Any, *arguments: Any, call: str) -> Any:
    """What the reader's function returns; an exception in it becomes a hint."""
    try:
        return function(*arguments)
    except Exception as error:
        raise Hint(f"{call} raised {type(error).__name__}: {error}") from error


def _expect_function(answer: Any, signature: str) -> None:
    if isinstance(answer, nn.Module) or not callable(answer):
        raise Hint(
            f"the answer should be the function {signature} itself, not what it returns; "
            f"found {_a(answer)}."
        )


def _a(value: Any) -> str:
    """What kind of thing the value is, for the end of a sentence."""
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _number(value: Any, call: str) -> float:
    """The value as a float; a hint if it is anything but one finite number."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise Hint(f"{call} should return one number, but it returned {_a(value)}.")
    if not math.isfinite(value):
        raise Hint(f"{call} should return a finite number, but it returned {value}.")
    return float(value)


# Chapter 04: feature extraction


@exercise("04.1", "one affine map, from d features to m logits: multinomial logistic regression.")
def _head_shape(answer: Any) -> None:
    """Write a function `head(d, m)` that returns the head of a linear probe as a torch module.

    It takes a batch of features of shape (n, d) to logits of shape (n, m), for any d and m:
    one weight for each feature and class and one bias for each class. There is nothing else in
    it: no hidden layer, no dropout, and no softmax, which the loss applies.
    """
    _expect_function(answer, "head(d, m)")
    for d, m in ((8, 3), (5, 11), (64, 120)):
        call = f"head({d}, {m})"
        head = _ask(answer, d, m, call=call)
        if not isinstance(head, nn.Module):
            raise Hint(f"{call} should return a torch module, but it returned {_a(head)}.")
        _check_logits(head.train(), d, m, call)
        _check_affine(head, d, m, call)


def _check_logits(head: nn.Module, d: int, m: int, call: str) -> None:
    x = 3 * torch.randn(32, d)
    logits = _ask(head, x, call=f"the module of {call}, on features of shape (32, {d}),")
    if not isinstance(logits, Tensor):
        raise Hint(f"the module of {call} should return a tensor, but it returned {_a(logits)}.")
    if logits.shape != (32, m):
        raise Hint(
            f"the module of {call} turned features of shape (32, {d}) into shape "
            f"{tuple(logits.shape)}; each row should hold one logit for each of the {m} classes."
        )
    sums = logits.detach().sum(1), logits.detach().exp().sum(1)
    if any(torch.allclose(total, torch.ones(32), atol=1e-3) for total in sums):
        raise Hint(
            f"the rows that {call} gives are probabilities or their logarithms. The loss "
            f"normalises logits itself; doing it in the head as well is at best superfluous."
        )
    if (logits >= 0).all():
        raise Hint(
            f"no logit of {call} is ever negative. A logit may have either sign: what at the "
            f"end of the module prevents it?"
        )
    if not torch.equal(logits, head(x)):
        raise Hint(f"{call} gives other logits for the same features each time: what is random?")


def _check_affine(head: nn.Module, d: int, m: int, call: str) -> None:
    count, needed = sum(p.numel() for p in head.parameters()), d * m + m
    if count != needed:
        raise Hint(
            f"{call} has {count:,} parameters, which is {'fewer' if count < needed else 'more'} "
            f"than one weight for each feature and class and one bias for each class. "
            + ("Is something left out?" if count < needed else "Is there a layer too many?")
        )
    a, b = torch.randn(2, 16, d)
    with torch.no_grad():
        gap = head(a) + head(b) - head(a + b) - head(torch.zeros(16, d))
    if gap.abs().max() > 1e-3:
        raise Hint(f"{call} bends: with logits Wx + b, f(a) + f(b) = f(a + b) + f(0) should hold.")


@exercise("04.2", "no parameter learns, and no forward pass changes the model or its output.")
def _freeze_honestly(answer: Any) -> None:
    """Write a function `frozen(model)` that returns the model, frozen in every respect.

    No parameter requires a gradient. And where a training loop later calls `train()` on the
    model, or on a larger network that holds it, forward passes still give what the model gave in
    evaluation mode, and nothing in its `state_dict()` changes. The check uses a small network with
    convolution, batch normalisation and dropout.
    """
    _expect_function(answer, "frozen(model)")
    original = _small_network()
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 1
    with torch.no_grad():
        expected = copy.deepcopy(original).eval()(x)
    model = _ask(answer, original, call="frozen(model)")
    if not isinstance(model, nn.Module):
        raise Hint(f"frozen(model) should return the model, but it returned {_a(model)}.")
    parameters = list(model.parameters())
    if learning := sum(p.requires_grad for p in parameters):
        raise Hint(
            f"{learning} of {len(parameters)} parameter tensors still require a gradient, so an "
            f"optimiser would move them."
        )
    _check_stays(model, x, expected)


def _small_network() -> nn.Module:
    convolution, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    # Statistics as if from earlier training, unlike those of the check's images.
    nn.init.uniform_(norm.get_buffer("running_mean"), -0.5, 0.5)
    nn.init.uniform_(norm.get_buffer("running_var"), 0.5, 1.5)
    pool = nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(convolution, norm, nn.ReLU(), nn.Dropout(0.5), pool, nn.Flatten())


def _check_stays(model: nn.Module, x: Tensor, expected: Tensor) -> None:
    network = nn.Sequential(model, nn.Linear(16, 2))
    call = "a forward pass of the frozen model, after train(),"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network.train()
    first, second = (_ask(model, x, call=call) for _ in range(2))
    after = model.state_dict()
    if moved := [name for name, value in before.items() if not torch.equal(value, after[name])]:
        raise Hint(
            f"no parameter requires a gradient, yet a forward pass after train() changed "
            f"{', '.join(moved)}. These are not parameters: which layer keeps them, and when does "
            f"it update them?"
        )
    if not torch.equal(first, second):
        raise Hint(
            "after train(), two passes over the same images differ: a layer that is random in "
            "training mode still is."
        )
    if first.shape != expected.shape or not torch.allclose(first, expected, atol=1e-5):
        raise Hint(
            "the state stays and nothing is random, but after train() the output is not what the "
            "model gave in evaluation mode. Which statistics does it normalise with, and are its "
            "weights the ones it came with?"
        )


@exercise(
    "04.3", "nearest prototype is a linear classifier, here with squared distances as logits."
)
def _prototypes_as_head(answer: Any) -> None:
    """Write a function `prototypes_to_linear(prototypes)` that turns nearest-prototype
    classification into a linear layer.

    It takes an (m, d) tensor with one prototype a class and returns `(weight, bias)` of shapes
    (m, d) and (m,), such that for features `x` of shape (n, d) the logits
    `x @ weight.T + bias` equal minus the squared Euclidean distances to the prototypes, up to a
    number for each row of `x` that is the same for all classes. So the largest logit belongs to
    the nearest prototype, and the softmax is that of prototypical networks.
    """
    _expect_function(answer, "prototypes_to_linear(prototypes)")
    for m, d in ((4, 6), (30, 12)):
        call = f"prototypes_to_linear, on prototypes of shape ({m}, {d}),"
        # Prototypes of different lengths: with equal ones, half of the answer is not needed.
        prototypes = torch.randn(m, d) * torch.linspace(0.5, 3, m)[:, None]
        x = 2 * torch.randn(200, d)
        weight, bias = _linear_layer(_ask(answer, prototypes.clone(), call=call), m, d, call)
        distances = torch.cdist(x, prototypes).square()
        _check_scores(x @ weight.T + bias, distances)


def _linear_layer(found: Any, m: int, d: int, call: str) -> tuple[Tensor, Tensor]:
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Hint(f"{call} should return (weight, bias), but it returned {_a(found)}.")
    for name, value, shape in zip(("weight", "bias"), found, ((m, d), (m,)), strict=True):
        if not isinstance(value, Tensor):
            raise Hint(f"the {name} should be a torch tensor, found {_a(value)}.")
        if value.shape != shape:
            raise Hint(f"the {name} should have shape {shape}, found {tuple(value.shape)}.")
        if not value.isfinite().all():
            raise Hint(f"the {name} holds NaN or infinity.")
    return found[0].detach().float(), found[1].detach().float()


def _check_scores(scores: Tensor, distances: Tensor) -> None:
    nearest = distances.argmin(1)
    share = (scores.argmax(1) == nearest).float().mean().item()
    if (scores.argmin(1) == nearest).float().mean() > share:
        raise Hint("the smallest logit marks the nearest prototype; it should be the largest.")
    if share < 1:
        raise Hint(
            f"the largest logit belongs to the nearest prototype for {100 * share:.0f} % of the "
            f"features only. Expand the squared distance: which terms differ from class to class?"
        )
    offset = scores + distances
    if (offset - offset.mean(1, keepdim=True)).abs().max() > 1e-2:
        raise Hint(
            "the largest logit always belongs to the nearest prototype, but the logits are not "
            "minus the squared distances up to a number for each row: compare their scale."
        )


# Chapter 08: Stanford Dogs


@exercise("08.1", "a number of labels that the interval supports, not only the mean.")
def _labels_for_a_target(answer: Any) -> None:
    """Write a function `smallest_k(frame, target)`: how many labels a class are enough?

    The frame is a learning curve with the columns `k`, `mean`, `low` and `high`, one row for
    each number k of labels a class, in any order. Return the smallest `k` whose lower bound
    `low` is `target` or more, and `None` if there is none.
    """
    _expect_function(answer, "smallest_k(frame, target)")
    k = np.array([1, 2, 5, 10, 20, 50])
    mean = np.array([0.31, 0.44, 0.58, 0.66, 0.74, 0.80])
    curve = pd.DataFrame({"k": k, "mean": mean, "low": mean - 0.05, "high": mean + 0.05})
    curve["low"] = curve["low"].round(2)
    dip = curve.assign(low=[0.26, 0.55, 0.5, 0.6, 0.7, 0.76])
    frames = {
        "a curve": (curve, 0.58),
        "a curve whose bound equals the target at one k": (curve, 0.61),
        "a curve whose rows are not sorted": (curve.sample(frac=1, random_state=3), 0.42),
        "a curve whose rows go down in k": (curve[::-1], 0.35),
        "a curve that falls again after reaching the target": (dip, 0.52),
        "a curve that reaches the target nowhere": (curve, 0.79),
        "a curve that reaches the target everywhere": (curve, 0.2),
    }
    for kind, (frame, target) in frames.items():
        found = _ask(answer, frame.copy(), target, call=f"smallest_k, on {kind},")
        _check_smallest(found, frame, target, kind)


def _check_smallest(found: Any, frame: pd.DataFrame, target: float, kind: str) -> None:
    right = _smallest_k(frame, frame["low"] >= target)
    if found is None or right is None:
        if found is not right:
            returned = "None" if found is None else f"{found!r}"
            raise Hint(
                f"on {kind}, smallest_k returned {returned}. None is for the case that no k has a "
                f"lower bound of the target or more, and only for it."
            )
        return
    value = _number(found, f"smallest_k, on {kind},")
    if value == right:
        return
    row = frame[frame["k"] == value]
    if row.empty:
        raise Hint(f"on {kind}, smallest_k returned {found!r}, which is not in the column k.")
    if row["low"].item() >= target:
        raise Hint(
            f"on {kind}, the lower bound reaches the target at the k returned, but at a smaller "
            f"one too. Reaching includes being equal; the rows may be in any order, and the curve "
            f"may fall again."
        )
    reached = [name for name in ("mean", "high") if row[name].item() >= target]
    raise Hint(
        f"on {kind}, the lower bound at the k returned is below the target"
        + (f"; it is the column {reached[0]!r} that reaches it." if reached else ".")
    )


def _smallest_k(frame: pd.DataFrame, reached: Any) -> int | None:
    return min(frame.loc[reached, "k"].tolist(), default=None)


@exercise("08.2", "the head chooses among the data set's own classes, in the data set's order.")
def _untrained_head(answer: Any) -> None:
    """Write a function `restricted_top1(logits, labels, columns)`: how well does the *untrained*
    ImageNet head tell the breeds apart, if it may answer only with a breed?

    `logits` has shape (n, 1000). `labels` has shape (n,) and holds the data set's own labels,
    0 to m − 1. `columns` has shape (m,): class i of the data set is class `columns[i]` of ImageNet,
    in no particular order. Return the accuracy as a number from 0 to 1.
    """
    _expect_function(answer, "restricted_top1(logits, labels, columns)")
    for seed, (n, m) in enumerate(((400, 12), (300, 120))):
        logits, labels, columns = _imagenet_example(n, m, seed)
        call = f"restricted_top1, on {n} images of {m} classes,"
        given = (logits.clone(), labels.clone(), columns.clone())
        found = _number(_ask(answer, *given, call=call), call)
        _check_restricted(found, logits, labels, columns)


def _imagenet_example(n: int, m: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randperm(1000, generator=generator)[:m]
    labels = torch.randint(m, (n,), generator=generator)
    logits = torch.randn(n, 1000, generator=generator)
    # Strong enough that the head is often right, and often distracted by other classes.
    logits[torch.arange(n), columns[labels]] += 3
    return logits, labels, columns


def _check_restricted(found: float, logits: Tensor, labels: Tensor, columns: Tensor) -> None:
    def accuracy(predicted: Tensor, truth: Tensor) -> float:
        return (predicted == truth).double().mean().item()

    def same(other: float) -> bool:
        return abs(found - other) < 1e-6

    right = accuracy(logits[:, columns].argmax(1), labels)
    if same(right):
        return
    everything, ordered = logits.argmax(1), columns.sort().values
    if not 0 <= found <= 1:
        raise Hint(
            f"an accuracy is a proportion from 0 to 1, but restricted_top1 returned {found:g}. "
            f"Is it a count, or in per cent?"
        )
    if same(accuracy(everything, columns[labels])):
        raise Hint("the head still chooses among all 1,000 classes: nothing is restricted.")
    if same(accuracy(logits[:, ordered].argmax(1), labels)):
        raise Hint(
            "the classes compared are in ImageNet's order, but label i belongs to columns[i]: "
            "the order of columns matters."
        )
    if found < 0.5 * right:
        raise Hint(
            "hardly any image counts as right. Do both sides of the comparison speak of the same "
            "numbers, the data set's 0 to m − 1 or ImageNet's 0 to 999?"
        )
    raise Hint(
        f"the accuracy is {'higher' if found > right else 'lower'} than it should be. Which "
        f"columns compete, and over which images is the average?"
    )


@exercise("08.3", "the lowest threshold that keeps its promise, and so accepts the most images.")
def _confidence_threshold(answer: Any) -> None:
    """Write a function `accept(probabilities, labels, error)` that finds a confidence threshold.

    `probabilities` has shape (n, m), `labels` has shape (n,): predictions on *validation* images.
    The confidence of an image is its largest probability. A threshold t accepts the images with a
    confidence of t or more; its error rate is the proportion of wrong predictions among those
    accepted. Return, as a float, the smallest t among the n confidences whose error rate is
    `error` or less, and `None` if there is none.
    """
    _expect_function(answer, "accept(probabilities, labels, error)")
    for kind, (probabilities, labels, error) in _predictions().items():
        call = f"accept, on {kind},"
        given = (probabilities.clone(), labels.clone(), error)
        found = _ask(answer, *given, call=call)
        confidence, predicted = probabilities.max(1)
        _check_threshold(found, confidence.double(), predicted != labels, error, kind)


def _predictions() -> dict[str, tuple[Tensor, Tensor, float]]:
    generator = torch.Generator().manual_seed(5)
    probabilities = torch.softmax(3 * torch.randn(300, 6, generator=generator), 1)
    labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    def binary(confidence: list[float], wrong: list[int]) -> tuple[Tensor, Tensor]:
        first = torch.tensor(confidence)
        return torch.stack([first, 1 - first], 1), torch.tensor(wrong)

    early = binary([0.97, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6], [1, 0, 0, 0, 0, 0, 1, 1])
    tied = binary([0.95, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6], [0, 0, 0, 1, 1, 0, 1])
    # Targets that no rate equals, or equals in every dtype: the reader may compute in float32.
    return {
        "300 images": (probabilities, labels, 0.1037),
        "300 images and a large error": (probabilities, labels, 0.9),
        "images of which the most confident is wrong": (*early, 0.19),
        "images with equal confidences": (*tied, 0.25),
        "images whose error rate equals the target": (
            *binary([0.9, 0.7, 0.6, 0.8], [0, 0, 1, 0]),
            0.25,
        ),
        "images with an error of 0": (*binary([0.6, 0.9, 0.8, 0.7], [1, 0, 0, 1]), 0.0),
        "images that are all wrong": (*binary([0.9, 0.8, 0.7], [1, 1, 1]), 0.3),
    }


def _check_threshold(
    found: Any, confidence: Tensor, wrong: Tensor, error: float, kind: str
) -> None:
    kept = [t for t in confidence.tolist() if wrong[confidence >= t].double().mean() <= error]
    right = min(kept, default=None)
    if found is None or right is None:
        if found is not right:
            returned = "None" if found is None else f"{found!r}"
            raise Hint(
                f"on {kind}, accept returned {returned}. None is for the case that no threshold "
                f"has an error rate of {error:g} or less, and only for it."
            )
        return
    value = _number(found, f"accept, on {kind},")
    if abs(value - right) < 1e-6:
        return
    _hint_about_threshold(value, confidence, wrong, error, kind)


def _hint_about_threshold(
    value: float, confidence: Tensor, wrong: Tensor, error: float, kind: str
) -> None:
    # A threshold is meant to the precision of the reader's dtype.
    accepted, above = confidence >= value - 1e-6, confidence > value + 1e-6
    if not accepted.any():
        raise Hint(f"on {kind}, the threshold returned accepts no image at all.")
    rate = wrong[accepted].double().mean().item()
    if rate <= error:
        raise Hint(
            f"on {kind}, the threshold returned keeps the error rate at {rate:.3g}, but it is not "
            f"the smallest confidence that does. A rate equal to the target will do, and the rate "
            f"need not rise steadily as the threshold falls: it can exceed the target and return."
        )
    start = f"on {kind}, the error rate among the images accepted is {rate:.3g}, above {error:g}. "
    if above.any() and wrong[above].double().mean().item() <= error:
        raise Hint(f"{start}An image whose confidence equals the threshold is accepted too.")
    if wrong[accepted].double().sum().item() / len(wrong) <= error:
        raise Hint(f"{start}Which images is the rate a proportion of: all, or those accepted?")
    raise Hint(f"{start}The promise is about wrong predictions, not about how many are accepted.")
