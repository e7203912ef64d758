/*
 * detection.h: gives QEMU's CPUs split-lock detection (#AC), bus-lock detection (#DB), or an #AC that nobody asked for.
 *
 * QEMU does all that an exception takes: gate, stack, privilege, SVM's intercepts. Here it is only raised, in time:
 * - #AC, a fault: in the callback of the locked instruction's load, before its store. What would fault at the store, a page
 *   that cannot be written, does so first.
 * - #DB, a trap: after the store. QEMU (with more than one CPU) runs a locked instruction whose operand crosses alone, with all
 *   other CPUs stopped, and then does what is queued for the CPU: the exception is queued, and comes right behind the instruction.
 * - TEST_CTRL, CORE_CAPABILITIES, DEBUGCTL, CPUID: answered before the instruction, which is then passed over.
 *
 * None of this is in the plugin interface. QEMU's own functions are called, which builds with loadable modules export
 * (Debian's, Fedora's). The CPU's state is where rbp points while translated code runs (tcg/i386/tcg-target.h, AREG0); of it
 * only the general registers and eip are touched, which come first (target/i386/cpu.h, CPUX86State), and DR6, which is found by its
 * value after a reset. splitlock runs a test of all this before each guest: guest/selftest.py.
 *
 * Sources: Intel SDM vol. 4, table 2-2, MSRs 33H, CFH, 1D9H; vol. 3, 18.3.1.6 (bus locks), 7.15 and 10.1.2.3 (split locks).
 */
#include <stdatomic.h>

/* In plugin.c: */
static bool crosses(const struct site *, qemu_plugin_meminfo_t, uint64_t address, unsigned *size);
static struct entry *count_trap(unsigned vcpu, struct site *, uint64_t address, unsigned size, bool waits);
static void on_access(unsigned vcpu, qemu_plugin_meminfo_t, uint64_t address, void *site);

struct state { /* the beginning of CPUX86State */
    uint64_t registers[16], eip;
};
typedef union {
    uint64_t number;
    void *pointer;
} run_on_cpu_data;
WEAK void raise_exception_err_ra(struct state *, int number, int code, uintptr_t place);
WEAK bool cpu_restore_state(struct CPUState *, uintptr_t place);
WEAK void cpu_loop_exit_noexc(struct CPUState *);
WEAK bool in_code_gen_buffer(const void *);
WEAK void cpu_x86_cpuid(struct state *, uint32_t leaf, uint32_t subleaf, uint32_t *, uint32_t *, uint32_t *, uint32_t *);
WEAK bool cpu_svm_has_intercept(struct state *, uint32_t);
WEAK void *probe_access(struct state *, uint64_t address, int size, int access, int mmu, uintptr_t place);
WEAK void async_run_on_cpu(struct CPUState *, void (*)(struct CPUState *, run_on_cpu_data), run_on_cpu_data);
WEAK void do_interrupt_x86_hardirq(struct state *, int number, int hardware);

enum { STORE = 1, FRAME_WORDS = 512, PAGE_BYTES = 4096, STATE_WORDS = 8192 };
enum { RAX, RCX, RDX, RBX, RSI = 6, RDI };
enum { GUEST_SIGBUS = 7, GUEST_BUS_ADRALN = 1 };
enum { DB = 1, GP = 13, AC = 17 };
enum { TEST_CTRL = 0x33, CORE_CAPABILITIES = 0xcf, DEBUGCTL = 0x1d9 };
enum { SVM_EXIT_CPUID = 0x72, SVM_EXIT_MSR = 0x7c, SVM_EXIT_VMRUN = 0x80 };
static const uint64_t TEST_CTRL_BITS = 1ull << 29 | 1ull << 31, DETECT_SPLIT_LOCKS = 1ull << 29, SPLIT_LOCK_CAPABILITY = 1 << 5;
static const uint64_t DEBUGCTL_BITS = 0xdfc7, DETECT_BUS_LOCKS = 1 << 2, DR6_BUS_LOCK = 1 << 11;
static const uint64_t DR6_AFTER_RESET = 0xffff0ff0, DR7_AFTER_RESET = 0x400, RESET_VECTOR = 0xfffffff0;
static const uint64_t CR0_PE = 1, CR0_AM = 1 << 18, EFLAGS_VM = 1 << 17, EFLAGS_AC = 1 << 18;

#define FROM_CALLBACK __attribute__((used)) static void /* called by the assembler code below */

