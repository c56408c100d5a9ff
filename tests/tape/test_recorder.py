"""The recorder sees every call once, names what it sees, and leaves no trace."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.utils.checkpoint import checkpoint

from tightrope.measure import Meter
from tightrope.step import force_eager
from tightrope.tape import Kind, Recorder, Tape

HERE = Path(__file__).name


def record(step: Callable[[], Tensor], **options: Any) -> Tape:
    """The tape of the backward pass that starts from what `step` returns."""
    tapes: list[Tape] = []
    with Recorder(on_backward=tapes.append, **options):
        step().backward()
    return tapes[-1]


def ops(tape: Tape) -> list[str]:
    return [entry.op for entry in tape.entries]


# -- what is seen --------------------------------------------------------------------------------


def test_spellings_of_one_operation_have_one_name() -> None:
    x = torch.randn(4, 3, requires_grad=True)

    def step() -> Tensor:
        y = x + 1
        y = torch.add(y, x)
        y = y.add(x)
        y += x
        y.add_(x)
        return y.sum()

    assert ops(record(step)) == ["add"] * 5 + ["sum"]


def test_composites_are_entered_and_give_the_same_numbers() -> None:
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    x = torch.randn(2, 5, 16)
    expected = attention(x, x, x, need_weights=False)[0]
    results = []

    def step() -> Tensor:
        results.append(attention(x, x, x, need_weights=False)[0])
        return results[0].sum()

    found = ops(record(step))
    assert "scaled_dot_product_attention" in found
    assert "linear" in found
    assert "multi_head_attention_forward" not in found
    assert torch.equal(results[0], expected)


def test_views_and_in_place_writes_reach_the_tensor_behind() -> None:
    w = torch.randn(3, 6, requires_grad=True)
    x = torch.randn(4, 3)

    def step() -> Tensor:
        y = x @ w
        y[:, :2].mul_(3.0)
        y[:, 4] = 0.0
        return (y * 2).sum()

    tape = record(step)
    assert ops(tape) == ["matmul", "getitem", "mul", "write_through", "setitem", "mul", "sum"]
    product, view, write, behind, setitem, last, _ = tape.entries
    assert view.inputs == product.outputs
    assert write.inplace
    assert behind.inputs == (product.outputs[0], write.outputs[0])
    assert setitem.inputs == behind.outputs
    assert last.inputs == setitem.outputs  # the newest value of y is read, not the first


def test_an_in_place_activation_makes_a_new_value() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 1))
    tape = record(lambda: model(torch.randn(4, 3)).sum(), roots={"": model})
    linear, relu, last, _ = tape.entries
    assert relu.inplace
    assert relu.outputs != linear.outputs
    assert last.inputs[0] == relu.outputs[0]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_parts_are_recorded_once(reentrant: bool) -> None:
    block = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    head = nn.Linear(4, 1)
    x = torch.randn(6, 4, requires_grad=True)

    def plain() -> Tensor:
        return head(block(x)).sum()

    def checkpointed() -> Tensor:
        return head(checkpoint(block, x, use_reentrant=reentrant)).sum()

    roots = {"block": block, "head": head}
    expected, found = record(plain, roots=roots), record(checkpointed, roots=roots)
    assert [(e.op, e.module) for e in found.entries] == [(e.op, e.module) for e in expected.entries]


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_around_a_checkpoint_are_measured(reentrant: bool) -> None:
    block, head = nn.Linear(4, 4), nn.Linear(4, 1)
    x = torch.randn(6, 4, requires_grad=True)
    meter = Meter()
    tape = record(
        lambda: head(checkpoint(block, x, use_reentrant=reentrant)).sum(),
        observer=meter,
        roots={"block": block, "head": head},
    )
    names = {v.name: v.id for v in tape.value_of(Kind.PARAMETER)}
    measured = meter.measurement(tape)
    for name, parameter in (("block.weight", block.weight), ("head.weight", head.weight)):
        assert parameter.grad is not None
        expected = float(parameter.grad.square().mean().sqrt())
        assert measured.gradients[names[name]].rms == pytest.approx(expected, rel=1e-5)


def test_a_module_used_twice_has_one_parameter_and_two_calls() -> None:
    layer = nn.Linear(4, 4)
    tape = record(lambda: layer(layer(torch.randn(2, 4))).sum(), roots={"": layer})
    first, second, _ = tape.entries
    assert first.op == second.op == "linear"
    assert first.inputs[1] == second.inputs[1]
    assert len(list(tape.value_of(Kind.PARAMETER))) == 2


def test_tied_weights_are_one_value() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x))

    model = Tied()
    tape = record(lambda: model(torch.tensor([1, 2, 3])).sum(), roots={"": model})
    assert [v.name for v in tape.value_of(Kind.PARAMETER)] == ["embed.weight"]
    embed, head = tape.entries[0], tape.entries[1]
    assert embed.inputs[1] == head.inputs[1]


def test_ddp_wrapped_models_have_the_users_paths(tmp_path: Path) -> None:
    import torch.distributed as dist

    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(3, 4)
    plain = record(lambda: model(x).sum(), roots={"": model})
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        found = record(lambda: wrapped(x).sum(), roots={"": wrapped})
    finally:
        dist.destroy_process_group()
    assert [(e.op, e.module) for e in found.entries] == [(e.op, e.module) for e in plain.entries]
    names = [v.name for v in found.value_of(Kind.PARAMETER)]
    assert names == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_compiled_models_record_as_plain_ones() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    x = torch.randn(3, 4)
    plain = record(lambda: model(x).sum(), roots={"": model})
    compiled = torch.compile(model)
    with force_eager():
        found = record(lambda: compiled(x).sum(), roots={"": compiled})
    assert [(e.op, e.module) for e in found.entries] == [(e.op, e.module) for e in plain.entries]


def test_a_model_compiled_in_place_records_as_plain() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
    model.compile()
    with force_eager():
        tape = record(lambda: model(torch.randn(3, 4)).sum(), roots={"": model})
    assert ops(tape) == ["linear", "tanh", "sum"]


def test_each_backward_pass_has_its_own_tape() -> None:
    generator, critic = nn.Linear(3, 4), nn.Linear(4, 1)
    meter = Meter()
    found: list[set[str | None]] = []

    def on_backward(tape: Tape) -> None:
        reached = meter.measurement(tape).gradients
        found.append({tape.values[number].name for number in reached} - {None})
        passes.append(ops(tape))

    passes: list[list[str]] = []
    with Recorder(meter, on_backward=on_backward, roots={"generator": generator, "critic": critic}):
        fake = generator(torch.randn(2, 3))
        critic(fake.detach()).mean().backward()
        critic(fake).mean().backward()
    assert passes == [["linear", "detach", "linear", "mean"], ["linear", "linear", "mean"]]
    assert found[0] == {"critic.weight", "critic.bias"}
    assert found[1] == {"generator.weight", "generator.bias", "critic.weight", "critic.bias"}


def test_autograd_grad_is_a_backward_pass_too() -> None:
    w = torch.randn(3, requires_grad=True)
    tapes: list[Tape] = []
    with Recorder(on_backward=tapes.append):
        loss = (w * 2).sum()
        torch.autograd.grad(loss, [w])
        loss = (w * 3).sum()
        torch.autograd.backward(loss)
    assert [ops(tape) for tape in tapes] == [["mul", "sum"], ["mul", "sum"]]


def test_what_the_optimizer_computes_is_left_out() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    with Recorder(roots={"": model}) as recorder:
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert ops(recorder.tape) == ["linear", "sum"]


# -- names and places ----------------------------------------------------------------------------


def test_module_paths_and_training_mode() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), nn.Linear(3, 1))
    model[0][1].eval()
    tape = record(lambda: F.softplus(model(torch.randn(4, 3))).sum(), roots={"": model})
    assert [(e.op, e.module) for e in tape.entries] == [
        ("linear", "0.0"), ("dropout", "0.1"), ("linear", "1"), ("softplus", ""), ("sum", ""),
    ]  # fmt: skip
    assert [e.training for e in tape.entries[:3]] == [True, False, True]
    assert tape.modules["0.1"].type == "Dropout"


def test_a_model_that_was_not_announced_is_named_when_it_runs() -> None:
    encoder, decoder = nn.Linear(3, 3), nn.Linear(3, 1)
    tape = record(lambda: decoder(encoder(torch.randn(4, 3))).sum())
    assert [e.op for e in tape.entries] == ["linear", "linear", "sum"]
    assert tape.entries[1].module == "decoder"


def test_the_users_line_is_found_behind_library_calls() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

    def step() -> Tensor:
        hidden = model(torch.randn(4, 3))  # line A
        return (hidden * hidden).sum()  # line B

    tape = record(step, roots={"": model})
    first = step.__code__.co_firstlineno
    lines = {e.op: (os.path.basename(e.location.file), e.location.line) for e in tape.entries}
    assert lines["linear"] == lines["relu"] == (HERE, first + 1)
    assert lines["mul"] == lines["sum"] == (HERE, first + 2)


def test_kinds_tell_data_from_indices_and_weights() -> None:
    table = nn.Embedding(5, 4)
    table.register_buffer("scale", torch.ones(4))
    ids, noise = torch.tensor([[0, 1], [2, 3]]), torch.randn(2, 2, 4)
    tape = record(lambda: (table(ids) * table.scale + noise).sum(), roots={"": table})
    kinds = {v.name or str(v.dtype): v.kind for v in tape.values.values() if v.producer is None}
    assert kinds["torch.int64"] is Kind.KNOWN
    assert kinds["weight"] is Kind.PARAMETER
    assert kinds["scale"] is Kind.BUFFER
    assert kinds["torch.float32"] is Kind.INPUT
    assert tape.samples == 2


def test_positions_and_masks_stay_known_but_random_numbers_do_not() -> None:
    w = torch.randn(6, requires_grad=True)

    def step() -> Tensor:
        mask = torch.ones(6, 6).tril() == 1
        drawn = torch.rand_like(w)
        return (torch.where(mask, w, drawn * 0)).sum()

    model = nn.Module()
    model.forward = step  # type: ignore[assignment]
    tape = record(lambda: model(), roots={"": model})
    kinds = {e.op: tape.values[e.outputs[0]].kind for e in tape.entries}
    assert kinds["tril"] is Kind.KNOWN
    assert kinds["eq"] is Kind.KNOWN
    assert kinds["rand_like"] is Kind.RESULT


# -- no trace ------------------------------------------------------------------------------------


class Busy(nn.Module):
    """Dropout, batch statistics, checkpointing and an in-place activation in one model."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(0.3))
        self.middle = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Dropout(0.2))
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + checkpoint(self.middle, x, use_reentrant=False)
        x = checkpoint(self.middle, x, use_reentrant=True)
        return self.last(x)


