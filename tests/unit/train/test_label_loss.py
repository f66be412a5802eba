"""The loss at labelled positions: equal to the plain one, whatever the chunks and the output layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llava.model import label_loss as module
from llava.model.label_loss import LanguageHead, label_loss
from llava.model.sequence_plan import AttentionPlan, LossPlan, SequencePlan, plan_packed, plan_rows, plan_sequence
from llava.train.planning import plan_loss

WIDTH, VOCABULARY = 8, 50
ROWS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15]]
LABELS = [[-100, 6, 7, -100], [-100, -100], [-100, 12, -100, 14, 15]]


def planned(is_packed: bool) -> SequencePlan:
    sequences = [
        plan_sequence(torch.tensor(row), torch.tensor(y), (), None) for row, y in zip(ROWS, LABELS, strict=True)
    ]
    plan = (plan_packed if is_packed else plan_rows)(sequences)
    return plan if not is_packed else plan.__class__(**{**vars(plan), "attention": AttentionPlan(plan.lengths)})


class Wrapped(nn.Module):
    """An adapted or quantised output layer: not a `LanguageHead`."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.inner = head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden) + 0.5 * hidden.sum(-1, keepdim=True)


def gradients(loss: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, tensors))


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("wraps", [True, False])
@pytest.mark.parametrize("average", ["token", "sample"])
def test_equals_the_plain_loss(is_packed: bool, wraps: bool, average: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 2)
    torch.manual_seed(0)
    plan = planned(is_packed)
    weight = LanguageHead(WIDTH, VOCABULARY, bias=False)
    head = Wrapped(weight) if wraps else weight
    hidden = torch.randn(*plan.token_ids.shape, WIDTH, requires_grad=True)
    loss = label_loss(head, hidden, plan_loss(plan, average))

    logits = head(hidden)[:, :-1].flatten(0, 1)
    targets = plan.labels[:, 1:].flatten()
    expected = F.cross_entropy(logits, targets)
    if average == "sample":
        each = F.cross_entropy(logits, targets, reduction="none")
        labelled = targets != -100
        first = targets < 10  # the first sample's labels
        expected = (each[labelled & first].mean() + each[labelled & ~first].mean()) / 2
    torch.testing.assert_close(loss, expected)
    for one, other in zip(
        gradients(loss, hidden, weight.weight), gradients(expected, hidden, weight.weight), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_without_labels_everything_has_a_gradient() -> None:
    head = LanguageHead(WIDTH, VOCABULARY, bias=False)
    hidden = torch.randn(1, 4, WIDTH, requires_grad=True)
    none = torch.empty(0, dtype=torch.long)
    loss = label_loss(head, hidden, LossPlan(none, none))
    assert loss == 0
    assert all(not grad.any() for grad in gradients(loss, hidden, head.weight))


def test_memory_does_not_grow_with_the_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that the loss makes belongs to a chunk."""
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 16)
    sizes: list[int] = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            sizes.extend(x.numel() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor))
            return out

    head = LanguageHead(WIDTH, VOCABULARY, bias=False)
    for length in (64, 640):
        hidden = torch.randn(1, length, WIDTH, requires_grad=True)
        targets = torch.randint(VOCABULARY, (length,))
        sizes.clear()
        with Sizes():
            label_loss(head, hidden, LossPlan(torch.arange(length), targets)).backward()
        assert max(sizes) <= max(16 * VOCABULARY, length * WIDTH)
