/* cpuid: a boot sector that writes CPUID's leaves to the first serial port, a line each: leaf eax ebx ecx edx, in hex.
 * Then it ends QEMU, by isa-debug-exit. */
.code16
.global _start
_start: cli
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x7c00, %sp
        cld
        mov     $0x7c00 + leaves - _start, %si
next:   lodsl
        cmp     $0xffffffff, %eax
        je      stop
        mov     %eax, %ebp
        xor     %ecx, %ecx
        cpuid
        push    %edx
        push    %ecx
        push    %ebx
        push    %eax
        push    %ebp
        mov     $5, %di
word:   pop     %ebx
        mov     $8, %cx
digit:  rol     $4, %ebx
        mov     %bl, %al
        and     $15, %al
        add     $'0', %al
        cmp     $'9', %al
        jbe     1f
        add     $'a' - '9' - 1, %al
1:      call    put
        loop    digit
        mov     $' ', %al
        call    put
        dec     %di
        jnz     word
        mov     $'\n', %al
        call    put
        jmp     next
stop:   mov     $0xf4, %dx      /* isa-debug-exit */
        out     %al, %dx
1:      hlt
        jmp     1b
put:    mov     $0x3f8, %dx
        out     %al, %dx
        ret
leaves: .long   0, 1, 7, 0x80000000, 0x80000001, 0x80000008, 0x8000000a, 0xffffffff
.org 510
.word 0xaa55
