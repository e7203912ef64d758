/* oracle.c: each kind of instruction at each offset around the ends of lines and pages, in each place a processor can be.
 *
 * It judges only that what happened was whole: an exception at the instruction with nothing changed, or all done as where
 * nothing is crossed. Whether it should have happened is test_oracle.py's. A line for each place and kind on COM1, a
 * letter for each offset:
 *   .  executed          A  #AC, error code 0      P  #PF by a write there      D  #DB behind it, DR6 bit 11 clear
 *   I  #AC that led to a VM exit first and was injected                E  bus-lock VM exit, then executed
 *   Q  #DB that led to a VM exit with bit 11 of its qualification, and was injected       F  bus-lock VM exit, then #DB
 * A small letter, or `!`: so it ended, but something of it was wrong. Sources: Intel SDM vol. 3, chapters 24 to 28. */
#include "hypervisor.h"

enum { DEBUGCTL = 0x1d9, DETECT_BUS = 1 << 2 };
enum { DB = 1, PF = 14, DR6_BUS_LOCK = 1 << 11, STATUS = 0x8d5, FLAG_AC = 1 << 18 };
static const u64 CLEAR_DR6 = 0xffff0ff0;
enum { WINDOWS = 0x80000, OFFSETS = 9, AROUND = 16, SCRATCH = 0x8a000 };
enum { AT_LINE, AT_PAGE, MISSING, READ_ONLY, FIRST_READ_ONLY, ENDS }; /* what lies behind the operand's first bytes */

struct kind {
    const u8 *code;
    u64 size;
};
extern const struct kind kinds[], kinds_end[];
extern u64 map1[];
extern u8 come_back[];
void run(const u8 *code, u8 *operand, u64 *registers, u64 flags);
void at_cpl3(void (*what)(int), int with);

static struct {
    int count;
    u64 vector, error, rip, flags, cr2, dr6;
} caught;
static volatile int vm_exit; /* what the hypervisor saw meanwhile: AC, DB, 74; 0: nothing; -1: not as it should be */
static u64 asking;           /* EFLAGS of the instructions, besides STATUS */
static int user;             /* CPL 3 */

static u64 read_dr6(void)
{
    u64 value;
    __asm__ volatile("movq %%dr6, %0" : "=r"(value));
    return value;
}

static void write_dr6(u64 value)
{
    __asm__ volatile("movq %0, %%dr6" : : "r"(value));
}

void handle(struct frame *frame)
{
    if (frame->vector == BACK) {
        frame->rip = (u64)come_back;
        frame->cs = CODE64;
        frame->ss = DATA;
        frame->rflags = 2;
        return;
    }
    if (frame->vector != DB && frame->vector != PF && frame->vector != AC)
        die("vector, rip", frame->vector, frame->rip);
    if (caught.count++ > 2)
        die("again: vector, rip", frame->vector, frame->rip);
    caught.vector = frame->vector;
    caught.error = frame->error;
    caught.rip = frame->rip;
    caught.flags = frame->rflags;
    __asm__ volatile("movq %%cr2, %0" : "=r"(caught.cr2));
    if (frame->vector == DB) { /* behind the instruction: go on there */
        caught.dr6 = read_dr6();
        write_dr6(CLEAR_DR6);
        if (read_dr6() != CLEAR_DR6)
            die("DR6 as it was written", read_dr6(), CLEAR_DR6);
        return;
    }
    frame->rip = *(u64 *)frame->rsp; /* its RET */
    frame->rsp += 8;
}

static u8 pattern(u64 at)
{
    return (u8)(0x91 + 7 * at);
}

static u8 *boundary(int end)
{
    return (u8 *)(u64)(WINDOWS + 2 * PAGE * end + (end == AT_LINE ? LINE : PAGE));
}

static int writable(int end, int second)
{
    return end == AT_LINE || end == AT_PAGE || (end == FIRST_READ_ONLY ? second : !second);
}

static void fill(int end)
{
    u8 *at = boundary(end);
    for (int i = -AROUND; i < AROUND; i++)
        if (writable(end, i >= 0))
            at[i] = pattern(i);
}

