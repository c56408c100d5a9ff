"""The evaluated model as linear segments between nonlinear joints, with a certified gain for each.

The model is run once; its calls are then made again, in double precision, on other numbers. A value is known as a
linear map (and a shift) of a base: the input, or what a nonlinear operation or a sum of branches made. A segment is
taken as a whole: pooling after batch norm after a convolution is one matrix where it fits, not three norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from tightrope.instruments.robustness.function import Evaluated
from tightrope.instruments.robustness.operators import conv_norm, dense, matrix_norm, schur_norm
from tightrope.instruments.robustness.slopes import Shape, shape_of
from tightrope.tape.recorder import Recorder
from tightrope.tape.tape import Entry, Kind, Ref, Tape

BATCH, HELD = 64, 2**21
"""Samples of the run, as many as columns of a segment's matrix come from one run of it; and numbers of its input."""
LIMIT = 1024
"""Rows or columns of a segment whose matrix is made."""
NUMBERS = 2**24
"""Size of a segment's matrix at most: 128 MiB."""

SAME = frozenset({
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "T", "mT",
    "movedim", "contiguous", "clone", "detach", "to", "float", "double", "alias", "dropout", "dropout1d",
    "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "identity", "flip", "roll", "view_as",
    "reshape_as", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "ravel", "swapaxes",
})  # fmt: skip
"""Operations that move numbers about; dropout only where it is off."""
CASTS = frozenset({"to", "float", "double"})
"""Conversions: all is double precision here."""
POSITIVE = frozenset({
    "getitem", "narrow", "select", "chunk", "split", "unbind", "index_select", "expand", "repeat", "tile",
    "repeat_interleave", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "mean", "sum", "cumsum", "interpolate", "upsample", "pad", "unfold",
})  # fmt: skip
"""Linear operations without a negative coefficient (interpolation but for the cubic kinds)."""
CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
TIMES = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "conv_transpose1d", "conv_transpose2d", "einsum"})
DIAGONAL = frozenset({"mul", "div", "batch_norm", "neg", "multiply", "group_scale"})
POOLS = {"max_pool1d": 1, "max_pool2d": 2, "max_pool3d": 3}
ADAPTIVE = {"adaptive_max_pool1d": 1, "adaptive_max_pool2d": 2, "adaptive_max_pool3d": 3}
NORMS = frozenset({"layer_norm", "group_norm", "instance_norm", "rms_norm"})


class Unbounded(Exception):
    """An operation has no certified bound; the message is its name and place."""


@dataclass(frozen=True)
class Known:
    """A value as a linear map of a base.

    Attributes:
        base: id of the base's value.
        bound: of the map's norm, from the norms of its parts.
        kernel: the convolution that it is, with a scale behind it folded in; None else.
    """

    base: int
    bound: float
    kernel: tuple[Entry, Tensor] | None = None


@dataclass(frozen=True)
class Segment:
    """A linear map from a base to a value, times a factor.

    Attributes:
        matrix: shape (outputs, inputs), where it was small enough to be made.
        norm: certified upper bound of its spectral norm.
        exact: whether that is the norm itself, up to rounding.
    """

    base: int
    value: int
    norm: float
    exact: bool
    factor: float = 1.0
    matrix: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Joint:
    """What makes a new base of values: an activation, a sum of branches, or any map with a Lipschitz constant.

    Attributes:
        output: id of the new base.
        parts: the segments that lead to it; several are added, or put side by side.
        slope: largest slope.
        shape: of a pointwise function; None for all else.
        function: the pointwise function on a tensor of the value's shape.
        gather: "sum" or "side by side" for several parts.
    """

    output: int
    entry: Entry
    parts: tuple[Segment, ...]
    slope: float
    shape: Shape | None = None
    function: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    gather: str = "sum"


@dataclass
class Graph:
    """Joints in order, and the segment that ends in the output."""

    tape: Tape
    values: dict[int, Tensor]
    source: int
    joints: list[Joint]
    last: Segment


