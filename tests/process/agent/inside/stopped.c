/* stopped [crash]: for debuggers: `add` has a locked instruction, `second` is called by it; then a child executes /bin/true. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static int value;
int *volatile where = &value;

__attribute__((noinline)) void second(int n)
{
    if (n > 100)
        abort();
    __atomic_fetch_sub(where, 1, __ATOMIC_SEQ_CST);
}

__attribute__((noinline)) int add(int n)
{
    for (int i = 0; i < n; i++)
        __atomic_fetch_add(where, i, __ATOMIC_SEQ_CST);
    second(n);
    return *where;
}

int main(int argc, char **argv)
{
    (void)argv;
    printf("%d\n", add(10));
    fflush(stdout);
    if (!fork()) {
        execl("/bin/true", "true", NULL);
        _exit(9);
    }
    wait(NULL);
    printf("%d\n", add(argc > 1 ? 200 : 3));
    return 5;
}
