/*
 * bootsector: split locks before any operating system, in 16-bit and then in 32-bit code; says "done" and powers off.
 *
 * As a disk's first sector; with -DFIRMWARE as the last 64 KiB below 4 GiB, which the processor begins in (16-bit only).
 * Expected: 1000 of `lock incw`, 500 of `xchg`; not as firmware: 700 of `lock addl`.
 */
        .code16
        .globl _start
_start: cli
        xorw %ax, %ax
        movw %ax, %ds
        movw $1000, %cx
1:      lock incw 0x803f
        loop 1b
        movw $500, %cx
1:      xchgl %eax, 0x807d
        loop 1b
#ifndef FIRMWARE
        movw %ax, %es
        lgdt table
        movl %cr0, %eax
        orb $1, %al
        movl %eax, %cr0
        ljmp $8, $protected
        .code32
protected:
        movw $16, %ax
        movw %ax, %ds
        movl $700, %ecx
1:      lock addl $1, 0x803e
        loop 1b
#endif
        movw $0x3f8, %dx        /* the serial port: no answer is waited for */
        movb $'d', %al
        outb %al, %dx
        movb $'o', %al
        outb %al, %dx
        movb $'n', %al
        outb %al, %dx
        movb $'e', %al
        outb %al, %dx
#ifdef FIRMWARE
1:      hlt
        jmp 1b
        .org 0xfff0
        ljmp $0xf000, $0
        .org 0x10000
#else
        movw $0x604, %dx        /* PM1a control of QEMU's `pc`, where SeaBIOS puts it: S5 */
        movw $0x2000, %ax
        outw %ax, %dx
1:      hlt
        jmp 1b
        .balign 8
gdt:    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
table:  .word table - gdt - 1
        .long gdt
        .org 510
        .word 0xaa55
#endif
