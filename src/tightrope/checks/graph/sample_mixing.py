"""`sample-mixing`: a model whose output for one sample depends on the other samples of the batch.

Law       a model of independent samples is a function f applied to each: y_i = f(x_i), so d y_i / d x_j = 0 for i != j.
          A loss that holds y_i against target i then learns f. Where elements of several samples meet in one row, the
          row's target belongs to one of them: of B samples that meet, a share 1 / B of what the row holds has to do
          with its target.
Evidence  the recorded calls are made again with one sample replaced by another of the batch; the share of the other
          samples whose scores change, and the first call whose result holds the change outside its own sample.
Verdict   where other samples' scores change, or not even the sample's own: `fault` when that call is a view that leaves
          the batch's length in place, or a recurrence or attention that runs over the batch while another dimension
          stands in its place; `warning` for a tensor that is centred or scaled by its own statistics over the batch in
          evaluation mode too.
Remedy    move the batch to the front before the view, `batch_first=True`, statistics over the features
          (`separate-samples`).
Limits    batch norm mixes on purpose. Mixing by products (graphs, retrieval, contrastive scores), by statistics that
          are handed on as features, and over inputs without a second dimension is taken as meant. An axis of the input
          along which output and target correspond one to one, first or second, is enough to be silent.
References  Ioffe, Szegedy (2015), Batch normalization, ICML, for the mixing that is meant; Karpathy (2019), A recipe
          for training neural networks, for the dependency test.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.graph.mixing import Reach, data_of, reach
from tightrope.checks.loss.heads import LossTerm, loss_terms
from tightrope.checks.trace import VIEWS
from tightrope.finding import Evidence, Finding, Severity
from tightrope.replay import Replay
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.rerun import Unplayable
from tightrope.tape.tape import RECURRENT, Entry, Tape

STAGE = "batch"
EXPLAINS = (
    "vanishing-signal", "rank-collapse", "init-too-small", "train-eval-mismatch", "correlated-batch", *AFTERMATH,
)  # fmt: skip
REMEDIES = ("separate-samples",)

STATISTICS = frozenset(("mean", "var", "std", "var_mean", "std_mean", "sum", "norm", "amax", "amin", "median"))
"""Reductions that a tensor may be centred or scaled by."""
MOVED = frozenset(("sub", "div", "mul", "rsub"))
ATTENTION = frozenset(("scaled_dot_product_attention", "bmm", "baddbmm", "matmul"))
WEIGHED = frozenset(("linear", "conv1d", "conv2d", "conv3d"))
REGROUPING = frozenset(("view", "reshape", "flatten", "unflatten"))
LOSSES = frozenset(("cross_entropy", "nll", "bce_logits", "bce", "mse", "l1"))
MOST = 20_000
"""Calls of a step that is not run again."""


def judge(study: Study) -> Iterator[Finding]:
    """At most one finding: the first call that mixes the samples of a loss's scores."""
    if len(study.tape.entries) > MOST:
        return
    for term in loss_terms(study.tape):
        if term.kind not in LOSSES or term.target is None:
            continue
        try:
            found = _mixed(study.tape, term)
        except Unplayable:
            continue
        if found is not None and found.first is not None:
            finding = _named(study, term, found, found.first)
            if finding is not None:
                yield finding
                return


def _mixed(tape: Tape, term: LossTerm) -> Reach | None:
    """What mixes samples along every axis that may hold them; None when along one of them nothing does."""
    sources = data_of(tape, term)
    assert term.target is not None
    lengths = tape.values[term.target].shape
    if not sources or tape.values[term.scores].shape[:1] != lengths[:1]:
        return None
    tried: list[Reach] = []
    for number in sources:
        shape = tape.values[number].shape
        tried += [reach(tape, term.scores, sources, axis, shape[axis]) for axis in sources[number]]
        if any(found.first is None or (found.own and not found.mixed) for found in tried):
            return None
        if len(tried) > 2:
            break
    return tried[0] if tried else None


def _named(study: Study, term: LossTerm, found: Reach, entry: Entry) -> Finding | None:
    tape = study.tape
    shape = tape.values[found.source].shape
    severity, location = Severity.FAULT, str(entry.location)
    if entry.op in WEIGHED:
        entry = _behind(tape, term, found.source) or entry
        location = str(entry.location)
    if entry.op in VIEWS:
        what = f"{entry.op} from {list(shape)} to {list(tape.values[entry.outputs[0]].shape)} mixes samples"
    elif entry.op in RECURRENT and _swapped(tape, term, shape):
        what, location = f"{entry.op} runs over the batch: it reads {list(shape)} time first", _built(tape, entry)
    elif entry.op in ATTENTION and _attends(tape, term, entry):
        what, location = "attention runs over the batch: the module reads time first", _built(tape, entry)
    elif entry.op in STATISTICS and _moves(tape, entry, found.source) and _evaluated(study.replay, entry):
        what, severity = f"{entry.op} over the batch scales each sample by the others", Severity.WARNING
    else:
        return None
    if found.own:
        fact = f"{what}; another sample in one place changes the scores of {found.mixed:.3g} of the others"
        evidence = (Evidence("share of other samples whose scores change", found.mixed, 0.0),)
    else:
        fact = f"{what}; another sample in one place changes no scores at all, its own included"
        evidence = (Evidence("share of its own scores that change", 0.0, 1.0),)
    return Finding(
        "sample-mixing", severity, entry.module, location, fact, evidence, entry.index, modules=(entry.module,)
    )


def _behind(tape: Tape, term: LossTerm, number: int) -> Entry | None:
    """The view that has put other numbers where a weight's rows are asked for: its samples lie in a row."""
    assert term.target is not None
    samples = tape.values[term.target].shape[0]
    while number in tape.makers and tape.makers[number].op in VIEWS:
        entry = tape.makers[number]
        if entry.op in REGROUPING and tape.values[number].shape[0] == samples:
            return entry
        number = entry.inputs[0]
    return None


def _built(tape: Tape, entry: Entry) -> str:
    return str(tape.location(entry))


def _swapped(tape: Tape, term: LossTerm, shape: tuple[int, ...]) -> bool:
    """Whether a second dimension, which the targets do not have, is taken for the batch."""
    assert term.target is not None
    return len(shape) == 3 and shape[1] > 1 and shape[1] not in tape.values[term.target].shape[1:]


def _attends(tape: Tape, term: LossTerm, entry: Entry) -> bool:
    """Whether a library's attention reads sequences of which the first dimension is the batch of the targets."""
    info = tape.modules.get(entry.module)
    if info is None or info.type != "MultiheadAttention":
        return False
    assert term.target is not None
    samples = tape.values[term.target].shape[0]
    before = (e for e in tape.entries if e.module == entry.module and e.index < entry.index and e.inputs)
    first = next(before, None)
    return first is not None and _swapped(tape, term, shape := tape.values[first.inputs[0]].shape) and (
        shape[0] == samples
    )  # fmt: skip


def _moves(tape: Tape, entry: Entry, source: int) -> bool:
    """Whether a statistic centres or scales the tensor that it was taken of."""
    waiting, seen = list(entry.outputs), set(entry.outputs)
    around = set(tape.ancestors(source)) & {n for e in tape.readers.get(source, []) for n in e.inputs} | {source}
    while waiting:
        for reader in tape.readers.get(waiting.pop(), []):
            if reader.op in MOVED and around.intersection(reader.inputs):
                return True
            same = all(tape.values[n].shape in (tape.values[entry.outputs[0]].shape, ()) for n in reader.outputs)
            if same or reader.op in VIEWS | {"add", "sqrt", "rsqrt", "clamp", "expand"}:
                fresh = [n for n in reader.outputs if n not in seen]
                seen.update(fresh)
                waiting.extend(fresh)
    return False


def _evaluated(replay: Replay | None, entry: Entry) -> bool:
    """Whether the model makes the same call in evaluation mode."""
    tape = replay.tape(training=False) if replay is not None else None
    if tape is None:
        return False
    return any((e.op, e.module, e.location.line) == (entry.op, entry.module, entry.location.line) for e in tape.entries)


class _Last(nn.Module):
    """Scores of a recurrence's last state."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 32, batch_first=batch_first), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.rnn(x)[0][:, -1])
        return scores


def sick() -> Subject:
    """Sequences with the batch first, read by a recurrence that takes the first dimension for time."""
    return _net(batch_first=False)


def healthy() -> Subject:
    """The same with `batch_first=True`."""
    return _net(batch_first=True)


def _net(*, batch_first: bool) -> Subject:
    torch.manual_seed(0)
    data = (torch.randn(48, 12, 4), torch.arange(48) % 2)
    return Subject(_Last(batch_first=batch_first), data, F.cross_entropy)
