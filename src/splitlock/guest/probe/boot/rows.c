/* The experiments: a row each, with a line before it (it may end the machine) and one after it. At most 62 split locks in all. */
#include "probe.h"
#define EFLAGS 2
#define EFLAGS_AC 0x40000
#define CR0_AM 0x40000

enum kind { LOCKED, CPUID, MISALIGNED, SPLIT, BUS };

static const char *const kinds[] = {"aligned", "cpuid", "misaligned", "split", "buslock"};
static const char *const modes[] = {"real16", "prot32", "long64"};

static const struct context {
    uint8_t mode, cpl;
} contexts[] = {{REAL, 0}, {PROTECTED, 0}, {PROTECTED, 3}, {LONG, 0}, {LONG, 3}};

#define CONTEXTS (sizeof contexts / sizeof *contexts)

static uint8_t area[128] __attribute__((aligned(64)));
static uint32_t number, from, splits; /* the next row; the first one to run in this boot; executions */
static uint32_t detecting;            /* TEST_CTRL bit 29 is set */
static uint32_t completed, trapped, other;

static void flag(const char *name, uint32_t value) {
    text(name);
    decimal(value != 0);
}

static uint32_t offset(enum kind kind) { return kind == MISALIGNED ? 33 : kind == LOCKED ? 32 : 62; }

static void row(const struct context *context, uint32_t am, uint32_t ac, enum kind kind, int times) {
    uint32_t id = number++, low[3], high[3], count = 0, right = 1;
    if (id < from)
        return;
    line_begin("begin ");
    decimal(id);
    text(" ");
    text(modes[context->mode]);
    text(" cpl");
    decimal(context->cpl);
    flag(" am", am);
    flag(" ac", ac);
    flag(" tc", detecting);
    text(" ");
    text(kinds[kind]);
    line_end();
    progress_save(number);
    volatile uint32_t *operand = (volatile uint32_t *)(area + offset(kind));
    do {
        *operand = 0x0000ffff;
        trial_mode = context->mode;
        trial_cpl = context->cpl;
        trial_am = am;
        trial_flags = EFLAGS | ac;
        trial_op = kind == MISALIGNED ? OP_ADD : kind == CPUID ? OP_CPUID : OP_LOCK;
        trial_operand = (uint32_t)operand;
        trial();
        if (kind >= SPLIT)
            splits++;
        int done = trial_vector == DONE || (kind == BUS && trial_vector == 1);
        right &= kind == CPUID || *operand == (done ? 0x00010000 : 0x0000ffff);
        low[count] = trial_low;
        high[count++] = trial_high;
    } while (trial_vector == DONE && (int)count < times);
    line_begin("end ");
    decimal(id);
    if (trial_vector == DONE) {
        text(" done");
    } else {
        text(" raised ");
        decimal(trial_vector);
        text(" error ");
        hex(trial_error, 4);
        text(trial_ip == trial_at ? " at" : trial_ip == trial_next ? " after" : " elsewhere");
    }
    text(right ? " right" : " wrong");
    for (uint32_t i = 0; trial_vector == DONE && i < count; i++) {
        text(" ");
        hex(high[i], 8);
        hex(low[i], 8);
    }
    line_end();
    if (kind == SPLIT && !detecting && !(context->cpl == 3 && am && ac)) {
        completed += trial_vector == DONE;
        trapped += trial_vector == 17;
        other += trial_vector != DONE && trial_vector != 17;
    }
}

/* One kind in every context and with all of AM and AC. */
static void rows(enum kind kind, int times, uint32_t used) {
    for (uint32_t i = 0; i < used; i++)
        for (uint32_t set = 0; set < 4; set++)
            row(&contexts[i], set & 2 ? CR0_AM : 0, set & 1 ? EFLAGS_AC : 0, kind, times);
}

void rows_run(void) {
    int resumed = progress_load(&from);
    if (!resumed)
        from = 0;
    uint32_t used = processor_has_long_mode() ? CONTEXTS : CONTEXTS - 2;
    int has_detection = test_ctrl_set(1);
    detecting = (uint32_t)test_ctrl_set(0);
    line_begin("start from ");
    decimal(from);
    line_end();
    processor_tell();
    for (uint32_t i = 0; i < used; i++)
        row(&contexts[i], 0, 0, LOCKED, 3);
    row(&contexts[1], 0, 0, CPUID, 3);
    rows(MISALIGNED, 3, used);
    rows(SPLIT, 2, used);
    if (has_detection && !detecting) {
        detecting = (uint32_t)test_ctrl_set(1);
        rows(SPLIT, 1, used);
        detecting = (uint32_t)test_ctrl_set(0);
    }
    if (processor_has_bus_lock() && bus_lock_set(1)) {
        bus_lock_set(0);
        for (uint32_t i = 2; i < used; i += 2) {
            bus_lock_set(1);
            row(&contexts[i], 0, 0, BUS, 1);
            bus_lock_set(0);
        }
    }
    line_begin("stop rows ");
    decimal(number);
    text(" splits ");
    decimal(splits);
    line_end();
    progress_clear();
    text("\r\nSplit locks that asked for no trap: ");
    decimal(completed);
    text(" completed, ");
    decimal(trapped);
    text(" #AC, ");
    decimal(other);
    text(" another exception");
    text(from ? " (since the last reset)\r\n" : "\r\n");
    text("Done. splitlock probe read tells the rest from the serial log.\r\n");
}