static bool split_locks, bus_locks; /* announced */
static bool by_stub;                /* nothing of this here */
static enum { NEVER, ONCE, ALWAYS, ASKED } forward;
static int traps_to = -1;
static ptrdiff_t state_at; /* from CPUState to CPUX86State; 0: not known yet */
static size_t dr6_at;      /* in it, in words; 0: unknown */
static struct {
    _Alignas(LINE_BYTES) uint64_t test_ctrl, debugctl;
    uint64_t let_pass;  /* ONCE: the instruction that has trapped, until it stores */
    struct entry *last; /* that got an exception, until the kernel sends a signal for it */
} detecting[CPUS];

static struct state *state_of(unsigned vcpu)
{
    return (struct state *)((char *)qemu_get_cpu((int)vcpu) + state_at);
}

/* Where translated code goes on after the call that led here: at once, or behind one of QEMU's helper functions. */
static uintptr_t place_in_code(void *const *frame)
{
    for (int i = 0; i < FRAME_WORDS; i++)
        if (in_code_gen_buffer(frame[i]))
            return (uintptr_t)frame[i];
    fprintf(stderr, "splitlock plugin: translated code is not on the stack\n");
    abort(); /* going on would be an instruction that neither trapped nor was let pass */
}

static unsigned cpl(unsigned vcpu)
{
    if (!(read_register(vcpu, CR0) & CR0_PE))
        return 0;
    return read_register(vcpu, EFLAGS) & EFLAGS_VM ? 3 : read_register(vcpu, CS) & 3;
}

static void log_trap(const char *what, unsigned vcpu, uint64_t pc, uint64_t address, unsigned size)
{
    if (traps_to >= 0)
        dprintf(traps_to, "{\"trap\":\"%s\",\"cpu\":%u,\"cpl\":%u,\"pc\":\"0x%llx\",\"address\":\"0x%llx\",\"size\":%u}\n",
                what, vcpu, cpl(vcpu), (unsigned long long)pc,
                (unsigned long long)address, size);
}

static bool shall_trap(unsigned vcpu, uint64_t pc)
{
    if (split_locks && detecting[vcpu].test_ctrl & DETECT_SPLIT_LOCKS)
        return true;
    switch (forward) {
    case ONCE: /* loads may come more than once */
        return detecting[vcpu].let_pass != pc;
    case ALWAYS:
        return true;
    case ASKED:
        return cpl(vcpu) == 3 && read_register(vcpu, CR0) & CR0_AM &&
               read_register(vcpu, EFLAGS) & EFLAGS_AC;
    default:
        return false;
    }
}

static void raise_bus_lock(struct CPUState *cpu, run_on_cpu_data data)
{
    (void)data;
    struct state *state = (struct state *)((char *)cpu + state_at);
    ((uint64_t *)state)[dr6_at] &= ~DR6_BUS_LOCK;
    do_interrupt_x86_hardirq(state, DB, 0);
}

FROM_CALLBACK access_from(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t address, struct site *site,
                                              void *const *frame)
{
    unsigned size;
    if (site->noted && cpus[vcpu].started != site)
        return; /* another instruction's: see plugin.c */
    if (!crosses(site, info, address, &size)) {
    } else if (qemu_plugin_mem_is_store(info)) {
        detecting[vcpu].let_pass = 0;
        if (bus_locks && detecting[vcpu].debugctl & DETECT_BUS_LOCKS && cpl(vcpu)) {
            log_trap("#DB", vcpu, site->pc, address, size);
            detecting[vcpu].last = count_trap(vcpu, site, address, size, false);
            async_run_on_cpu(qemu_get_cpu((int)vcpu), raise_bus_lock, (run_on_cpu_data){0});
        }
    } else if (shall_trap(vcpu, site->pc)) {
        uintptr_t place = place_in_code(frame);
        struct state *state = state_of(vcpu);
        unsigned left = PAGE_BYTES - (address & (PAGE_BYTES - 1));
        probe_access(state, address, (int)(size < left ? size : left), STORE, info & 15, place);
        if (size > left)
            probe_access(state, address + left, (int)(size - left), STORE, info & 15, place);
        log_trap("#AC", vcpu, site->pc, address, size);
        detecting[vcpu].let_pass = site->pc;
        detecting[vcpu].last = count_trap(vcpu, site, address, size, true);
        cpus[vcpu].started = NULL;
        raise_exception_err_ra(state, AC, 0, place);
    }
    on_access(vcpu, info, address, site);
}

/* Go on behind an instruction of `length` bytes that has been done here. */
static void pass_over(struct CPUState *cpu, struct state *state, size_t length)
{
    state->eip += length;
    cpu_loop_exit_noexc(cpu);
}

