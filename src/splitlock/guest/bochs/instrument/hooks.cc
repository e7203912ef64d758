// hooks.cc: what happens at Bochs' hooks (instrument.h): which locked access is one that splits, and the exception for it.
//
// - #AC, a fault: BX_INSTR_LIN_ACCESS comes after the translation and the read of a read-modify-write, before its write.
//   exception() does the rest: VMX's exception bitmap, the interrupt table, double and triple faults.
// - #DB and VM exits for bus locks: buslocks.cc.
// Sources: Intel SDM vol. 3, 10.1.2.3 (split locks), 26.6.3 and 28.2 (exits).
#define NEED_CPU_REG_SHORTCUTS 1 // Bochs: with BxResolve64()
#include "buslocks.h"
#include "exited.h"
#include "levels.h"
#include "processor.h"
#include "record.h"
#include "cpu/decoder/ia_opcodes.h"

enum { AC = 17, DB = 1, PAGE = 4096, DOUBLE_FAULT = 10 }; // the last: Bochs' ExceptionType
static const Bit32u INJECTS = 1u << 31 | BX_HARDWARE_EXCEPTION << 8 | AC, INJECTED_WHAT = 0x800007ff;
static const Bit32u SAVE_DEBUG = 1 << 2, LOAD_DEBUG = 1 << 2, NOT_ENTERED = 1u << 31;

const bxInstruction_c *splitlock_insn;
Bit64u splitlock_send_fault;

static detecting_t *processor;
static detection detecting;
static struct entry *expected;   // exception(AC) is called for this one
static struct entry *pending;    // it has begun, and has come to nothing yet
static bool in_exception;        // an #AC has begun, ours or one that EFLAGS.AC asked for
static bool exiting;             // a VM exit has begun
static bool entering;            // a VM entry has begun
static bool injecting;           // it gives an #AC to the guest
static struct entry *dying;      // its delivery ends in a third exception

static struct {
    struct entry *entry;
    Bit64u at; // instructions executed until then
    bool delivered;
} given; // the last #AC that went to an interrupt table

static BX_CPU_C *cpu()
{
    return BX_CPU(0);
}

void splitlock_initialize()
{
    record_open();
    const char *words = record_detect();
    detecting.unannounced = strstr(words, "unannounced");
    detecting.split_locks = detecting.unannounced || strstr(words, "split-locks");
    detecting.bus_locks = strstr(words, "bus-locks");
    processor = new detecting_t(cpu()->cpuid, detecting);
    cpu()->cpuid = processor;
    settle_vmx(cpu(), detecting);
    buslocks_open(processor);
}

// Its exception was the end of the guest, or of the machine.
static void die(struct entry *entry)
{
    if (given.delivered)
        entry->delivered = entry->delivered - 1;
    entry->trapped_at = 0;
    record_step(entry, "triple fault", &entry->triple_faults);
}

void splitlock_reset(unsigned type)
{
    if (type != BX_RESET_HARDWARE)
        return;
    if (dying)
        die(dying);
    given.entry = pending = expected = dying = NULL;
    in_exception = exiting = entering = injecting = false;
    buslocks_reset();
    exited_reset();
    levels_reset();
    processor->reset();
    record_reset();
}

// Instead of an instruction's own function, which these call: they may not come back from it.
static void enter(bxInstruction_c *insn)
{
    entering = true;
    buslocks_enter();
    BX_CPU_C::VMLAUNCH(insn); // does VMRESUME, too
    buslocks_not_entered();
    entering = false;
}

static bool is_vmx_root()
{
    return cpu()->in_vmx && !cpu()->in_vmx_guest && !cpu()->sregs[BX_SEG_REG_CS].selector.rpl;
}

static void clear(bxInstruction_c *insn)
{
    if (is_vmx_root()) { // reads its operand as VMCLEAR will: the same page fault comes of it
        Bit64u at = insn->as64L() ? BX_CPU_C::BxResolve64(insn) : BX_CPU_C::BxResolve32(insn);
        levels_clear(BX_CPU_C::read_virtual_qword(insn->seg(), at));
    }
    BX_CPU_C::VMCLEAR(insn);
}

static void turn_off(bxInstruction_c *insn)
{
    if (is_vmx_root())
        levels_reset();
    BX_CPU_C::VMXOFF(insn);
}

static bool is_locked(const bxInstruction_c *insn)
{
    if (insn->getLock())
        return true;
    unsigned opcode = insn->getIaOpcode();
    return opcode == BX_IA_XCHG_EwGw || opcode == BX_IA_XCHG_EdGd || opcode == BX_IA_XCHG_EqGq;
}

