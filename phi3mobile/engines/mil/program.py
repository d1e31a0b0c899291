"""An mlprogram that can be run: `load(path).run(inputs, state)`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from phi3mobile.engines.mil.dtypes import Type
from phi3mobile.engines.mil.plan import CompiledFunction, Frame, Trace, compile_function, store
from phi3mobile.engines.mil.spec import MODEL_FILE, WEIGHTS_FOLDER, Feature, Function, read_model
from phi3mobile.engines.mil.weights import Constants, WeightFiles
from phi3mobile.errors import InputError

DECODED_BYTES = 4 << 30


def load(path: str | Path, decoded_bytes: int = DECODED_BYTES) -> Program:
    """The program of an .mlpackage folder, or of a .mlmodel file whose weight files are beside it in weights/.

    decoded_bytes: memory that decoded weights may keep; more are decoded again on every use. Raises InputError.
    """
    path = Path(path)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        what = "is not an .mlpackage (it has no model file)" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}; give an .mlpackage folder or a .mlmodel file")
    functions, default = read_model(file)
    return Program(functions, default, path / WEIGHTS_FOLDER if path.is_dir() else path.parent, decoded_bytes)


class Program:
    """Functions that share weights and, by name, states."""

    def __init__(self, functions: dict[str, Function], default: str, folder: Path, decoded_bytes: int = DECODED_BYTES) -> None:
        self.functions, self.default_function, self.folder = functions, default, folder
        self._files, self._constants = WeightFiles(folder), Constants(decoded_bytes)
        self._plans: dict[tuple[str, bool], CompiledFunction] = {}

    def function(self, name: str | None = None) -> Function:
        """The function of that name, or the default one. Raises InputError naming the functions there are."""
        name = name or self.default_function
        if name not in self.functions:
            raise InputError(f"this program has no function {name!r}; it has {', '.join(self.functions)}")
        return self.functions[name]

    def new_state(self, function: str | None = None) -> dict[str, np.ndarray]:
        """The function's states, zero: float32 arrays, whatever width they have on the device."""
        states = self.function(function).states
        return {
            name: np.zeros(Type(feature.dtype, feature.shape).known_shape, _dtype(feature)) for name, feature in states.items()
        }

    def run(
        self,
        inputs: dict[str, np.ndarray],
        state: dict[str, np.ndarray] | None = None,
        function: str | None = None,
        half: bool = False,
        trace: Trace | None = None,
    ) -> dict[str, np.ndarray]:
        """Outputs by name; floats are float32. `state` (of new_state) is brought up to date: its arrays may be replaced.

        half: the results of operators declared float16 are rounded to it, as a device stores them; else computed in float32.
        trace: called with (name, type, {output: array}) after every operator that is not a constant; the arrays are valid
        during the call. Raises InputError for a wrong input, a wrong state, an operator that is not known.
        """
        chosen = self.function(function)
        state = {} if state is None else state
        values = {name: _taken(name, inputs, feature, half) for name, feature in chosen.inputs.items()}
        if extra := sorted(inputs.keys() - chosen.inputs.keys()):
            raise InputError(f"the input {extra[0]!r} was given; this function takes {', '.join(chosen.inputs) or 'none'}")
        for name, feature in chosen.states.items():
            if name not in state or np.shape(state[name]) != feature.shape:
                found = f"has shape {list(np.shape(state[name]))}" if name in state else "is missing"
                raise InputError(f"the state {name!r} {found}; it must be {list(feature.shape)}: make it with new_state()")
            state[name] = np.asarray(state[name], _dtype(feature))
        plan = self._plan(function or self.default_function, half)
        frame = Frame(values, state, trace)
        with np.errstate(all="ignore"):  # infinities and NaN are results here, as on the device
            plan.run(frame)
        return {name: np.array(plan.outputs.get(name, frame.values.get(name))) for name in chosen.outputs}

    def _plan(self, name: str, half: bool) -> CompiledFunction:
        if (name, half) not in self._plans:
            with np.errstate(all="ignore"):
                plan = compile_function(self.function(name), self._files, self._constants, half)
            self._plans[name, half] = plan
        return self._plans[name, half]


def _dtype(feature: Feature) -> type:
    return np.float32 if feature.dtype.startswith("float") else np.dtype(feature.dtype).type


def _taken(name: str, inputs: dict[str, np.ndarray], feature: Feature, half: bool) -> np.ndarray:
    if name not in inputs:
        raise InputError(f"the input {name!r} is missing: it takes {feature.dtype} {feature.allowed()}")
    array = np.asarray(inputs[name])
    if not feature.takes(array.shape):
        raise InputError(f"the input {name!r} has shape {list(array.shape)}; it takes {feature.allowed()}")
    if feature.dtype.startswith("int") and array.dtype.kind not in "iub":
        raise InputError(f"the input {name!r} is {array.dtype}; it takes {feature.dtype}")
    if array.dtype.kind not in "iubf":
        raise InputError(f"the input {name!r} is {array.dtype}; it takes {feature.dtype}")
    return store(array, Type(feature.dtype), half)
