// instrument.h: where Bochs 3 calls the library: its compile-time hooks (instrument/instrumentation.txt in Bochs' sources).
//
// Each is a macro that Bochs expands in the middle of its own functions. What runs for every instruction or access is one
// comparison here; the rest is in hooks.cc.
#pragma once

#define BX_INSTR_STORE_OPCODE_BYTES // an instruction carries its bytes

class bxInstruction_c;

extern const bxInstruction_c *splitlock_insn; // the one that is being executed
extern Bit64u splitlock_send_fault;           // address of the kernel's force_sig_fault(); 0: not known

void splitlock_initialize();
void splitlock_reset(unsigned type);
void splitlock_decoded(bxInstruction_c *insn);
void splitlock_access(Bit64u address, unsigned size);
void splitlock_called(Bit64u place);
void splitlock_exception(unsigned vector);
void splitlock_interrupt(unsigned vector);
void splitlock_vm_exit(Bit32u reason, Bit64u &qualification);
void splitlock_other_world();
void splitlock_new_tables();
void splitlock_boot_sector();
void splitlock_load();

enum { SPLITLOCK_LINE = 64, SPLITLOCK_BOOT_SECTOR = 0x7c00, SPLITLOCK_LOAD_PORT = 0x8902 };

#define BX_INSTR_INIT_ENV()
#define BX_INSTR_EXIT_ENV()
#define BX_INSTR_INITIALIZE(cpu_id) splitlock_initialize()
#define BX_INSTR_EXIT(cpu_id)
#define BX_INSTR_RESET(cpu_id, type) splitlock_reset(type)
#define BX_INSTR_HLT(cpu_id)
#define BX_INSTR_MWAIT(cpu_id, addr, len, flags)
#define BX_INSTR_DEBUG_PROMPT()
#define BX_INSTR_DEBUG_CMD(cmd)
#define BX_INSTR_CNEAR_BRANCH_TAKEN(cpu_id, branch_eip, new_eip)
#define BX_INSTR_CNEAR_BRANCH_NOT_TAKEN(cpu_id, branch_eip)
#define BX_INSTR_UCNEAR_BRANCH(cpu_id, what, branch_eip, new_eip)                                                            \
    do {                                                                                                                     \
        if ((new_eip) == splitlock_send_fault)                                                                               \
            splitlock_called(new_eip);                                                                                       \
    } while (0)
#define BX_INSTR_FAR_BRANCH(cpu_id, what, prev_cs, prev_eip, new_cs, new_eip)                                                \
    do {                                                                                                                     \
        if (((Bit64u)(new_cs) << 4) + (new_eip) == SPLITLOCK_BOOT_SECTOR)                                                    \
            splitlock_boot_sector();                                                                                         \
    } while (0)
#define BX_INSTR_OPCODE(cpu_id, i, opcode, len, is32, is64) splitlock_decoded(i)
#define BX_INSTR_EXCEPTION(cpu_id, vector, error_code) splitlock_exception(vector)
#define BX_INSTR_INTERRUPT(cpu_id, vector) splitlock_interrupt(vector)
#define BX_INSTR_HWINTERRUPT(cpu_id, vector, cs, eip)
#define BX_INSTR_CLFLUSH(cpu_id, laddr, paddr)
#define BX_INSTR_CACHE_CNTRL(cpu_id, what)
#define BX_INSTR_TLB_CNTRL(cpu_id, what, new_cr3)                                                                            \
    do {                                                                                                                     \
        if ((what) == BX_INSTR_MOV_CR3)                                                                                      \
            splitlock_new_tables();                                                                                          \
        else if ((what) == BX_INSTR_CONTEXT_SWITCH)                                                                          \
            splitlock_other_world();                                                                                            \
    } while (0)
#define BX_INSTR_PREFETCH_HINT(cpu_id, what, seg, offset)
#define BX_INSTR_BEFORE_EXECUTION(cpu_id, i) (splitlock_insn = (i))
#define BX_INSTR_AFTER_EXECUTION(cpu_id, i)
#define BX_INSTR_REPEAT_ITERATION(cpu_id, i)
// Read-modify-write, and it reaches the end of a line. Across pages Bochs calls twice, first for the first page's part,
// which ends where the line ends.
#define BX_INSTR_LIN_ACCESS(cpu_id, lin, phy, len, memtype, rw)                                                              \
    do {                                                                                                                     \
        if ((rw) == BX_RW && ((lin) & (SPLITLOCK_LINE - 1)) + (len) >= SPLITLOCK_LINE)                                       \
            splitlock_access(lin, len);                                                                                      \
    } while (0)
#define BX_INSTR_PHY_ACCESS(cpu_id, phy, len, memtype, rw)
#define BX_INSTR_INP(addr, len)
#define BX_INSTR_INP2(addr, len, val)
#define BX_INSTR_OUTP(addr, len, val)                                                                                        \
    do {                                                                                                                     \
        if ((addr) == SPLITLOCK_LOAD_PORT)                                                                                   \
            splitlock_load();                                                                                                \
    } while (0)
#define BX_INSTR_WRMSR(cpu_id, addr, value)
#define BX_INSTR_VMEXIT(cpu_id, reason, qualification) splitlock_vm_exit(reason, qualification)