/* Whether all around is as it was, but for `size` bytes at `offset`, which are `wanted`. */
static int is_whole(int end, int offset, int size, const u8 *wanted)
{
    u8 *at = boundary(end);
    for (int i = -AROUND; i < AROUND; i++) {
        if (i >= 0 && end == MISSING)
            break;
        int inside = i >= offset && i < offset + size;
        if (at[i] != (inside && wanted ? wanted[i - offset] : pattern(i)))
            return 0;
    }
    return 1;
}

static void set_registers(u64 *registers, int offset)
{
    registers[0] = 0;
    for (int i = 0; i < 8; i++)
        registers[0] |= (u64)pattern(offset + i) << 8 * i; /* RAX: what CMPXCHG is to find */
    registers[1] = 5; /* RDX: the source, and a bit's number */
    registers[2] = 0x1122334455667788;
    registers[3] = 0x99aabbccddeeff00;
    for (int i = 0; i < 4; i++)
        registers[4 + i] = 0;
}

static char judge(const struct kind *kind, int end, int offset, const u64 *registers, const u64 *expected, const u8 *wanted)
{
    u8 *operand = boundary(end) + offset;
    int size = (int)kind->size, done = 1, undone = 1;
    for (int i = 4; i < 8; i++) {
        done = done && registers[i] == expected[i];
        undone = undone && registers[i] == registers[i - 4];
    }
    done = done && is_whole(end, offset, size, wanted);
    undone = undone && is_whole(end, offset, size, 0) && caught.rip == (u64)kind->code && (caught.flags & STATUS) == STATUS;
    if (!caught.count)
        return !done ? '!' : vm_exit == 0 ? '.' : vm_exit == 74 ? 'E' : '?';
    if (caught.count > 1)
        return '2';
    if (caught.vector == AC) {
        int right = undone && !caught.error;
        return vm_exit == 0 ? right ? 'A' : 'a' : vm_exit == AC && right ? 'I' : 'i';
    }
    if (caught.vector == PF) {
        int second = caught.cr2 >= (u64)boundary(end);
        int right = undone && !vm_exit && caught.cr2 >= (u64)operand && caught.cr2 < (u64)operand + size &&
            !writable(end, second) && caught.error & 2 && !!(caught.error & 4) == user && (caught.error & 1) == (end != MISSING);
        return right ? 'P' : 'p';
    }
    int right = done && *(const u8 *)caught.rip == 0xc3 && !(caught.dr6 & DR6_BUS_LOCK) && !(caught.dr6 & 0xf00f);
    if (vm_exit == 0)
        return right ? 'D' : 'd';
    return vm_exit == DB && right ? 'Q' : vm_exit == 74 && right ? 'F' : 'q';
}

/* All kinds; `with`: which place it is. */
static void all(int with)
{
    static char letters[OFFSETS * ENDS + 2];
    for (const struct kind *kind = kinds; kind < kinds_end; kind++) {
        char *letter = letters;
        for (int end = 0; end < ENDS; end++)
            for (int offset = 1 - OFFSETS; offset <= 0; offset++) {
                u64 registers[8], expected[8];
                u8 *wanted = (u8 *)SCRATCH;
                for (int i = 0; i < 8; i++)
                    wanted[i] = pattern(offset + i);
                set_registers(expected, offset);
                run(kind->code, wanted, expected, STATUS | 2);
                fill(end);
                set_registers(registers, offset);
                caught.count = 0;
                vm_exit = 0;
                run(kind->code, boundary(end) + offset, registers, STATUS | 2 | asking);
                *letter++ = judge(kind, end, offset, registers, expected, wanted);
            }
        *letter++ = '\n';
        say("oracle: ");
        say_number((u64)with);
        say(" ");
        say_number((u64)(kind - kinds));
        say(" ");
        say(letters);
    }
}

static void both(int with, void (*at_0)(int))
{
    user = 0;
    at_0(with);
    user = 1;
    at_cpl3(at_0, with + 1);
    user = 0;
}

static void guest(int with)
{
    both(with, all);
}

