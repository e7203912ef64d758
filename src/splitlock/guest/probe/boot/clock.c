/* How fast does the time-stamp counter run? And a wait, by it.
 *
 * The image waits before each split lock. A Linux host in mode warn has detection off for two jiffies after an #AC, and
 * its timer rounds up to three: 30 ms where HZ is 100, the slowest (kernel/Kconfig.hz; calc_index()). 5 more are for the
 * work queue that turns detection on again. What follows within that time shows nothing of the host.
 */
#include "probe.h"
#define SLOWEST_GUESS 5000000 /* kHz: where nothing tells; no counter is known that runs faster, so the wait is long enough */
#define MOST 10000000         /* kHz: more is no frequency */
#define MANY 1000000          /* reads of a port, each some 100 ns or more: the counter is not there */

#define PIT_HZ 1193182
#define PIT_COUNT (PIT_HZ / 100) /* 10 ms */
#define PIT_MODE 0x43
#define PIT_CHANNEL2 0x42
#define GATES 0x61
#define GATE2 0x01
#define SPEAKER 0x02
#define OUT2 0x20

static uint32_t khz;
static const char *by;

static uint64_t cycles(void) {
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

/* VMware's leaf, which KVM's VMMs and VirtualBox have too; Hyper-V's leaf of that number is another. */
static uint32_t by_hypervisor(void) {
    struct cpuid of = cpuid(1);
    if (!(of.c >> 31))
        return 0;
    of = cpuid(0x40000000);
    if (of.a < 0x40000010 || of.a > 0x4000ffff || of.b == 0x7263694d) /* "Micr" */
        return 0;
    return cpuid(0x40000010).a;
}

/* 10 ms of the PIT's channel 2. Reads are late if anything, so the least of three is the truest. */
static uint32_t by_pit(void) {
    uint32_t least = 0;
    uint8_t gates = inb(GATES);
    outb(GATES, (uint8_t)((gates & ~SPEAKER) | GATE2));
    for (int run = 0; run < 3; run++) {
        outb(PIT_MODE, 0xb0); /* both bytes; mode 0: OUT goes high at the end of the count */
        uint64_t from = cycles();
        outb(PIT_CHANNEL2, PIT_COUNT & 0xff);
        outb(PIT_CHANNEL2, PIT_COUNT >> 8);
        if (inb(GATES) & OUT2)
            continue; /* no PIT: what reads as ones is not counting */
        uint32_t reads = 0;
        while (reads < MANY && !(inb(GATES) & OUT2))
            reads++;
        uint64_t took = cycles() - from;
        if (reads < MANY && took < (uint64_t)MOST * 10 && (!least || took < least))
            least = (uint32_t)took;
    }
    outb(GATES, gates);
    return least / 10;
}

static uint32_t by_crystal(void) {
    if (cpuid(0).a < 0x15)
        return 0;
    struct cpuid of = cpuid(0x15); /* EBX / EAX times the crystal's ECX Hz */
    return of.a && of.b < 1000 ? of.c / 1000 * of.b / of.a : 0;
}

static uint32_t by_base(void) { return cpuid(0).a < 0x16 ? 0 : (cpuid(0x16).a & 0xffff) * 1000; }

void clock_start(void) {
    static const struct {
        uint32_t (*read)(void);
        const char *name;
    } ways[] = {{by_hypervisor, "hypervisor"}, {by_pit, "pit"}, {by_crystal, "cpuid15"}, {by_base, "cpuid16"}};
    khz = SLOWEST_GUESS;
    by = "guess";
    for (uint32_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        uint32_t found = ways[i].read();
        if (found && found <= MOST) {
            khz = found;
            by = ways[i].name;
            return;
        }
    }
}

void clock_tell(void) {
    line_begin("clock ");
    decimal(khz);
    text(" ");
    text(by);
    text(" wait ");
    decimal(wait_ms);
    line_end();
}

void clock_wait(void) {
    uint64_t from = cycles();
    while (cycles() - from < (uint64_t)khz * wait_ms)
        __asm__ volatile("pause");
}
