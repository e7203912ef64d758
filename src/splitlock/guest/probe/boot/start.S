/* How the image starts: at 0x7c00 in real mode, from a BIOS that booted a CD or from a VMM without one. No BIOS is called.
 *
 * The image lives in 32-bit protected mode without paging, at CPL 0, with interrupts off; trial.S leaves it and returns.
 */
#include "probe.h"
#define CR0_AM 0x40000
    .section .start, "ax"
    .code16
    .globl start
start:
    cli
    cld
    ljmp $0, $1f /* some start at 07c0:0000 */
    .balign 8
    .globl wait_ms
wait_ms: .long 35 /* clock.c; image.py writes another one there, eight bytes from the start */
1:  xorw %ax, %ax
    movw %ax, %ds
    lgdtl gdt_register
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $CODE32, $home

    .code32
home:
    movw $DATA32, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    movw %ax, %ss
    movl $home_stack, %esp
    movl $bss_start, %edi
    movl $bss_end, %ecx
    subl %edi, %ecx
    xorl %eax, %eax
    rep stosb
    movl %cr0, %eax
    andl $~CR0_AM, %eax
    movl %eax, home_cr0
    /* the first 2 MiB, as they are, for everyone: what long mode needs */
    movl $directories + 7, page_map
    movl $directory + 7, directories
    movl $0x87, directory
    lidt idt32_register
    movw $TSS32, %ax
    ltr %ax
    call console_start
    call rows_run
1:  cli
    hlt
    jmp 1b
