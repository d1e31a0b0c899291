"""Which values of a function are still needed after each operator, and which may be overwritten."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from phi3mobile.engines.mil import ops
from phi3mobile.engines.mil.spec import Block, Function, Name, Op

_FOREIGN = "not ours"  # memory of constants and of the caller's inputs


class Lifetimes:
    """Analysis of a function's outermost block. Values are followed to the memory ("roots") that they may share."""

    def __init__(self, function: Function) -> None:
        self._ops, block = function.block.ops, function.block
        self._last = {name: index for index, op in enumerate(self._ops) for name in _used(op)}
        self._last |= dict.fromkeys(block.outputs, len(self._ops))
        self._ends = defaultdict(list)
        for name, index in self._last.items():
            self._ends[index].append(name)
        self._roots: dict[str, frozenset] = {name: frozenset([_FOREIGN]) for name, _ in block.inputs}
        self._may: set[tuple[int, str]] = set()
        self._follow()

    def ending(self, index: int) -> tuple[str, ...]:
        """Values that nothing after operator `index` uses."""
        unused = [name for name, _ in self._ops[index].outputs if name not in self._last]
        return (*self._ends.get(index, ()), *unused)

    def may_overwrite(self, index: int, parameter: str) -> bool:
        """Whether operator `index` may write into the memory of its argument `parameter`."""
        return (index, parameter) in self._may

    def _follow(self) -> None:
        states: dict[str, frozenset] = {}  # the memory each state has at this point
        sharing: defaultdict[str, list[str]] = defaultdict(list)  # root -> values that may share it, so far
        for index, op in enumerate(self._ops):
            if op.type == "write_state":
                states[_name(op.arguments["input"])] = self._of(op.arguments["data"])
            elif op.type == "read_state":
                state = _name(op.arguments["input"])
                roots = states.setdefault(state, frozenset([f"state {state}"]))
            elif op.type in ops.MOVING or op.blocks:
                roots = frozenset().union(*(self._roots.get(name, {_FOREIGN}) for name in _used(op)))
                for key in ("x", "data"):
                    if op.type == "slice_update" and key in op.arguments and self._is_free(index, op, key, states, sharing):
                        self._may.add((index, key))
            elif op.type.startswith("scatter"):
                roots = self._of(op.arguments["data"])
                if self._is_free(index, op, "data", states, sharing):
                    self._may.add((index, "data"))
            else:
                roots = frozenset([f"result {index}"])
            for name, _ in op.outputs:
                self._roots[name] = roots
                for root in roots:
                    sharing[root].append(name)

    def _of(self, argument: Any) -> frozenset:
        return self._roots.get(_name(argument), frozenset([_FOREIGN]))

    def _is_free(self, index: int, op: Op, key: str, states: dict[str, frozenset], sharing: dict[str, list[str]]) -> bool:
        target, roots = _name(op.arguments[key]), self._of(op.arguments[key])
        if _FOREIGN in roots or op.type == "const" or self._last[target] > index:
            return False
        others = {name for root in roots for name in sharing[root]} - {target}
        if any(self._last.get(name, -1) >= index for name in others):
            return False
        return all(self._next_is_write(index, state, op.outputs[0][0]) for state, memory in states.items() if memory & roots)

    def _next_is_write(self, index: int, state: str, value: str) -> bool:
        """Whether the next operator on the state writes that value to it."""
        for op in self._ops[index + 1 :]:
            if op.blocks and state in set(_used(op)):
                return False
            if op.type in ("read_state", "write_state") and _name(op.arguments["input"]) == state:
                return op.type == "write_state" and _name(op.arguments["data"]) == value
        return False


def _name(argument: Any) -> str:
    return argument.name if isinstance(argument, Name) else ""


def _used(op: Op) -> Iterator[str]:
    """Names that an operator reads, in its nested blocks too."""
    for argument in op.arguments.values():
        for item in argument if isinstance(argument, list) else [argument]:
            if isinstance(item, Name):
                yield item.name
    for block in op.blocks:
        yield from _used_by(block)


def _used_by(block: Block) -> Iterator[str]:
    yield from block.outputs
    for op in block.ops:
        yield from _used(op)
