/* plain.c: a small file that nothing is to be patched in. A build makes and runs hundreds of these, each of them once, and Python
 * takes a hundred times as long to find nothing. What is seen here is less than what ../image.py finds, never more. */
#include "agent.h"

enum { MOST = 128 << 10, BEYOND = 16 };

static bool is_prefix(uint8_t byte) /* splitlock.x86.patterns.PREFIXES */
{
    return byte == 0xf0 || byte == 0xf2 || byte == 0xf3 || byte == 0x26 || byte == 0x2e || byte == 0x36 || byte == 0x3e ||
           (byte & 0xfc) == 0x64 || (byte & 0xf0) == 0x40;
}

/* An opcode that takes a LOCK prefix, be its operand a byte; SDM vol. 2A, LOCK. */
static bool is_lockable(const uint8_t *at)
{
    if (at[0] == 0x0f)
        return at[1] == 0xab || at[1] == 0xb3 || (at[1] & 0xfe) == 0xba || (at[1] & 0xfe) == 0xb0 || (at[1] & 0xfe) == 0xc0 ||
               at[1] == 0xc7;
    return (at[0] < 0x32 && (at[0] & 6) == 0) || at[0] == 0x80 || at[0] == 0x81 || at[0] == 0x83 || (at[0] & 0xfe) == 0x86 ||
           (at[0] & 0xfe) == 0xf6 || (at[0] & 0xfe) == 0xfe;
}

/* Whether a locked instruction, or a call of the kernel, may begin there. What stands behind the last one may be looked at. */
static bool may_matter(const uint8_t *at, const uint8_t *end)
{
    if ((at[0] & 0xfe) == 0x86) /* xchg locks by itself, with memory */
        return at[1] < 0xc0;
    if (at[0] == 0x0f)
        return at[1] == 0x05 || at[1] == 0x34; /* syscall, sysenter */
    if (at[0] == 0xcd)
        return at[1] == 0x80;
    if (at[0] != 0xf0)
        return false;
    while (at < end && is_prefix(*at))
        at++;
    return is_lockable(at);
}

static bool has_text_relocations(const uint8_t *file, const struct segment *segment)
{
    const struct dynamic *entry = (const struct dynamic *)(file + segment->offset);
    for (uint64_t i = 0; i < segment->file_size / sizeof *entry && entry[i].tag; i++)
        if (entry[i].tag == DT_TEXTREL || (entry[i].tag == DT_FLAGS && entry[i].value & DF_TEXTREL))
            return true;
    return false;
}

/* The bytes of its code; 0 where it is not plain. `file` has room behind its end. */
static uint64_t plain_bytes(const uint8_t *file, uint64_t size)
{
    const struct elf *header = (const struct elf *)file;
    uint64_t code = 0;
    if (size < sizeof *header || memcmp(header->ident, "\177ELF\2\1", 6) || header->machine != X86_64 || header->segments > size ||
        header->segment_size != sizeof(struct segment) ||
        (size - header->segments) / sizeof(struct segment) < header->segment_count)
        return 0;
    const struct segment *segment = (const struct segment *)(file + header->segments);
    for (int i = 0; i < header->segment_count; i++, segment++) {
        if (segment->type != PT_LOAD && segment->type != PT_DYNAMIC)
            continue;
        if (segment->offset > size || size - segment->offset < segment->file_size)
            return 0;
        const uint8_t *at = file + segment->offset, *end = at + segment->file_size;
        if (segment->type == PT_DYNAMIC && has_text_relocations(file, segment))
            return 0;
        if (segment->type != PT_LOAD || !(segment->flags & PF_X))
            continue;
        if (segment->flags & PF_W)
            return 0;
        code += segment->file_size;
        for (; at < end; at++)
            if (may_matter(at, end))
                return 0;
    }
    return code;
}

/* Whether the file with this key is one, by its contents; then `*code` are the bytes of its code. */
bool is_plain(long file, const uint64_t key[KEY], uint64_t *code)
{
    struct stat status;
    uint64_t opened[KEY];
    if (key[2] > MOST || call2(NR_FSTAT, file, (long)&status) || (status.mode & S_IFMT) != S_IFREG)
        return false;
    key_of(&status, opened);
    if (memcmp(opened, key, sizeof opened))
        return false;
    long held = call6(NR_MMAP, 0, (long)key[2] + BEYOND, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (FAILED(held))
        return false;
    long size = call4(NR_PREAD64, file, held, (long)key[2], 0);
    *code = size == (long)key[2] ? plain_bytes((const uint8_t *)held, key[2]) : 0;
    call2(NR_MUNMAP, held, (long)key[2] + BEYOND);
    return *code;
}
