"""Reads a pickle without running it: no import, no call, no attribute of anything is ever touched.

Python's own unpickler calls whatever the bytes name, and even with `find_class` overridden it can be made to
allocate by a memo index or to hash a tuple that holds itself a billion times over. This machine walks the
opcodes and builds plain values only. What the bytes would construct is the
caller's to build if its callable is one the caller knows, and an `Opaque` otherwise.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_BYTES = 16 * 2**20
"""Longest pickle that is read; a checkpoint's, which describes a few thousand tensors, has under 1 MiB."""
MAX_NAME = 1000
"""Characters of a global's module and name."""


class PickleError(ValueError):
    """Bytes that are not a pickle this machine can read."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A class or function that the pickle names, as "module name"; never looked up."""

    name: str


@dataclass(frozen=True, slots=True)
class Opaque:
    """Something that the pickle would build with the callable of this name, and that nobody built."""

    name: str


Reduce = Callable[[str, tuple[Any, ...]], Any]
"""(name of the callable, its arguments) -> value; asked for the callables in `known` alone."""
PersistentLoad = Callable[[Any], Any]
"""Persistent id -> value."""


def read_pickle(data: bytes, known: frozenset[str], reduce: Reduce, persistent_load: PersistentLoad) -> Any:
    """The value that pickle `data` describes: numbers, text, bytes, lists, tuples, dicts with text for keys,
    Symbol, Opaque, and what the two callbacks return. Sets and dict entries with other keys are left out.

    Raises PickleError for bytes that are no whole pickle, and whatever the callbacks raise.
    """
    if len(data) > MAX_BYTES:
        raise PickleError(f"{len(data)} bytes of pickle, more than {MAX_BYTES}")
    machine = _Machine(known, reduce, persistent_load)
    operations = pickletools.genops(data)
    while True:
        try:
            opcode, argument, _ = next(operations)
        except (StopIteration, ValueError, OverflowError) as error:
            raise PickleError(f"not a whole pickle: {error}") from error
        if opcode.name == "STOP":
            return machine.pop()
        machine.run(opcode.name, argument)


