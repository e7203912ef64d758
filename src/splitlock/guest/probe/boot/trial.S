/* A trial: go to a mode and a CPL, execute one instruction there, come back; whatever it raises is caught.
 *
 * To CPL 3 leads IRET, out of it the exception raised, or else UD2. At CPL 0 POPF sets EFLAGS, and a jump leads out. So no
 * more is needed of the hypervisor than must be: some emulate neither IRET nor INT. Interrupts are off throughout.
 *
 * Each trial begins with the same flags, control registers, descriptors and results: nothing of the last one is left.
 */
#include "probe.h"
#define CR0_PE 0x1
#define CR0_PG 0x80000000
#define CR4_PAE 0x20
#define EFER 0xc0000080
#define EFER_LME 0x100

    .bss
    .globl trial_mode, trial_cpl, trial_op, trial_operand, trial_msr, trial_flags, trial_am, trial_eax, trial_edx
    .globl trial_vector, trial_error, trial_ip, trial_low, trial_high, trial_at, trial_next
    .balign 4
trial_mode: .skip 4
trial_cpl: .skip 4
trial_op: .skip 4
trial_operand: .skip 4
trial_msr: .skip 4
trial_flags: .skip 4
trial_am: .skip 4
trial_eax: .skip 4
trial_edx: .skip 4
trial_vector: .skip 4
trial_error: .skip 4
trial_ip: .skip 4
trial_low: .skip 4
trial_high: .skip 4
trial_at: .skip 4
trial_next: .skip 4
saved_esp: .skip 4
    .globl home_cr0
home_cr0: .skip 4

    .text
.macro at_next rip /* what follows: the instruction at 1, the next one at 2 */
    movl $1f, trial_at\rip
    movl $2f, trial_next\rip
.endm

.macro clock /* cycles so far in EDI:ESI */
    lfence
    rdtsc
    movl %eax, %esi
    movl %edx, %edi
    lfence
.endm

/* The instructions, once a mode of `bits`; the operand is at (`address`), variables are relative to `rip`, if anything. */
.macro instructions bits, address, rip
trial\bits:
    movl trial_operand\rip, %ebx
    movl trial_op\rip, %ecx
    cmpb $OP_ADD, %cl
    jb lock\bits
    je add\bits
    cmpb $OP_RDMSR, %cl
    jb cpuid\bits
    movl trial_msr\rip, %ecx
    je rdmsr\bits
    at_next \rip
    movl trial_eax\rip, %eax
    movl trial_edx\rip, %edx
1:  wrmsr
2:  jmp done\bits
rdmsr\bits:
    at_next \rip
1:  rdmsr
2:  movl %eax, trial_eax\rip
    movl %edx, trial_edx\rip
    jmp done\bits
cpuid\bits:
    at_next \rip
    clock
    xorl %eax, %eax
1:  cpuid
2:  jmp timed\bits
add\bits:
    at_next \rip
    clock
1:  addl $1, (\address)
2:  jmp timed\bits
lock\bits:
    at_next \rip
    clock
1:  lock addl $1, (\address)
2:
timed\bits:
    lfence
    rdtsc
    subl %esi, %eax
    sbbl %edi, %edx
    movl %eax, trial_low\rip
    movl %edx, trial_high\rip
    cmpl $0, trial_cpl\rip
    je done\bits
    jmp finished
done\bits:
    push $0
    .if \bits > 16
    push $0
    .endif
    push $DONE
    jmp raised\bits
.endm

finished: ud2 /* the same in both modes */

/* void trial(void) */
    .code32
    .globl trial
trial:
    pushal
    pushfl
    movl %esp, saved_esp
    pushl $2 /* no NT, no AC, whoever called */
    popfl
    xorl %eax, %eax
    movl %eax, trial_vector
    movl %eax, trial_error
    movl %eax, trial_ip
    movl %eax, trial_low
    movl %eax, trial_high
    movl %eax, trial_at
    movl %eax, trial_next
    movl %cr4, %eax /* PAE of a row in long mode; TSD or SMAP of firmware's would change rows */
    testl %eax, %eax
    jz 1f
    xorl %eax, %eax
    movl %eax, %cr4
