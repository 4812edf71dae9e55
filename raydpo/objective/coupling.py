"""What a coupled loss makes of a global batch: the value of every row, and the slope of every token's log-prob.

A coupled loss needs the log-probs of all rows before the gradient of any is known. So they are scored first, without
gradient, and put together here. The slopes go into a second pass as the coefficients of a linear loss, whose gradient
is that of the coupled one. Values and slopes are made in float64, in an order of the rows that rests on their names
alone: neither micro-batches nor ranks have a say in it.

Legend: B rows of the global batch, b of them in a part; C, c completions; M, m completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from raydpo.objective.contract import Mean, Objective, ScoredRows

SLOPE = "slope"
"""The column of tokens with the derivative of the loss of the global batch by their log-prob."""


@dataclass(frozen=True)
class Part:
    """One micro-batch of one rank, scored without gradient."""

    rows: ScoredRows
    names: Sequence[str]  # of its rows


@dataclass(frozen=True)
class Coupled:
    """What a coupled loss of the global batch is for one part of it."""

    losses: Tensor  # [b], float64
    slopes: Tensor  # [m], float64
    metrics: dict[str, Mean]


def couple(objective: Objective, parts: Sequence[Part]) -> list[Coupled]:
    """The loss of a global batch, given as all of its parts, in terms of each part."""
    names = [name for part in parts for name in part.names]
    # By name, because the last digits of a sum depend on the order in which it is added up.
    order = torch.tensor(sorted(range(len(names)), key=names.__getitem__))
    ordered, tokens = in_order(joined([part.rows for part in parts]), order)
    leaf = ordered.token_logps.requires_grad_()
    values = objective.loss(ordered)
    (slopes,) = torch.autograd.grad(values.sum(), leaf)
    metrics = objective.metrics(replace(ordered, token_logps=leaf.detach()))
    losses = _put_back(values.detach(), order)
    slopes = _put_back(slopes, tokens)
    metrics = {name: Mean(_put_back(mean.total, order), _put_back(mean.count, order)) for name, mean in metrics.items()}
    found = []
    row = 0
    token = 0
    for part in parts:
        rows = slice(row, row + part.rows.num_rows)
        of_part = {name: Mean(mean.total[rows], mean.count[rows]) for name, mean in metrics.items()}
        token_end = token + len(part.rows.token_logps)
        found.append(Coupled(losses[rows], slopes[token:token_end], of_part))
        row = rows.stop
        token = token_end
    return found


def linear(rows: ScoredRows) -> Tensor:
    """The sums over each row of slope times log-prob, [B]; a loss with the gradient of the coupled one."""
    products = rows.token_columns[SLOPE] * rows.token_logps
    return rows.sum_by_row(rows.sum_by_completion(products), rows.row)


def joined(parts: Sequence[ScoredRows]) -> ScoredRows:
    """The rows of all parts one behind the other, in float64."""
    completions_before = accumulate((len(part.row) for part in parts), initial=0)
    rows_before = accumulate((part.num_rows for part in parts), initial=0)
    owners = [part.owner + before for part, before in zip(parts, completions_before, strict=False)]
    rows = [part.row + before for part, before in zip(parts, rows_before, strict=False)]
    return ScoredRows(
        torch.cat([part.token_logps for part in parts]).double(),
        owner=torch.cat(owners),
        row=torch.cat(rows),
        num_rows=sum(part.num_rows for part in parts),
        columns={name: _exact([part.columns[name] for part in parts]) for name in parts[0].columns},
        token_columns={name: _exact([part.token_columns[name] for part in parts]) for name in parts[0].token_columns},
    )


def in_order(rows: ScoredRows, order: Tensor) -> tuple[ScoredRows, Tensor]:
    """The rows in another order, in which the k-th is now number order[k]; and which token each one was, [M].

    Within a row nothing moves. Three rows of one completion each, of 1, 2 and 1 tokens:

        order         2 0 1
        token_logps   -1 -2 -3 -4   become   -4 -1 -2 -3
        tokens        3 0 1 2
    """
    place = _put_back(torch.arange(len(order)), order)
    completions = place[rows.row].argsort(stable=True)
    new_number = _put_back(torch.arange(len(completions)), completions)
    tokens = new_number[rows.owner].argsort(stable=True)
    ordered = ScoredRows(
        rows.token_logps[tokens],
        owner=new_number[rows.owner][tokens],
        row=place[rows.row][completions],
        num_rows=rows.num_rows,
        columns={name: values[completions] for name, values in rows.columns.items()},
        token_columns={name: values[tokens] for name, values in rows.token_columns.items()},
    )
    return ordered, tokens


def _put_back(values: Tensor, order: Tensor) -> Tensor:
    """Undo values = original[order]."""
    original = torch.empty_like(values)
    original[order] = values
    return original


def _exact(values: Sequence[Tensor]) -> Tensor:
    together = torch.cat(list(values))
    # Labels and ranks stay what they are; only numbers that are computed with need the digits.
    return together.double() if together.is_floating_point() else together
