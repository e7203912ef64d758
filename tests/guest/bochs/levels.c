/* levels.c: a hypervisor whose guest is one, too: it runs that one's guests in VMCSs of its own, as the first VM exit by
 * VMLAUNCH asks for them. Each guest takes split locks, and they lead to VM exits. Which of them are taken by a guest of a
 * guest is test_levels.py's to say; here each VM exit must be the one that the guest's code leads to. */
#include "hypervisor.h"

enum { GUESTS = 4, VMCALL_EXIT = 18, VMLAUNCH_EXIT = 20 };
enum { A, B, C, D }; /* guests: each has a VMCS */

static u8 lines[2 * LINE] __attribute__((aligned(LINE)));
static u8 is_fresh[GUESTS];
extern const u8 code[], behind_split[];
__asm__(".text\n"
        "code: lock addl $1, (%rdi)\n"
        "behind_split: vmcall\n"
        "vmlaunch\n"
        "jmp code");

void handle(struct frame *frame)
{
    die("vector, rip", frame->vector, frame->rip);
}

static u64 vmcs(int which)
{
    return REGIONS + PAGE * (u64)(1 + which);
}

/* A VMCS that begins anew, where another one may have been. */
static void make(int which)
{
    prepare(vmcs(which), 1 << AC, 0, 0);
    put(0x681e, (u64)code);
    is_fresh[which] = 1;
}

/* The guest goes on, up to its next VM exit. */
static void go(int which, u64 reason)
{
    u64 at = vmcs(which);
    __asm__ volatile("vmptrld %0" : : "m"(at) : "memory", "cc");
    if (!enter(is_fresh[which]))
        die("not entered: guest, error", (u64)which, get(0x4400));
    is_fresh[which] = 0;
    if (get(0x4402) != reason)
        die("VM exit: guest, reason", (u64)which, get(0x4402));
    put(0x681e, reason ? get(0x681e) + get(0x440c) : (u64)behind_split);
}

static void split(int which)
{
    go(which, 0);
    if (get(0x4404) != 0x80000b11)
        die("VM exit: guest, exception", (u64)which, get(0x4404));
}

/* Behind its split lock: it asks for a guest of its own. */
static void launch(int which)
{
    go(which, VMCALL_EXIT);
    go(which, VMLAUNCH_EXIT);
}

void begin(void)
{
    serial_port();
    wrmsr(TEST_CTRL, DETECT_SPLIT);
    vmx_on();
    guest_registers[RDI] = (u64)lines + LINE - 2;
    make(A);
    split(A); /* guest */
    launch(A);
    make(B);
    split(B); /* nested: A's */
    launch(B); /* its own hypervisor, A, is told of that, and has something to do */
    split(A); /* guest */
    make(C);
    split(C); /* guest: A has launched nothing since */
    launch(A);
    go(C, VMCALL_EXIT); /* the hypervisor has other guests between */
    make(D);
    split(D); /* nested: A's second one */
    split(B); /* nested, as ever */
    make(B);
    split(B); /* guest: another VMCS in the same memory */
    launch(D);
    __asm__ volatile("vmxoff" : : : "cc");
    vmx_on();
    split(D); /* guest: nothing is known of VMCSs before */
    end();
}