1:  movl home_cr0, %eax
    orl trial_am, %eax
    movl %eax, %cr0
    movl trial_mode, %ecx
    cmpl $PROTECTED, %ecx
    jb to_real
    ja to_long
    pushl trial_flags
    cmpl $0, trial_cpl
    jne 1f
    popfl
    jmp trial32
1:  popl %ecx
    movl $USERDATA, %eax
    pushl %eax
    pushl $user_stack
    pushl %ecx
    pushl $USER32
    pushl $trial32
    movl %eax, %ds
    movl %eax, %es
    iretl
    instructions 32, %ebx

to_real:
    ljmp $CODE16, $1f
    .code16
1:  movw $DATA16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl %cr0, %eax
    andb $~CR0_PE, %al
    movl %eax, %cr0
    ljmp $0, $1f
1:  xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $away_stack, %esp
    lidtl idt16_register
    pushl trial_flags
    popfl
    jmp trial16
    instructions 16, %ebx

to_long:
    .code32
    movl %cr4, %eax
    orl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $page_map, %eax
    movl %eax, %cr3
    movl $EFER, %ecx
    rdmsr
    orl $EFER_LME, %eax
    wrmsr
    movl %cr0, %eax
    orl $CR0_PG, %eax
    movl %eax, %cr0
    ljmp $CODE64, $1f
    .code64
1:  lidt idt64_register(%rip)
    movb $0x89, gdt + TSS64 + 5(%rip) /* not busy */
    movl $TSS64, %eax
    ltr %ax
    movl $away_stack, %esp
    movl trial_flags(%rip), %ecx
    pushq %rcx
    cmpl $0, trial_cpl(%rip)
    jne 1f
    popfq
    jmp trial64
1:  popq %rcx
    pushq $USERDATA
    movl $user_stack, %eax
    pushq %rax
    pushq %rcx
    pushq $USER64
    movl $trial64, %eax
    pushq %rax
    iretq
    instructions 64, %rbx, (%rip)

/* Where the vectors lead: note which and where, and go home. */
    .code16
    .globl raised16
raised16:
    xorl %eax, %eax
    movl %eax, trial_error
    popw %ax
    movl %eax, trial_vector
    popw %ax
    movl %eax, trial_ip
    movl %cr0, %eax
    orb $CR0_PE, %al
    movl %eax, %cr0
    ljmpl $CODE32, $came_back

    .code64
    .globl raised64
raised64:
    popq %rax
    movl %eax, trial_vector(%rip)
    popq %rax
    movl %eax, trial_error(%rip)
    popq %rax
    movl %eax, trial_ip(%rip)
    movl $leave_long, %eax
    pushq $CODE32
    pushq %rax
    lretq
    .code32
leave_long:
    movl %cr0, %eax
    andl $~CR0_PG, %eax
    movl %eax, %cr0
    movl $EFER, %ecx
    rdmsr
    andl $~EFER_LME, %eax
    wrmsr
    jmp came_back

    .globl raised32
raised32:
    popl %eax
    movl %eax, %ss:trial_vector
    popl %eax
    movl %eax, %ss:trial_error
    popl %eax
    movl %eax, %ss:trial_ip

came_back:
    movl $DATA32, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl %eax, %ss
    movl saved_esp, %esp
    movl home_cr0, %eax
    movl %eax, %cr0
    lidt idt32_register
    movb $0x89, gdt + TSS32 + 5 /* not busy */
    movl $TSS32, %eax
    ltr %ax
    cmpl $6, trial_vector /* #UD */
    jne 1f
    cmpl $finished, trial_ip
    jne 1f
    movl $DONE, trial_vector
1:  popfl
    popal
    ret