struct privileged {
    uint8_t length;
    bool writes;
};

FROM_CALLBACK msr_from(unsigned vcpu, const struct privileged *insn, void *const *frame)
{
    struct state *state = state_of(vcpu);
    uint32_t number = (uint32_t)state->registers[RCX];
    bool ours = number == DEBUGCTL ? bus_locks : split_locks && (number == TEST_CTRL || number == CORE_CAPABILITIES);
    if (number == CORE_CAPABILITIES && bus_locks)
        ours = true;
    /* Not allowed, or a nested guest's whose host wants to know: QEMU says so. */
    if (!ours || cpl(vcpu) || cpu_svm_has_intercept(state, SVM_EXIT_MSR))
        return;
    uint64_t *value = number == TEST_CTRL ? &detecting[vcpu].test_ctrl : number == DEBUGCTL ? &detecting[vcpu].debugctl : NULL;
    uint64_t bits = number == TEST_CTRL ? TEST_CTRL_BITS : number == DEBUGCTL ? DEBUGCTL_BITS : 0;
    uintptr_t place = place_in_code(frame);
    struct CPUState *cpu = qemu_get_cpu((int)vcpu);
    if (insn->writes) {
        uint64_t wanted = (uint32_t)state->registers[RAX] | state->registers[RDX] << 32;
        if (!value || wanted & ~bits)
            raise_exception_err_ra(state, GP, 0, place);
        *value = wanted;
        if (number == TEST_CTRL && wanted & DETECT_SPLIT_LOCKS)
            atomic_store(&shared->turned_on, 1);
        cpu_restore_state(cpu, place);
    } else {
        uint64_t found = value ? *value : split_locks ? SPLIT_LOCK_CAPABILITY : 0;
        cpu_restore_state(cpu, place);
        state->registers[RAX] = (uint32_t)found;
        state->registers[RDX] = found >> 32;
    }
    pass_over(cpu, state, insn->length);
}

FROM_CALLBACK cpuid_from(unsigned vcpu, const struct privileged *insn, void *const *frame)
{
    struct state *state = state_of(vcpu);
    uint32_t a, b, c, d;
    if ((uint32_t)state->registers[RAX] != 7 || (uint32_t)state->registers[RCX] || cpu_svm_has_intercept(state, SVM_EXIT_CPUID))
        return;
    struct CPUState *cpu = qemu_get_cpu((int)vcpu);
    cpu_x86_cpuid(state, 7, 0, &a, &b, &c, &d);
    cpu_restore_state(cpu, place_in_code(frame));
    state->registers[RAX] = a;
    state->registers[RBX] = b;
    state->registers[RCX] = c | (uint32_t)bus_locks << 24;
    state->registers[RDX] = d | (uint32_t)split_locks << 30;
    pass_over(cpu, state, insn->length);
}

/* Where a CPU keeps its state: rbp says it. At the first instruction of all, so that DR6 is what a reset makes it. */
FROM_CALLBACK first_from(unsigned vcpu, void *userdata, char *state)
{
    (void)userdata;
    if (state_at)
        return;
    const uint64_t *words = (const uint64_t *)state;
    for (size_t i = 0; i < STATE_WORDS && !dr6_at; i++)
        if (words[i] == DR6_AFTER_RESET && words[i + 1] == DR7_AFTER_RESET)
            dr6_at = i;
    if (!dr6_at) {
        fprintf(stderr, "splitlock plugin: no DR6 in this QEMU's CPU\n");
        exit(1);
    }
    state_at = state - (char *)qemu_get_cpu((int)vcpu);
}

/* The callbacks: what follows their arguments is where the caller's stack or the CPU's state is. */
#define CALLBACK __attribute__((naked)) static void
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
CALLBACK on_access_detecting(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t address, void *site)
{
    __asm__("mov %rsp, %r8\n\tjmp access_from");
}

CALLBACK on_msr(unsigned vcpu, void *insn)
{
    __asm__("mov %rsp, %rdx\n\tjmp msr_from");
}

CALLBACK on_cpuid(unsigned vcpu, void *insn)
{
    __asm__("mov %rsp, %rdx\n\tjmp cpuid_from");
}

CALLBACK on_first(unsigned vcpu, void *userdata)
{
    __asm__("mov %rbp, %rdx\n\tjmp first_from");
}
#pragma GCC diagnostic pop

