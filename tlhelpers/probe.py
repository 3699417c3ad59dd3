"""The linear probe: multinomial logistic regression on the features of a frozen backbone.

The objective is convex, so a probe has one answer for each ridge weight and no learning
rate, batch size or number of epochs to tune. What has to be chosen is the ridge weight,
and validation chooses it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from tlhelpers import confidence, runtime
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset, Split

# Candidates whose calibrated NLLs differ by less are equal, in nats.
_EQUAL = 1e-3

# Half decades, as exponents k of 10^(k/2). The walk starts with 1 .. 0.001 and goes on
# beyond an end, up to the limits, while the best value lies there.
_GRID = range(0, -7, -1)
_LIMITS = (-12, 6)

# A fit stops when its residual (see `Candidate`) falls below one of these. It bounds the
# relative error of the weights, and the largest error among the probabilities is of about
# the same size: 0.02 tells the candidates apart, 0.0003 is for the probe itself.
_PATH_RESIDUAL = 0.02
_FINAL_RESIDUAL = 3e-4
_PATH_EVALUATIONS = 500
_FINAL_EVALUATIONS = 3000
# A smaller gradient counts as none: the line search compares losses, which are about 1, and
# loses sight of it. It matters where features say nothing and the best weights are 0.
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-8}


class Projection(Protocol):
    """An affine map of raw features, x ↦ (x - mean) componentsᵀ, such as a bank's PCA."""

    @property
    def mean(self) -> Tensor:
        """(d_in,) what is subtracted."""

    @property
    def components(self) -> Tensor:
        """(d, d_in) the directions that are kept."""


