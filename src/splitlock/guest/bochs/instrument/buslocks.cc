// buslocks.cc: see buslocks.h.
//
// Both come behind the instruction, as Bochs' data breakpoints do, so both go its way: as a debug trap that is pending.
// What Bochs does not know of bit 11 is done here: that DR6 has it, and a VMCS's pending debug exceptions.
// Source: Intel SDM vol. 3, 18.3.1.6 (DEBUGCTL, DR6), 26.6.2, 28.2 (exit qualification, reason 74, bit 26 of others),
// 25.4.2 and 27.7.3 (pending debug exceptions).
#include "buslocks.h"
#include "exited.h"
#include "cpu/decoder/ia_opcodes.h"

enum { DB = 1 };
static const Bit32u INJECTING = 1u << 31;
static const Bit32u BUS_LOCK = 1 << 11, TRAP_HIT = 1 << 12, BUS_LOCK_EXIT = 1 << 30, BUS_LOCK_TOO = 1 << 26;

static const detecting_t *processor;
static struct entry *latest; // whose #DB, or whose VM exit, is to come
static bool exit_due;        // the VM exit
static bool trapping;        // the #DB under way is one of a bus lock
static bool pending_in_vmcs; // the VMCS that is left, or entered, has a #DB pending for a bus lock
static bool exits_too;       // another VM exit came before that for the bus lock

static BX_CPU_C *cpu()
{
    return BX_CPU(0);
}

void buslocks_open(const detecting_t *what)
{
    processor = what;
}

void buslocks_reset()
{
    latest = NULL;
    exit_due = trapping = pending_in_vmcs = exits_too = false;
}

static bool has_exits()
{
    return cpu()->VMread32(VMCS_32BIT_CONTROL_PROCESSOR_BASED_VMEXEC_CONTROLS) & VMX_VM_EXEC_CTRL1_SECONDARY_CONTROLS &&
        cpu()->VMread32(VMCS_32BIT_CONTROL_SECONDARY_VMEXEC_CONTROLS) & BUS_LOCK_EXIT;
}

void buslocks_note(const split &what)
{
    bool exits = cpu()->in_vmx_guest && has_exits();
    bool traps = processor->detects_bus_locks() && !cpu()->real_mode() && cpu()->sregs[BX_SEG_REG_CS].selector.rpl;
    if (!exits && !traps)
        return;
    exit_due = exits;
    latest = record_trap(what, exits ? "bus-lock exit" : "#DB", false);
    cpu()->debug_trap |= TRAP_HIT | (traps ? BUS_LOCK : 0);
    cpu()->async_event = 1;
}

// Bit 11 of DR6 is a reserved one to Bochs, which keeps it; in truth it is as it was written.
void buslocks_write_debug_register(bxInstruction_c *insn)
{
    bool is_dr6 = insn->dst() == 6 || insn->dst() == 4; // an alias
    Bit32u written = cpu()->gen_reg[insn->src()].dword.erx;
    if (insn->getIaOpcode() == BX_IA_MOV_DqRq)
        BX_CPU_C::MOV_DqRq(insn);
    else
        BX_CPU_C::MOV_DdRd(insn);
    if (is_dr6 && processor->knows_bus_locks())
        cpu()->dr6.val32 = (cpu()->dr6.val32 & ~BUS_LOCK) | (written & BUS_LOCK);
}

// Bit 11 of the pending debug exceptions is a reserved one to Bochs, which refuses the VM entry.
void buslocks_enter()
{
    pending_in_vmcs = false;
    if (cpu()->in_vmx_guest || cpu()->vmcsptr == BX_INVALID_VMCSPTR)
        return;
    Bit64u pending = cpu()->VMread64(VMCS_GUEST_PENDING_DBG_EXCEPTIONS);
    pending_in_vmcs = processor->knows_bus_locks() && pending & BUS_LOCK;
    if (pending_in_vmcs)
        cpu()->VMwrite64(VMCS_GUEST_PENDING_DBG_EXCEPTIONS, pending & ~(Bit64u)BUS_LOCK);
}

void buslocks_exception()
{
    trapping = cpu()->debug_trap & BUS_LOCK;
    if (!exit_due || !cpu()->in_vmx_guest)
        return;
    cpu()->VMexit(VMX_VMEXIT_BUS_LOCK, 0);
    longjmp(cpu()->jmp_buf_env, 1); // to Bochs it is one of the exits that return, its caller being at a boundary
}

void buslocks_interrupt()
{
    if (trapping) {
        cpu()->dr6.val32 &= ~BUS_LOCK;
        if (latest)
            record_step(latest, "delivered", &latest->delivered);
        latest = NULL;
    } else if (cpu()->in_vmx_guest) {
        if (struct entry *entry = exited_find(DB)) {
            record_step(entry, "injected", &entry->injected);
            exited_note(NULL, DB); // the next one may have another reason
        }
    }
    trapping = false;
}

void buslocks_vm_exit(Bit32u reason, Bit64u &qualification)
{
    bool is_debug = reason == VMX_VMEXIT_EXCEPTION_NMI && trapping;
    pending_in_vmcs = cpu()->debug_trap & BUS_LOCK;
    exits_too = exit_due && reason != VMX_VMEXIT_BUS_LOCK;
    if (is_debug)
        qualification |= BUS_LOCK;
    if (latest && (is_debug || exit_due)) {
        if (is_debug)
            exited_note(latest, DB);
        record_step(latest, "vm exit", &latest->exits);
        if (!pending_in_vmcs)
            latest = NULL;
    }
    exit_due = trapping = false;
}

void buslocks_vm_exited()
{
    if (pending_in_vmcs) {
        Bit64u pending = cpu()->VMread64(VMCS_GUEST_PENDING_DBG_EXCEPTIONS);
        cpu()->VMwrite64(VMCS_GUEST_PENDING_DBG_EXCEPTIONS, pending | BUS_LOCK);
    }
    if (exits_too)
        cpu()->VMwrite32(VMCS_32BIT_VMEXIT_REASON, cpu()->VMread32(VMCS_32BIT_VMEXIT_REASON) | BUS_LOCK_TOO);
    pending_in_vmcs = exits_too = false;
}

void buslocks_vm_entered()
{
    if (!pending_in_vmcs)
        return;
    pending_in_vmcs = false;
    if (cpu()->vmcs.vmentry_interr_info & INJECTING) // what was pending is lost, in Bochs, too
        return;
    cpu()->debug_trap |= TRAP_HIT | BUS_LOCK;
    cpu()->async_event = 1;
}

void buslocks_not_entered()
{
    buslocks_vm_exited();
}
