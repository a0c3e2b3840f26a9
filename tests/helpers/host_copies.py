"""A stand-in for a GPU: meta tensors whose copies to the host are answered, counted or refused.

The device does what it is told later; whatever makes the host wait for it is a synchronisation:
reading a value, a shape that depends on values, and any copy between host and device that is not
asked to be asynchronous.
"""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero_static.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.unique_consecutive.default,
    torch.ops.aten.unique_dim.default,
    torch.ops.aten.bincount.default,
    torch.ops.aten.equal.default,
}


class _Factories(TorchFunctionMode):
    """`torch.tensor(values, device=...)` makes a copy that blocks, and no operator shows it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = (kwargs or {}).get("device")
        if func is torch.tensor and device is not None and torch.device(device).type == "meta":
            raise AssertionError("torch.tensor with a device waits for the device")
        if func is torch.Tensor.new_tensor and args[0].is_meta:
            raise AssertionError("new_tensor waits for the device")
        return func(*args, **(kwargs or {}))


class HostCopies(TorchDispatchMode):
    """Counts what the host asks of a device of meta tensors.

    Args:
        answers: what a copy to the host brings, by its shape; any other copy is refused.
        scored: how many places a boolean mask selects; None refuses to be asked.

    Attributes:
        copies: how often each shape was copied to the host.
        asked: how often the size of a boolean selection was asked for.
    """

    def __init__(
        self, answers: dict[tuple[int, ...], torch.Tensor], scored: int | None = None
    ) -> None:
        super().__init__()
        self.answers, self.scored = answers, scored
        self.copies: Counter[tuple[int, ...]] = Counter()
        self.asked = 0
        self._factories = _Factories()

    def __enter__(self) -> Any:
        self._factories.__enter__()
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self._factories.__exit__(kind, error, trace)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            answer = self._copy(func, args, kwargs)
            if answer is not None:
                return answer
        on_device = any(isinstance(a, torch.Tensor) and a.is_meta for a in args)
        if func in WAITS and on_device:
            raise AssertionError(f"{func} waits for the device")
        if func is torch.ops.aten.nonzero.default and on_device:
            return torch.empty(self._size(), args[0].dim(), dtype=torch.int64, device="meta")
        if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default) and on_device:
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            if masks and func is torch.ops.aten.index.Tensor:
                rest = args[0].shape[masks[0].dim() :]
                return torch.empty(self._size(), *rest, dtype=args[0].dtype, device="meta")
            assert not masks, f"{func} with a mask waits for the device"
        if func is torch.ops.aten.repeat_interleave.Tensor and on_device:
            assert kwargs.get("output_size") is not None, "repeat_interleave waits for its size"
        return func(*args, **kwargs)

    def _size(self) -> int:
        assert self.scored is not None, "a boolean selection waits for its size"
        self.asked += 1
        return self.scored

    def _copy(self, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
        """The answer to a copy to the host; None for a copy that is just made."""
        into = func is torch.ops.aten.copy_.default
        source = args[1] if into else args[0]
        target = args[0].device if into else torch.device(kwargs.get("device") or source.device)
        if source.device.type == target.type:
            return None
        if target.type == "meta":
            waits = not (args[2] if into and len(args) > 2 else kwargs.get("non_blocking"))
            # A scalar travels with the call of the kernel.
            assert not waits or source.dim() == 0, "a copy to the device waits for it"
            return None
        shape = tuple(source.shape)
        assert not into and shape in self.answers, f"a copy {shape} to the host is not announced"
        self.copies[shape] += 1
        return self.answers[shape].to(kwargs.get("dtype") or source.dtype)
