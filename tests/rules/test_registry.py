"""Rules are found by the name of the operation; two for one name are an error that names both places."""

from __future__ import annotations

import pytest

from tightrope.errors import RegistryError
from tightrope.rules.registry import find, known_ops, rule


def test_rules_are_found_and_listed() -> None:
    names = known_ops()
    assert names == sorted(names)
    assert {"linear", "relu", "add", "view", "dropout", "conv2d", "layer_norm"} <= set(names)
    found = find("linear")
    assert found is not None
    assert "linear" in found.ops
    assert find("no such operation") is None


def test_a_second_rule_is_refused_with_both_places() -> None:
    with pytest.raises(RegistryError) as caught:

        @rule("linear")
        def another(call: object) -> None:
            """A duplicate."""

    message = str(caught.value)
    assert "linear.py:" in message
    assert "test_registry.py:" in message


def test_a_second_gradient_is_refused() -> None:
    found = find("linear")
    assert found is not None
    with pytest.raises(RegistryError, match="gradient"):
        found.gradient(lambda call, upstream: {})


@pytest.mark.parametrize("op", known_ops())
def test_every_rule_is_documented_and_has_a_gradient(op: str) -> None:
    found = find(op)
    assert found is not None
    assert found.forward.__doc__
    assert found.backward is not None
