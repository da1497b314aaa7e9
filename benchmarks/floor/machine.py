"""What this machine reads and multiplies in a second, and a stage's matrix products back to back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.floor.work import Product

Call = Callable[[Tensor], Any]
Form = Callable[[Tensor, int], Call]
"""A weight [out, in], and for how many rows -> what multiplies it with rows [n, in]."""
Shape = tuple[int, int, int]
"""rows, in, out."""
READ_FLOATS = 2**27
"""Half a gigabyte: no cache holds it."""
SQUARE = 2048
GOES = 5


def _transposed(weight: Tensor, rows: int) -> Call:
    turned = weight.t().contiguous()
    return lambda x: x @ turned


def _packed(weight: Tensor, rows: int) -> Call:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


FORMS: dict[str, Form] = {
    "F.linear": lambda weight, rows: lambda x: F.linear(x, weight),
    "W @ x.T": lambda weight, rows: lambda x: weight @ x.T,
    "x @ V": _transposed,
}
"""V is the weight stored the other way."""
if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
    FORMS["oneDNN"] = _packed  # the weight in an order of its own, made for so many rows
ROW_FORMS: dict[str, Form] = {"mv": lambda weight, rows: lambda x: torch.mv(weight, x[0])}
"""More of them, for a single row."""


def seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def fastest(call: Callable[[], object], goes: int = GOES) -> float:
    """Seconds of the fastest of some calls: what else runs can only add."""
    return min(seconds(call) for _ in range(goes))


@torch.inference_mode()
def read_bandwidth(num_threads: int) -> float:
    """Bytes a second."""
    torch.set_num_threads(num_threads)
    numbers = torch.ones(READ_FLOATS)
    return numbers.nbytes / min(fastest(numbers.sum), fastest(numbers.max))


@torch.inference_mode()
def matrix_rate(num_threads: int) -> float:
    """Operations a second on large square matrices, in the best form."""
    torch.set_num_threads(num_threads)
    x, weight = torch.randn(SQUARE, SQUARE), torch.randn(SQUARE, SQUARE)
    return 2.0 * SQUARE**3 / min(fastest(partial(form(weight, SQUARE), x)) for form in FORMS.values())


class Chain:
    """A stage's products one after another, each in the form that is fastest for its shape on this machine.

    forms: by shape, which one that is.
    """

    @torch.inference_mode()
    def __init__(self, products: Sequence[Product], num_threads: int) -> None:
        self._num_threads = num_threads
        torch.set_num_threads(num_threads)
        groups: dict[Shape, list[Product]] = {}
        for product in products:
            groups.setdefault(shape_of(product), []).append(product)
        self._inputs = {shape: torch.randn(shape[0], shape[1]) for shape in groups}
        self.forms = {shape: best_form(group, self._inputs[shape]) for shape, group in groups.items()}
        every = FORMS | ROW_FORMS
        self._calls = [
            (every[self.forms[shape_of(one)]](one.weight, one.rows), self._inputs[shape_of(one)])
            for one in products
        ]

    @torch.inference_mode()
    def run(self) -> float:
        """Seconds of all products."""
        torch.set_num_threads(self._num_threads)
        return seconds(self._once)

    def _once(self) -> None:
        for call, x in self._calls:
            call(x)


def shape_of(product: Product) -> Shape:
    """rows, in, out."""
    outputs, inputs = product.weight.shape
    return product.rows, inputs, outputs


def best_form(products: Sequence[Product], x: Tensor) -> str:
    """The fastest form for weights of one shape; all of them in turn, as they are met in a stage."""
    forms = FORMS | (ROW_FORMS if len(x) == 1 else {})

    def time_of(name: str) -> float:
        calls = [forms[name](product.weight, len(x)) for product in products]
        return fastest(lambda: [call(x) for call in calls])

    return min(forms, key=time_of)
