"""Preflight checks: the classic traps of transfer learning, looked for in a reader's own set-up.

:func:`check` takes the network in the state in which training would begin, and whatever else
there is: the optimiser, the data, a training step, an evaluation, the preprocessing. It looks
at what these *do* (it runs the network, the step, the evaluation a few times) and not at how
they are written, and puts everything back as it was::

    audit = tl.audit.check(network, optimizer=optimizer, data=data, step=step)
    print(audit)  # a line if clean, else a sentence for each finding: what it is, what to do

:data:`CHECKS` lists the checks. What cannot be seen from outside is not guessed: what is meant
to be frozen (only ``frozen`` says so), whether weights are pretrained (only ``weights``),
on what data a choice was made (only ``chosen_on``), whether a plain stack of layers is meant to
flatten its maps, whether images were augmented before they were split. Check with images of
the size that you train on: at 32 pixels the maps of most networks are 1×1, and pooled or not is
the same.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tlhelpers import (
    _audit_data,
    _audit_evaluation,
    _audit_network,
    _audit_preprocessing,
    _audit_training,
)
from tlhelpers._audit_check import ERROR, NOTE, Check, how_many
from tlhelpers._audit_setup import CallableError, Lacking, Setup

# The edge of an audit with errors, with notes alone, and without findings.
_RED, _BLUE, _GREEN = "#d55e00", "#0173b2", "#029e73"


@dataclass(frozen=True)
class Finding:
    """One trap that a set-up falls into.

    Attributes:
        id: a key of :data:`CHECKS`.
        what: what was found in this set-up, with its figures.
        why: why that harms.
        fix: what to do.
        evidence: the measurements behind ``what``, by name.
        severity: ``"error"``, or ``"note"`` for advice and for what may be on purpose.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(dim=1))
        >>> audit = tl.audit.check(network, data=(torch.randn(8, 4), torch.arange(8) % 3))
        >>> finding = audit.findings[0]
        >>> finding.id, finding.severity
        ('softmax-before-loss', 'error')
        >>> print(finding.fix)
        Return the scores themselves, without a softmax; apply it where probabilities are shown.
    """

    id: str
    what: str
    why: str
    fix: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    severity: str = ERROR

    def __str__(self) -> str:
        mark = "" if self.severity == ERROR else f" ({self.severity})"
        return f"{self.id}{mark}: {self.what} {self.fix}"


class AuditError(ValueError):
    """Raised by :meth:`Audit.raise_if_any`; the message is the audit's text."""


