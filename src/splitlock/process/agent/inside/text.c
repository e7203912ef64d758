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

/* What the digits say that a text begins with. */
uint64_t number_in(const char *text)
{
    uint64_t value = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        value = value * 10 + (uint64_t)(*text - '0');
    return value;
}

/* Up to DIGITS of them and a zero; gives where that is. */
char *put_number(char *to, uint64_t value)
{
    char digits[DIGITS];
    int count = 0;
    do
        digits[count++] = (char)('0' + value % 10);
    while (value /= 10);
    while (count)
        *to++ = digits[--count];
    *to = 0;
    return to;
}

/* Its place in /proc. */
void name_descriptor(char to[PROC_NAME], int descriptor)
{
    static const char directory[] = "/proc/self/fd/";
    memcpy(to, directory, sizeof directory - 1);
    put_number(to + sizeof directory - 1, (unsigned)descriptor);
}