class Walker:
    """Walks the tape of one run and makes the graph."""

    def __init__(self, function: Evaluated) -> None:
        self.batch = max(min(BATCH, HELD // function.width), 2)
        index = torch.arange(self.batch, device=function.x.device) % function.samples
        self.x = function.x[index]
        made: list[tuple[Tensor, int]] = []

        def note(name: str, args: Any, kwargs: Any, result: Any) -> None:
            tensors = [t for t in tree_flatten(result)[0] if isinstance(t, Tensor)]
            made.extend(zip(tensors, recorder.tape.entries[-1].outputs, strict=False))

        recorder = Recorder(None, roots={"": function._model}, on_call=note)
        with torch.no_grad(), recorder:
            flat = function(self.x, index)
        self.tape = recorder.tape
        start, storage = self.x.data_ptr(), flat.data_ptr()
        outside = [v for v in self.tape.values.values() if v.content is not None and v.producer is None]
        self.source = next((v.id for v in outside if v.content is not None and v.content.data_ptr() == start), -1)
        ends = [n for t, n in made if t.data_ptr() == storage and t.numel() == flat.numel()]
        if not ends:
            raise Unbounded("what makes the output is no call of torch's")
        self.output = ends[-1]
        self.dynamic: set[int] = {self.source}
        for entry in self.tape.entries:
            if self.dynamic.intersection(entry.inputs):
                self.dynamic.update(entry.outputs)
        self.values: dict[int, Tensor] = {}
        self.known: dict[int, Known] = {}
        self.joints: list[Joint] = []
        self.segments: dict[tuple[int, int], Segment] = {}

    # -- making calls again ----------------------------------------------------------------------

    def constant(self, argument: Any) -> Any:
        """An argument with the tensors that do not depend on the input, in double precision."""

        def fill(x: Any) -> Any:
            return self._fixed(x.id) if isinstance(x, Ref) and x.id not in self.dynamic else x

        return tree_map(fill, argument, is_leaf=lambda x: isinstance(x, Ref))

    def _fixed(self, number: int) -> Tensor:
        if number not in self.values:
            value = self.tape.values[number]
            maker = self.tape.makers.get(number)
            if value.content is None and maker is not None:  # made of parameters alone
                self.values.update(zip(maker.outputs, self.call(maker, {}), strict=False))
                return self.values[number]
            if value.content is None:
                raise Unbounded("a tensor that the tape holds no content of")
            content = value.content.detach()
            self.values[number] = content.double() if content.is_floating_point() else content
        return self.values[number]

    def call(self, entry: Entry, values: dict[int, Tensor]) -> tuple[Tensor, ...]:
        """An entry's call on other numbers."""

        def fill(x: Any) -> Any:
            if isinstance(x, torch.dtype) and x.is_floating_point:
                return torch.float64
            return (values[x.id] if x.id in values else self._fixed(x.id)) if isinstance(x, Ref) else x

        if entry.op in CASTS:
            return (values[entry.inputs[0]],)
        args, kwargs = tree_map(fill, (entry.args, entry.kwargs), is_leaf=lambda x: isinstance(x, Ref))
        if entry.inplace:  # the call overwrites what it reads
            first = args[0].clone()
            args = (first, *args[1:])
        made = entry.function(*args, **kwargs)
        return tuple(t for t in tree_flatten(made)[0] if isinstance(t, Tensor))

    def run(self, base: int, value: int, start: Tensor) -> Tensor:
        """The calls from a base to a value."""
        wanted, entries = {value}, []
        for entry in reversed(self.tape.entries):
            if wanted.intersection(entry.outputs) and base not in entry.outputs:
                inside = [i for i in entry.inputs if i in self.known and self.known[i].base == base]
                if inside:
                    entries.append(entry)
                    wanted.update(inside)
        values = {base: start}
        for entry in reversed(entries):
            for number, tensor in zip(entry.outputs, self.call(entry, values), strict=False):
                values[number] = tensor
        return values[value]

    def linear(self, base: int, value: int) -> Callable[[Tensor], Tensor]:
        """The segment's map without its shift, checked to keep samples apart."""
        if base == value:
            return lambda v: v
        with torch.no_grad():
            shift = self.run(base, value, torch.zeros_like(self.values[base]))

        def apply(v: Tensor) -> Tensor:
            return self.run(base, value, v) - shift

        probe = torch.zeros_like(self.values[base])
        probe[0] = torch.linspace(-1, 1, probe[0].numel(), dtype=probe.dtype).reshape(probe[0].shape)
        with torch.no_grad():
            seen = apply(probe)
        if seen.numel() % self.batch or bool((seen.reshape(self.batch, -1)[1:] != 0).any()):
            raise Unbounded("samples are not kept in the first dimension")
        return apply

    # -- walking ---------------------------------------------------------------------------------

    def graph(self) -> Graph:
        """The graph of the whole model.

        Raises:
            Unbounded: an operation on the way has no certified bound.
        """
        if self.source < 0:
            raise Unbounded("the input is not read by any call of the model")
        self.values[self.source] = self.x.double()
        self.known[self.source] = Known(self.source, 1.0)
        needed = self.tape.ancestors(self.output)
        for entry in self.tape.entries:
            if self.dynamic.intersection(entry.inputs) and needed.intersection(entry.outputs):
                try:
                    self._step(entry)
                except Unbounded as error:
                    if " at " in str(error):
                        raise
                    where = f" of {entry.module}" if entry.module else ""
                    said = f": {error}" if str(error) else ""
                    raise Unbounded(f"{entry.op}{where} at {self.tape.location(entry)}{said}") from None
                except (RuntimeError, TypeError, IndexError, ValueError) as error:
                    said = (str(error).splitlines() or [""])[0]
                    raise Unbounded(f"{entry.op} at {self.tape.location(entry)}: {said}") from error
        return Graph(self.tape, self.values, self.source, self.joints, self.segment(self.output))

    def segment(self, value: int, factor: float = 1.0) -> Segment:
        """From its base to a value."""
        base = self.known[value].base
        if (base, value) not in self.segments:
            bound = self.known[value].bound
            apply = self.linear(base, value)
            matrix = None if base == value else dense(apply, self.values[base], LIMIT, NUMBERS)
            norm = bound if matrix is None else min(matrix_norm(matrix), bound)
            exact = matrix is not None or base == value
            self.segments[base, value] = Segment(base, value, norm, exact, 1.0, matrix)
        made = self.segments[base, value]
        if factor == 1.0:
            return made
        matrix = None if made.matrix is None else made.matrix * factor
        return Segment(base, value, made.norm * abs(factor), made.exact, factor, matrix)

    def _step(self, entry: Entry) -> None:
        moving = [i for i in dict.fromkeys(entry.inputs) if i in self.dynamic]
        if entry.op in ("contiguous", "size", "dim", "shape", "device", "dtype") and not entry.outputs:
            return
        with torch.no_grad():
            results = self.call(entry, self.values)
        for number, tensor in zip(entry.outputs, results, strict=False):
            self.values[number] = tensor
        if any(i not in self.known for i in moving):
            raise Unbounded("a whole number or a truth value that depends on the input")
        if entry.op in ("add", "sub", "rsub", "cat", "stack", "maximum", "minimum") and len(moving) > 1:
            return self._gather(entry, moving)
        if len(moving) > 1:
            raise Unbounded("a product of two tensors that both depend on the input")
        source = moving[0]
        if entry.inputs.count(source) > 1:
            raise Unbounded("an operand that appears twice")
        bound = self._bound(entry, source)
        if bound is not None:
            for number in entry.outputs:
                if self.tape.values[number].is_float:
                    before = self.known[source]
                    self.known[number] = Known(before.base, bound[0] * before.bound, bound[1])
            return None
        return self._nonlinear(entry, source)

    def _gather(self, entry: Entry, moving: list[int]) -> None:
        """Several branches meet."""
        output = entry.outputs[0]
        bases = {self.known[i].base for i in moving}
        factors = [1.0] * len(moving)
        if entry.op in ("add", "sub", "rsub"):
            alpha = float(entry.kwargs.get("alpha", 1.0))
            first, second = (a.id for a in entry.args[:2])
            sign = {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-alpha, 1.0)}[entry.op]
            factors = [sign[0] if i == first else sign[1] for i in moving]
            if self.values[first].shape != self.values[second].shape and len(bases) > 1:
                raise Unbounded("a sum of two branches that broadcasts")
        whole = self.values[output].numel()
        copies = [1.0 if entry.op in ("cat", "stack") else whole / self.values[i].numel() for i in moving]
        lone = [abs(f) * self.known[i].bound * math.sqrt(n) for f, i, n in zip(factors, moving, copies, strict=True)]
        sideways = entry.op not in ("add", "sub", "rsub")
        if len(bases) == 1 and entry.op not in ("maximum", "minimum"):
            times = [entry.inputs.count(i) for i in moving]
            squares = sum(n * b * b for n, b in zip(times, lone, strict=True))
            together = math.sqrt(squares) if sideways else sum(lone)
            self.known[output] = Known(bases.pop(), together)
            return
        inputs = [i for i in entry.inputs if i in self.dynamic]
        if len(inputs) != len(moving):
            raise Unbounded("a tensor that appears twice in a concatenation")
        parts = tuple(self.segment(i, f) for i, f in zip(moving, factors, strict=True))
        gather = "side by side" if sideways else "sum"
        self._new_base(Joint(output, entry, parts, 1.0, gather=gather))

    def _new_base(self, joint: Joint) -> None:
        self.joints.append(joint)
        self.known[joint.output] = Known(joint.output, 1.0)

    def _nonlinear(self, entry: Entry, source: int) -> None:
        output = entry.outputs[0]
        shape = shape_of(entry, self.constant)
        if shape is not None:

            def function(v: Tensor) -> Tensor:
                return self.call(entry, {source: v})[0]

            slope = max(abs(shape.low), abs(shape.high))
            self._new_base(Joint(output, entry, (self.segment(source),), slope, shape, function))
            return
        slope = self._whole(entry, source)
        self._new_base(Joint(output, entry, (self.segment(source),), slope))

    # -- single operations -----------------------------------------------------------------------

    def _bound(self, entry: Entry, source: int) -> tuple[float, tuple[Entry, Tensor] | None] | None:
        """Norm of a linear operation, and the convolution it is part of; None for one that is not linear."""
        op = entry.op
        if op in SAME:
            if "dropout" in op and entry.argument(2, "training", True):
                raise Unbounded("dropout that is on")
            return 1.0, None
        if op in ("add", "sub", "rsub"):
            shape = self.values[source].shape
            if self.values[entry.outputs[0]].shape != shape:
                raise Unbounded("a sum that broadcasts")
            other = entry.kwargs.get("alpha", 1.0)
            return max(1.0, abs(float(other))), None
        if op in CONVOLUTIONS:
            return self._convolution(entry, self.constant(entry.argument(1, "weight")))
        if op == "batch_norm" and entry.argument(5, "training", False):
            raise Unbounded("batch norm on the statistics of the batch")
        if op in DIAGONAL or (op == "pow" and self.constant(entry.argument(1, "exponent")) == 1):
            return self._scale(entry, source)
        if op in POSITIVE:
            if entry.argument(3, "mode", "") == "bicubic" or "bicubic" in map(str, entry.args):
                raise Unbounded("bicubic interpolation")
            return schur_norm(self._alone(entry, source), self.values[source]), None
        if op in TIMES:
            matrix = self._weight(entry, source)
            return matrix_norm(matrix), None
        return None

    def _alone(self, entry: Entry, source: int) -> Callable[[Tensor], Tensor]:
        """One call's linear map, its results side by side."""

        def made(v: Tensor) -> Tensor:
            found = [t for t in self.call(entry, {source: v}) if t.is_floating_point()]
            return found[0] if len(found) == 1 else torch.cat([t.reshape(-1) for t in found])

        with torch.no_grad():
            shift = made(torch.zeros_like(self.values[source]))
        return lambda v: made(v) - shift

    def _scale(self, entry: Entry, source: int) -> tuple[float, tuple[Entry, Tensor] | None]:
        if entry.op == "div" and isinstance(entry.args[0], Ref) and entry.args[0].id != source:
            raise Unbounded("a division by what depends on the input")
        like = self.values[source]
        with torch.no_grad():
            factor = self._alone(entry, source)(torch.ones_like(like))
        if factor.shape != like.shape:
            raise Unbounded("a product that broadcasts")
        before = self.known[source].kernel
        if entry.op == "batch_norm" and before is not None:
            channels = factor.transpose(0, 1).flatten(1)[:, 0]
            kernel = before[1] * channels.reshape(-1, *[1] * (before[1].dim() - 1))
            bound, folded = self._convolution(before[0], kernel)
            alone = self._convolution(*before)[0]
            return (bound / alone if alone > 0 else 0.0), folded
        return float(factor.abs().max()), None

    def _convolution(self, entry: Entry, kernel: Tensor) -> tuple[float, tuple[Entry, Tensor]]:
        rank = kernel.dim() - 2
        padding = self.constant(entry.argument(4, "padding", 0))
        spread = _per(entry.argument(5, "dilation", 1), rank)
        sizes = list(self.values[entry.inputs[0]].shape[-rank:])
        if padding == "same":
            sizes = [s + (k - 1) * d for s, k, d in zip(sizes, kernel.shape[2:], spread, strict=True)]
        elif padding != "valid":
            sizes = [s + 2 * p for s, p in zip(sizes, _per(padding, rank), strict=True)]
        stride = _per(entry.argument(3, "stride", 1), rank)
        groups = int(entry.argument(6, "groups", 1))
        return conv_norm(kernel, sizes, stride, spread, groups), (entry, kernel)

    def _weight(self, entry: Entry, source: int) -> Tensor:
        """The matrix that a product multiplies each row by."""
        if entry.op == "linear":
            weight = self.constant(entry.argument(1, "weight"))
            assert isinstance(weight, Tensor)
            return weight
        if entry.op == "addmm":
            other = self.constant(entry.argument(2, "mat2"))
        elif entry.op in ("matmul", "mm", "bmm"):
            other = self.constant(entry.args[1] if entry.args[0] == Ref(source) else entry.args[0])
        else:
            made = dense(self._alone(entry, source), self.values[source], LIMIT, NUMBERS)
            if made is None:
                raise Unbounded("a transposed convolution of this size")
            return made
        if not isinstance(other, Tensor) or other.dim() != 2:
            made = dense(self._alone(entry, source), self.values[source], LIMIT, NUMBERS)
            if made is None:
                raise Unbounded("a product of this size")
            return made
        return other

    def _whole(self, entry: Entry, source: int) -> float:
        """Lipschitz constant of an operation that is neither linear nor pointwise."""
        op, x = entry.op, self.values[source]
        if op == "softmax":
            return 0.5  # diag(p) - p p' has no row whose absolute sum exceeds 2 p (1 - p) <= 1/2
        if op == "log_softmax":
            dim = int(entry.argument(1, "dim", -1))
            return math.sqrt(x.shape[dim])  # 1 - 1 p' is a projector of norm sqrt(K) ||p||, and ||p|| <= 1
        if op in POOLS or op.removesuffix("_with_indices") in POOLS:
            return self._pool(entry, source, POOLS[op.removesuffix("_with_indices")])
        if op.removesuffix("_with_indices") in ADAPTIVE:
            return self._adaptive(entry, source, ADAPTIVE[op.removesuffix("_with_indices")])
        if op in NORMS:
            return self._norm(entry)
        raise Unbounded("")

    def _pool(self, entry: Entry, source: int, rank: int) -> float:
        """sqrt of how many windows share an input: each maximum moves no more than the largest of its inputs."""
        window = _per(entry.argument(1, "kernel_size"), rank)
        stride = _per(entry.argument(2, "stride") or window, rank)
        spread = _per(entry.argument(4, "dilation", 1), rank)
        shared = 1
        for k, s, d in zip(window, stride, spread, strict=True):
            reach: dict[int, int] = {}
            for step in range(k):
                reach[step * d % s] = reach.get(step * d % s, 0) + 1
            shared *= max(reach.values())
        return math.sqrt(shared)

    def _adaptive(self, entry: Entry, source: int, rank: int) -> float:
        shared = 1
        sizes = self.values[source].shape[-rank:]
        for size, given in zip(sizes, _per(entry.argument(1, "output_size"), rank), strict=True):
            hits = [0] * size
            for i in range(given):
                for place in range(i * size // given, -(-(i + 1) * size // given)):
                    hits[place] += 1
            shared *= max(hits)
        return math.sqrt(shared)

    def _norm(self, entry: Entry) -> float:
        """max |gamma| / sqrt(eps): where its input is flat, a normaliser is that steep."""
        places = {"layer_norm": (2, 4), "group_norm": (2, 4), "instance_norm": (3, 7), "rms_norm": (2, 3)}[entry.op]
        gamma = self.constant(entry.argument(places[0], "weight"))
        eps = entry.argument(places[1], "eps", 1e-5)
        if eps is None:
            eps = torch.finfo(self.tape.values[entry.inputs[0]].dtype).eps
        if entry.op == "instance_norm" and not entry.argument(5, "use_input_stats", True):
            raise Unbounded("instance norm on running statistics")
        if float(eps) <= 0:
            raise Unbounded("a normaliser without eps")
        return (1.0 if gamma is None else float(gamma.abs().max())) / math.sqrt(float(eps))


def _per(value: Any, rank: int) -> list[int]:
    return [int(value)] * rank if isinstance(value, int) else [int(v) for v in value] * (rank if len(value) == 1 else 1)


__all__ = ["BATCH", "Graph", "Joint", "Kind", "Known", "Segment", "Unbounded", "Walker"]
