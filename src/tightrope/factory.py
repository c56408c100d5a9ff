"""What the command line works on: a factory named by `pkg.module:name` or `path/to/file.py:name`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tightrope.check import study
from tightrope.errors import InputError
from tightrope.fix import Fix, fix
from tightrope.outlook import Outlook, forecast_report, outlook
from tightrope.predict import Weights
from tightrope.report.model import Report, make_report
from tightrope.scaling import scaling
from tightrope.step import predict
from tightrope.subject import Subject, first_batch, split
from tightrope.tape.modules import remember_construction
from tightrope.tape.script import show
from tightrope.variants import from_config, variants


def check_factory(name: str) -> Report:
    """Check what a factory returns; see `tightrope.check`."""
    begin = time.perf_counter()
    subject = _with_data(build(name), f"check {name}")
    found = study(subject.model, subject.data, loss=subject.loss, optimizer=subject.optimizer)
    return make_report([found], title=name, command=f"tightrope check {name}", seconds=time.perf_counter() - begin)


def fix_factory(name: str) -> Fix:
    """Check what a factory returns, apply the safe remedies to it and check it again; see `tightrope.fix`."""
    subject = _with_data(build(name), f"fix {name}")
    facts = {"title": name, "command": f"tightrope fix {name}"}
    return fix(subject.model, subject.data, loss=subject.loss, optimizer=subject.optimizer, **facts)


def predict_factory(
    name: str, *, weights: Weights | None = None, scale: bool = True, samples: int = 4, length: int = 256
) -> tuple[Report, Outlook]:
    """Predict the laws of what a factory returns; say where they lead over depth, in half precision, at other sizes.

    Args:
        name: of a factory, or of a configuration of transformers (a JSON file, a folder).
        weights: as for `tightrope.predict`.
        scale: predict it also at twice its width and depth, where it says how it grows.
        samples, length: of the batch of tokens, for a configuration.

    Raises:
        InputError: the factory returns no batch, so that the shape of the input is unknown.
    """
    begin = time.perf_counter()
    configured = name.endswith(".json") or os.path.isdir(name)
    if configured:
        subject = from_config(name, samples=samples, length=length)
    else:
        subject = build(name, predicted=True)
    if subject.data is None:
        found = "the factory returns no batch, so that the shape of the input is unknown"
        raise InputError(f"predict {name}", found, "Return (model, inputs); inputs on the meta device are enough")
    inputs, with_target = split(first_batch(subject.data), subject.loss)
    forecast = predict(subject.model, inputs, loss=with_target, weights=weights)
    facts = {"title": name, "command": f"tightrope predict {name}", "seconds": time.perf_counter() - begin}
    report = forecast_report(forecast, **facts)
    ways = variants(from_config if configured else find(name), subject, inputs) if scale else {}
    known = forecast if forecast.mode == "ensemble" else None
    scalings = [scaling(grow, factors=(1, 2), of=of, loss=with_target, known=known) for of, grow in ways.items()]
    return report, outlook(report, forecast, scalings)


def build(name: str, *, predicted: bool = False) -> Subject:
    """Call a factory and read what it returns.

    Args:
        name: `pkg.module:function` or `path/to/file.py:function`.
        predicted: remember the initialisers that it calls, so that weights on the meta device have laws.

    Raises:
        InputError: there is no such factory, it raises, or it returns no model.
    """
    factory = find(name)
    with remember_construction(), _initialisers(predicted):
        try:
            made = factory()
        except Exception as error:
            show(error)
            first = str(error).splitlines()[0] if str(error) else ""
            raise InputError(
                f"call {name}", f"it raised {type(error).__name__}: {first}", "See its traceback above"
            ) from error
    return read(made, name)


def find(name: str) -> Callable[[], Any]:
    """The factory of that name.

    Raises:
        InputError: the name is malformed, or the module or function does not exist.
    """
    place, colon, attribute = name.rpartition(":")
    asked = f"load {name}"
    if not colon or not place or not attribute:
        raise InputError(asked, "it is no factory's name", "Write pkg.module:function or path/to/file.py:function")
    sys.path.insert(0, os.getcwd())
    module = _from_file(place, asked) if place.endswith(".py") else _from_package(place, asked)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            own = {n: getattr(v, "__module__", "") for n, v in vars(module).items() if callable(v)}
            names = [n for n, where in own.items() if where == module.__name__]
            have = f"it defines {', '.join(names)}" if names else "it defines no function"
            raise InputError(asked, f"{place} has no {attribute}", f"Name one that exists: {have}")
        found = getattr(found, part)
    if not callable(found):
        if isinstance(found, (nn.Module, Subject, tuple)):
            return lambda: found
        kind = type(found).__name__
        raise InputError(asked, f"{attribute} is of type {kind}", "Name a function that returns a model")
    return found if not isinstance(found, nn.Module) else lambda: found


def _from_file(path: str, asked: str) -> Any:
    if not os.path.exists(path):
        raise InputError(asked, f"there is no file {path}", "Check the path")
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _imported(asked):
        spec.loader.exec_module(module)
    return module


def _from_package(name: str, asked: str) -> Any:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise InputError(asked, f"there is no module {name} here or installed", "Check the name and the folder")
    with _imported(asked):
        return importlib.import_module(name)


@contextmanager
def _imported(asked: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        show(error)
        found = f"importing it raised {type(error).__name__}: {error}"
        raise InputError(asked, found, "See the traceback above") from error


@contextmanager
def _initialisers(wanted: bool) -> Iterator[None]:
    if not wanted or importlib.util.find_spec("tightrope.tape.initialisers") is None:
        yield
        return
    with importlib.import_module("tightrope.tape.initialisers").remember():
        yield


def read(made: Any, name: str) -> Subject:
    """What a factory returned, as a subject.

    Raises:
        InputError: it holds no model, or more than a subject has.
    """
    if isinstance(made, Subject):
        return made
    parts = made if isinstance(made, tuple) else (made,)
    if not parts or not isinstance(parts[0], nn.Module) or len(parts) > 4:
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise InputError(
            f"read what {name} returned", f"it is ({kinds})", "Return a model, or (model, batch, loss, optimizer)"
        )
    return Subject(*parts)


def _with_data(subject: Subject, asked: str) -> Subject:
    if subject.data is None:
        remedy = "Return (model, batch) or (model, batch, loss)"
        raise InputError(asked, "the factory returns a model without data", remedy)
    return subject
