"""Several networks or backbones as one: by their weights, their answers, or their features.

- :func:`average_states` and :func:`interpolate_states` average weights, :func:`with_state` puts
  them into a network;
- :func:`ensemble` averages answers;
- :func:`concatenate` puts features side by side.

Chapter 14 measures them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tlhelpers import _inference, _samples
from tlhelpers.adapt import adapt_batchnorm
from tlhelpers.splits import Dataset

StateDict = Mapping[str, Tensor]


def average_states(
    states: Sequence[StateDict], *, weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """The average of the weights of several networks of one architecture: a model soup.

    It makes sense for networks that were trained from the same starting weights. Whole numbers,
    such as BatchNorm's count of batches, are taken from the first; so BatchNorm's statistics are
    averages too, which fit no network: see :func:`with_state`.

    Source: Wortsman et al. (2022), Model soups: averaging weights of multiple fine-tuned models
    improves accuracy without increasing inference time.

    Args:
        states: state dicts, from ``network.state_dict()``.
        weights: one for each, 0 or larger, which are scaled to sum to 1; None for equal ones.

    Raises:
        ValueError: if there is no state, names or shapes differ, a number is not finite, or the
            weights do not fit.

    >>> average_states([{"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([4.0, 4.0])}])
    {'w': tensor([2., 3.])}
    """
    if not states:
        raise ValueError("an average needs at least one state dict, found none.")
    shares = np.ones(len(states)) if weights is None else np.asarray(weights, dtype=float)
    valid = shares.shape == (len(states),) and np.isfinite(shares).all() and (shares >= 0).all()
    if not valid or shares.sum() == 0:
        raise ValueError(
            f"weights should be {len(states)} numbers, 0 or larger and not all 0, found {weights}."
        )
    shares = shares / shares.sum()
    for i, state in enumerate(states):
        _check_alike(states[0], state, "state 0", f"state {i}")
    averaged = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            averaged[name] = first.clone()
            continue
        # On the CPU: not every device has double precision, in which ends stay as they are.
        total = torch.zeros_like(first, dtype=torch.float64, device="cpu")
        for share, state in zip(shares.tolist(), states, strict=True):
            total += share * state[name].cpu()
        averaged[name] = total.to(first)
    return averaged


def _check_alike(first: StateDict, other: StateDict, name: str, other_name: str) -> None:
    """Both of one architecture, and the other finite."""
    if odd := sorted(set(first) ^ set(other)):
        raise ValueError(
            f"{name} and {other_name} should be of one architecture, but they do not both have "
            f"{odd[0]!r} ({len(odd)} such names)."
        )
    for key, value in first.items():
        if value.shape != other[key].shape:
            raise ValueError(
                f"{name} and {other_name} should be of one architecture, but {key} has the shapes "
                f"{tuple(value.shape)} and {tuple(other[key].shape)}. Heads for different classes "
                f"have to be left out."
            )
        if not other[key].isfinite().all():
            raise ValueError(f"{key} of {other_name} holds NaN or infinity.")


def interpolate_states(start: StateDict, end: StateDict, *, alpha: float) -> dict[str, Tensor]:
    """(1 − α) times one network's weights plus α times another's, as in WiSE-FT.

    Source: Wortsman et al. (2022), Robust fine-tuning of zero-shot models.

    Args:
        start: the state dict at α = 0, such as that of the network before fine-tuning.
        end: the state dict at α = 1, such as that of the network after it.
        alpha: the share of ``end``.

    Raises:
        ValueError: as :func:`average_states`, or if α does not lie in 0..1.

    >>> interpolate_states({"w": torch.tensor([0.0])}, {"w": torch.tensor([8.0])}, alpha=0.25)
    {'w': tensor([2.])}
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha should lie in 0..1, found {alpha}.")
    return average_states([start, end], weights=[1 - alpha, alpha])


def with_state(network: nn.Module, state: StateDict, *, x: Tensor | None = None) -> nn.Module:
    """A copy of a network with other weights, and BatchNorm statistics that fit them.

    Averaged weights make other activations than any of the networks averaged, so that averaged
    statistics do not fit; one pass over training inputs repairs it, see
    :func:`~tlhelpers.adapt.adapt_batchnorm`.

    Source: Izmailov et al. (2018), Averaging Weights Leads to Wider Optima and Better
    Generalization.

    Args:
        network: of the same architecture; it stays as it is.
        state: such as :func:`average_states` returns.
        x: (n, ...) inputs for BatchNorm's statistics, without labels; None to take the statistics
            in ``state``, or where there is no BatchNorm.

    Returns:
        the copy, in evaluation mode.

    Raises:
        TypeError, ValueError: as :func:`~tlhelpers.adapt.adapt_batchnorm`, if x is given; or if
            the state is of another architecture, or not finite.

    Example:
        >>> import tlhelpers as tl
        >>> letters = tl.models.small_resnet(weights="letters")
        >>> random = tl.models.small_resnet(52)
        >>> half = tl.combine.average_states([letters.state_dict(), random.state_dict()])
        >>> plain = tl.combine.with_state(letters, half)
        >>> repaired = tl.combine.with_state(letters, half, x=tl.datasets.digits().train.x[:100])
        >>> [round(float(network.stem[1].running_var.mean()), 2) for network in (plain, repaired)]
        [0.5, 0.02]
    """
    _check_alike(network.state_dict(), state, "the network", "the state")
    changed = copy.deepcopy(network).eval()
    changed.load_state_dict(dict(state))
    return changed if x is None else adapt_batchnorm(changed, x)


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble:
    """Several predictors that answer as one; make one with :func:`ensemble`.

    Attributes:
        members: networks, or functions from inputs to (n, m) logits.
        weights: one for each, which sum to 1.
    """

    members: tuple[Callable[[Tensor], Tensor], ...]
    weights: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """(n, m) logarithms of the average probabilities; a predictor for ``evaluate``.

        Raises:
            ValueError: if the members do not answer with logits of one shape.
        """
        answers = [_answer(member, x) for member in self.members]
        shapes = [tuple(answer.shape) for answer in answers]
        if len(set(shapes)) > 1 or answers[0].ndim != 2 or len(answers[0]) != len(x):
            raise ValueError(
                f"all members should return logits of one shape ({len(x)}, m), found {shapes}. "
                f"Only predictors for the same classes make an ensemble."
            )
        logs = torch.stack([answer.log_softmax(dim=1) for answer in answers])
        shares = torch.tensor(self.weights, dtype=logs.dtype).log()
        return (logs + shares[:, None, None]).logsumexp(dim=0)

    def __repr__(self) -> str:
        shares = ", ".join(f"{weight:.2g}" for weight in self.weights)
        return f"ensemble of {len(self.members)} predictors, with the weights {shares}"


def ensemble(
    members: Sequence[Callable[[Tensor], Tensor]], *, weights: Sequence[float] | None = None
) -> Ensemble:
    """Let several predictors vote with their probabilities.

    Members may differ in everything but the classes. Each costs its own forward pass.

    Source: Lakshminarayanan, Pritzel and Blundell (2017), Simple and Scalable Predictive
    Uncertainty Estimation using Deep Ensembles.

    Args:
        members: networks (taken in evaluation mode), or functions from inputs to (n, m) logits.
        weights: one for each, above 0, which are scaled to sum to 1; None for equal ones.

    Raises:
        TypeError: if a member cannot be called.
        ValueError: if there is no member, or the weights do not fit.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> sure = torch.tensor([[0.99, 0.01]]).log()
        >>> unsure = torch.tensor([[0.25, 0.75]]).log()
        >>> both = tl.combine.ensemble([lambda x: sure, lambda x: unsure])
        >>> both
        ensemble of 2 predictors, with the weights 0.5, 0.5
        >>> both(torch.zeros(1, 1)).exp()
        tensor([[0.6200, 0.3800]])
    """
    if not members:
        raise ValueError("an ensemble needs at least one member, found none.")
    if odd := [type(member).__name__ for member in members if not callable(member)]:
        raise TypeError(
            f"a member is a network or a function from inputs to logits, found {odd[0]}. Wrap a "
            f"scikit-learn classifier in a function that returns its log probabilities."
        )
    shares = np.ones(len(members)) if weights is None else np.asarray(weights, dtype=float)
    if shares.shape != (len(members),) or not np.isfinite(shares).all() or (shares <= 0).any():
        raise ValueError(f"weights should be {len(members)} numbers above 0, found {weights}.")
    return Ensemble(tuple(members), tuple((shares / shares.sum()).tolist()))


def _answer(member: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if isinstance(member, nn.Module):
        return _inference.logits(member, x).float().cpu()
    with torch.no_grad():
        return torch.as_tensor(member(x)).float().cpu()


def concatenate(banks: Sequence[Dataset]) -> Dataset:
    """The features of several backbones side by side, for the same examples.

    Each bank is centred, and divided by one number, so that the variances of its training
    features sum to 1: no backbone outweighs another by its scale or its width alone. A probe keeps
    that balance with ``probe.fit(bank, scale="common")``.

    Args:
        banks: data sets of (n, d) features with the same ids, labels and splits, in one order.

    Returns:
        a data set of features (n, d_1 + d_2 + ...). It shares the log of the first bank's test
        split.

    Raises:
        TypeError: if a data set does not hold features.
        ValueError: if there is none, the examples differ, or features are not finite or constant.

    Example:
        >>> import tlhelpers as tl
        >>> names = ("mobilenet_v2", "squeezenet1_1")
        >>> banks = [tl.features.load(f"stanford_dogs/{name}") for name in names]
        >>> few = [tl.datasets.with_classes(bank, ["Pug", "Beagle"]).few(5) for bank in banks]
        >>> both = tl.combine.concatenate(few)
        >>> [bank.x.shape[1] for bank in (*few, both)]
        [128, 64, 192]
    """
    if not banks:
        raise ValueError("there is nothing to concatenate: give one bank or more.")
    first = banks[0]
    parts = []
    for bank in banks:
        if not isinstance(bank.x, Tensor) or bank.x.ndim != 2:
            raise TypeError(
                f"{bank.name} should hold features of shape (n, d). Call features.extract first."
            )
        if bank.ids != first.ids or not (
            torch.equal(bank.labels, first.labels) and np.array_equal(bank.split, first.split)
        ):
            raise ValueError(
                f"{bank.name} and {first.name} are not of the same examples, with the same labels "
                f"and splits, in one order. Extract both from one data set."
            )
        _samples.check_inputs(bank.x, bank.name)
        train = bank.train.x
        size = train.var(dim=0, correction=0).sum().sqrt()
        if not size > 0:
            raise ValueError(f"the training features of {bank.name} are constant.")
        parts.append((bank.x - train.mean(dim=0)) / size)
    return Dataset(
        name=" + ".join(bank.name for bank in banks),
        classes=first.classes,
        x=torch.cat(parts, dim=1),
        labels=first.labels,
        split=first.split,
        ids=first.ids,
        split_name=first.split_name,
        imagenet=first.imagenet,
        log=first.log,
    )