class _Machine:
    """The unpickler's stack, marks and memo, over inert values."""

    def __init__(self, known: frozenset[str], reduce: Reduce, persistent_load: PersistentLoad) -> None:
        self._known = known
        self._reduce = reduce
        self._persistent_load = persistent_load
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        if name in _CONSTANTS:
            self._stack.append(argument)
        elif name in _BUILDERS:
            self.push(_BUILDERS[name](self))
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in _IGNORED:
            raise PickleError(f"opcode {name} has no place in a checkpoint")

    def push(self, value: Any) -> None:
        """Put `value` on top of the stack."""
        self._stack.append(value)

    def pop(self) -> Any:
        """Take the top of the stack."""
        if not self._stack:
            raise PickleError("the stack is empty")
        return self._stack.pop()

    def top(self) -> Any:
        """The top of the stack, which stays."""
        if not self._stack:
            raise PickleError("the stack is empty")
        return self._stack[-1]

    def pop_tuple(self, length: int) -> tuple[Any, ...]:
        """Take `length` values as a tuple, the top last."""
        return tuple(reversed([self.pop() for _ in range(length)]))

    def mark(self) -> None:
        """Begin a group of values."""
        self._marked.append(self._stack)
        self._stack = []

    def pop_mark(self) -> list[Any]:
        """Take the values since the last mark."""
        if not self._marked:
            raise PickleError("no mark is set")
        items, self._stack = self._stack, self._marked.pop()
        return items

    def pop_opaque(self, num_arguments: int) -> Opaque:
        """Take arguments and the class under them, which is not built."""
        self.pop_tuple(num_arguments)
        return Opaque(_label(self.pop()))

    def pop_object(self) -> Opaque:
        """Take a class and its arguments since the last mark."""
        items = self.pop_mark()
        if not items:
            raise PickleError("an object without a class")
        return Opaque(_label(items[0]))

    def pop_global(self) -> Symbol:
        """Take a module's name and a name in it."""
        module, name = self.pop_tuple(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a global whose name is no text")
        if len(module) + len(name) > MAX_NAME:
            # Joined anew each time: a file of 1 MB could fill the memory.
            raise PickleError(f"a global whose name has more than {MAX_NAME} characters")
        return Symbol(f"{module} {name}")

    def pop_call(self) -> Any:
        """Take a callable and its arguments; the caller's `reduce` decides on the ones it knows."""
        function, arguments = self.pop_tuple(2)
        if isinstance(function, Symbol) and function.name in self._known and isinstance(arguments, tuple):
            return self._reduce(function.name, arguments)
        return Opaque(_label(function))

    def pop_persistent(self) -> Any:
        """Take a persistent id; the caller's `persistent_load` decides."""
        return self._persistent_load(self.pop())

    def extend(self, items: list[Any]) -> None:
        """Append to the list on top; anything else there takes no items."""
        target = self.top()
        if isinstance(target, list):
            target.extend(items)

    def update(self, items: list[Any]) -> None:
        """Set alternating keys and values in the dict on top; anything else there takes none."""
        target = self.top()
        if len(items) % 2:
            raise PickleError("a key without a value")
        if isinstance(target, dict):
            target.update(_entries(items))

    def remember(self, index: int) -> None:
        """Store the top of the stack under a memo index."""
        self._memo[index] = self.top()

    def memoize(self) -> None:
        """Store the top of the stack under the next memo index."""
        self._memo[len(self._memo)] = self.top()

    def recall(self, index: int) -> None:
        """Push what was stored under a memo index."""
        if index not in self._memo:
            raise PickleError(f"memo {index} was never set")
        self._stack.append(self._memo[index])


def _label(value: Any) -> str:
    return value.name if isinstance(value, Symbol | Opaque) else type(value).__name__


def _entries(items: list[Any]) -> dict[Any, Any]:
    """Alternating keys and values as a dict. Only text is safe to hash: tuples nest, and numbers collide."""
    pairs = zip(items[::2], items[1::2], strict=True)
    return {key: value for key, value in pairs if isinstance(key, str)}


def _pop_dict(machine: _Machine) -> dict[Any, Any]:
    items = machine.pop_mark()
    if len(items) % 2:
        raise PickleError("a key without a value")
    return _entries(items)


def _pop_set(machine: _Machine) -> Opaque:
    machine.pop_mark()
    return Opaque("builtins frozenset")


_CONSTANTS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
        *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_IGNORED = frozenset(("PROTO", "FRAME"))
_BUILDERS: dict[str, Callable[[_Machine], Any]] = {
    "NONE": lambda m: None,
    "NEWTRUE": lambda m: True,
    "NEWFALSE": lambda m: False,
    "EMPTY_LIST": lambda m: [],
    "EMPTY_DICT": lambda m: {},
    "EMPTY_TUPLE": lambda m: (),
    "EMPTY_SET": lambda m: Opaque("builtins set"),
    "FROZENSET": _pop_set,
    "LIST": _Machine.pop_mark,
    "DICT": _pop_dict,
    "TUPLE": lambda m: tuple(m.pop_mark()),
    "TUPLE1": lambda m: m.pop_tuple(1),
    "TUPLE2": lambda m: m.pop_tuple(2),
    "TUPLE3": lambda m: m.pop_tuple(3),
    "STACK_GLOBAL": _Machine.pop_global,
    "OBJ": _Machine.pop_object,
    "NEWOBJ": lambda m: m.pop_opaque(1),
    "NEWOBJ_EX": lambda m: m.pop_opaque(2),
    "REDUCE": _Machine.pop_call,
    "BINPERSID": _Machine.pop_persistent,
    "DUP": _Machine.top,
}
"""Opcodes that leave one value on the stack in place of what they took."""


def _append(machine: _Machine, _: Any) -> None:
    item = machine.pop()
    machine.extend([item])


def _appends(machine: _Machine, _: Any) -> None:
    machine.extend(machine.pop_mark())


def _set_item(machine: _Machine, _: Any) -> None:
    machine.update(list(machine.pop_tuple(2)))


def _set_items(machine: _Machine, _: Any) -> None:
    machine.update(machine.pop_mark())


def _instance(machine: _Machine, name: Any) -> None:
    machine.pop_mark()
    machine.push(Opaque(name))


_ACTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "BUILD": lambda m, _: m.pop(),
    "ADDITEMS": lambda m, _: m.pop_mark(),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "MEMOIZE": lambda m, _: m.memoize(),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.recall),
    "GLOBAL": lambda m, name: m.push(Symbol(name)),
    "INST": _instance,
    "PERSID": lambda m, _: m.push(Opaque("persistent id")),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), lambda m, _: m.push(Opaque("extension code"))),
}
"""Opcodes that change the stack in another way; they take the machine and the opcode's argument."""
