"""Record a training step: what was called, on which tensors, from which line."""

from tightrope.tape.recorder import Observer, Recorder
from tightrope.tape.source import Location
from tightrope.tape.tape import Entry, Kind, ModuleInfo, Ref, Tape, Value

__all__ = ["Entry", "Kind", "Location", "ModuleInfo", "Observer", "Recorder", "Ref", "Tape", "Value"]
