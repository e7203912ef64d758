/* smm.c: a split lock in system management mode, in an SMI handler of its own: without detection and with it. A line for
 * each: how often it was executed, and how many #AC its handler there got. The chipset is Bochs' i440FX with a PIIX4. Sources:
 * Intel SDM vol. 3, 32.4 and 32.5 (state of the processor in SMM); Intel 82441FX, SMRAMC (72h); 82371AB, ports B2h and B3h. */
#include "hypervisor.h"

enum { OPERAND = 0x8a03e, ACS = 0x8a080, DONE = 0x8a084, VECTORS = 0x8a400, SMRAM = 0xa8000 };
enum { CONFIG = 0xcf8, CONFIG_70 = 0xcfc, HOST_BRIDGE_70 = 0x80000070u, SMRAM_OPEN = 0x4a, SMRAM_CLOSED = 0x0a, APM = 0xb2 };

extern const u8 smi[], smi_end[];
extern const u16 vector[2];
__asm__(".text\n .code16\n"
        "smi: movl $0x7000, %esp\n"
        "movl $0x8a000, %ebx\n" /* DS begins at 0, and has 4 GiB */
        "lidtl 0xa8000 - 0x8a000 + table - smi(%ebx)\n" /* Bochs takes CS to begin at 0, for data */
        "split: lock addl $1, 0x3e(%ebx)\n"
        "behind: movb $1, 0x84(%ebx)\n"
        "rsm\n"
        "on_ac: incl 0x80(%ebx)\n"
        "pushw %bp\n movw %sp, %bp\n addw $behind - split, 2(%bp)\n popw %bp\n iretw\n"
        "table: .word 0x3ff\n .long 0x8a400\n"
        "smi_end:\n"
        ".code64\n"
        "vector: .word 0x8000 + on_ac - smi, 0xa000\n");

static volatile u32 *at(u64 address)
{
    return (volatile u32 *)address;
}

void handle(struct frame *frame)
{
    die("vector, rip", frame->vector, frame->rip);
}

/* SMRAM is there for all, or in SMM alone; the BIOS has moved it here. */
static void smram(u8 what)
{
    __asm__ volatile("outl %0, %1" : : "a"(HOST_BRIDGE_70), "Nd"((u16)CONFIG));
    out(CONFIG_70 + 2, what);
}

static void interrupt(void)
{
    *at(OPERAND) = *at(ACS) = *at(DONE) = 0;
    out(APM, 0);
    for (u64 patience = 1000000; !*at(DONE); patience--)
        if (!patience)
            die("no SMI", 0, 0);
    say("smm: ");
    say_number(*at(OPERAND));
    say(" ");
    say_number(*at(ACS));
    say("\n");
}

void begin(void)
{
    serial_port();
    smram(SMRAM_OPEN);
    for (const u8 *from = smi; from < smi_end; from++)
        *(volatile u8 *)(SMRAM + (u64)(from - smi)) = *from;
    smram(SMRAM_CLOSED);
    *at(VECTORS + 4 * AC) = vector[0] | (u32)vector[1] << 16;
    interrupt();
    wrmsr(TEST_CTRL, DETECT_SPLIT);
    interrupt();
    end();
}
