// record.cc: see record.h.
#include "record.h"
#include "levels.h"
#include "processor.h"
#include "pc_system.h"
#include <sys/mman.h>

enum { GUEST_SIGBUS = 7, GUEST_BUS_ADRALN = 1, VCPU = 0 };
static const Bit64u HALF = 1ull << 63; // the kernel's half of the addresses

static int traps_to = -1;
static const char *detect = "";
static struct entry *last_trap; // of a program that may get a signal for it

static BX_CPU_C *cpu()
{
    return BX_CPU(0);
}

static const char *word(const char *words, const char *name)
{
    const char *found = words;
    size_t length = strlen(name);
    while (found && (strncmp(found, name, length) || found[length] != '=')) {
        found = strchr(found, ',');
        found = found ? found + 1 : NULL;
    }
    return found ? found + length + 1 : "-1";
}

// Bochs takes its memory from the heap, a block at a time, as it is first used. Here all is used, in order, and then
// what splitlock reads is mapped there.
static void share_memory(int memory)
{
    Bit64u length = BX_MEM(0)->get_memory_len();
    Bit8u *begin = BX_MEM(0)->get_vector(0);
    for (Bit64u at = 0; at < length; at += 4096)
        if (BX_MEM(0)->get_vector(at) != begin + at) {
            fprintf(stderr, "splitlock plugin: Bochs' memory is not in one piece\n");
            exit(1);
        }
    if (mmap(begin, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory, 0) == MAP_FAILED) {
        perror("splitlock plugin: the machine's memory");
        exit(1);
    }
}

void record_open()
{
    const char *words = getenv("SPLITLOCK");
    if (!words) {
        fprintf(stderr, "splitlock plugin: this Bochs is run by splitlock guest --vmx\n");
        exit(1);
    }
    int memory = atoi(word(words, "ram"));
    if (!table_open(atoi(word(words, "shared")), memory, strtoull(word(words, "low"), NULL, 10), atoi(word(words, "ask"))))
        exit(1);
    share_memory(memory);
    traps_to = atoi(word(words, "traps"));
    detect = word(words, "detect");
    shared->knows = 3;
    shared->api = 1;
}

const char *record_detect()
{
    return detect;
}

// The machine's own time, in nanoseconds: its delays are told in it, as its own kernel would. Not by the time stamp
// counter, which begins anew with a reset, and which software may write.
static uint64_t now()
{
    return bx_pc_system.time_ticks() * (1000 / TSC_MHZ);
}

static unsigned mode()
{
    return cpu()->cpu_mode == BX_MODE_LONG_64 ? 64 : cpu()->sregs[BX_SEG_REG_CS].cache.u.segment.d_b ? 32 : 16;
}

static unsigned cpl()
{
    return cpu()->real_mode() ? 0 : cpu()->sregs[BX_SEG_REG_CS].selector.rpl;
}

static Bit64u linear_pc()
{
    return cpu()->get_segment_base(BX_SEG_REG_CS) + cpu()->prev_rip;
}

static void fill(struct entry *entry, const split &what)
{
    entry->address = what.address;
    entry->vcpu = VCPU;
    entry->size = (uint8_t)what.size;
    entry->length = (uint8_t)splitlock_insn->ilen();
    entry->mode = (uint8_t)mode();
    entry->flags |= KNOWS_REGISTERS | (cpu()->in_smm ? IN_SMM : 0);
    entry->registers[CR0] = cpu()->cr0.get32();
    entry->registers[CR3] = cpu()->cr3;
    entry->registers[CR4] = cpu()->cr4.get32();
    entry->registers[EFER] = cpu()->efer.get32();
    entry->registers[EFLAGS] = cpu()->read_eflags();
    entry->registers[CS] = cpu()->sregs[BX_SEG_REG_CS].selector.value;
    entry->registers[GS_BASE] = cpu()->sregs[BX_SEG_REG_GS].cache.u.segment.base;
    entry->registers[K_GS_BASE] = cpu()->msr.kernelgsbase;
    if (cpu()->in_vmx_guest) {
        entry->host_cr3 = cpu()->vmcs.host_state.cr3;
        entry->host_rip = cpu()->vmcs.host_state.rip;
    }
}