@dataclass(frozen=True)
class Audit:
    """What :func:`check` found; true where it found nothing.

    Attributes:
        findings: errors first, then notes; within each in the order of :data:`CHECKS`.
        passed: ids of the checks that ran and found nothing.
        skipped: id to what the check would have needed.
    """

    findings: tuple[Finding, ...]
    passed: tuple[str, ...]
    skipped: Mapping[str, str]

    def __bool__(self) -> bool:
        return not self.findings

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the findings."""
        return tuple(finding.id for finding in self.findings)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that are more than advice."""
        return tuple(f for f in self.findings if f.severity == ERROR)

    @property
    def notes(self) -> tuple[Finding, ...]:
        """The findings that are advice, or may be on purpose."""
        return tuple(f for f in self.findings if f.severity == NOTE)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.findings), self._summary()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<li><strong>{html.escape(f.id)}</strong>{' (note)' if f.severity == NOTE else ''}: "
            f"{html.escape(f.what)} <em>{html.escape(f.fix)}</em></li>"
            for f in self.findings
        )
        body = f"<ul>{rows}</ul>" if rows else ""
        colour = _RED if self.errors else _BLUE if self.notes else _GREEN
        # Set here what must hold on Colab too, which has no style sheet of ours.
        style = (
            f"border-left: 4px solid {colour}; padding: 0.3em 0.9em; margin: 0.5em 0; "
            f"overflow-wrap: anywhere;"
        )
        summary = html.escape(self._summary())
        return f'<div class="tl-audit" style="{style}">{body}<p>{summary}</p></div>'

    def _summary(self) -> str:
        """``Audit: clean; 12 checks passed; 14 skipped for lack of data, step.``"""
        counts = [
            f"{len(found)} {word}{'s' if len(found) > 1 else ''}"
            for word, found in ((ERROR, self.errors), (NOTE, self.notes))
            if found
        ]
        outcome = " and ".join(counts) or "clean"
        line = f"Audit: {outcome}; {how_many(len(self.passed), 'check')} passed"
        if self.skipped:
            lacking = list(dict.fromkeys(self.skipped.values()))
            line += f"; {len(self.skipped)} skipped for lack of {', '.join(lacking)}"
        return line + "."

    def to_frame(self) -> pd.DataFrame:
        """A row for each check that there is: id, outcome, what, why, fix.

        The outcome is ``error``, ``note``, ``passed`` or ``skipped``; for a skipped check,
        ``what`` says what it would have needed.
        """
        found = {f.id: f for f in self.findings}
        rows = []
        for name in CHECKS:
            if name in found:
                f = found[name]
                rows.append((name, f.severity, f.what, f.why, f.fix))
            elif name in self.skipped:
                rows.append((name, "skipped", f"needs {self.skipped[name]}", "", ""))
            else:
                rows.append((name, "passed", "", "", ""))
        return pd.DataFrame(rows, columns=["id", "outcome", "what", "why", "fix"])

    def raise_if_any(self, *, notes: bool = False) -> Audit:
        """The audit itself, or an :class:`AuditError` if it holds an error.

        Args:
            notes: raise for notes too.
        """
        if self.errors or (notes and self.notes):
            raise AuditError(str(self))
        return self


