"""Samples of split locks: what agents have written down of one, made ready for the report."""

from __future__ import annotations

from typing import NamedTuple

from splitlock.process.agent import memory as shared
from splitlock.process.hits import Sample, Site, memory_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.process.agent.memory import Memory


class _Module(NamedTuple):
    """An image in one process: what to add to its file's addresses."""

    bias: int
    image: shared.Seen

    def holds(self, address: int) -> bool:
        """Whether the image, code or data, covers an address."""
        return 0 <= address - self.bias - self.image.low < self.image.size


class _Kept(NamedTuple):
    """A sample for the report, whose stack is still to be unwound."""

    kept: Sample
    raw: shared.Sample
    modules: list[_Module]
    rip: int


class Samples:
    """Those of one run."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._kept: list[_Kept] = []

    def add(self, task: shared.Task, site: Site) -> int:
        """A thread's first split lock at a site. Gives what its process adds to the image's addresses, where known."""
        if task.sample is None:
            return 0
        sample = self._memory.sample(task.sample)
        modules = [_Module(bias, self._memory.image(number)) for bias, number in sample.modules]
        bias = next((m.bias for m in modules if m.image.number == task.image), 0)
        kept = Sample(sample.time, task.pid, task.tid, task.comm, sample.operand)
        kept.operand = _place(sample, modules)
        site.samples.append(kept)
        self._kept.append(_Kept(kept, sample, modules, site.address + bias))
        return bias

    def unwind(self) -> str:
        """Their stacks, once nobody waits for us any more. Says why there are none, or ""."""
        if not self._kept:
            return ""
        from splitlock.image.stacks import Identity, Image, Stacks
        from splitlock.image.stacks import Sample as Moment

        with Stacks() as stacks:
            for kept, sample, modules, rip in self._kept:
                images = tuple(Image(m.image.name, m.bias, Identity(*m.image.key)) for m in modules)
                moment = Moment((*sample.registers[:16], rip), sample.stack, images)
                for address in stacks.stack(moment):
                    module = next((m for m in modules if m.holds(address)), None)
                    place = (module.image.name, address - module.bias) if module else ("", address)
                    kept.stack.append(place)
            return stacks.trouble


def _place(sample: shared.Sample, modules: list[_Module]) -> tuple[str, int]:
    """Which image and address in its file, or which other memory, an operand is."""
    for module in modules:
        if module.holds(sample.operand):
            return module.image.name, sample.operand - module.bias
    stack = sample.registers[7]
    if sample.mapping is not None:
        return memory_name(sample.mapping, sample.operand, stack), 0
    # no /proc there, or no descriptor left
    return ("stack of the thread" if 0 <= sample.operand - stack < len(sample.stack) else "memory"), 0
