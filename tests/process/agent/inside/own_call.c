/* A system call of the program's own, made as FORM (a #include'd line of assembly between the loads of its arguments and
 * the end) says: NUMBER with three arguments. `own_call` without arguments makes getpid(2) instead, from elsewhere. */
#include <string.h>
#include <unistd.h>

static const long number = NUMBER;
char *nothing[] = {0};

__attribute__((noinline)) long call(long first, long second, long third, long fourth)
{
    long result;
    register long r10 __asm__("r10") = fourth;
    register long r8 __asm__("r8") = 0;
    __asm__ volatile(FORM : "=a"(result), "+D"(first), "+S"(second), "+d"(third), "+r"(r10), "+r"(r8)
                     : "m"(number)
                     : "rcx", "r11", "r9", "r12", "memory", "cc");
    return result;
}

int main(int argc, char **argv)
{
    static char *words[] = {"true", 0};
    if (argc < 2)
        return 0;
    if (NUMBER == 322)
        call(-100, (long)argv[1], (long)words, (long)nothing);
    else
        call((long)argv[1], (long)words, (long)nothing, 0);
    return NUMBER == 39 ? 0 : 9;
}
