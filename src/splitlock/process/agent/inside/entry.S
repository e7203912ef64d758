/* entry.S: where the program's code enters the agent, and how it gets back. See arena.py for who jumps here.
 *
 * The program's stack is used, below its red zone. A signal may come between any two instructions: what signals.c has to
 * do then, it tells by the labels. C code runs with all signals blocked, but for SIGTRAP of single steps. Offsets are struct frame's (agent.h) and
 * struct page's (image.h). */

#define FRAME 176
#define NR_rt_sigprocmask 14
#define SIG_BLOCK 0
#define SIG_SETMASK 2
#define CONTEXT_IP 168
#define ARENA_SIZE 88
#define SETTING_SHIFT 5
#define SA_RESETHAND 0x80000000
#define ENTRIES 512 /* agent.h has these, too */
#define ENTRY_SIZE 16
#define CLONE_VM 0x100
#define CLONE_THREAD 0x10000
#define THEN_COUNT 2 /* enum then, agent.h */
#define THEN_TELL 3
#define GOLDEN 0x9E3779B97F4A7C15
#define SEEN_BITS 6, 9, 14 /* struct own, agent.h; hit.c has the same search */

    .text
    .globl hit_entry, hit_framed, hit_pushed, hit_popped, hit_unframed, hit_end, call_entry, call_framed, call_saved, call_done
    .hidden hit_entry, hit_framed, hit_pushed, hit_popped, hit_unframed, hit_end, call_entry, call_framed, call_saved, call_done
    .globl call_unframed, call_made, call_finished, call_end, leave_entry, leave_done, leave_flags, leave_unframed
    .hidden call_unframed, call_made, call_finished, call_end, leave_entry, leave_done, leave_flags, leave_unframed
    .globl leave_popping, leave_popping_flags, leave_popped, leave_end, front_entry, front_open, front_unframed, front_end, own_restorer
    .hidden leave_popping, leave_popping_flags, leave_popped, leave_end, front_entry, front_open, front_unframed, front_end, own_restorer

    .globl call_noted, call_aligned, call_aligned_end, call_returned, call_returned_saved, call_returned_end, exec_call, exec_open, exec_end
    .hidden call_noted, call_aligned, call_aligned_end, call_returned, call_returned_saved, call_returned_end, exec_call, exec_open, exec_end
    .globl front_entries, front_entries_end, front_saved, front_blocked
    .hidden front_entries, front_entries_end, front_saved, front_blocked
    .hidden __ehdr_start, etext /* the linker's: where the agent's code lies */

    .macro save_rest /* all but rax, rdx, rcx, rsp */
    mov %rbx, 24(%rsp)
    mov %rsi, 32(%rsp)
    mov %rdi, 40(%rsp)
    mov %rbp, 48(%rsp)
    mov %r8, 64(%rsp)
    mov %r9, 72(%rsp)
    mov %r10, 80(%rsp)
    mov %r11, 88(%rsp)
    mov %r12, 96(%rsp)
    mov %r13, 104(%rsp)
    mov %r14, 112(%rsp)
    mov %r15, 120(%rsp)
    .endm

    .macro restore_all
    mov 0(%rsp), %rax
    mov 8(%rsp), %rdx
    mov 16(%rsp), %rcx
    mov 24(%rsp), %rbx
    mov 32(%rsp), %rsi
    mov 40(%rsp), %rdi
    mov 48(%rsp), %rbp
    mov 64(%rsp), %r8
    mov 72(%rsp), %r9
    mov 80(%rsp), %r10
    mov 88(%rsp), %r11
    mov 96(%rsp), %r12
    mov 104(%rsp), %r13
    mov 112(%rsp), %r14
    mov 120(%rsp), %r15
    .endm

    .macro block_signals
    mov $NR_rt_sigprocmask, %eax
    mov $SIG_SETMASK, %edi
    lea all_but_steps(%rip), %rsi
    lea 144(%rsp), %rdx
    mov $8, %r10d
    syscall
    .endm

    .macro unblock_signals
    mov $NR_rt_sigprocmask, %eax
    mov $SIG_SETMASK, %edi
    lea 144(%rsp), %rsi
    xor %edx, %edx
    mov $8, %r10d
    syscall
    .endm

    .macro in_c function /* flags stay, the direction among them; the function gets rsp */
    mov %rsp, %rbx
    mov %rsp, %rdi
    and $-16, %rsp
    pushfq
    lea -8(%rsp), %rsp
    cld
    call \function
    lea 8(%rsp), %rsp
    popfq
    mov %rbx, %rsp
    .endm

