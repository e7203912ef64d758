/* SPDX-License-Identifier: MIT
 *
 * What one judging works with, and the few things that differ between the kernel and user space: reading the
 * module, loops, functions that the verifier looks at once.
 *
 * All state is in struct gate_work, in map memory: what a register holds makes the verifier follow paths apart,
 * what it reads from memory does not.
 */
#ifndef SPLITLOCK_MEMORY_H
#define SPLITLOCK_MEMORY_H

#include "gate.h"

#define GATE_CHUNK 8184u		/* bytes read at once; a multiple of a symbol's and a relocation's 24 */
#define GATE_SPARE 8192u		/* in code[]: where single instructions are looked at */
#define GATE_CODE (GATE_SPARE + 64u)
#define GATE_WINDOW (1u << 18)		/* bytes of code that the marks cover */
#define GATE_FIELDS 64u			/* relocations read at once */
#define GATE_TURNS 16384		/* of a loop at most */
#define GATE_NO_CODE 0xffffffffu

/* Where a sweep is. Executable sections lie one behind the other in an address space of their own, "places". */
struct gate_cursor {
	__u64 offset;		/* of the section in the file */
	__u64 size;		/* of the section */
	__u64 at;		/* in the section: the next instruction */
	__u64 base;		/* the section's first place */
	__u64 section;		/* its number */
};

struct gate_span {
	__u64 offset, size;	/* in the file */
};

/* A section with relocations that is no code: enum gate_table. */
struct gate_patching {
	__u64 section;		/* its number */
	__u64 offset, size;	/* in the file */
	__u64 kind;
	struct gate_span relocations;
	__u64 entry, fields;	/* bytes of an entry, and how many of its fields are relocated, 4 bytes apart */
	__u64 next, field;	/* in the section: the next entry, and its next field */
	__u32 wide;		/* 1: addresses, of 8 bytes, not distances */
	__u32 alternatives;	/* 1: this pass looks at alternatives, and at them alone */
};

/* A place in code that a relocation points at. */
struct gate_place {
	__u64 symbol, value;	/* its number, 0: none yet */
	__u64 base, size, offset; /* of its section: the first place, bytes, where in the file */
	__u64 at;		/* in the section */
};

struct gate_work {
	__u32 busy;		/* somebody is at it */
	__u32 user;		/* 1: the module is in a process's memory (tests) */
	__u64 data, size;	/* the module */
	struct gate_span sections, names, symbols, strings, modinfo; /* headers, their names, .symtab, .strtab, .modinfo */
	__u64 count;		/* of section headers */
	__u64 places;		/* bytes of code, all sections */
	__u64 contents;		/* bytes of sections, all that are in the file */
	__u64 fits;		/* bits: rules that can apply to the module */
	__u64 names_fit;	/* bits: patterns that fit its name */
	__u64 wanted[2];	/* bits: kinds that are looked for */
	__u64 found[4][2];	/* bits: kinds found, by evidence */
	__u64 left[4][2];	/* of these, those that no rule has decided yet */
	__u64 numbers[2][4];	/* symbol numbers of pv_ops and of cr4_update_irqsoff */
	__u64 aliases[2];	/* how many of each */

	struct gate_cursor now, saved;
	__u64 loaded;		/* in the section: where code[] starts */
	__u64 filled;		/* bytes of the section in code[] */
	__u64 stop;		/* in code[]: instructions that begin from here on are left for the next time */
	__u64 place;		/* code[]'s first place, counted from where the marks begin */
	__u64 window;		/* the first place that the marks cover */
	__u64 item;		/* what a loop over records is at */
	__u64 items;		/* how many there are in code[] */
	__u64 budget;		/* symbols and diverted instructions still to be looked at */
	__u64 at;		/* in code[]: the instruction, or the record, that is looked at */
	__u64 prefixes;		/* of the instruction it looks at */
	__u32 phase;		/* enum gate_phase */
	__u32 first;		/* 1: this pass over the symbols looks at imports as well */
	__u32 begun;		/* 1: the marks are set */
	__u32 padding;

	struct gate_span relocations; /* of the section at w->now */
	__u64 relocation;	/* the next one's number */
	__u64 field;		/* in the section: what it fills in */
	__u64 record;		/* where it is in fields[] */

	struct gate_patching table;
	struct gate_place site, origin;
	struct { __u64 from, to, inner; } group; /* places: alternatives for one range */
	__u64 claimed[2];	/* bits: kinds of the pv_ops that .parainstructions names */
	__u64 alternative;	/* bytes of the running kernel's struct alt_instr; 0: not known */
	__u32 alternatives;	/* 1: there are some */
	__u32 patches;		/* 1: edges[] holds something */

	__u64 pending;		/* bits: bytes within an instruction of the sweep at which something begins */
	__u64 over;		/* in the section: that instruction */
	__u64 other, main;	/* in the section: a decoding that started there, and the sweep that it is to meet */
	__u32 apart;		/* 1: they have not met yet */
	__u32 chosen;		/* the rule that speaks for the module, plus 1 */
	__u32 fit, whole;	/* the first rule that can apply, and of those for the module as a whole, plus 1 */

	__u64 word[8];		/* a symbol's name */
	__u64 header[8];	/* a section header */
	__u32 hash[8];		/* SHA-256: state and schedule */
	__u32 schedule[64];
	__u64 fields[GATE_FIELDS * 3];
	struct gate_decision decision;
	__u32 bases[GATE_SECTIONS]; /* first places of executable sections */
	__u16 relas[GATE_SECTIONS]; /* numbers of the sections with their relocations */
	__u8 tables[GATE_SECTIONS]; /* enum gate_table */
	__u8 code[GATE_CODE];
	__u64 marks[GATE_WINDOW / 64 + 2];
	__u64 edges[GATE_WINDOW / 64 + 2]; /* where an instruction must begin: patch.h */
	__u64 patched[GATE_WINDOW / 64 + 2]; /* bytes, but the first, of ranges that alternatives replace */
#ifndef __bpf__
	struct gate_finding *all; /* every finding, for tests */
	__u32 room;
#endif
};

enum gate_table { /* by which the kernel writes to code: patch.h */
	GATE_TABLE_NONE, GATE_TABLE_ALTERNATIVE, GATE_TABLE_PARAVIRT, GATE_TABLE_JUMP, GATE_TABLE_CALL, GATE_TABLE_MCOUNT,
	GATE_TABLE_CFI, GATE_TABLE_SITES,
};

enum gate_phase {
	GATE_SWEEP,		/* exact: decode everything, and again from marked function starts */
	GATE_TARGETS,		/* mark where branches land */
	GATE_POSSIBLE,		/* decode again from there */
};

#define GATE_INLINE static inline __attribute__((always_inline))

#ifdef __bpf__

#define GATE_TABLE(type, name, size) const type name[size]
/* A global function: the verifier looks at it by itself, once, and takes it that its pointers may be NULL. */
#define GATE_FUNCTION __attribute__((noinline))
#define GATE_GIVEN(pointer, result) if (!(pointer)) return result
/* The compiler forgets what it knows of a value, so that it leaves the check or the mask behind it to the verifier. */
#define GATE_FORGET(value) __asm__ volatile("" : "+r"(value))
/* The verifier forgets as well: it follows what is in memory no further, so that paths meet again here. */
#define GATE_MEET(memory, value) (*(volatile __typeof__(memory) *)&(memory) = (value), *(volatile __typeof__(memory) *)&(memory))

/* Loops: bpf_for_each_map_elem (5.13) over an array of nothing; bpf_loop needs 5.17, and is as fast only from 6.0 on. A
 * body does several steps a turn, so that the call does not matter. It returns 1 to stop. */
#define GATE_BODY(name) static long name(void *map, const void *key, void *value, struct gate_run *run)
#define GATE_LOOP(name, run) bpf_for_each_map_elem(&turns, name, run, 0)

struct gate_turns {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, GATE_TURNS);
	__type(key, __u32);
	__type(value, __u32);
} turns SEC(".maps");

/* `size` bytes of the module; 0 when they are there. The size is bounded by the caller, for the verifier. */
GATE_INLINE int gate_read(struct gate_work *w, void *to, __u64 size, __u64 at)
{
	if (at > w->size || size > w->size - at)
		return 1;
	if (w->user)
		return bpf_probe_read_user(to, size, (const void *)(w->data + at)) != 0;
	return bpf_probe_read_kernel(to, size, (const void *)(w->data + at)) != 0;
}

/* A string of the module, NUL-terminated in `to`: its length with the NUL, 0 when there is none. */
GATE_INLINE __u64 gate_read_string(struct gate_work *w, void *to, __u64 size, __u64 at)
{
	long length;

	if (at >= w->size)
		return 0;
	if (w->user)
		length = bpf_probe_read_user_str(to, size, (const void *)(w->data + at));
	else
		length = bpf_probe_read_kernel_str(to, size, (const void *)(w->data + at));
	return length > 0 ? length : 0;
}

/* Zeroes: a helper that fails to read fills with them, and address 0 it does not even try (kernel/trace/bpf_trace.c,
 * bpf_probe_read_kernel_common; mm/maccess.c, copy_from_kernel_nofault_allowed). */
#define GATE_CLEAR(to, size) bpf_probe_read_kernel(to, size, (const void *)0)

#else

#include <string.h>

#define GATE_TABLE(type, name, size) static const type name[size]
#define GATE_FUNCTION static
#define GATE_GIVEN(pointer, result)
#define GATE_FORGET(value) ((void)(value))
#define GATE_MEET(memory, value) (value)
#define GATE_BODY(name) static long name(struct gate_run *run)
#define GATE_LOOP(name, run) do { for (int turn_ = 0; turn_ < GATE_TURNS && !name(run); turn_++); } while (0)
#define GATE_CLEAR(to, size) memset(to, 0, size)

GATE_INLINE int gate_read(struct gate_work *w, void *to, __u64 size, __u64 at)
{
	if (at > w->size || size > w->size - at)
		return 1;
	memcpy(to, (const char *)(uintptr_t)w->data + at, size);
	return 0;
}

GATE_INLINE __u64 gate_read_string(struct gate_work *w, void *to, __u64 size, __u64 at)
{
	const char *from = (const char *)(uintptr_t)w->data + at;
	__u64 length;

	if (at >= w->size)
		return 0;
	length = strnlen(from, w->size - at < size - 1 ? w->size - at : size - 1);
	memcpy(to, from, length);
	((char *)to)[length] = 0;
	return length + 1;
}

#endif

/* What a loop's body is given. */
struct gate_run {
	struct gate_work *w;
	const struct gate_config *c;
};

/* Parts of code[] as numbers. `at` is bounded by the caller. */
#ifdef __bpf__
#define GATE_PART(type, from) (*(const type *)(from))
#else
#define GATE_PART(type, from) ({ type part_; memcpy(&part_, from, sizeof(part_)); part_; })
#endif

/* An entry of a table whose size is a power of two. What bounds an index must be the last that is done to it: behind an OR
 * the verifier of 6.1 knows nothing any more. */
#define GATE_PICK(table, size, index) ({ __u64 index_ = (index); GATE_FORGET(index_); (table)[index_ & ((size) - 1)]; })

/* The first place of a section. */
#define gate_base(w, section) GATE_PICK((w)->bases, GATE_SECTIONS, section)

/* The first doubt counts, and ends it. */
GATE_INLINE void gate_doubt(struct gate_work *w, __u8 doubt)
{
	if (!w->decision.doubt)
		w->decision.doubt = doubt;
}

#endif
