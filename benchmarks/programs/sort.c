/* sort N: qsort of N pseudo-random ints; prints a checksum of the order. No locked instruction in the hot code. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static int compare(const void *left, const void *right)
{
    int a = *(const int *)left, b = *(const int *)right;
    return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
    size_t count = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000;
    int *values = malloc(count * sizeof *values);
    if (!values)
        return 1;
    uint64_t state = 88172645463325252;
    for (size_t i = 0; i < count; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17; /* Marsaglia's xorshift64 */
        values[i] = (int)(state >> 16);
    }
    qsort(values, count, sizeof *values, compare);
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum = sum * 31 + (unsigned)values[i];
    printf("%llx\n", (unsigned long long)sum);
    free(values);
    return 0;
}
