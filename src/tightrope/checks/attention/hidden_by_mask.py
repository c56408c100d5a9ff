"""`hidden-by-mask`: a mask that hides what attention should see.

Law       a row of attention weights is exp(l_j) / sum_j exp(l_j) over the keys j that its mask leaves. With none left
          the sum is zero: minus infinity everywhere gives 0/0 = NaN, forward and in every gradient; a large negative
          number everywhere gives 1/S, whatever the logits. A mask of inverted sense leaves what was to be hidden.
Evidence  the mask itself, put together from everything that is laid on the logits: rows without a visible key; the
          tokens at the visible keys of each sample; visible keys before and after each query.
Verdict   `fault` where a row without a key makes NaN; where every key of every query is hidden; where the visible keys
          are one run at an edge of each sample, of other lengths in other samples, and hold one and the same token in
          the whole batch, while the hidden ones differ (the padding is seen and the data is not). Every query sees only
          itself and later keys: `fault` where the targets are the next tokens, else `warning`.
Remedy    turn the mask round (`invert-mask`): `masked_fill` and `key_padding_mask` hide where it is True,
          `scaled_dot_product_attention` where it is False; drop empty sequences or leave them one key (`leave-a-key`).
Limits    rows of padded queries may see nothing as long as they stay finite: nobody reads them. Attention against
          time beside attention along time (a pair of directions) is no fault. Masks that depend on weights are unknown.
References  Vaswani et al. (2017), Attention is all you need, section 3.2.3.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.checks.attention.masks import Mask, masks, tokens
from tightrope.checks.echoes import AFTERMATH
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject

STAGE = "batch"
EXPLAINS = AFTERMATH
REMEDIES = ("leave-a-key", "invert-mask")

CLASSES = ("cross_entropy", "nll_loss")
LENGTH = 4  # positions from which on a direction can be told
SAMPLES = 4  # samples of two lengths or more: by chance equal tokens in all of them are one in K^3 and less


def judge(study: Study) -> Iterator[Finding]:
    """One finding for each mask, the most certain of its faults."""
    found = list(masks(study.tape))
    forward = any(_direction(mask.hidden) == 1 for mask in found)
    for mask in found:
        finding = _against_time(study, mask) if not forward else None
        finding = finding or _padding(study, mask) or _nothing(study, mask)
        if finding is not None:
            yield finding


def _nothing(study: Study, mask: Mask) -> Finding | None:
    """Rows in which no key is left."""
    empty = mask.hidden.all(-1)
    units = study.measurement.units.get(mask.entry.outputs[0])
    share, count = float(empty.double().mean()), int(empty.sum())
    if not count:
        return None
    broken = units is not None and units.nonfinite > 0 and mask.infinite
    if not broken and count < empty.numel():
        return None
    leads = "their softmax is 0/0" if broken else "all keys weigh the same"
    text = f"{count} of {empty.numel()} rows of attention have no key that is not masked: {leads}; level: 0 rows"
    return _finding(study, mask, text, Evidence("rows without a visible key", count, 0.0), share)


def _padding(study: Study, mask: Mask) -> Finding | None:
    """The visible keys are the padding."""
    visible = _keys(mask.hidden, study.tape.samples)
    if visible is None:
        return None
    for content in tokens(study, *visible.shape):
        mixed = visible.any(1) & ~visible.all(1)
        lengths = visible[mixed].sum(1)
        if len(lengths) < SAMPLES or len(lengths.unique()) < 2 or not _at_an_edge(visible[mixed]):
            continue
        seen, unseen = content[mixed][visible[mixed]], content[mixed][~visible[mixed]]
        if bool((seen == seen[0]).all()) and not bool((unseen == unseen[0]).all()):
            values = int(unseen.unique(dim=0).shape[0])
            text = (
                f"the mask hides the data and leaves the padding: all {len(seen)} visible positions hold the same, the "
                f"{len(unseen)} hidden ones {values} different tokens"
            )
            return _finding(study, mask, text, Evidence("different tokens among the visible keys", 1.0, values), 1.0)
    return None


def _against_time(study: Study, mask: Mask) -> Finding | None:
    """Every query sees later keys, none an earlier one."""
    if _direction(mask.hidden) != -1:
        return None
    answers = _targets_follow(study)
    text = f"every query of {mask.hidden.shape[-1]} sees only what comes after it, and nothing of what came before"
    text += "; the targets are the next tokens, which it sees" if answers else ""
    severity = Severity.FAULT if answers or bool(mask.hidden.all(-1).any()) else Severity.WARNING
    return _finding(study, mask, text, Evidence("visible keys before the query", 0.0), 1.0, severity)


def _direction(hidden: Tensor) -> int:
    """1 for attention to earlier keys, -1 to later ones, 0 for any other; one's own key may be seen or not."""
    if hidden.ndim < 2 or hidden.shape[-1] != hidden.shape[-2] or hidden.shape[-1] < LENGTH:
        return 0
    size = hidden.shape[-1]
    seen = ~hidden.reshape(-1, size, size).all(0)
    below, above = torch.ones(size, size).tril(-1).bool(), torch.ones(size, size).triu(1).bool()
    if not bool(seen[above].any()) and bool(seen[below].any()):
        return 1
    return -1 if not bool(seen[below].any()) and bool(seen[above].all()) else 0


