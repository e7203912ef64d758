/* reset.c: a split lock that is executed, and then, with detection on, ends in a reset by the handler of
 * #AC. Three lives. Port CF9h: Intel 82371SB, reset control register. */
#include "hypervisor.h"

enum { BOOTS = 0x8a000 }; /* memory keeps what is in it */

static u8 lines[2 * LINE] __attribute__((aligned(LINE)));

void handle(struct frame *frame)
{
    if (frame->vector != AC)
        die("vector, rip", frame->vector, frame->rip);
    out(0xcf9, 2);
    out(0xcf9, 6);
    for (;;)
        __asm__ volatile("hlt");
}

static __attribute__((noinline)) void split(void)
{
    __asm__ volatile("lock addl $1, %0" : "+m"(*(u32 *)(lines + LINE - 2)));
}

void begin(void)
{
    volatile u32 *boots = (u32 *)(u64)BOOTS;
    serial_port();
    split();
    if (++*boots == 3)
        end();
    wrmsr(TEST_CTRL, DETECT_SPLIT);
    split();
}
