/* elf(5), for 64 bits: the file's header and a program header. */
#ifndef ELF_H
#define ELF_H

#include <stdint.h>

enum { ELF64 = 2, X86_64 = 62, PT_LOAD = 1, PT_DYNAMIC = 2, PT_INTERP = 3, PT_PHDR = 6, PT_TLS = 7, PT_GNU_STACK = 0x6474e551 };
enum { PF_X = 1, PF_W = 2 };
enum { DT_NEEDED = 1, DT_STRTAB = 5, DT_TEXTREL = 22, DT_FLAGS = 30, DF_TEXTREL = 4, DF_STATIC_TLS = 0x10 };

struct elf {
    uint8_t ident[16];
    uint16_t type, machine;
    uint32_t version;
    uint64_t entry, segments, sections;
    uint32_t flags;
    uint16_t size, segment_size, segment_count, section_size, section_count, names;
};

struct segment {
    uint32_t type, flags;
    uint64_t offset, address, physical, file_size, memory_size, align;
};

struct dynamic {
    int64_t tag;
    uint64_t value;
};

#endif
