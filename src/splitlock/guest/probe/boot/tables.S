/* The processor's tables: segments, interrupt vectors of three modes, task states; and the stacks. All lie below 64 KiB. */
#include "probe.h"
#define FLAT(access, flags) .word 0xffff, 0; .byte 0, access, flags, 0
    .data
    .balign 16
    .globl gdt, gdt_register, idt16_register, idt32_register, idt64_register
gdt:
    .quad 0
    FLAT(0x9b, 0xcf) /* CODE32 */
    FLAT(0x93, 0xcf) /* DATA32 */
    FLAT(0xfb, 0xcf) /* USER32 */
    FLAT(0xf3, 0xcf) /* USERDATA */
    FLAT(0x9b, 0xaf) /* CODE64 */
    FLAT(0xfb, 0xaf) /* USER64 */
    FLAT(0x9b, 0x00) /* CODE16 */
    FLAT(0x93, 0x00) /* DATA16 */
    .word 0x67, tss32
    .byte 0, 0x89, 0, 0
    .word 0x67, tss64
    .byte 0, 0x89, 0, 0
    .quad 0
gdt_end:
gdt_register:
    .word gdt_end - gdt - 1
    .long gdt
idt16_register:
    .word 4 * DONE - 1
    .long idt16
idt32_register:
    .word 8 * DONE - 1
    .long idt32
idt64_register:
    .word 16 * DONE - 1
    .long idt64, 0

    .balign 8
tss32:
    .long 0, away_stack, DATA32
    .skip 0x68 - 12
tss64:
    .long 0, away_stack, 0
    .skip 0x68 - 12

/* What each vector does: push an error code where the processor pushes none, and the vector; real mode knows no error codes. */
    .altmacro
.macro vector bits, number
raise\bits\()_\number:
    .if \bits > 16
    .if \number != 8 && \number != 17 && \number != 21 && (\number < 10 || \number > 14)
    push $0
    .endif
    .endif
    push $\number
    jmp raised\bits
.endm
.macro gate bits, number
    .if \bits == 16
    .word raise16_\number, 0
    .else
    .word raise\bits\()_\number
    .ifeq \bits - 32
    .word CODE32
    .else
    .word CODE64
    .endif
    .word 0x8e00, 0
    .ifeq \bits - 64
    .quad 0
    .endif
    .endif
.endm
.macro each what, bits
    .set number, 0
    .rept DONE
    \what \bits, %number
    .set number, number + 1
    .endr
.endm

    .balign 16
idt16:
    each gate, 16
idt32:
    each gate, 32
idt64:
    each gate, 64

    .text
    .code16
    each vector, 16
    .code32
    each vector, 32
    .code64
    each vector, 64

    .section .tables, "aw", @nobits
    .globl page_map, directories, directory, user_stack, away_stack, home_stack, user_guard, away_guard, home_guard
    .balign 4096
page_map: .skip 4096
directories: .skip 4096
directory: .skip 4096
/* Each stack has memory of its own: none lies within another, however deep that one gets; stacks.c looks. */
user_guard: .skip GUARD
    .skip USER_STACK
user_stack:
away_guard: .skip GUARD
    .skip AWAY_STACK
away_stack:
home_guard: .skip GUARD
    .skip HOME_STACK
home_stack:
