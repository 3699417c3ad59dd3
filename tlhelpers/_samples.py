"""Two samples side by side: checked, compared, and told apart by a classifier.

``discrepancy``, ``reweight``, ``adapt`` and ``combine`` stand on this module. The functions that
compare do not check: the public ones do so first, and a training loop need not in each step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

ArrayLike = Any  # a torch tensor, a NumPy array, or nested sequences of numbers

# --- input --------------------------------------------------------------------------------


def pair(
    source: ArrayLike, target: ArrayLike, *, what: str = "features", least: int = 2
) -> tuple[Tensor, Tensor]:
    """Two floating-point samples (n, d) and (m, d) of one dtype, on one device."""
    a, b = (
        _sample(x, f"{name} {what}", least) for x, name in ((source, "source"), (target, "target"))
    )
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"source and target {what} should have the same width, found {a.shape[1]} and "
            f"{b.shape[1]}. Take both from one backbone."
        )
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(a.device, dtype)


def _sample(sample: ArrayLike, name: str, least: int) -> Tensor:
    refuse_labels(sample, name)
    x = torch.as_tensor(sample)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"{name} should have the shape (n, d), found {tuple(x.shape)}.")
    if len(x) < least:
        raise ValueError(f"{name} should be of {least} examples or more, found {len(x)}.")
    if bad := int((~x.isfinite()).any(dim=1).sum()):
        raise ValueError(
            f"{name} should be finite, but {bad} of {len(x):,} rows hold NaN or infinity. Leave "
            f"them out, or find out where they come from."
        )
    return x


def refuse_labels(sample: Any, name: str) -> None:
    """Splits and pairs bring labels along, which no method here takes from the target."""
    if dataclasses.is_dataclass(sample):  # a split, a data set, a pair of domains
        found = type(sample).__name__
        advice = "Give its x"
    elif (
        isinstance(sample, tuple)
        and len(sample) == 2
        and all(isinstance(part, Tensor) for part in sample)
    ):
        found = "two tensors, which look like inputs and labels"
        advice = "Give the first"
    else:
        return
    raise TypeError(
        f"{name}: inputs alone are wanted, found {found}. {advice}: no method here takes labels "
        f"from the target."
    )


def check_inputs(x: Any, name: str) -> None:
    """Examples of any shape: one floating-point tensor (n, ...), not empty, and finite."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{name}: the examples should be one floating-point tensor, found {found}. Stack the "
            f"images, or extract features first (features.extract)."
        )
    if not len(x):
        raise ValueError(f"{name} is empty: there should be one example or more.")
    if bad := int((~x.reshape(len(x), -1).isfinite()).any(dim=1).sum()):
        raise ValueError(
            f"{name}: {bad} of {len(x):,} examples hold NaN or infinity. Leave them out, or find "
            f"out where they come from."
        )


# --- means and covariances ----------------------------------------------------------------


def mmd_squared(a: Tensor, b: Tensor, widths: Sequence[float], *, unbiased: bool) -> Tensor:
    """What ``discrepancy.mmd_squared`` says."""
    n, m = len(a), len(b)
    kernel = gaussian_kernel(squared_distances(torch.cat([a, b])), widths)
    within_a, within_b, across = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
    if unbiased:  # the diagonal of a Gaussian kernel is 1
        inside = (within_a.sum() - n) / (n * (n - 1)) + (within_b.sum() - m) / (m * (m - 1))
    else:
        inside = within_a.mean() + within_b.mean()
    return inside - 2 * across.mean()


def squared_distances(z: Tensor) -> Tensor:
    """(n, n), with gradients also where two examples are equal."""
    z = z - z.detach().mean(dim=0)  # smaller numbers, so that the difference below stays exact
    lengths = z.square().sum(dim=1)
    squared = (lengths[:, None] + lengths - 2 * z @ z.T).clamp(min=0)
    return squared * (1 - torch.eye(len(z), dtype=z.dtype, device=z.device))


def median_distance(squared: Tensor) -> float:
    """Over all pairs of different examples."""
    rows, columns = torch.triu_indices(len(squared), len(squared), offset=1)
    return float(np.median(squared[rows, columns].sqrt().cpu().numpy()))


def gaussian_kernel(squared: Tensor, widths: Sequence[float]) -> Tensor:
    """The mean of one kernel for each width, at these squared distances."""
    kernels = [torch.exp(-squared / (2 * width**2)) for width in widths]
    return torch.stack(kernels).mean(dim=0)


def coral_distance(a: Tensor, b: Tensor) -> Tensor:
    """What ``discrepancy.coral_distance`` says."""
    gap = covariance(a) - covariance(b)
    return gap.square().sum() / (4 * a.shape[1] ** 2)


def covariance(x: Tensor) -> Tensor:
    """(d, d), over n - 1."""
    centred = x - x.mean(dim=0)
    return centred.T @ centred / (len(x) - 1)


# --- a classifier of domains --------------------------------------------------------------


def domain_scores(
    source: ArrayLike, target: ArrayLike, folds: int, ridge: float, seed: int, *, balanced: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out log odds for "target", and whether it is: both (n + m,)."""
    a, b = pair(source, target)
    if not 2 <= folds <= (fewest := min(len(a), len(b))):
        raise ValueError(
            f"folds should lie in 2..{fewest}, since the smaller domain has {fewest} examples; "
            f"found {folds}."
        )
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge should be a number above 0, found {ridge}.")
    x = torch.cat([a, b]).detach().cpu().double().numpy()
    domain = np.repeat([False, True], [len(a), len(b)])
    classifier = make_pipeline(
        StandardScaler(),
        LogisticRegression(
            C=1 / ridge, class_weight="balanced" if balanced else None, max_iter=1000
        ),
    )
    dealt = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return cross_val_predict(classifier, x, domain, cv=dealt, method="decision_function"), domain
