"""Which engine runs a bundle on this device: the only place that knows engines by name.

A manifest says `engine`: a name of ENGINES, or "module:function" of a module of phi3mobile (a target of one's own states
that). The function takes (bundle, threads) and returns the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from phi3mobile.engines.base import Engine
from phi3mobile.engines.phone import app_library_runs, phone_engine
from phi3mobile.engines.tower import Tower
from phi3mobile.errors import InputError

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle

# apps/stage.py reads these names: a module in quotes counts as imported.
ENGINES = {
    "executorch": "phi3mobile.engines.executorch:open_executorch",
    "native": "phi3mobile.engines.native:open_native",
    "coreml": "phi3mobile.engines.coreml:open_mil",
    "coreml-ane": "phi3mobile.engines.coreml_ane:open_ane",
    "coreml-delegate": "phi3mobile.engines.coreml_delegate:open_delegate",
    "litert": "phi3mobile.engines.litert:open_litert",
    "coreai": "phi3mobile.engines.coreai:open_coreai",
}
PTE = {"executorch", "native", "coreml-delegate"}  # a phone's own engine runs their programs
_HOME = "phi3mobile."  # a manifest may come from anywhere: it names no code but ours


def open_engine(bundle: Bundle, threads: int = 0, experts_memory: int | None = None) -> Engine:
    """The bundle's engine on this device, loaded. InputError if it can't run here.

    threads: 0 leaves the number to the engine, as do engines that have no such setting.
    experts_memory: bytes for the experts of a mixture; None: the manifest's default, else as much as they need.
    """
    name = bundle.manifest["engine"]
    phone = phone_engine() if name in PTE else None
    if phone and app_library_runs(bundle):
        name, phone = "native", None
    if "experts" in bundle.manifest["runtime"]:  # only programs with our operator have such a file
        if phone:
            raise InputError(f"{bundle.folder} is a mixture of experts, which this phone's own engine has no operator for")
        opened: Callable[..., Engine] = find_engine(name, str(bundle.folder))
        return opened(bundle, threads, experts_memory=experts_memory)
    if experts_memory is not None:
        raise InputError(f"{bundle.folder} has no experts: leave out the memory for them")
    if phone:
        return phone(bundle.program, bundle.info)
    return find_engine(name, str(bundle.folder))(bundle, threads)


# The towers of engines' bundles: functions that take (bundle, threads) and return an engines.tower.Tower.
TOWERS = {
    "executorch": "phi3mobile.engines.pte_tower:open_executorch_tower",
    "native": "phi3mobile.engines.pte_tower:open_native_tower",
    "coreml": "phi3mobile.engines.coreml:open_mil_tower",
}


def open_tower(bundle: Bundle, threads: int = 0) -> Tower:
    """What makes rows of pictures for the bundle's engine. InputError: its model sees none, or this device can't run it."""
    name = bundle.manifest["engine"]
    if bundle.vision is None:
        raise InputError(f"{bundle.folder} sees no pictures: give one of a model_type with a vision tower, such as phi3_v")
    module, _, function = TOWERS.get(name, "").partition(":")
    if not module:
        raise InputError(f"{bundle.folder} sees pictures, and the engine {name!r} has no tower: upgrade phi3mobile")
    return getattr(import_module(module), function)(bundle, threads)


def find_engine(name: str, of: str) -> Callable[[Bundle, int], Engine]:
    """The function that opens engine `name`. InputError naming the bundle `of` if there is none."""
    module, _, function = ENGINES.get(name, name).partition(":")
    known = module.startswith(_HOME) and all(part.isidentifier() for part in (*module.split("."), function))
    if not known or not _is_there(module):
        raise InputError(f"{of} is for the engine {name!r}; this phi3mobile has {', '.join(ENGINES)}: upgrade it")
    opened = getattr(import_module(module), function, None)
    if opened is None:
        raise InputError(f"{of} is for the engine {name!r}, and {module} has no {function}: upgrade phi3mobile")
    return opened


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False
