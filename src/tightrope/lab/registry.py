"""Discovers the experiments: one file each, named for what it shows, its docstring the page.

An experiment module has
    __doc__        the page: a first line "`name`: the law in one statement.", then the sections of `SECTIONS`
    PRINCIPLES     ids of the principles that it proves, such as ("P01",)
    run(trial)     makes the measurements; a `Result`
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

from tightrope.errors import InputError, RegistryError
from tightrope.isolation import undisturbed
from tightrope.lab.experiment import Result, Trial
from tightrope.page import Page, read_page

SECTIONS = ("Law", "Setting", "Band", "Reading", "References")


@dataclass(frozen=True)
class Experiment:
    """One experiment: its page, the principles that it proves, and how it is run."""

    page: Page
    principles: tuple[str, ...]
    function: Callable[[Trial], Result]

    @property
    def name(self) -> str:
        """As in `tightrope lab NAME`."""
        return self.page.name

    def run(self, trial: Trial) -> Outcome:
        """Make the measurements; random states are left as they were found."""
        begin = time.perf_counter()
        with undisturbed():
            torch.manual_seed(trial.seed)
            result = self.function(trial)
        return Outcome(self, trial, result, time.perf_counter() - begin)


@dataclass(frozen=True)
class Outcome:
    """An experiment that was run; `seconds` is the wall time."""

    experiment: Experiment
    trial: Trial
    result: Result
    seconds: float


@cache
def all_experiments() -> dict[str, Experiment]:
    """Every experiment by name, in the order of the principles.

    Raises:
        RegistryError: a page or a part is missing, or a name is taken twice.
    """
    package = importlib.import_module("tightrope.lab.experiments")
    found: dict[str, Experiment] = {}
    for info in pkgutil.iter_modules(package.__path__, "tightrope.lab.experiments."):
        module = importlib.import_module(info.name)
        if hasattr(module, "run"):
            experiment = _read(module)
            if experiment.name in found:
                raise RegistryError(f"register the experiment {experiment.name}", "the name is taken", "Rename one")
            found[experiment.name] = experiment
    return dict(sorted(found.items(), key=lambda item: (item[1].principles, item[0])))


def get(name: str) -> Experiment:
    """The experiment of this name.

    Raises:
        InputError: there is none.
    """
    experiments = all_experiments()
    if name not in experiments:
        raise InputError(f"run {name}", "there is no such experiment", f"Choose one of: {', '.join(experiments)}")
    return experiments[name]


def _read(module: ModuleType) -> Experiment:
    where = module.__file__ or module.__name__
    principles = getattr(module, "PRINCIPLES", None)
    if not isinstance(principles, tuple) or not principles:
        raise RegistryError(f"read the experiment in {where}", "it has no PRINCIPLES", 'Define PRINCIPLES = ("P01",)')
    return Experiment(read_page(module, SECTIONS), principles, module.run)


__all__ = ["SECTIONS", "Experiment", "Outcome", "all_experiments", "get"]
