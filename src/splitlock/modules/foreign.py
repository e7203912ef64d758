"""Modules that can run ring-0 code which the module loader never saw.

VirtualBox's way: vboxdrv.ko holds no VMX instruction; it copies VMMR0.r0, an ELF file of its own, into kernel memory,
makes that executable and jumps there. No instruction gives that away, but what it takes does: memory that can be made
executable, which modules get from no exported function today, so that they must find an unexported one or
write page tables themselves. A sign, not a proof: findings from here are "possible". None of the 4,023 modules of
Debian's 6.1.0-56-amd64 imports any of LOOKUPS or EXECUTABLE; vboxdrv imports register_kprobe, apply_to_page_range and
vmap.
"""

from __future__ import annotations

# Ways to the address of a function that is not exported: a kprobe on it tells where it is.
LOOKUPS = frozenset(
    {"register_kprobe", "register_kretprobe", "kallsyms_lookup_name", "kallsyms_on_each_symbol"}
)  # fmt: skip
# Ways to memory whose page table entries the caller chooses. With a lookup they make code out of data.
MAPPERS = frozenset(
    {"apply_to_page_range", "apply_to_existing_page_range", "vmap", "vmap_pfn", "__vmalloc", "map_kernel_range"}
)  # fmt: skip
# Functions that make memory executable by themselves; exported by older kernels (set_memory_x until 5.9) only.
EXECUTABLE = frozenset(
    {
        "set_memory_x", "set_pages_x", "set_memory_rox", "module_alloc", "execmem_alloc", "vmalloc_exec",
        "__vmalloc_node_range",
    }
)  # fmt: skip


def loads_foreign_code(imports: frozenset[str]) -> list[str]:
    """The imports that say a module can make executable what the loader has not seen; empty when none do."""
    named = imports & EXECUTABLE
    if imports & LOOKUPS and imports & MAPPERS:
        named |= imports & (LOOKUPS | MAPPERS)
    return sorted(named)