/* The operand at rdx, whose site is ecx >> 8 and whose size is cl, crosses a line: rax is its image's page. Above the
 * return address are what the slow path saved (flags, rdx, rcx, rax) and the red zone. */
hit_entry:
    lea -FRAME(%rsp), %rsp
hit_framed:
    mov %rsi, 32(%rsp)
    mov %r8, 64(%rsp)
    mov %r9, 72(%rsp)
    mov %r10, 80(%rsp)
    mov %r11, 88(%rsp)
    mov %ecx, %esi
    shr $8, %esi
    mov 24(%rax), %r8
    lock incq (%r8, %rsi, 8)
    rdfsbase %r10
    add 40(%rax), %rsi
    movabs $GOLDEN, %r8
    mov %rsi, %r9
    imul %r8, %r9
    xor %r10, %r9
    or $1, %r9
    cmpl $0, is_filtered(%rip)
    jne 1f
    cmpl $0, asks_always(%rip)
    jne 2f
    mov 32(%rax), %r11
    imul %r9, %r8
    .irp bits, SEEN_BITS
    rol $\bits, %r8
    mov %r8d, %r10d
    and $(1 << \bits) - 1, %r10d
    shl $6, %r10
    .set place, 0
    .rept 8
    mov place(%r11, %r10), %rsi
    cmp %r9, %rsi
    je 1f
    test %rsi, %rsi
    jz 2f
    .set place, place + 8
    .endr
    add $64 << \bits, %r11
    .endr
    jmp 1f
2:
    mov %rbx, 24(%rsp)
    mov %rdi, 40(%rsp)
    mov %rbp, 48(%rsp)
    mov %r12, 96(%rsp)
    mov %r13, 104(%rsp)
    mov %r14, 112(%rsp)
    mov %r15, 120(%rsp)
    mov FRAME+16(%rsp), %r8
    mov %r8, 8(%rsp)
    mov FRAME+24(%rsp), %r8
    mov %r8, 16(%rsp)
    mov FRAME+32(%rsp), %r8
    mov %r8, 0(%rsp)
    mov FRAME+8(%rsp), %r8
    mov %r8, 136(%rsp)
    lea FRAME+168(%rsp), %r8
    mov %r8, 56(%rsp)
    mov %rdx, 128(%rsp)
    mov %r9, 152(%rsp)
    mov %rax, 168(%rsp)
    mov %rcx, %r12
    block_signals
    mov %r12, %rsi
    in_c on_hit
    unblock_signals
    cmpq $0, 152(%rsp)
    je 3f
    pushfq /* fatal: the processor itself refuses the lock, by EFLAGS.AC */
hit_pushed:
    orq $0x40000, (%rsp)
    popfq
hit_popped:
3:  mov 24(%rsp), %rbx
    mov 40(%rsp), %rdi
    mov 96(%rsp), %r12
1:  mov 88(%rsp), %r11
    mov 80(%rsp), %r10
    mov 72(%rsp), %r9
    mov 64(%rsp), %r8
    mov 32(%rsp), %rsi
    lea FRAME(%rsp), %rsp
hit_unframed:
    ret
hit_end:

/* A system call is about to be made, number and arguments in their registers; above the return address the red zone.
 * Either back, to make it; or it is made here, and the way goes on behind it. */
call_entry:
    lea -FRAME(%rsp), %rsp
call_framed:
    mov %rax, 0(%rsp)
    mov %rdx, 8(%rsp)
    mov %rcx, 16(%rsp)
    save_rest
call_saved:
    lea FRAME+136(%rsp), %rcx
    mov %rcx, 56(%rsp)
    movq $0, 160(%rsp)
    movq $0, 152(%rsp)
