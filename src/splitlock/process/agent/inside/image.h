/* The image file: what Python made of one ELF file once (../image.py writes it, agent/images.c maps it).
 *
 *   0       struct image
 *   4096    the arena: code_size bytes of code, the tables (struct image again first), a private page
 *   then    patched text, page by page (struct text says whose)
 *
 * Offsets named here count from the arena's start. Addresses are the ELF file's. Everything is little endian. */
#ifndef IMAGE_H
#define IMAGE_H

#include <stdint.h>

#define IMAGE_MAGIC 0x31474d494c4c5053ULL /* "SPLLIMG1" */
enum { IMAGE_VERSION = 25, KEY = 5, PAGE = 4096 };

struct patch { /* `size` new bytes, then as many of the file's own; a jump's displacement is at 1 */
    uint64_t address;
    uint32_t size, bytes;
};

struct copy { /* a moved instruction: where it is in the arena and, counted from `low`, in the file */
    uint32_t offset, address;
};

struct resume { /* an address within a run, counted from `low`, and where its instruction is in the arena */
    uint32_t address, offset;
};

struct hook { /* a call's code; rsp is 128 lower from `begin` to `end` */
    uint32_t start, begin, end, address;
};

struct text { /* pages of patched text: address, size, and place in the image file */
    uint64_t address, size, at;
};

/* Where the operand of a site is, whose copy is at `offset`: its count is taken back where it has faulted. */
enum { NO_REGISTER = 16, BY_IP = 17, BY_FS = 4, BY_GS = 8, IS_NARROW_ADDRESS = 16 };
struct operand {
    uint32_t offset, what;     /* what: its number, and in the lowest byte its size, as the slow path has them */
    int32_t displacement;      /* counted from `low` where `base` is BY_IP */
    uint8_t base, index, bits; /* registers as instructions number them; bits: one that moves a bit test's operand */
    uint8_t how;               /* the index's scale, as a logarithm, and how the address is made of the sum */
};

enum { ID = 32 };

struct image {
    uint64_t magic;
    uint32_t version, sites;
    uint64_t file_size;        /* of all of the image file: it is whole */
    uint64_t key[KEY];         /* of the ELF file: device, inode, size, mtime, ctime (nanoseconds) */
    uint64_t arena, low, high; /* where the arena is meant to be; the image's lowest and highest address */
    uint32_t code_size, total; /* bytes of code; of the whole arena */
    uint32_t twin, check_end;
    uint32_t patches, patch_count;
    uint32_t fields, field_count;  /* uint32_t: offsets of displacements to the outside */
    uint32_t copies, copy_count;   /* by offset */
    uint32_t resumes, resume_count; /* by address */
    uint32_t hooks, hook_count;    /* by offset */
    uint32_t texts, text_count;
    uint64_t id;               /* address of the build-id in the ELF file, 0 without one; its size, and the first of it */
    uint32_t id_size;
    uint32_t watched, unwatched; /* locked instructions that are, those included that never split; stretches of code that are not */
    uint8_t id_bytes[ID];
    uint32_t jumps, jump_count; /* struct copy: a patch's displacement, by which they are sorted, and its number */
    uint32_t operands;         /* of the sites, by offset */
    uint64_t watched_bytes;
};

struct page { /* the private one; entry.S and ../arena.py know these offsets */
    uint64_t hit, call, leave; /* the agent's entries */
    uint64_t counters;         /* of this image, in the run's memory */
    uint64_t seen;             /* table of (thread, site) */
    uint64_t id;               /* added to a site's number, makes it one of the whole run */
};

#endif
