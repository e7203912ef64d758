/* split32: a 32-bit Linux program without any library that takes 600 split locks, 200 each of three instructions. */
        .code32
        .globl _start
_start: movl $operand + 62, %edi
        movl $200, %ecx
1:      lock incl (%edi)
        loop 1b
        movl $200, %ecx
1:      xchgl %eax, (%edi)
        loop 1b
        movl $200, %esi
1:      lock cmpxchg8b -2(%edi)
        decl %esi
        jnz 1b
        movl $1, %eax
        xorl %ebx, %ebx
        int $0x80
        .bss
        .balign 64
operand: .skip 128