void splitlock_decoded(bxInstruction_c *insn)
{
    unsigned opcode = insn->getIaOpcode();
    if (opcode == BX_IA_VMLAUNCH || opcode == BX_IA_VMRESUME)
        insn->execute1 = enter;
    else if (opcode == BX_IA_VMCLEAR_Mq)
        insn->execute1 = clear;
    else if (opcode == BX_IA_VMXOFF)
        insn->execute1 = turn_off;
    else if (opcode == BX_IA_MOV_DqRq || opcode == BX_IA_MOV_DdRd)
        insn->execute1 = buslocks_write_debug_register;
    if (is_locked(insn))
        record_decoded();
}

void splitlock_access(Bit64u address, unsigned size)
{
    split what = {address, size};
    bool at_page_end = ((address + size) & (PAGE - 1)) == 0;
    if (at_page_end && cpu()->address_xlation.pages == 2)
        what.size += cpu()->address_xlation.len2;
    else if ((address & (SPLITLOCK_LINE - 1)) + size == SPLITLOCK_LINE)
        return;
    if (!is_locked(splitlock_insn))
        return;
    if (processor->detects_split_locks()) {
        expected = record_trap(what, "#AC", true);
        cpu()->exception(AC, 0);
    }
    record_hit(what);
    if (detecting.bus_locks)
        buslocks_note(what);
}

void splitlock_called(Bit64u)
{
    record_signal();
}

void splitlock_exception(unsigned vector)
{
    dying = cpu()->last_exception_type == DOUBLE_FAULT && given.entry && given.at == cpu()->icount ? given.entry : NULL;
    if (vector == AC) {
        pending = expected;
        expected = NULL;
        in_exception = true;
    } else if (vector == DB) {
        buslocks_exception();
    }
}

static void give(struct entry *entry, const char *what, _Atomic uint64_t *count)
{
    given.entry = entry;
    given.at = cpu()->icount;
    given.delivered = count == &entry->delivered;
    record_step(entry, what, count);
}

// Delivery begins: of an exception, of what a hypervisor injects, of an interrupt.
void splitlock_interrupt(unsigned vector)
{
    if (vector == DB)
        buslocks_interrupt();
    if (vector != AC)
        return;
    if (in_exception) {
        if (pending)
            give(pending, "delivered", &pending->delivered);
    } else if (injecting) {
        // Once: an injection that faults is given again, and the hypervisor has not decided anew.
        if (struct entry *entry = exited_find(AC))
            give(entry, "injected", &entry->injected);
        exited_note(NULL, AC);
    }
    injecting = false;
    pending = NULL;
    in_exception = false;
}

void splitlock_vm_exit(Bit32u reason, Bit64u &qualification)
{
    exiting = true;
    levels_exit(reason);
    Bit32u basic = reason & 0xffff;
    if (basic == VMX_VMEXIT_EXCEPTION_NMI && in_exception) {
        exited_note(pending, AC); // null: one that EFLAGS.AC asked for
        if (pending)
            record_step(pending, "vm exit", &pending->exits);
    } else if (basic == VMX_VMEXIT_TRIPLE_FAULT && given.entry && given.at == cpu()->icount) {
        die(given.entry);
    }
    buslocks_vm_exit(basic, qualification);
    pending = given.entry = NULL;
    in_exception = entering = injecting = false;
    if (!(reason & NOT_ENTERED) && cpu()->VMread32(VMCS_32BIT_CONTROL_VMEXIT_CONTROLS) & SAVE_DEBUG)
        cpu()->VMwrite64(VMCS_64BIT_GUEST_IA32_DEBUGCTL, processor->debugctl);
    processor->debugctl = 0;
}

// Registers are those of another world now: a VM exit, a VM entry, or system management mode.
void splitlock_other_world()
{
    if (exiting) {
        exiting = false;
        buslocks_vm_exited();
    } else if (entering) {
        entering = false;
        levels_entry();
        injecting = (cpu()->vmcs.vmentry_interr_info & INJECTED_WHAT) == INJECTS;
        if (!injecting && exited_find(AC))
            exited_note(NULL, AC); // the hypervisor has kept it
        table_vm_entry(cpu()->vmcs.host_state.rip, cpu()->vmcs.host_state.cr3);
        buslocks_vm_entered();
        if (cpu()->VMread32(VMCS_32BIT_CONTROL_VMENTRY_CONTROLS) & LOAD_DEBUG)
            processor->debugctl = cpu()->VMread64(VMCS_64BIT_GUEST_IA32_DEBUGCTL);
    }
}

void splitlock_new_tables()
{
    record_look();
}

void splitlock_boot_sector()
{
    record_boot_sector();
}

void splitlock_load()
{
    table_load();
}