/* The hypervisor: it gives each exception back, and lets each bus lock pass. */
static void hypervise(int with, u64 bitmap, u64 secondary, u64 debugctl)
{
    prepare(REGIONS + PAGE, bitmap, secondary, debugctl);
    guest_registers[RDI] = (u64)guest;
    guest_registers[RSI] = (u64)with;
    for (int first = 1;; first = 0) {
        if (!enter(first))
            die("not entered: error", get(0x4400), 0);
        u64 reason = get(0x4402), info = get(0x4404), qualification = get(0x6400);
        if (reason == 18) /* VMCALL */
            break;
        if (reason == 74)
            vm_exit = vm_exit ? -1 : 74;
        else if (reason == 0 && (info == 0x80000b11 || info == 0x80000301)) {
            int is_right = (u8)info == AC ? !get(0x4406) : qualification == DR6_BUS_LOCK;
            vm_exit = vm_exit || !is_right ? -1 : (u8)info;
            if ((u8)info == DB)
                write_dr6((read_dr6() & ~0xfull) & ~qualification);
            put(0x4016, info), put(0x4018, 0);
        } else
            die("VM exit: reason, qualification", reason, get(0x6400));
        if (debugctl && get(0x2802) != debugctl)
            die("DEBUGCTL as saved", get(0x2802), debugctl);
    }
    if (rdmsr(DEBUGCTL))
        die("DEBUGCTL behind a VM exit", rdmsr(DEBUGCTL), 0);
}

static void pages(void)
{
    map1[(WINDOWS >> 12) + 2 * MISSING + 1] = 0;
    for (int end = READ_ONLY; end <= FIRST_READ_ONLY; end++) {
        for (int i = -AROUND; i < AROUND; i++)
            boundary(end)[i] = pattern(i);
        map1[(WINDOWS >> 12) + 2 * end + (end == READ_ONLY)] &= ~2ull;
    }
    __asm__ volatile("movq %%cr3, %%rax; movq %%rax, %%cr3" : : : "rax", "memory");
}

static int has_bus_locks(void)
{
    u32 a = 7, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return c >> 24 & 1;
}

/* Numbers of places: PLACES of test_oracle.py. At each, one more is CPL 3. */
static void split_locks(void)
{
    both(0x00, all); /* without detection */
    u64 cr0;
    __asm__ volatile("movq %%cr0, %0" : "=r"(cr0));
    __asm__ volatile("movq %0, %%cr0" : : "r"(cr0 | 1 << 18)); /* AM */
    asking = FLAG_AC;
    both(0x02, all);
    asking = 0;
    __asm__ volatile("movq %0, %%cr0" : : "r"(cr0));
    wrmsr(TEST_CTRL, DETECT_SPLIT);
    both(0x04, all);
    vmx_on();
    both(0x06, all);
    hypervise(0x08, 0, 0, 0);
    hypervise(0x0a, 1 << AC, 0, 0);
    asking = FLAG_AC;
    __asm__ volatile("movq %0, %%cr0" : : "r"(cr0 | 1 << 18)); /* the guest's, too */
    hypervise(0x0e, 1 << AC, 0, 0);
    asking = 0;
    __asm__ volatile("movq %0, %%cr0" : : "r"(cr0));
    wrmsr(TEST_CTRL, 0);
    hypervise(0x0c, 1 << AC, 0, 0);
}

static void bus_locks(void)
{
    both(0x10, all);
    wrmsr(DEBUGCTL, DETECT_BUS);
    both(0x12, all);
    vmx_on();
    both(0x14, all);
    wrmsr(DEBUGCTL, 0);
    hypervise(0x16, 0, 0, 0);
    hypervise(0x18, 0, 0, DETECT_BUS);
    hypervise(0x1a, 1 << DB, 0, DETECT_BUS);
    hypervise(0x1c, 0, 1 << 30, 0);
    hypervise(0x1e, 0, 1 << 30, DETECT_BUS);
}

void begin(void)
{
    serial_port();
    pages();
    if (has_bus_locks())
        bus_locks();
    else
        split_locks();
    end();
}
