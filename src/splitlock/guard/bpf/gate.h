/* SPDX-License-Identifier: MIT
 *
 * What the gate's parts share: the BPF program, its user-space build and, by ctypes, Python (guard/layout.py, where
 * a test compares the sizes). All integers are little-endian; structures have no holes.
 */
#ifndef SPLITLOCK_GATE_H
#define SPLITLOCK_GATE_H

#ifndef __bpf__
#include <stdint.h>
typedef uint8_t __u8;
typedef uint16_t __u16;
typedef uint32_t __u32;
typedef int32_t __s32;
typedef uint64_t __u64;
typedef int64_t __s64;
#endif

#define GATE_VERSION 2

/* What the hooks answer, negative: */
#define GATE_ERRNO_REFUSED 1	/* EPERM */
#define GATE_ERRNO_NO_ELF 38	/* ENOSYS: kmod then decompresses the module itself and calls init_module */
#define GATE_ERRNO_CANARY 116	/* ESTALE: nothing in module loading says this (EKEYREJECTED is what sig_enforce says) */
/* Contents that begin like this are answered so, in audit mode too, and counted, not logged. 32 bytes, NULs at the end. */
#define GATE_CANARY_MAGIC "splitlock canary"
#define GATE_CANARY_SIZE 32

#define GATE_RULES 32		/* of a policy */
#define GATE_PATTERNS 64	/* module names of all its rules */
#define GATE_NAME 56		/* bytes of a module's name, as MODULE_NAME_LEN */
#define GATE_SYMBOLS 64		/* imports that a policy, or the gate itself, asks for */
#define GATE_SYMBOL 64		/* bytes of a symbol's name; longer ones cannot be asked for */
#define GATE_FINDINGS 24	/* that a decision names; the rest is counted */
#define GATE_SECTION 24		/* bytes of a section's name in a finding */
#define GATE_LIMIT (32u << 20)	/* bytes of executable sections; more is refused */
#define GATE_SECTIONS 2048	/* headers; more is refused */
#define GATE_SLOTS 64		/* modules judged at one time: entries of the map `work`, more on machines with more CPUs */

enum gate_verdict { GATE_ALLOW = 0, GATE_DISABLE = 1, GATE_REFUSE = 2 };

/* Facts of a module; bits. */
enum gate_fact {
	GATE_INTREE = 1, GATE_SLD_SAFE = 2, GATE_SLD_AWARE = 4, GATE_SIGNED = 8, GATE_MODULE = 16, GATE_KERNEL = 32,
};

/* What a finding rests on; bits. */
enum gate_evidence {
	GATE_INSTRUCTION = 1,	/* an instruction on a boundary of a decoding that counts */
	GATE_PV_OPS = 2,	/* a relocation against pv_ops */
	GATE_CR4 = 4,		/* a relocation against cr4_update_irqsoff */
	GATE_IMPORTS = 8,	/* imports that can run foreign code */
};

/* Why a verdict is what it is when no rule says so. */
enum gate_doubt {
	GATE_SURE = 0,
	GATE_NO_ELF,		/* no ELF file: compressed, most likely */
	GATE_MALFORMED,		/* not 64-bit x86-64 relocatable, or headers, sections, symbols that do not hold together */
	GATE_UNDECODABLE,	/* an executable section with bytes that are no instruction */
	GATE_TOO_BIG,		/* more code, sections, symbols or candidates than the gate looks at */
	GATE_UNREADABLE,	/* memory that could not be read, no scratch memory: the gate itself failed */
	GATE_CANARY,		/* the probe that proves the gate is live */
	GATE_PARTIAL,		/* contents that come in parts (firmware's way), never seen for modules */
};

struct gate_pattern {		/* of a module's name, '-' spelled '_' */
	char text[GATE_NAME];
	__u32 length;
	__u32 prefix;		/* 1: text is followed by anything (ends in '*') */
};

