"""mlprograms (Core ML's MIL) on numpy: read one, run it on any machine, count its operators. No Apple framework needed.

    program = mil.load("model.mlpackage")
    state = program.new_state()
    outputs = program.run({"tokens": ...}, state, function="decode", half=True)

It checks the program, not Apple's kernels: which unit runs what, and how fast, only a device can tell.
"""

from phi3mobile.engines.mil.plan import Trace
from phi3mobile.engines.mil.program import Program, load
from phi3mobile.engines.mil.pte import blobs_of_pte
from phi3mobile.engines.mil.spec import Feature, Function

__all__ = ["Feature", "Function", "Program", "Trace", "blobs_of_pte", "load"]