/* The kernel sends a signal: for the exception that this task got last, mostly on this CPU. */
static void on_send_fault(unsigned vcpu, void *userdata)
{
    (void)userdata;
    const struct state *state = state_of(vcpu);
    if ((int)state->registers[RDI] != GUEST_SIGBUS || (int)state->registers[RSI] != GUEST_BUS_ADRALN)
        return;
    uint64_t task = table_who(vcpu).task;
    for (unsigned i = 0; i < CPUS; i++) {
        struct entry **last = &detecting[(vcpu + i) % CPUS].last, *entry = *last;
        if (entry && entry->task == task) {
            atomic_fetch_add(&entry->signals, 1);
            entry->trapped_at = 0;
            *last = NULL;
            return;
        }
    }
}

static void on_reset(unsigned vcpu, void *userdata)
{
    (void)userdata;
    if (cpu_svm_has_intercept(state_of(vcpu), SVM_EXIT_VMRUN))
        return; /* a nested guest's: no VMRUN goes without this intercept */
    cpus[vcpu].nested = false;
    if (!vcpu)
        for (int i = 0; i < CPUS; i++)
            detecting[i].test_ctrl = detecting[i].debugctl = detecting[i].let_pass = 0;
    atomic_fetch_add(&shared->resets, 1);
}

static bool detects(void)
{
    return split_locks || bus_locks || forward != NEVER;
}

/* RDMSR, WRMSR, MOV from and to DR6; prefixes before them mean nothing. */
static bool is_place(const uint8_t *code, size_t length)
{
    const uint8_t *end = code + length;
    if (length >= 2 && end[-2] == 0x0f && (end[-1] == 0x30 || end[-1] == 0x32))
        return true;
    return length >= 3 && end[-3] == 0x0f && (end[-2] | 2) == 0x23 && (end[-1] >> 3 & 7) == 6;
}

/* Tells splitlock of an instruction that it will have to answer. */
static void add_place(uint64_t pc)
{
    pthread_mutex_lock(&lock);
    uint64_t count = atomic_load(&shared->n_places), i = 0;
    while (i < count && i < PLACES && shared->places[i] != pc)
        i++;
    if (i < PLACES && i == count)
        shared->places[i] = pc;
    if (i == count || i == PLACES)
        atomic_store(&shared->n_places, count + 1);
    pthread_mutex_unlock(&lock);
}

static void detect_in(struct qemu_plugin_insn *insn, const uint8_t *code, size_t length, bool first)
{
    static struct privileged kinds[2][16];
    if (by_stub && is_place(code, length))
        add_place(qemu_plugin_insn_vaddr(insn));
    if (!detects())
        return;
    if (first && !state_at)
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_first, QEMU_PLUGIN_CB_RW_REGS, NULL);
    if (first && qemu_plugin_insn_vaddr(insn) == RESET_VECTOR)
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_reset, QEMU_PLUGIN_CB_NO_REGS, NULL);
    if (first && qemu_plugin_insn_vaddr(insn) == atomic_load_explicit(&shared->send_fault, memory_order_relaxed))
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_send_fault, QEMU_PLUGIN_CB_RW_REGS, NULL);
    if (!split_locks && !bus_locks)
        return;
    size_t opcode = length - 2; /* prefixes before it mean nothing */
    if (length < 2 || code[opcode] != 0x0f)
        return;
    uint8_t second = code[opcode + 1];
    if (second != 0x30 && second != 0x32 && second != 0xa2)
        return;
    struct privileged *kind = &kinds[second == 0x30][length];
    kind->length = (uint8_t)length;
    kind->writes = second == 0x30;
    qemu_plugin_register_vcpu_insn_exec_cb(insn, second == 0xa2 ? on_cpuid : on_msr, QEMU_PLUGIN_CB_RW_REGS, kind);
}

static bool set_up_detection(const char *how, int traps)
{
    traps_to = traps;
    by_stub = strcmp(how, "stub") == 0;
    if (!*how || by_stub)
        return true;
    split_locks = strstr(how, "split-locks");
    bus_locks = strstr(how, "bus-locks");
    forward = strstr(how, "once") ? ONCE : strstr(how, "always") ? ALWAYS : strstr(how, "asked") ? ASKED : NEVER;
    if (qemu_get_cpu && x86_cpu_gdb_read_register && raise_exception_err_ra && cpu_restore_state && cpu_loop_exit_noexc &&
        in_code_gen_buffer && cpu_x86_cpuid && cpu_svm_has_intercept && probe_access && async_run_on_cpu &&
        do_interrupt_x86_hardirq)
        return true;
    fprintf(stderr, "splitlock plugin: this QEMU does not export its functions, built without modules; --slow needs none\n");
    return false;
}