call_noted: /* from here on 152(%rsp) says whether the call has been made */
    cmpl $0, is_dispatched(%rip)
    jne call_done
    cmp $13, %eax /* rt_sigaction */
    je 15f
    cmp $59, %eax /* execve */
    je 2f
    cmp $322, %eax /* execveat */
    je 2f
    cmp $231, %eax /* exit_group */
    je 9f
    cmp $11, %eax /* munmap */
    je 9f
    cmp $25, %eax /* mremap */
    je 2f
    cmp $30, %eax /* shmat */
    je 14f
    cmp $9, %eax /* mmap */
    je 3f
    cmp $10, %eax /* mprotect */
    je 11f
    cmp $329, %eax /* pkey_mprotect */
    je 11f
    cmp $135, %eax /* personality */
    je 2f
    cmp $157, %eax /* prctl */
    je 4f
    cmp $317, %eax /* seccomp */
    je 10f
    cmp $58, %eax /* vfork */
    je 16f
    cmp $57, %eax /* fork */
    je 5f
    cmp $56, %eax /* clone */
    je 6f
    cmp $435, %eax /* clone3 */
    jne call_done
    test %rdi, %rdi
    jz call_done
    mov %rdi, %rcx /* struct clone_args may be anywhere; mostly it is on the page that rsp is on, which can be read */
    xor 56(%rsp), %rcx
    test $-4096, %rcx
    jnz 7f
    lea 7(%rdi), %rcx
    xor %rdi, %rcx
    test $-4096, %rcx
    jnz 7f
    mov (%rdi), %rcx
    test $CLONE_THREAD, %ecx
    jnz call_done
    test $CLONE_VM, %ecx
    jnz 16f
7:  cmpl $0, is_filtered(%rip)
    jne call_done
    block_signals
    in_c kind_of_clone3
    mov %rax, %r12
    unblock_signals
    cmp $THEN_COUNT, %r12d
    jb call_done
    ja 16f
    mov 32(%rsp), %rsi
    mov 0(%rsp), %rax
    jmp 5f
/* A child with memory of its own and the same stack returns from here as well. So what fails is not counted. */
6:  test $CLONE_THREAD, %edi
    jnz call_done
    test $CLONE_VM, %edi
    jnz 16f
    test %rsi, %rsi
    jnz 16f
5:  cmpl $0, is_filtered(%rip)
    jne 16f
    movq $THEN_COUNT, 160(%rsp)
    jmp 12f
16: mov run(%rip), %rcx
    lock incl 28(%rcx) /* struct run: processes */
    jmp call_done
4:  cmp $59, %edi /* PR_SET_SYSCALL_USER_DISPATCH */
    je 2f
    cmp $22, %edi /* PR_SET_SECCOMP */
    jne call_done
10: cmpl $0, is_filtered(%rip)
    jne 12f
    block_signals
    in_c is_hindered
    movzbl %al, %r12d /* 1: THEN_FILTERED */
    unblock_signals
    mov %r12, 160(%rsp)
    mov 8(%rsp), %rdx
    mov 32(%rsp), %rsi
    mov 64(%rsp), %r8
    mov 80(%rsp), %r10
    mov 0(%rsp), %rax
12: mov FRAME(%rsp), %rcx /* made here: behind a filter no other call may be allowed */
    movslq 9(%rcx), %r11 /* the trampoline's jump to the instruction, which has two bytes */
    lea 15(%rcx, %r11), %rcx
    mov %rcx, 128(%rsp)
    mov 40(%rsp), %rdi
    .cfi_startproc /* where a debugger stops at a fork: as if this were called at the program's instruction */
    .cfi_def_cfa rsp, FRAME + 136
    .cfi_offset rip, 128 - FRAME - 136
    .cfi_offset rbx, 24 - FRAME - 136
    .cfi_offset rbp, 48 - FRAME - 136
    .cfi_offset r12, 96 - FRAME - 136
    .cfi_offset r13, 104 - FRAME - 136
    .cfi_offset r14, 112 - FRAME - 136
    .cfi_offset r15, 120 - FRAME - 136
    syscall
call_returned: /* until call_returned_end, signals.c does what is to be done then: finish_call() */
    mov %rax, 0(%rsp)
    movq $1, 152(%rsp)
call_returned_saved:
    mov 160(%rsp), %rcx
    cmp $THEN_TELL, %ecx
    je 17f
    cmp $THEN_COUNT, %ecx
    je 18f
    test %rax, %rax
    js 20f /* a filter's listener is a descriptor */
    or %ecx, is_filtered(%rip)
    jmp call_done
20: test %ecx, %ecx /* THEN_FILTERED: the handlers were given up for it */
    jz call_done
    block_signals
    in_c take_handlers
    unblock_signals
    jmp call_done
