"""Which remedy goes by which name, and the prescription of remedies for a finding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tightrope.errors import RegistryError
from tightrope.finding import Finding, Remedy
from tightrope.study import Study

Make = Callable[[Study, Finding], "Remedy | None"]

_REMEDIES: dict[str, Make] = {}


def remedy(name: str) -> Callable[[Make], Make]:
    """Register a function that makes a remedy of this name for a finding, or None where it does not apply.

    Raises:
        RegistryError: the name is taken.
    """

    def register(make: Make) -> Make:
        if name in _REMEDIES:
            raise RegistryError(f"register the remedy {name}", f"{_REMEDIES[name].__module__} has one", "Rename it")
        _REMEDIES[name] = make
        return make

    return register


def prescribe(study: Study, finding: Finding, names: Sequence[str]) -> tuple[Remedy, ...]:
    """The remedies among `names` that apply to a finding, in that order.

    Raises:
        RegistryError: a name stands for no remedy.
    """
    _load()
    unknown = [name for name in names if name not in _REMEDIES]
    if unknown:
        raise RegistryError(f"prescribe for {finding.check}", f"there is no remedy {unknown[0]}", "Register it")
    made = (_REMEDIES[name](study, finding) for name in names)
    return tuple(found for found in made if found is not None)


def _load() -> None:
    import importlib
    import pkgutil

    package = importlib.import_module("tightrope.remedies")
    for info in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"tightrope.remedies.{info.name}")
