/* text.c: bytes and strings, which compilers also call by themselves. */
#include "agent.h"

void *memcpy(void *to, const void *from, size_t size)
{
    void *result = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
    return result;
}

void *memset(void *to, int value, size_t size)
{
    void *result = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
    return result;
}

int memcmp(const void *one, const void *other, size_t size)
{
    const uint8_t *a = one, *b = other;
    for (size_t i = 0; i < size; i++)
        if (a[i] != b[i])
            return a[i] < b[i] ? -1 : 1;
    return 0;
}

size_t strlen(const char *text)
{
    size_t size = 0;
    while (*(volatile const char *)&text[size])
        size++;
    return size;
}

/* As strlcpy: cut where there is no room, of which no more is read: it may change meanwhile, and have no end. */
void copy_text(char *to, const char *from, size_t room)
{
    size_t size = 0;
    while (size < room - 1 && (to[size] = ((volatile const char *)from)[size]))
        size++;
    to[size] = 0;
}

bool begins(const char *text, const char *prefix)
{
    return memcmp(text, prefix, strlen(prefix)) == 0;
}

/* Its place in /proc. */
void name_descriptor(char to[PROC_FD], int descriptor)
{
    static const char directory[] = "/proc/self/fd/";
    char digits[12];
    int count = 0;
    unsigned rest = (unsigned)descriptor;
    do
        digits[count++] = (char)('0' + rest % 10);
    while (rest /= 10);
    memcpy(to, directory, sizeof directory - 1);
    to += sizeof directory - 1;
    while (count)
        *to++ = digits[--count];
    *to = 0;
}
