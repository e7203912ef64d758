/*
 * many LINES: executes itself with so many lines of environment; then prints how many it has, and a checksum of them.
 * many full PROGRAM: opens files, which an execution closes, until there are no descriptors left, then executes PROGRAM.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv)
{
    if (argc > 2) {
        while (open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0)
            ;
        execv(argv[2], argv + 2);
        return 9;
    }
    if (argc > 1) {
        int count = atoi(argv[1]);
        char **lines = calloc((size_t)count + 1, sizeof *lines), *arguments[] = {argv[0], NULL};
        for (int i = 0; i < count; i++)
            sprintf(lines[i] = malloc(24), "N%d=%x", i, i * 7);
        execve(argv[0], arguments, lines);
        return 9;
    }
    uint32_t sum = 0, count = 0;
    for (char **line = environ; *line; line++, count++)
        for (char *at = *line; *at; at++)
            sum = sum * 31 + (uint8_t)*at;
    printf("%u %u %s\n", count, sum, getenv("LD_AUDIT") ? "LD_AUDIT" : "");
    return 0;
}
