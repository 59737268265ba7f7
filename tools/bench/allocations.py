"""What a learner holds of torch's memory on CPU, byte for byte: what stays, the highest point, what autograd saves."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any


def storages(tensors: Iterable[Any]) -> int:
    """Bytes behind tensors, shared ones once."""
    return sum({value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors}.values())


class Peak:
    """The most that torch's CPU allocator has given out within the `with`, over what was out before.

    Its events come from this thread alone. What another one gives back (gloo's threads hold what they reduce for a
    moment longer) is noticed when something else is given out at the same place.
    """

    most = 0

    def __enter__(self) -> Peak:
        from torch.profiler import ProfilerActivity, profile
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._profile.__exit__(*raised)
        out: dict[int, int] = {}
        now = 0
        for _, place, size in sorted(allocations(self._profile.profiler.kineto_results.experimental_event_tree())):
            if size < 0:
                now -= out.pop(place, -size)
                continue
            for gone in [at for at, held in out.items() if at < place + size and place < at + held]:
                now -= out.pop(gone)
            out[place], now = size, now + size
            self.most = max(self.most, now)


def allocations(events: Iterable[Any]) -> Iterator[tuple[int, int, int]]:
    """(time, address, bytes given out or, negative, taken back) of every event of the allocator."""
    from torch._C._profiler import _ExtraFields_Allocation
    waiting = list(events)
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if isinstance(fields := event.extra_fields, _ExtraFields_Allocation):
            yield event.start_time_ns, fields.ptr, fields.alloc_size


def living() -> dict[int, int]:
    """Address -> bytes of the storage of every tensor that Python knows."""
    import torch
    gc.collect()
    found = [item.untyped_storage() for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


class SavedBytes:
    """The most that tensors saved for a backward pass hold at a time, parameters left out."""

    def __init__(self, learner: Any) -> None:
        self.most = self._now = 0
        self._held: Counter[int] = Counter()
        self._parameters = {value.untyped_storage().data_ptr() for chunk in learner.chunks
                            for value in chunk.parameters()}

    def __enter__(self) -> SavedBytes:
        import torch
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._hooks.__exit__(*raised)

    def _pack(self, tensor: Any) -> Any:
        saved, storage = _Saved(tensor), tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self._parameters:
            self._now += 0 if self._held[key] else size
            self._held[key] += 1
            self.most = max(self.most, self._now)
            weakref.finalize(saved, self._drop, key, size)
        return saved

    def _drop(self, key: int, size: int) -> None:
        self._held[key] -= 1
        self._now -= 0 if self._held[key] else size


class _Saved:
    """Dies with the saved tensor."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
