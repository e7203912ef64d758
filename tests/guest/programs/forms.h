/*
 * forms.h: eight forms of a locked instruction, once each, for a program and for a module.
 *
 * form.run(operand, &value) executes it once; what memory and value become depends on what they were. form.place says where
 * the instruction is, and where the next one is.
 */
#define FORM(name, instruction)                                                                                         \
    extern const unsigned long place_##name[2];                                                                         \
    static __attribute__((__noinline__, __noclone__, __used__)) void run_##name(void *operand, unsigned long long *value)           \
    {                                                                                                                   \
        unsigned int low = (unsigned int)*value, high = (unsigned int)(*value >> 32);                                   \
        __asm__ volatile("1: " instruction "\n2: adcl $5, %0\n"                                                         \
                         ".pushsection .data\n.globl place_" #name "\nplace_" #name ": .quad 1b, 2b\n.popsection"       \
                         : "+a"(low), "+d"(high)                                                                        \
                         : "D"(operand), "b"(low + 7), "c"(high + 9)                                                    \
                         : "memory", "cc");                                                                             \
        *value = low | (unsigned long long)high << 32;                                                                  \
    }
FORM(add, "lock addl $3, (%%rdi)")
FORM(inc, "lock incw (%%rdi); clc")
FORM(neg, "lock negl (%%rdi)")
FORM(xadd, "lock xaddl %%eax, (%%rdi)")
FORM(xchg, "xchgl %%eax, (%%rdi); clc")
FORM(cmpxchg, "lock cmpxchgl %%ebx, (%%rdi)")
FORM(cmpxchg8b, "lock cmpxchg8b (%%rdi); clc")
FORM(btc, "lock btcl $9, (%%rdi)")
#undef FORM

static const struct form {
    const char *name;
    void (*run)(void *operand, unsigned long long *value);
    const unsigned long *place;
} forms[] = {
#define FORM(name) {#name, run_##name, place_##name}
    FORM(add), FORM(inc), FORM(neg), FORM(xadd), FORM(xchg), FORM(cmpxchg), FORM(cmpxchg8b), FORM(btc),
#undef FORM
};
enum { FORMS = sizeof forms / sizeof *forms, CROSSING = 63, INSIDE = 128 };