struct gate_rule {
	__u64 kinds[2];		/* bit numbers: enum gate_kind of tables.h; none: any */
	__u64 imports;		/* bit numbers in gate_config.symbols; the rule wants one of them; none: any */
	__u32 evidence;		/* enum gate_evidence; none: any */
	__u16 needs, needs_not, unless; /* enum gate_fact */
	__u8 verdict;		/* enum gate_verdict */
	__u8 whole;		/* 1: speaks of the module, not of a finding */
	__u16 pattern, patterns; /* first, and how many, in gate_config.patterns; none: any name */
};

struct gate_symbol {
	char name[GATE_SYMBOL];	/* NUL-terminated */
};

/* Bits of the symbols that the gate itself asks for, always at these places of gate_config.symbols. */
enum gate_own_symbol {
	GATE_SYM_SLD_AWARE = 0,	/* handle_guest_split_lock */
	GATE_SYM_PV_OPS = 1,	/* pv_ops */
	GATE_SYM_CR4 = 2,	/* cr4_update_irqsoff */
	GATE_SYM_OWN = 3,
};

struct gate_config {
	__u32 version;		/* GATE_VERSION */
	__u32 audit;		/* 1: nothing is refused, only logged */
	__u32 rules;
	__u32 symbols;
	__u32 possible;		/* 1: findings count that only some decodings reach */
	__u32 digests;		/* 1: a SHA-256 for each decision; 0: only for what is not allowed */
	/* FOREIGN-CODE: any of `executable`, or any of `lookups` and any of `mappers`; bits of symbols */
	__u64 lookups, mappers, executable;
	/* pv_ops: kind + 1 of the operation at offset 8 * n; 0: none */
	__u8 pv_ops[64];
	char policy[64];	/* its name, for people */
	struct gate_rule rule[GATE_RULES];
	struct gate_pattern pattern[GATE_PATTERNS];
	struct gate_symbol symbol[GATE_SYMBOLS];
};

struct gate_finding {
	__u32 offset;		/* in its section */
	__u8 kind;		/* enum gate_kind */
	__u8 evidence;		/* one of enum gate_evidence */
	__u8 possible;		/* 1: reached by some decodings only */
	__u8 padding;
	char section[GATE_SECTION];
};

struct gate_decision {
	__u64 time;		/* nanoseconds since boot, CLOCK_BOOTTIME */
	__u64 duration;		/* nanoseconds that judging took */
	__u64 size;		/* bytes of the module */
	__u64 kinds[2];		/* found, that count under the policy */
	__u64 because[2];	/* of these, those that led to the verdict */
	__u64 imports;		/* of the symbols asked for */
	__u32 pid, uid;		/* of the process that loads */
	__u32 total;		/* findings, named below or not */
	__u32 named;		/* entries of `finding`: one of each kind and evidence, its first place */
	__u16 facts;		/* enum gate_fact */
	__u8 verdict;		/* enum gate_verdict: what the policy says, under --audit too */
	__u8 doubt;		/* enum gate_doubt */
	__s32 rule;		/* its number in the policy, -1 when none applied */
	__u32 padding;
	__u8 refused;		/* 1: it was kept out */
	__u8 digested;		/* 1: digest is set */
	__u8 allowed;		/* 1: let in because its digest is on the list of `guard allow` */
	__u8 from_memory;	/* 1: init_module, 0: finit_module */
	__u8 digest[32];	/* SHA-256 of the contents */
	char comm[16];
	char name[GATE_NAME];
	char build_id[24];	/* hex digits of its start, may be empty */
	struct gate_finding finding[GATE_FINDINGS];
};

/* The map `pins`, one entry: the directory that inode_unlink, inode_rmdir, inode_rename and sb_umount keep. Write it when
 * all is pinned; write `locked` 0 before taking the gate down. `device` as the kernel has it: major << 20 | minor. */
struct gate_pins {
	__u64 inode;
	__u32 device;
	__u32 locked;
};

/* What the program judge_test takes as its context: bytes in the caller's memory, which must be present (mlock, or just
 * written). It returns what the hook would, and leaves the decision in the map `tested`, neither logged nor counted. */
struct gate_test {
	__u64 data, size;
};

struct gate_counters {
	__u64 decisions, allowed, refused, disabled, doubts, lost, canaries, nanoseconds;
};

#endif
