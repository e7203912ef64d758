/* How the image starts: at 0x7c00 in real mode, from a BIOS that booted a CD; then 64-bit mode, the first 2 MiB mapped as
 * they are, a page at a time, for everyone. And the ways into and out of handlers, CPL 3 and a guest. */
#include "oracle.h"
    .section .start, "ax"
    .code16
    .globl start
start:
    cli
    cld
    ljmp $0, $1f
1:  xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    lgdtl gdt_register
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $CODE32, $1f
    .code32
1:  movw $DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $bss_start, %edi
    movl $bss_end, %ecx
    subl %edi, %ecx
    xorl %eax, %eax
    rep stosb
    movl $map3 + 7, map4
    movl $map2 + 7, map3
    movl $map1 + 7, map2
    movl $map1, %edi
    movl $7, %eax
1:  movl %eax, (%edi)
    addl $8, %edi
    addl $0x1000, %eax
    cmpl $0x200000, %eax
    jb 1b
    movl $0x2020, %eax /* VMXE, PAE */
    movl %eax, %cr4
    movl $map4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax /* LME */
    wrmsr
    movl $0x80010031, %eax /* PG, WP, NE, ET, PE */
    movl %eax, %cr0
    ljmpl $CODE64, $1f
    .code64
1:  movq $stack_end, %rsp
    movw $TSS, %ax
    ltr %ax
    lidt idt_register
    call begin
1:  hlt
    jmp 1b

    .data
    .balign 16
gdt:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff
    .word 0x67, tss
    .byte 0, 0x89, 0, 0
    .quad 0
gdt_end:
    .globl gdt_register, idt_register, tss
gdt_register: .word gdt_end - gdt - 1
    .quad gdt
idt_register: .word 16 * GATES - 1
    .quad idt
tss: .long 0
    .quad away_end, 0, 0
    .skip 0x68 - 28

    .altmacro
.macro gate number
    .word raise\number, CODE64, 0xee00, 0
    .quad 0
.endm
.macro vector number
raise\number:
    .if \number != 8 && \number != 17 && (\number < 10 || \number > 14)
    pushq $0
    .endif
    pushq $\number
    jmp raised
.endm
    .balign 16
idt:
    .set number, 0
    .rept GATES
    gate %number
    .set number, number + 1
    .endr

    .text
    .set number, 0
    .rept GATES
    vector %number
    .set number, number + 1
    .endr

.macro save
    .irp register, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    pushq %\register
    .endr
.endm
.macro restore
    .irp register, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax
    popq %\register
    .endr
.endm
raised:
    save
    movq %rsp, %rdi
    call handle
    restore
    addq $16, %rsp
    iretq

/* void at_cpl3(void (*)(int), int): call it there, where it may use ports; gate BACK leads out. */
    .globl at_cpl3, come_back
at_cpl3:
    .irp register, rbx, rbp, r12, r13, r14, r15
    pushq %\register
    .endr
    movq %rsp, home
    movq %rdi, %rax
    movl %esi, %edi
    pushq $USERDATA + 3
    pushq $user_end
    pushq $0x3002
    pushq $USER64 + 3
    pushq $1f
    iretq
1:  call *%rax
    int $BACK
come_back:
    movq home, %rsp
    .irp register, r15, r14, r13, r12, rbp, rbx
    popq %\register
    .endr
    ret

/* void run(code, operand, registers, flags): RAX, RDX, RCX and RBX from `registers`, then its instruction, then back to them. */
    .globl run
run:
    pushq %rbx
    pushq %r12
    movq %rdx, %r12
    xchgq %rdi, %rsi
    movq (%r12), %rax
    movq 8(%r12), %rdx
    movq 16(%r12), %rbx
    pushq %rcx
    movq 24(%r12), %rcx
    popfq
    call *%rsi
    movq %rax, 32(%r12)
    movq %rdx, 40(%r12)
    movq %rbx, 48(%r12)
    movq %rcx, 56(%r12)
    pushq $2
    popfq
    popq %r12
    popq %rbx
    ret

/* int enter(int first): into the guest until its next VM exit; false where it is not entered. */
    .globl enter
enter:
    .irp register, rbx, rbp, r12, r13, r14, r15
    pushq %\register
    .endr
    movl $0x6c14, %eax /* host RSP and RIP */
    vmwrite %rsp, %rax
    movl $0x6c16, %eax
    movl $1f, %ecx
    vmwrite %rcx, %rax
    testl %edi, %edi
    movq $guest_registers, %rsp
    restore
    jz 2f
    vmlaunch
2:  vmresume
    /* not entered: nothing of the host's is lost but RSP */
    movl $0x6c14, %eax
    vmread %rax, %rsp
    xorl %eax, %eax
    jmp 3f
1:  movq %rsp, home_rsp
    movq $guest_registers + 120, %rsp
    save
    movq home_rsp, %rsp
    movl $1, %eax
3:  .irp register, r15, r14, r13, r12, rbp, rbx
    popq %\register
    .endr
    ret

    .globl guest_start
guest_start: /* RDI, RSI: a function and its argument */
    movq %rdi, %rax
    movl %esi, %edi
    call *%rax
    vmcall

    .bss
home: .skip 8
home_rsp: .skip 8
    .globl guest_registers
    .balign 16
guest_registers: .skip 120
    .section .pages, "aw", @nobits
    .globl map1, map2, map3, map4, guest_stack_end
    .balign 4096
map4: .skip 4096
map3: .skip 4096
map2: .skip 4096
map1: .skip 4096
    .skip 8192
stack_end:
    .skip 8192
user_end:
    .skip 8192
away_end:
    .skip 8192
guest_stack_end:
