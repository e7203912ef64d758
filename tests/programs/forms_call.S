/*
 * void forms_call(struct call *): load every general register and the six arithmetic flags from the call, switch to
 * the stack it names, call the target, and write every register and flag back into it.
 *
 * Four words at the new stack's top serve as scratch:
 * 0 the caller's rsp, 8 the struct, 16 the target, 24 rdi on return.
 */
    .intel_syntax noprefix

#define FLAGS       0xcd5       /* OF DF SF ZF AF PF CF */
#define IN(n)       [rdi + 8 * n]
#define OUT(n)      [rdi + 144 + 8 * n]

    .text
    .p2align 4
    .global forms_call
    .type forms_call, @function
forms_call:
    .cfi_startproc
    push rbp
    .cfi_def_cfa_offset 16
    .cfi_offset rbp, -16
    push rbx
    .cfi_def_cfa_offset 24
    .cfi_offset rbx, -24
    push r12
    .cfi_def_cfa_offset 32
    .cfi_offset r12, -32
    push r13
    .cfi_def_cfa_offset 40
    .cfi_offset r13, -40
    push r14
    .cfi_def_cfa_offset 48
    .cfi_offset r14, -48
    push r15
    .cfi_def_cfa_offset 56
    .cfi_offset r15, -56

    pushfq                      /* keep the system flags as they are */
    pop rax
    and eax, ~FLAGS
    or rax, [rdi + 128]
    mov rsi, IN(4)
    mov [rsi], rsp
    mov [rsi + 8], rdi
    mov rcx, [rdi + 136]
    mov [rsi + 16], rcx
    push rax
    .cfi_adjust_cfa_offset 8
    popfq                       /* from here on nothing may touch the flags */
    .cfi_adjust_cfa_offset -8
    mov rax, IN(0)
    mov rcx, IN(1)
    mov rdx, IN(2)
    mov rbx, IN(3)
    mov rbp, IN(5)
    mov rsi, IN(6)
    mov r8, IN(8)
    mov r9, IN(9)
    mov r10, IN(10)
    mov r11, IN(11)
    mov r12, IN(12)
    mov r13, IN(13)
    mov r14, IN(14)
    mov r15, IN(15)
    mov rsp, IN(4)
    /* CFA = *(rsp) + 56: DW_CFA_def_cfa_expression { DW_OP_breg7 0; DW_OP_deref; DW_OP_plus_uconst 56 } */
    .cfi_escape 0x0f, 5, 0x77, 0, 0x06, 0x23, 56
    mov rdi, IN(7)
    call [rsp + 16]
    mov [rsp + 24], rdi
    mov rdi, [rsp + 8]
    mov OUT(0), rax
    mov rax, [rsp + 24]
    mov OUT(1), rcx
    mov OUT(2), rdx
    mov OUT(3), rbx
    mov OUT(4), rsp
    mov OUT(5), rbp
    mov OUT(6), rsi
    mov OUT(7), rax
    mov OUT(8), r8
    mov OUT(9), r9
    mov OUT(10), r10
    mov OUT(11), r11
    mov OUT(12), r12
    mov OUT(13), r13
    mov OUT(14), r14
    mov OUT(15), r15
    mov rsp, [rsp]
    .cfi_def_cfa rsp, 56
    pushfq
    .cfi_adjust_cfa_offset 8
    pop rax
    .cfi_adjust_cfa_offset -8
    and eax, FLAGS
    mov [rdi + 272], rax
    cld

    pop r15
    .cfi_def_cfa_offset 48
    pop r14
    .cfi_def_cfa_offset 40
    pop r13
    .cfi_def_cfa_offset 32
    pop r12
    .cfi_def_cfa_offset 24
    pop rbx
    .cfi_def_cfa_offset 16
    pop rbp
    .cfi_def_cfa_offset 8
    ret
    .cfi_endproc
    .size forms_call, . - forms_call

    .section .note.GNU-stack, "", @progbits