def train(steps: int, recorded: Callable[[], Any]) -> tuple[list[Tensor], Tensor]:
    """Losses, then parameters and buffers, then the random state, after a short training."""
    torch.manual_seed(3)
    model = Busy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        x, y = torch.randn(32, 6), torch.randint(3, (32,))
        with recorded():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    return [*losses, *(t.detach().clone() for t in model.state_dict().values())], torch.get_rng_state()


def test_ten_recorded_steps_are_bit_identical() -> None:
    from contextlib import nullcontext

    plain, state = train(10, nullcontext)
    found, after = train(10, lambda: Recorder(Meter()))
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    assert torch.equal(state, after)


def test_no_hook_is_left_behind_even_after_an_exception() -> None:
    model = nn.Linear(3, 2)
    x = torch.randn(4, 3, requires_grad=True)

    def counts() -> tuple[int, ...]:
        hooks = [p._backward_hooks for p in (*model.parameters(), x)]
        return (
            len(global_hooks._global_forward_hooks),
            len(global_hooks._global_forward_pre_hooks),
            *(len(h) if h else 0 for h in hooks),
        )

    before = counts()
    with Recorder(Meter(), roots={"": model}):
        model(x).sum().backward()
    assert counts() == before
    recorder = Recorder(Meter(), roots={"": model})
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), recorder:
        model(torch.randn(4, 5))
    assert counts() == before
    assert not recorder.tape.complete
    assert torch.overrides._get_current_function_mode() is None


def test_activations_are_not_kept_alive() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    alive: list[weakref.ref[Tensor]] = []
    model[1].register_forward_hook(lambda m, a, out: alive.append(weakref.ref(out)))
    with Recorder(Meter(), roots={"": model}) as recorder:
        model(torch.randn(4, 3)).sum().backward()
    gc.collect()
    assert alive[0]() is None
    assert len(recorder.tape.entries) == 4


def test_an_exception_inside_the_step_is_the_users_own() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), Recorder():
        Broken()(torch.randn(2))