@dataclass(frozen=True)
class Candidate:
    """A ridge weight that was tried.

    Attributes:
        ridge: the ridge weight λ.
        train_accuracy: share of training examples classified right.
        validation_accuracy: the same on validation; NaN where validation is empty.
        validation_nll: mean negative log-likelihood on validation, in nats.
        temperature: what the logits are to be divided by for the lowest validation NLL
            (above 1: the probe is overconfident; below 1: underconfident).
        calibrated_nll: that lowest NLL, by which candidates are compared.
        iterations: steps of L-BFGS.
        residual: ‖gradient‖ / (λ ‖W‖), 0 at the optimum within rounding.

    Example:
        >>> import tlhelpers as tl
        >>> bank = tl.features.load("pneumonia/last_layer").few(20, draw=0)
        >>> candidate = tl.probe.fit(bank, ridge=0.1).chosen
        >>> f"{candidate.train_accuracy:.0%} train, {candidate.validation_accuracy:.0%} validation"
        '100% train, 84% validation'
    """

    ridge: float
    train_accuracy: float
    validation_accuracy: float
    validation_nll: float
    temperature: float
    calibrated_nll: float
    iterations: int
    residual: float

    def __str__(self) -> str:
        return (
            f"ridge {self.ridge:.2g}: accuracy {self.train_accuracy:.1%} train, "
            f"{self.validation_accuracy:.1%} validation; validation NLL "
            f"{self.validation_nll:.3f}, {self.calibrated_nll:.3f} at temperature "
            f"{self.temperature:.2f}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Probe:
    """A linear classifier of features, made by :func:`fit`; a predictor for ``evaluate``.

    Attributes:
        weight: (m, d) float32, for standardised features.
        bias: (m,) float32.
        mean: (d,) training mean of each feature.
        std: (d,) what each feature is divided by, see the argument ``scale`` of :func:`fit`.
        classes: m class names.
        ridge: the ridge weight λ that was chosen or given.
        path: the ridge weights tried, from the largest to the smallest.
        n_train: number of training examples.
        data: the name of the bank it was fitted on.
        split_name: how that bank is split.
        temperature: what the logits were divided by, see :meth:`calibrated`.

    Example:
        >>> import tlhelpers as tl
        >>> bank = tl.features.load("pneumonia/last_layer").few(20, draw=0)
        >>> probe = tl.probe.fit(bank, ridge=0.1)
        >>> probe(bank.train.x).shape
        torch.Size([40, 2])
        >>> probe.to_linear(through=bank.projection)
        Linear(in_features=1280, out_features=2, bias=True)
        >>> round(probe.calibrated().temperature, 1)
        1.3
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor
    classes: tuple[str, ...]
    ridge: float
    path: tuple[Candidate, ...]
    n_train: int
    data: str
    split_name: str
    temperature: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """The logits (n, m) of features ``x`` (n, d).

        Raises:
            ValueError: if the features have another width than the training features.
        """
        features = torch.as_tensor(x)
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(
                f"this probe takes features of shape (n, {len(self.mean)}), found "
                f"{tuple(features.shape)}. Use features of the bank that it was fitted on, "
                f"{self.data!r}; bank.project(features) brings raw features to that width."
            )
        weight, bias, mean, std = (
            t.to(features.device) for t in (self.weight, self.bias, self.mean, self.std)
        )
        return functional.linear((features.float() - mean) / std, weight, bias)

    def predict_proba(self, x: Tensor) -> Tensor:
        """The class probabilities (n, m) of features ``x`` (n, d)."""
        return self(x).softmax(dim=1)

    @property
    def chosen(self) -> Candidate:
        """The row of the path that became this probe."""
        return next(c for c in self.path if c.ridge == self.ridge)

    def calibrated(self) -> Probe:
        """The same probe with its logits divided by the temperature that fits validation best.

        A ridge weight that gives the best features' weights also shrinks them, and the
        probabilities come out too even. One number, fitted on validation, undoes that; the
        order of the classes, and with it the accuracy, stays the same (temperature scaling;
        Guo et al. 2017).

        Raises:
            ValueError: if there was no validation example to fit the temperature on.
        """
        temperature = self.chosen.temperature
        if math.isnan(temperature):
            raise ValueError(
                f"the temperature is fitted on validation, and {self.data} has no validation "
                f"example. Fit the probe on a bank that has some."
            )
        factor = self.temperature / temperature
        return dataclasses.replace(
            self,
            weight=self.weight * factor,
            bias=self.bias * factor,
            temperature=temperature,
        )

    def to_linear(self, *, through: Projection | None = None) -> torch.nn.Linear:
        """The probe as one linear layer on features that are not standardised.

        Args:
            through: the projection that the bank's features went through. The layer then
                takes the raw features of the backbone, and can be put on top of it.

        Returns:
            A layer from d features (or the projection's d_in) to m logits, float32, on the CPU.

        Raises:
            ValueError: if the projection has another number of components than the probe has
                features.
        """
        # In double precision: the mean and the weights of small features nearly cancel.
        weight = self.weight.double() / self.std.double()
        bias = self.bias.double() - weight @ self.mean.double()
        if through is not None:
            components = torch.as_tensor(through.components).double()
            if components.ndim != 2 or components.shape[0] != weight.shape[1]:
                raise ValueError(
                    f"the probe takes {weight.shape[1]} features, but the projection has "
                    f"components of shape {tuple(components.shape)}. Use the projection of the "
                    f"bank that the probe was fitted on, {self.data!r}."
                )
            weight = weight @ components
            bias = bias - weight @ torch.as_tensor(through.mean).double()
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return layer

    def to_frame(self) -> pd.DataFrame:
        """The path: a row for each ridge weight tried, with the columns of :class:`Candidate`."""
        return pd.DataFrame([dataclasses.asdict(candidate) for candidate in self.path])

    def __repr__(self) -> str:
        m, d = self.weight.shape
        how = "given"
        if len(self.path) > 1:
            accuracy = self.chosen.validation_accuracy
            how = f"best of {len(self.path)} on validation, accuracy there {accuracy:.1%}"
        calibrated = "" if self.temperature == 1 else f", temperature {self.temperature:.2f}"
        return (
            f"linear probe on {self.data}: {d} features → {m} classes, {self.n_train:,} training "
            f"examples, ridge {self.ridge:.2g} ({how}){calibrated}"
        )


def fit(
    bank: Dataset,
    *,
    ridge: float | Sequence[float] | None = None,
    scale: str | None = None,
    run: Run | None = None,
) -> Probe:
    """Fit a linear probe on the training features of a bank.

    For features x standardised with training statistics, weights W (m, d) and bias b (m,)
    minimise the mean cross-entropy of softmax(W x + b) plus (λ/2) ‖W‖². In scikit-learn that
    is ``LogisticRegression(C=1 / (λ n))`` on standardised features; with two classes, where
    scikit-learn has one vector of weights instead of two, ``C=2 / (λ n)``. Full-batch L-BFGS
    walks from the largest λ to the smallest, each fit starting from the one before.

    **How λ is chosen.** By the validation NLL of each candidate at its own best temperature.
    Accuracy moves in steps of one image, so with few validation images its best value is
    often luck. Plain NLL is smooth, but a large λ shrinks all logits, and NLL blames it for
    the small logits even where the order of the classes is the best. One temperature for each
    candidate takes that scale out of the comparison and leaves what cannot be repaired
    afterwards (the refinement; Berta et al. 2025, arXiv 2501.19195). Candidates within 0.001
    nats of the best count as equal; of these the one with the lowest plain NLL is taken. The
    path shows all of it.

    Args:
        bank: a data set whose ``x`` is an (n, d) tensor of features.
        ridge: None tries half decades from 1 to 0.001, and goes on beyond an end (at most to
            1000 and to 1e-6) while the best value lies there; a number is used as it is; a
            sequence is the grid.
        scale: what centred features are divided by. ``"each"``: each by its own training
            standard deviation (1 where it is constant). ``"common"``: all by one number, the
            root of their mean variance. None takes ``"common"`` for a bank that went through a
            projection and ``"each"`` for any other: principal components come in order of
            their variance, and to divide each by its own would have the ridge weight treat
            the last one like the first.
        run: where to compute; None means the best device.

    Returns:
        The probe on the CPU. The row of its path that was chosen describes the final fit, in
        double precision; the other rows were fitted less tightly, see their ``residual``.

    Raises:
        TypeError: if the data set holds images instead of features.
        ValueError: if features are not finite, a ridge weight is not positive, the scale is
            not one of those, there are fewer than two classes, or λ is to be chosen and
            validation is empty.

    Warns:
        RuntimeWarning: if the final fit stopped short of its tolerance.
        UserWarning: if the best λ of a given grid is its first or last.

    Example:
        >>> import tlhelpers as tl
        >>> bank = tl.features.load("pneumonia/last_layer").few(20, draw=0)
        >>> tl.probe.fit(bank, ridge=0.1)  # doctest: +NORMALIZE_WHITESPACE
        linear probe on pneumoniamnist_reduced/mobilenet_v2: 32 features → 2 classes, 40
        training examples, ridge 0.1 (given)
        >>> probe = tl.probe.fit(bank)
        >>> probe.to_frame()[["ridge", "validation_accuracy"]].head(3).round(2)
           ridge  validation_accuracy
        0   1.00                 0.82
        1   0.32                 0.84
        2   0.10                 0.84
    """
    run = runtime.default(run)
    grid = _grid(ridge)
    train, validation = bank.train, bank.validation
    _check(bank, train, validation, choose=len(grid) > 1)

    if scale is None:
        scale = "each" if getattr(bank, "projection", None) is None else "common"
    x = train.x.to(torch.float64)
    mean, std = x.mean(dim=0), _spread(x, scale)
    problem = _Problem(
        (x - mean) / std,
        train.y,
        (validation.x.to(torch.float64) - mean) / std,
        validation.y,
        classes=len(bank.classes),
    )
    # Apple's GPU has no double precision.
    exact_on = torch.device("cpu") if run.device.type == "mps" else run.device
    keep = runtime.keep_memory() if run.device.type == "cpu" else contextlib.nullcontext()
    with keep:
        fits = _walk(
            problem.to(run.device, torch.float32),
            problem.to(exact_on, torch.float64),
            grid,
            extend=ridge is None,
        )
    final, theta = fits[_best(fits)]
    _warn(bank, final, grid, given=ridge is not None)
    return Probe(
        weight=theta[:, :-1].float().cpu(),
        bias=theta[:, -1].float().cpu(),
        mean=mean.float().cpu(),
        std=std.float().cpu(),
        classes=bank.classes,
        ridge=final.ridge,
        path=tuple(fits[ridge][0] for ridge in sorted(fits, reverse=True)),
        n_train=len(train),
        data=bank.name,
        split_name=bank.split_name,
    )


@dataclass(frozen=True, eq=False)
class _Problem:
    """Standardised features and labels, and the fits on them.

    The parameters are one matrix (m, d + 1): the weights, and the bias as the last column.
    """

    x: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor
    classes: int

    def to(self, device: torch.device, dtype: torch.dtype) -> _Problem:
        return _Problem(
            self.x.to(device, dtype),
            self.y.to(device),
            self.x_validation.to(device, dtype),
            self.y_validation.to(device),
            self.classes,
        )

    def solve(
        self, ridge: float, start: Tensor, tolerance: float, evaluations: int
    ) -> tuple[Candidate, Tensor]:
        """The fit at one ridge weight, begun at ``start``, and how it does."""
        theta = start.to(self.x, copy=True).requires_grad_()
        # The criteria of the optimiser are absolute and know nothing of the ridge weight, so
        # they are switched off, and the residual is looked at after every few steps.
        optimiser = torch.optim.LBFGS(
            [theta],
            max_iter=10,
            history_size=10,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )
        count = 0

        def closure() -> Tensor:
            nonlocal count
            count += 1
            optimiser.zero_grad()
            loss = functional.cross_entropy(self.logits(self.x, theta), self.y)
            loss = loss + ridge / 2 * theta[:, :-1].square().sum()
            loss.backward()
            return loss

        residual, before = math.inf, -3
        # A round without a line search found no way down: this precision goes no further.
        while residual > tolerance and count < evaluations and count - before > 2:
            before = count
            optimiser.step(closure)
            closure()  # the line search may have looked elsewhere last
            assert theta.grad is not None
            size = ridge * float(theta.detach()[:, :-1].norm())
            gradient = float(theta.grad.norm())
            residual = 0.0 if gradient <= _ROUNDING[theta.dtype] else gradient / max(size, 1e-300)
        found = theta.detach()
        steps = int(optimiser.state[theta]["n_iter"])
        return self.describe(found, ridge, steps, residual), found

    def describe(self, theta: Tensor, ridge: float, steps: int, residual: float) -> Candidate:
        fitted = self.logits(self.x, theta).argmax(dim=1)
        train_accuracy = float((fitted == self.y).double().mean())
        if len(self.y_validation) == 0:
            nan = math.nan
            return Candidate(ridge, train_accuracy, nan, nan, nan, nan, steps, residual)
        logits = self.logits(self.x_validation, theta)
        temperature = confidence.temperature(logits, self.y_validation)
        return Candidate(
            ridge=ridge,
            train_accuracy=train_accuracy,
            validation_accuracy=float((logits.argmax(dim=1) == self.y_validation).double().mean()),
            validation_nll=float(functional.cross_entropy(logits, self.y_validation)),
            temperature=temperature,
            calibrated_nll=float(functional.cross_entropy(logits / temperature, self.y_validation)),
            iterations=steps,
            residual=residual,
        )

    @staticmethod
    def logits(x: Tensor, theta: Tensor) -> Tensor:
        return functional.linear(x, theta[:, :-1], theta[:, -1])


_Fits = dict[float, tuple[Candidate, Tensor]]


def _walk(fast: _Problem, exact: _Problem, grid: Sequence[float], *, extend: bool) -> _Fits:
    """Fit every ridge weight of the grid, more beyond an end that is the best, the best exactly.

    The path is walked in single precision, to a loose tolerance. The best candidate is then
    fitted in double precision to the tight one, and again the next one, should it turn out to
    be the best after all: so the choice never hangs on how far a fit had got.
    """
    theta = fast.x.new_zeros(fast.classes, fast.x.shape[1] + 1)
    fits: _Fits = {}
    for ridge in grid:
        fits[ridge] = fast.solve(ridge, theta, _PATH_RESIDUAL, _PATH_EVALUATIONS)
        theta = fits[ridge][1]
    lowest, highest = min(_GRID), max(_GRID)
    done: set[float] = set()
    while (best := _best(fits)) not in done:
        # Beyond an end only where that gains something: far out nothing changes any more.
        inner = sorted(fits)[1:-1]
        gain = min((fits[r][0].calibrated_nll for r in inner), default=0) - _EQUAL
        extend = extend and fits[best][0].calibrated_nll < gain
        theta = fits[best][1]
        if extend and best == min(fits) and lowest > _LIMITS[0]:
            lowest -= 1
            ridge = 10 ** (lowest / 2)
        elif extend and best == max(fits) and highest < _LIMITS[1]:
            highest += 1
            ridge = 10 ** (highest / 2)
        else:
            done.add(best)
            fits[best] = exact.solve(best, theta, _FINAL_RESIDUAL, _FINAL_EVALUATIONS)
            continue
        fits[ridge] = fast.solve(ridge, theta, _PATH_RESIDUAL, _PATH_EVALUATIONS)
    return fits


def _best(fits: _Fits) -> float:
    """The ridge weight to take: see `fit`."""
    if len(fits) == 1:
        return next(iter(fits))
    candidates = [candidate for candidate, _ in fits.values()]
    lowest = min(c.calibrated_nll for c in candidates)
    equal = [c for c in candidates if c.calibrated_nll <= lowest + _EQUAL]
    return min(equal, key=lambda c: c.validation_nll).ridge


def _spread(x: Tensor, scale: str) -> Tensor:
    """What each column is divided by: (d,) numbers, none of them 0."""
    std = x.std(dim=0, correction=0)
    if scale == "common":
        std = std.square().mean().sqrt().expand(len(std))
    elif scale != "each":
        raise ValueError(f'scale must be "each", "common" or None, found {scale!r}.')
    # A column of one repeated value can come out as rounding error instead of 0.
    constant = std <= 1e-12 * x.abs().amax(dim=0)
    return torch.where(constant, 1.0, std)


def _grid(ridge: Any) -> list[float]:
    """The ridge weights to try, from the largest to the smallest."""
    if ridge is None:
        return [10 ** (k / 2) for k in _GRID]
    values = [float(value) for value in np.atleast_1d(np.asarray(ridge, dtype=np.float64))]
    if not values:
        raise ValueError("the grid of ridge weights is empty; give one or more positive numbers.")
    if wrong := [value for value in values if not 0 < value < math.inf]:
        raise ValueError(
            f"a ridge weight must be positive and finite, found {wrong[0]:g}. Without it, "
            f"classes that can be separated drive the weights to infinity."
        )
    return sorted(set(values), reverse=True)


def _check(bank: Dataset, train: Split, validation: Split, *, choose: bool) -> None:
    if not isinstance(bank.x, Tensor):
        raise TypeError(
            f"a probe is fitted on features, an (n, d) tensor, but {bank.name} holds "
            f"{type(bank.x).__name__}. Call features.extract(data, backbone) first and fit the "
            f"probe on the bank that it returns."
        )
    if bank.x.ndim != 2:
        raise ValueError(
            f"a probe is fitted on features of shape (n, d), but those of {bank.name} have shape "
            f"{tuple(bank.x.shape)}. Extract features first, or flatten each example."
        )
    if len(bank.classes) < 2:
        raise ValueError(
            f"a classifier needs 2 classes or more, {bank.name} has {len(bank.classes)}."
        )
    for split in (train, validation):
        bad = torch.nonzero(~split.x.isfinite().all(dim=1)).flatten().tolist()
        if bad:
            first = ", ".join(split.ids[i] for i in bad[:3])
            raise ValueError(
                f"{bank.name}: {len(bad)} of {len(split):,} {split.name} examples have features "
                f"that are NaN or infinite (first: {first}). Leave them out, or find out what "
                f"the backbone was given there."
            )
    if choose and len(validation) == 0:
        raise ValueError(
            f"the ridge weight is chosen on validation, but {bank.name} has no validation "
            f"example. Hold some out of the training part, or give one number as ridge=."
        )


def _warn(bank: Dataset, final: Candidate, grid: list[float], *, given: bool) -> None:
    if final.residual > _FINAL_RESIDUAL:
        warnings.warn(
            f"the probe on {bank.name} at ridge {final.ridge:.2g} stopped after "
            f"{final.iterations} steps with residual {final.residual:.1g} "
            f"(aim: {_FINAL_RESIDUAL:g}), so its probabilities may be off by about that much. "
            f"A larger ridge weight converges in fewer steps.",
            RuntimeWarning,
            stacklevel=3,
        )
    if given and len(grid) > 1 and final.ridge in (grid[0], grid[-1]):
        end, beyond = ("largest", "larger") if final.ridge == grid[0] else ("smallest", "smaller")
        warnings.warn(
            f"the best ridge weight on {bank.name}, {final.ridge:.2g}, is the {end} of the grid; "
            f"a {beyond} one may be better still. Extend the grid, or leave ridge=None, which "
            f"extends it by itself.",
            UserWarning,
            stacklevel=3,
        )