def _keys(hidden: Tensor, samples: int | None) -> Tensor | None:
    """(samples, keys): which keys any query of a sample sees; None where samples are not told apart."""
    if samples is None or hidden.ndim < 2 or hidden.shape[0] % samples or samples < SAMPLES:
        return None
    return (~hidden).reshape(samples, -1, hidden.shape[-1]).any(1)


def _at_an_edge(visible: Tensor) -> bool:
    """Whether in every row the visible positions are one run at the same end."""
    falling = (visible[:, :-1] >= visible[:, 1:]).all()
    rising = (visible[:, :-1] <= visible[:, 1:]).all()
    return bool(falling | rising)


def _targets_follow(study: Study) -> bool:
    """Whether the classes that the loss asks for are the tokens one place on."""
    tape = study.tape
    looked_up = {e.inputs[0] for e in tape.entries if e.op == "embedding"}
    read = [tape.values[n].content for n in looked_up]
    asked = [tape.values[e.inputs[1]].content for e in tape.entries if e.op in CLASSES and len(e.inputs) > 1]
    return any(_follows(t, ids) for t in asked for ids in read if t is not None and ids is not None)


def _follows(target: Tensor, ids: Tensor) -> bool:
    """Whether targets, past those that the loss leaves out, are the tokens (N, T) one place on."""
    if ids.ndim != 2 or ids.shape[1] < LENGTH or target.is_floating_point() or target.numel() % ids.shape[0]:
        return False
    rows, width = target.reshape(ids.shape[0], -1), ids.shape[1] - 1
    if rows.shape[1] not in (width, width + 1):
        return False
    rows, following = rows[:, :width], ids[:, 1:]
    counted = rows >= 0
    return bool(counted.any()) and torch.equal(rows[counted], following[counted])


def _finding(
    study: Study, mask: Mask, text: str, evidence: Evidence, share: float, severity: Severity = Severity.FAULT
) -> Finding:
    return Finding(
        "hidden-by-mask", severity, mask.entry.module, str(study.tape.location(mask.source)), text,
        (evidence, Evidence("share of the rows concerned", share, 0.0)), mask.source.index,
        modules=(mask.entry.module,),
    )  # fmt: skip


class _Reader(nn.Module):
    """Self-attention over embedded tokens whose padding (token 0) is masked, and a head on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Embedding(30, 32), nn.Linear(32, 96), nn.Linear(32, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """Class scores (N, 2) of token numbers (N, T)."""
        q, k, v = self.qkv(self.embed(ids)).chunk(3, -1)
        logits = (q @ k.transpose(1, 2) / 32**0.5).masked_fill((ids == 0)[:, None], -torch.inf)
        scores: Tensor = self.head((logits.softmax(-1) @ v).mean(1))
        return scores


def sick() -> Subject:
    """A batch in which one sequence is nothing but padding."""
    return _example(0)


def healthy() -> Subject:
    """The same batch, and no sequence is empty."""
    return _example(3)


def _example(shortest: int) -> Subject:
    torch.manual_seed(0)
    ids = torch.randint(1, 30, (16, 12))
    ids[torch.arange(12) >= torch.linspace(shortest, 12, 16).long()[:, None]] = 0
    return Subject(_Reader(), (ids, torch.arange(16) % 2), F.cross_entropy)