struct entry *record_entry(const split &what)
{
    static uint8_t code[CODE];
    memset(code, 0, CODE);
    memcpy(code, splitlock_insn->get_opcode_bytes(), splitlock_insn->ilen());
    struct key key = {};
    key.pc = linear_pc();
    key.code = code;
    key.world = levels_world();
    if (cpu()->in_vmx_guest)
        key.space = cpu()->vmcs.vmexec_ctrls2.EPT_ENABLE() ? cpu()->vmcs.eptptr : 0;
    if (key.world & IN_NESTED || !(key.pc & HALF))
        key.who = table_who(VCPU);
    struct entry *entry = table_find(&key);
    if (!entry && (entry = table_add(&key))) {
        fill(entry, what);
        table_ask(entry);
        splitlock_send_fault = shared->send_fault;
    }
    return entry;
}

void record_hit(const split &what)
{
    struct entry *entry = record_entry(what);
    if (entry && entry->trapped_at)
        table_let_go(entry, now());
    if (entry)
        entry->hits = entry->hits + 1;
    else
        shared->lost = shared->lost + 1;
    shared->hits = shared->hits + 1;
}

// A line: an exception (`trap`), or what came of it (`then`).
static void log(const struct entry *entry, const char *what, const char *more, Bit64u address)
{
    if (traps_to < 0)
        return;
    unsigned level = entry->registers[CR0] & 1 ? (unsigned)entry->registers[CS] & 3 : 0;
    dprintf(traps_to, "{\"%s\":\"%s\",\"cpu\":%u,\"place\":\"%s\",\"cpl\":%u,\"pc\":\"0x%llx\",\"address\":\"0x%llx\",\"size\":%u}\n",
            what, more, VCPU, levels_place(entry->flags), level, (unsigned long long)entry->pc,
            (unsigned long long)address, entry->size);
}

struct entry *record_trap(const split &what, const char *name, bool waits)
{
    struct entry *entry = record_entry(what);
    shared->traps = shared->traps + 1;
    shared->clock = now();
    if (!entry)
        return NULL;
    entry->traps = entry->traps + 1;
    // Another guest may have come to lie where this one was: what it is in now is what counts.
    entry->registers[CR0] = cpu()->cr0.get32();
    entry->registers[CS] = cpu()->sregs[BX_SEG_REG_CS].selector.value;
    if (waits && !entry->trapped_at)
        entry->trapped_at = now();
    last_trap = entry;
    log(entry, "trap", name, what.address);
    return entry;
}

void record_step(struct entry *entry, const char *what, _Atomic uint64_t *count)
{
    *count = *count + 1;
    log(entry, "then", what, entry->address);
}

// The kernel sends a signal: for the exception that this task got last.
void record_signal()
{
    if ((int)cpu()->gen_reg[BX_64BIT_REG_RDI].dword.erx != GUEST_SIGBUS ||
        (int)cpu()->gen_reg[BX_64BIT_REG_RSI].dword.erx != GUEST_BUS_ADRALN || cpu()->in_vmx_guest)
        return;
    if (last_trap && last_trap->task == table_who(VCPU).task) {
        last_trap->signals = last_trap->signals + 1;
        last_trap->trapped_at = 0;
        last_trap = NULL;
    }
}

void record_reset()
{
    shared->resets = shared->resets + 1;
    last_trap = NULL;
}

// What splitlock finds the kernel by, also where nothing splits.
void record_look()
{
    if (!shared->look || cpu()->in_vmx_guest || cpu()->in_smm || cpl() || !cpu()->efer.get_LMA())
        return;
    shared->cr4 = cpu()->cr4.get32();
    shared->cr3 = cpu()->cr3;
    shared->look = 0;
    splitlock_send_fault = shared->send_fault;
}

void record_boot_sector()
{
    shared->boot_sector = 1;
}

void record_decoded()
{
    shared->sites = shared->sites + 1;
}
