"""The same network wider and deeper, from a factory's parameters or a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import tightrope as tr
from tightrope.factory import predict_factory
from tightrope.outlook import outlook
from tightrope.subject import Subject
from tightrope.tape.initialisers import draw_of
from tightrope.variants import SIZES, from_config, grown, variants

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 50,
}  # fmt: skip


def mlp(width: int = 32, depth: int = 2) -> tuple[nn.Module, torch.Tensor]:
    layers = [nn.Linear(8, width), *(nn.Linear(width, width) for _ in range(depth)), nn.Linear(width, 4)]
    return nn.Sequential(*layers), torch.randn(16, 8)


def test_a_factory_with_width_and_depth() -> None:
    model, inputs = mlp()
    found = variants(mlp, Subject(model, inputs), inputs)
    assert [tuple(p.shape) for p in found["width"](2)[0].parameters()][2] == (64, 64)
    assert len(list(found["depth"](2)[0].children())) == 6
    assert variants(lambda: mlp(), Subject(model, inputs), inputs) == {}


def test_quantities_of_a_configuration_grow_together() -> None:
    wide = grown({**LLAMA, "text_config": {"d_model": 3}}, SIZES["width"], 2)
    assert (wide["hidden_size"], wide["num_attention_heads"], wide["num_hidden_layers"]) == (128, 8, 2)
    assert wide["text_config"] == {"d_model": 6}
    deep = grown({**LLAMA, "layer_types": ["full", "sliding"]}, SIZES["depth"], 2)
    assert deep["num_hidden_layers"] == len(deep["layer_types"]) == 4


def test_a_configuration_file_is_predicted_at_twice_its_size(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA))
    subject = from_config(str(file), samples=2, length=16)
    assert all(p.is_meta and draw_of(p) is not None for p in subject.model.parameters())
    _, told = predict_factory(str(file), samples=2, length=16)
    assert [scaling.of for scaling in told.scalings] == ["width", "depth"]
    assert told.mode == "ensemble" and told.to_dict()["mode"] == "ensemble"
    wide = {row.layer: row.exponents for row in told.scalings[0].layers}
    # Scores of N(0, 0.02) queries and keys, whose heads keep their length, grow with the width.
    assert wide["attention logits"]["signal"] == pytest.approx(1.0, abs=0.2)
    assert "from the laws of the weights" in str(told) and "exponents over depth" in str(told)


def test_a_configuration_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"hidden_size": 3}))
    with pytest.raises(tr.TightropeError, match="config"):
        from_config(str(file))


def test_the_first_trouble_is_named_and_unlike_layers_are_not_compared() -> None:
    from tightrope.outlook import forecast_report

    def told(gain: float) -> str:
        torch.manual_seed(0)
        layers = [nn.Linear(64, 64, bias=False) for _ in range(12)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=gain / 8)
        forecast = tr.predict(nn.Sequential(*layers), torch.randn(16, 64))
        facts = {"title": "", "command": "", "seconds": 0.0}
        return str(outlook(forecast_report(forecast, **facts), forecast))

    assert "the signal explodes" in told(4.0) and "first trouble: 6" in told(4.0)
    assert "the signal stays in range" in told(1.0) and "trouble" not in told(1.0)
