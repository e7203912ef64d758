/* The experiments: a row each, with a line before it (it may end the machine) and one after it. At most 62 split locks in all. */
#include "probe.h"
#define EFLAGS 2

static const char *const kinds[] = {"aligned", "cpuid", "misaligned", "split", "buslock"};
static const char *const modes[] = {"real16", "prot32", "long64"};

static uint8_t area[128] __attribute__((aligned(64)));
static uint32_t splits; /* executions */
static int has_detection, has_bus_lock;
static uint32_t detecting; /* TEST_CTRL bit 29 is set */
static uint32_t completed, trapped, other;

static void flag(const char *name, uint32_t value) {
    text(name);
    decimal(value != 0);
}

static uint32_t offset(enum kind kind) { return kind == MISALIGNED ? 33 : kind == ALIGNED ? 32 : 62; }

/* The processor as this row wants it, whatever the one before it left; the rest is trial()'s. */
static void prepare(const struct row *row) {
    if (has_detection)
        detecting = (uint32_t)test_ctrl_set(row->detecting);
    if (has_bus_lock)
        bus_lock_set(row->kind == BUS);
    if (row->kind >= SPLIT)
        clock_wait();
}

static void begin(const struct row *row, uint32_t number) {
    line_begin("begin ");
    decimal(number);
    text(" ");
    text(modes[row->mode]);
    text(" cpl");
    decimal(row->cpl);
    flag(" am", row->am);
    flag(" ac", row->ac);
    flag(" tc", detecting);
    text(" ");
    text(kinds[row->kind]);
    line_end();
    progress_save(number + 1);
}

/* Whether the image's own stacks are whole: if not, nothing that it finds is worth anything. */
static int run(const struct row *row, uint32_t number) {
    uint32_t low[3], high[3], count = 0, right = 1;
    volatile uint32_t *operand = (volatile uint32_t *)(area + offset(row->kind));
    prepare(row);
    begin(row, number);
    do {
        *operand = 0x0000ffff;
        trial_mode = row->mode;
        trial_cpl = row->cpl;
        trial_am = row->am;
        trial_flags = EFLAGS | row->ac;
        trial_op = row->kind == MISALIGNED ? OP_ADD : row->kind == CPUID ? OP_CPUID : OP_LOCK;
        trial_operand = (uint32_t)operand;
        trial();
        if (row->kind >= SPLIT)
            splits++;
        int done = trial_vector == DONE || (row->kind == BUS && trial_vector == 1);
        right &= row->kind == CPUID || *operand == (done ? 0x00010000 : 0x0000ffff);
        low[count] = trial_low;
        high[count++] = trial_high;
    } while (trial_vector == DONE && count < row->times);
    if (!stacks_whole())
        return 0;
    line_begin("end ");
    decimal(number);
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
    if (row->kind == SPLIT && !detecting && !(row->cpl == 3 && row->am && row->ac)) {
        completed += trial_vector == DONE;
        trapped += trial_vector == 17;
        other += trial_vector != DONE && trial_vector != 17;
    }
    return 1;
}

static int run_from(uint32_t from, const struct row *rows, uint32_t count) {
    for (uint32_t number = from; number < count; number++)
        if (!run(&rows[number], number)) {
            line_begin("overflow");
            line_end();
            return 0;
        }
    return 1;
}

void rows_run(void) {
    static struct row rows[MOST_ROWS];
    uint32_t from;
    if (!progress_load(&from))
        from = 0;
    stacks_start();
    clock_start();
    has_detection = test_ctrl_set(1);
    detecting = (uint32_t)test_ctrl_set(0);
    has_detection &= !detecting;
    has_bus_lock = processor_has_bus_lock() && bus_lock_set(1) && !bus_lock_set(0);
    line_begin("start from ");
    decimal(from);
    line_end();
    clock_tell();
    processor_tell();
    uint32_t count = plan(rows, processor_has_long_mode(), has_detection, has_bus_lock);
    if (!run_from(from, rows, count))
        return;
    if (has_bus_lock)
        bus_lock_set(0);
    if (has_detection)
        test_ctrl_set(0);
    line_begin("stop rows ");
    decimal(count);
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