def check(
    network: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    data: Any = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    classes: int | Sequence[str] | None = None,
    frozen: Any = None,
    step: Callable[[Tensor, Tensor], Any] | None = None,
    evaluate: Callable[..., Any] | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    preprocess_eval: Callable[[Any], Any] | None = None,
    weights: Any = None,
    loader_loss: Callable[[list[tuple[Tensor, Tensor]]], Any] | None = None,
    features: Callable[[Tensor], Any] | None = None,
    readings: Sequence[str] | None = None,
    chosen_on: Any = None,
    metric: str = "accuracy",
) -> Audit:
    """Look for the classic traps in a set-up, before it trains.

    Everything but the network is optional; a check that lacks what it needs is skipped, and
    the audit says so. The network, the optimiser, modes, gradients, random number generators
    and the log of the test split are as before when this returns, also where one of the
    callables raises. What only the callables know, such as a scheduler, a generator or a
    counter of their own, cannot be put back: hand in a step without them.

    Args:
        network: the whole model, head included, in the state in which training would begin.
            Loops call ``train()`` at the top of each epoch, and so do the checks.
        optimizer: as it will be used.
        data: a :class:`~tlhelpers.splits.Dataset`; or any object whose ``train``,
            ``validation`` and ``test`` (those that it has) hold ``x``, ``y`` and perhaps ``ids``,
            or are pairs (x, y); or one batch (x, y) of training data as the loop feeds it.
        loss: ``loss(logits, y)``, a scalar, as in training.
        classes: their number m, or their names; by default ``data.classes``.
        frozen: what is meant to be frozen: a module of ``network``, the beginning of names
            (``"layer1"``), or a list of these. Without it, the checks on frozen parts take
            those modules whose parameters all have ``requires_grad=False``.
        step: ``step(x, y)``, one training step on ``network``: forward, backward, optimiser.
        evaluate: the evaluation of ``network``: without arguments, or ``evaluate(x)``. It is called
            as at the end of an epoch, with the network in training mode.
        preprocess: from one image to a tensor, as in training. It is tried on PIL images, on
            uint8 tensors and on float tensors in 0..1.
        preprocess_eval: the same for validation.
        weights: what the pretrained weights are: a member of a torchvision weights enum, its
            name, ``True`` for ``pretrained=True``, a :class:`~tlhelpers.models.Preprocess`, or
            anything with one as ``preprocess``.
        loader_loss: ``loader_loss(batches)``, the loss as it is averaged over an epoch.
        features: from x to the features that a probe gets.
        readings: the reasons of the readings of the test split so far; by default
            ``data.test.readings``.
        chosen_on: what epochs or settings are chosen on: ``"validation"``, a split, ids, or row
            numbers of ``data``.
        metric: what is reported.

    Raises:
        TypeError: if ``network`` is no module, or ``data`` or ``chosen_on`` has none of the forms
            above.
        ValueError: if ``frozen`` names nothing in the network, or a lazy layer has no shape yet.

    >>> network = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1))
    >>> audit = check(network, data=(torch.randn(8, 4), torch.arange(8) % 3))
    >>> audit.ids
    ('softmax-before-loss',)
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network should be an nn.Module, found {type(network).__name__}.")
    tensors = [*network.named_parameters(), *network.named_buffers()]
    if lazy := [name for name, tensor in tensors if is_lazy(tensor)]:
        raise ValueError(
            f"{lazy[0]} has no shape yet: a lazy layer gets it from its first batch. Run the "
            f"network on one batch before the optimiser is built, then check it."
        )
    if isinstance(chosen_on, int):
        raise TypeError(
            f"chosen_on should be 'validation', a split, ids or row numbers, found {chosen_on!r}."
        )
    setup = Setup(
        network=network,
        optimizer=optimizer,
        data=data,
        loss=loss,
        class_names=classes,
        frozen=frozen,
        step=step,
        evaluate=evaluate,
        preprocess=preprocess,
        preprocess_eval=preprocess_eval,
        weights=weights,
        loader_loss=loader_loss,
        features=features,
        readings=readings,
        chosen_on=chosen_on,
        metric=metric,
    )
    return _run(setup)


# In the order in which they run. step_fails tells what failed on the way, and stays the last.
_CHECKS: tuple[Check, ...] = (
    _audit_training.batchnorm_drift,
    _audit_training.eval_undone,
    _audit_training.dropout_in_frozen,
    _audit_training.nothing_trains,
    _audit_training.frozen_but_trained,
    _audit_training.optimizer_misses,
    _audit_training.optimizer_holds_frozen,
    _audit_training.missing_zero_grad,
    _audit_training.one_rate,
    _audit_network.missing_flatten,
    _audit_network.unpooled_features,
    _audit_network.logits_as_features,
    _audit_network.head_shape,
    _audit_network.softmax_before_loss,
    _audit_evaluation.evaluates_in_train_mode,
    _audit_evaluation.test_time_batch_statistics,
    _audit_evaluation.batch_averaged_loss,
    _audit_preprocessing.resize_without_crop,
    _audit_preprocessing.squashed,
    _audit_preprocessing.wrong_normalisation,
    _audit_preprocessing.augmented_validation,
    _audit_data.labels,
    _audit_data.imbalanced_accuracy,
    _audit_data.selected_on_test,
    _audit_data.duplicates,
    _audit_preprocessing.unnamed_weights,
    _audit_training.step_fails,
)

CHECKS: Mapping[str, str] = MappingProxyType({entry.id: entry.sentence for entry in _CHECKS})
"""Each check's id and the trap that it looks for, in a sentence."""


def _run(setup: Setup) -> Audit:
    findings: list[Finding] = []
    passed: list[str] = []
    skipped: dict[str, str] = {}
    for entry in _CHECKS:
        try:
            with setup.untouched():
                found = entry.look(setup)
        except Lacking as lacking:
            skipped[entry.id] = str(lacking)
        except CallableError as who:
            skipped[entry.id] = f"{who} without an exception"
        else:
            if found is None:
                passed.append(entry.id)
                continue
            fix = found.fix or entry.fix
            findings.append(
                Finding(entry.id, found.what, entry.why, fix, found.evidence, found.severity)
            )
    findings.sort(key=lambda f: f.severity != ERROR)  # stable: the order of CHECKS within each
    return Audit(tuple(findings), tuple(passed), skipped)