17: test %rax, %rax
    jnz call_done
    mov 8(%rsp), %rdx
    test %rdx, %rdx
    jz call_done
    mov (%rdx), %rdx
    lea front_entries(%rip), %rcx
    sub %rcx, %rdx
    cmp $ENTRIES * ENTRY_SIZE, %rdx
    jae call_done
    block_signals
    in_c tell_action /* another thread has set a handler meanwhile */
    unblock_signals
    jmp call_done
18: test %rax, %rax
    jle call_done
    mov run(%rip), %rcx
    lock incl 28(%rcx)
    .cfi_endproc
call_returned_end:
    jmp call_done
/* Of a signal for which the program has never set a handler: what there is now, or that there shall be none. posix_spawn(3)
 * asks and says so for every signal. What is to be set is read where it can be for certain: on the page that rsp is on. */
15: lea -1(%rdi), %edx
    cmp $63, %edx
    ja call_done
    mov ever_handled(%rip), %rcx
    bt %rdx, %rcx
    jc 2f
    test %rsi, %rsi
    jz 19f
    mov %rsi, %rcx
    xor 56(%rsp), %rcx
    test $-4096, %rcx
    jnz 2f
    lea 7(%rsi), %rcx
    xor %rsi, %rcx
    test $-4096, %rcx
    jnz 2f
    cmpq $1, (%rsi) /* SIG_DFL, SIG_IGN */
    ja 2f
19: cmpl $0, is_filtered(%rip)
    jne call_done
    mov 8(%rsp), %rdx
    movq $THEN_TELL, 160(%rsp)
    jmp 12b
9:  cmpl $0, range_count(%rip)
    jne 2f
    jmp call_done
14: test $0x8000, %edx /* SHM_EXEC */
    jnz 2f
    jmp call_done
11: test $2, %dl /* PROT_WRITE */
    jnz 2f
3:  test $4, %dl /* PROT_EXEC */
    jz call_done
2:  cmpl $0, is_filtered(%rip)
    jne 13f
    block_signals
    in_c on_call
    unblock_signals
    jmp call_done
13: mov %rsp, %rbx /* signals may come: until call_aligned_end they find the frame in rbx */
    mov %rsp, %rdi
call_aligned:
    and $-16, %rsp
    pushfq
    lea -8(%rsp), %rsp
    cld
    call on_filtered_call
    lea 8(%rsp), %rsp
    popfq
    mov %rbx, %rsp
call_aligned_end:
call_done:
    cmpq $0, 152(%rsp)
    jne call_made
    restore_all
    lea FRAME(%rsp), %rsp
call_unframed:
    ret
call_made:
    mov 128(%rsp), %rax
    mov %rax, FRAME(%rsp)
    restore_all
    lea FRAME(%rsp), %rsp
call_finished:
    ret $128
call_end:

/* The end of a twin: on the stack rax, where to go on, and the red zone; eax says how much the last instruction pops. */
leave_entry:
    lea -FRAME(%rsp), %rsp
    pushfq
    popq 136(%rsp)
    mov %rdx, 8(%rsp)
    mov %rcx, 16(%rsp)
    save_rest
    mov %eax, %eax
    mov %rax, 168(%rsp)
    lea FRAME+144(%rsp, %rax), %rcx
    mov %rcx, 56(%rsp)
    mov FRAME(%rsp), %rcx
    mov %rcx, 0(%rsp)
    mov FRAME+8(%rsp), %rcx
    mov %rcx, 160(%rsp)
    in_c on_leave
    unblock_signals
leave_done:
    cmpq $0, 168(%rsp)
    jne leave_popping
    pushq 136(%rsp)
leave_flags:
    popfq
    restore_all
    lea FRAME+8(%rsp), %rsp
leave_unframed:
    ret $128
leave_popping:
    pushq 136(%rsp)
leave_popping_flags:
    popfq
    restore_all
    lea FRAME+8(%rsp), %rsp
leave_popped:
    ret $136
leave_end:

/* What the kernel calls in place of the program's handlers, with the mask that they are to have: it alone knows that one, since what
 * was in force before may have been a mask of sigsuspend(2)'s. The entry says which handler it is (signals.c).
 * Until front_blocked another signal may come: so nothing is changed by then but registers that the handler does not look at. */
    .balign ENTRY_SIZE
front_entries:
    .set entry, 0
    .rept ENTRIES
    mov $entry, %r8d
    jmp front_entry
    .balign ENTRY_SIZE
    .set entry, entry + 1
    .endr
front_entries_end:

/* Mostly the signal came in the program's own code, and the handler finds all as the kernel has made it. */
front_entry:
    mov %r8d, %r11d
    shl $SETTING_SHIFT, %r11
    lea settings(%rip), %rcx
    add %rcx, %r11
    cmpq $1, 8(%r11) /* struct setting: handler */
    jbe 4f
    cmpl $0, is_filtered(%rip)
    jne 3f
    testl $SA_RESETHAND, 4(%r11) /* flags */
    jnz 4f
    mov CONTEXT_IP(%rdx), %rcx
    lea __ehdr_start(%rip), %r9
    cmp %r9, %rcx
    jb 1f
    lea etext(%rip), %r9
    cmp %r9, %rcx
    jb 4f
1:  lea arenas(%rip), %r9
    mov arena_count(%rip), %r10d
2:  dec %r10d
    js 3f
    cmp (%r9), %rcx /* struct arena: begin, end */
    jb 5f
    cmp 8(%r9), %rcx
    jb 4f
5:  add $ARENA_SIZE, %r9
    jmp 2b
3:  jmp *8(%r11)

/* `front` gives the handler, or null when there is none to be called now, and whether it wants to hear of its return. */
4:  mov %rdi, -24(%rsp)
    mov %rsi, -16(%rsp)
    mov %rdx, -8(%rsp)
front_saved:
    mov $NR_rt_sigprocmask, %eax
    mov $SIG_BLOCK, %edi
    lea all_signals(%rip), %rsi
    lea -40(%rsp), %rdx
    mov $8, %r10d
    syscall
front_blocked:
    lea -56(%rsp), %rsp /* struct verdict: handler, hears, mask; then the arguments */
    mov 32(%rsp), %rdi
    mov 40(%rsp), %rsi
    mov 48(%rsp), %rdx
    mov %rsp, %rcx
    call front
    cmpq $0, (%rsp)
    je 9f
    mov $NR_rt_sigprocmask, %eax
    mov $SIG_SETMASK, %edi
    lea 16(%rsp), %rsi
    xor %edx, %edx
    mov $8, %r10d
    syscall
front_open:
    mov (%rsp), %r11
    mov 8(%rsp), %rcx
    mov 32(%rsp), %rdi
    mov 40(%rsp), %rsi
    mov 48(%rsp), %rdx
    xor %eax, %eax
    test %rcx, %rcx
    jnz 8f
    lea 56(%rsp), %rsp
front_unframed:
    jmp *%r11
front_end:
    .cfi_startproc /* an exception, or a debugger, finds its way through the handler to what was interrupted */
    .cfi_def_cfa rsp, 64
8:  call *%r11
    mov 48(%rsp), %rdi
    call back
9:  lea 56(%rsp), %rsp
    ret
    .cfi_endproc

/* long exec_call(frame, environment): the execution that a frame asks for, with the program's signal mask, which the new program
 * inherits. A signal that comes meanwhile finds a call that has not begun. */
exec_call:
    push %rbx
    push %r12
    push %r13
    mov %rdi, %rbx
    mov %rsi, %r12
    mov $NR_rt_sigprocmask, %eax
    mov $SIG_SETMASK, %edi
    lea 144(%rbx), %rsi
    xor %edx, %edx
    mov $8, %r10d
    syscall
exec_open:
    mov 0(%rbx), %rax
    mov 40(%rbx), %rdi
    mov 32(%rbx), %rsi
    mov 8(%rbx), %rdx
    mov %r12, %r10 /* execveat(directory, path, arguments, environment, flags) */
    mov 64(%rbx), %r8
    cmp $59, %eax /* execve(path, arguments, environment) */
    cmove %r12, %rdx
    syscall
    mov %rax, %r13
    mov $NR_rt_sigprocmask, %eax
    mov $SIG_SETMASK, %edi
    lea all_but_steps(%rip), %rsi
    xor %edx, %edx
    mov $8, %r10d
    syscall
exec_end:
    mov %r13, %rax
    pop %r13
    pop %r12
    pop %rbx
    ret

/* Bytes that debuggers and unwinders know, as libc's. */
own_restorer:
    mov $15, %rax
    syscall

    .section .rodata
    .align 8
all_signals:
    .quad -1
all_but_steps: /* SIGTRAP: a program that steps itself would be killed in here if it were blocked */
    .quad ~(1 << 4)

    .section .note.GNU-stack, "", @progbits
