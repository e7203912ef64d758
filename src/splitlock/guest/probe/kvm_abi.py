"""What /dev/kvm is asked: numbers and structures, a stable ABI (include/uapi/linux/kvm.h, asm/kvm.h)."""

from __future__ import annotations

from ctypes import Structure, c_uint8, c_uint16, c_uint32, c_uint64

API_VERSION = 12
GET_API_VERSION = 0xAE00
CREATE_VM = 0xAE01
GET_VCPU_MMAP_SIZE = 0xAE04
GET_SUPPORTED_CPUID = 0xC008AE05
CREATE_VCPU = 0xAE41
SET_USER_MEMORY_REGION = 0x4020AE46
SET_TSS_ADDR = 0xAE47
RUN = 0xAE80
SET_REGS = 0x4090AE82
GET_SREGS = 0x8138AE83
SET_SREGS = 0x4138AE84
SET_CPUID2 = 0x4008AE90
GET_TSC_KHZ = 0xAEA3

EXITS = {
    0: "UNKNOWN", 1: "EXCEPTION", 2: "IO", 3: "HYPERCALL", 4: "DEBUG", 5: "HLT", 6: "MMIO", 7: "IRQ_WINDOW_OPEN",
    8: "SHUTDOWN", 9: "FAIL_ENTRY", 10: "INTR", 17: "INTERNAL_ERROR", 24: "SYSTEM_EVENT",
}  # fmt: skip
EXIT_IO, EXIT_INTR, EXIT_INTERNAL_ERROR = 2, 10, 17
IO_IN = 0
EMULATION = 1  # the suberror of EXIT_INTERNAL_ERROR, which lies where `direction` does


class Regs(Structure):
    """struct kvm_regs, but that the registers have no names here: 16, of which RSP is the seventh; RIP and RFLAGS."""

    _fields_ = (("general", c_uint64 * 16), ("rip", c_uint64), ("rflags", c_uint64))


class Segment(Structure):
    """struct kvm_segment."""

    _fields_ = (
        ("base", c_uint64), ("limit", c_uint32), ("selector", c_uint16), ("type", c_uint8), ("present", c_uint8),
        ("dpl", c_uint8), ("db", c_uint8), ("s", c_uint8), ("l", c_uint8), ("g", c_uint8), ("avl", c_uint8),
        ("unusable", c_uint8), ("padding", c_uint8),
    )  # fmt: skip


class Table(Structure):
    """struct kvm_dtable."""

    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))


class Sregs(Structure):
    """struct kvm_sregs."""

    _fields_ = (
        ("segments", Segment * 8), ("gdt", Table), ("idt", Table), ("control", c_uint64 * 5), ("efer", c_uint64),
        ("apic_base", c_uint64), ("interrupts", c_uint64 * 4),
    )  # fmt: skip


class MemoryRegion(Structure):
    """struct kvm_userspace_memory_region."""

    _fields_ = (
        ("slot", c_uint32), ("flags", c_uint32), ("address", c_uint64), ("size", c_uint64), ("memory", c_uint64)
    )  # fmt: skip


class RunHead(Structure):
    """The head of struct kvm_run, with the exit KVM_EXIT_IO."""

    _fields_ = (
        ("request_interrupt_window", c_uint8), ("immediate_exit", c_uint8), ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32), ("ready_for_interrupt_injection", c_uint8), ("if_flag", c_uint8),
        ("flags", c_uint16), ("cr8", c_uint64), ("apic_base", c_uint64), ("direction", c_uint8), ("size", c_uint8),
        ("port", c_uint16), ("count", c_uint32), ("data_offset", c_uint64),
    )  # fmt: skip
