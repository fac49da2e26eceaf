"""ANTs without what only its statistics and plots need: pandas, statsmodels, scikit-learn, pyplot.

Loading those is most of what `import ants` costs, and a fit uses none of them. Who asks
for them in the same process still gets them, then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

LATER = ("learn", "math", "plotting", "deeplearn")  # parts of ANTs that no fit uses


def ants() -> Any:
    """The package ANTs, loaded when it is first needed: not every command registers."""
    if "ants" not in sys.modules:
        _load()
    return import_module("ants")


def _load() -> None:
    """Import ANTs with stand-ins for pandas and for the parts that come later."""
    stand_ins = {f"ants.{part}": ModuleType(part) for part in LATER}
    if "pandas" not in sys.modules:
        stand_ins["pandas"] = ModuleType("pandas")
        _on_demand(stand_ins["pandas"], lambda name: getattr(import_module("pandas"), name))
    sys.modules.update(stand_ins)
    try:
        package = import_module("ants")
    finally:
        for name in stand_ins:
            del sys.modules[name]
    _on_demand(package, _found_later)


def _on_demand(module: ModuleType, find: Callable[[str], Any]) -> None:
    """Have `find` look for the names that a module lacks (PEP 562)."""
    vars(module)["__getattr__"] = find


def _found_later(name: str) -> Any:
    """A name that ANTs does not have yet: its other parts are loaded, and with them all names."""
    package = sys.modules["ants"]
    if name.startswith("__"):
        raise AttributeError(f"module 'ants' has no attribute '{name}'")
    del vars(package)["__getattr__"]
    for part in LATER:
        found = vars(import_module(f"ants.{part}"))
        vars(package).update((key, found[key]) for key in found if not key.startswith("_"))
    return getattr(package, name)
