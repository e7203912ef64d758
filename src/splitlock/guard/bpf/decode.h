/* SPDX-License-Identifier: MIT
 *
 * One x86-64 instruction: how long it is and, if it is privileged, of which kind. Driven by the tables that
 * scripts/guard_tables.py makes. Intel SDM vol. 2, chapter 2, and AMD APM vol. 3, chapter 1 (XOP, 3DNow!).
 *
 * What no table says is not checked: fields of VEX and EVEX prefixes, and where LOCK may stand. So some bytes that are
 * no instruction get a length; a real one never gets another than its own. One that is longer on one vendor's processors
 * than on the other's is none.
 */
#ifndef SPLITLOCK_DECODE_H
#define SPLITLOCK_DECODE_H

#include "memory.h"
#include "tables.h"

/* Of an entry of gate_opcodes: the type of its immediate in the lowest three bits, and */
#define GATE_IMM_BRANCH 7	/* the type of four bytes to branch by */
#define GATE_OP_MODRM 8		/* a ModRM byte follows */
#define GATE_OP_REGISTER 16	/* which always names registers (MOV to and from CRn, DRn) */
#define GATE_OP_RELATIVE 32	/* the immediate is where to branch to, from the instruction's end */
#define GATE_OP_ROW 64		/* prefix and ModRM byte decide: gate_rows */
#define GATE_OP_VALID 128
#define GATE_NO_INSTRUCTION 255	/* in gate_rows */

/* Prefixes met, as gate_add has them. */
#define GATE_66 1
#define GATE_F3 2
#define GATE_F2 4
#define GATE_67 8
#define GATE_REX_W 16
#define GATE_REX_R 32
#define GATE_REX 64
#define GATE_LOCK 128

/* What gate_decode returns: 0 for what is no instruction, or length | (kind + 1) << 8 | flags. */
#define GATE_LENGTH(made) ((made) & 15)
#define GATE_KIND(made) ((made) >> 8 & 255)
#define GATE_CALL (1u << 16)	/* a call or an unconditional jump */
#define GATE_BRANCH_8 (1u << 17)	/* a branch by the last byte */
#define GATE_BRANCH_32 (1u << 18)	/* a branch by the last four bytes */
#define GATE_DISPLACEMENT (1u << 19)	/* four bytes of it lie before the immediate, if there is one */
#define GATE_IMMEDIATE(made) ((made) >> 20 & 15) /* its bytes, the last ones */

/* In gate_common: there is something to know; a ModRM byte follows, which must name memory, or whose middle field must be 0. */
#define GATE_COMMON_KNOWN (1u << 28)
#define GATE_COMMON_MODRM (1u << 29)
#define GATE_COMMON_MEMORY (1u << 30)
#define GATE_COMMON_FIRST (1u << 31)
#define GATE_COMMON_MASK 0xf0000000u

/* The instruction at w->at in w->code, of which 32 bytes can be read whatever is in them. */
GATE_FUNCTION __u32 gate_decode_any(struct gate_work *w)
{
	GATE_GIVEN(w, 0);
	__u64 start = w->at, at = start, state = 0, table = 0, made = 0, modrm = 0;
	__u64 prefix, byte, entry, immediate, type, length;

	if (at > GATE_CODE - 32)
		return 0;
	for (int i = 0; i < 15; i++) {
		byte = w->code[at];
		if (!(gate_keep[byte] | gate_add[byte]))
			break;
		state = (state & gate_keep[byte]) | gate_add[byte];
		at++;
	}
	at = GATE_MEET(w->at, at);
	state = GATE_MEET(w->prefixes, state);
	if (at > GATE_CODE - 17) /* 15 prefixes: too long in any case */
		return 0;
	byte = w->code[at++];
	if (byte == 0x0f) {
		byte = w->code[at++];
		table = 1;
		if (byte == 0x38 || byte == 0x3a) {
			table = byte == 0x38 ? 2 : 3;
			byte = w->code[at++];
		}
	} else if (byte == 0xc5 || byte == 0xc4 || byte == 0x62 || (byte == 0x8f && (w->code[at] & 0x1f) >= 8)) {
		__u64 map = w->code[at];

		if (state & (GATE_66 | GATE_F3 | GATE_F2 | GATE_REX | GATE_LOCK))
			return 0;
		if (byte == 0xc5) {
			table = 5;
			at += 1;
		} else if (byte == 0xc4) {
			table = (map & 0x1f) <= 3 ? 4 + (map & 0x1f) : 4; /* 4: no map, all invalid */
			at += 2;
		} else if (byte == 0x62) {
			if (map & 8 || !(w->code[at + 1] & 4))
				return 0;
			table = 8 + (map & 7);
			at += 3;
		} else {
			table = (map & 0x1f) <= 10 ? 8 + (map & 0x1f) : 4;
			at += 2;
		}
		byte = w->code[at++];
	}
	entry = GATE_PICK(gate_opcodes, 32 * 256, table << 8 | byte);
	if (!(entry & GATE_OP_VALID))
		return 0;
	type = entry & 7;
	if (entry & GATE_OP_MODRM) {
		modrm = w->code[at];
		length = 1;
		if (!(entry & GATE_OP_REGISTER)) {
			length = gate_modrm[modrm];
			if (length & 128)
				length = (length & 127) + ((w->code[at + 1] & 7) == 5 ? 4 : 0);
			if (length >= 5)
				made = GATE_DISPLACEMENT;
		}
		at += length;
		if ((table << 8 | (byte & 0xfe)) == 0xf6 && modrm & 0x30)
			type = 0; /* group 3: only TEST, /0 and /1, has an immediate */
	}
	/* 66h before a branch: Intel's processors ignore it, AMD's take 16 bits and go on two bytes earlier (APM vol. 3, Jcc) */
	if (type == GATE_IMM_BRANCH && (state & (GATE_66 | GATE_REX_W)) == GATE_66)
		return 0;
	prefix = state & GATE_F3 ? 2 : state & GATE_F2 ? 3 : state & GATE_66;
	immediate = GATE_PICK(gate_immediate, 64, type << 3 | (state >> 2 & 6) | (state & 1));
	if ((table << 8 | byte) == 0x178 && prefix & 1)
		immediate = 2; /* EXTRQ and INSERTQ, where VMREAD has none */
	at += immediate;
	length = at - start;
	if (length > 15)
		return 0;
	made |= length | immediate << 20;
	if (entry & GATE_OP_ROW) {
		__u64 group = GATE_PICK(gate_groups, 1024, table << 8 | byte);
		__u64 row = GATE_PICK(gate_row_sets, GATE_ROW_SETS * 4, group << 2 | prefix);
		__u64 kind = GATE_PICK(gate_rows, GATE_ROWS * 256, row << 8 | modrm);

		if (kind == GATE_NO_INSTRUCTION)
			return 0;
		if (state & GATE_REX_R && kind > GATE_KIND_MOV_CR0 && kind <= GATE_KIND_MOV_DR15)
			kind += 8;
		made |= kind << 8;
	}
	if (entry & GATE_OP_RELATIVE)
		made |= immediate == 1 ? GATE_BRANCH_8 : GATE_BRANCH_32;
	if (!table && (byte == 0xe8 || byte == 0xe9 || byte == 0xeb ||
		       (byte == 0xff && (modrm >> 3 & 7) >= 2 && (modrm >> 3 & 7) <= 5)))
		made |= GATE_CALL;
	return made;
}

/* The same, and three times as fast for most of what compilers make: at most a REX prefix, one or two opcode bytes, nothing
 * that depends on more than the opcode and the form of its operand. gate_common holds what gate_decode_any would return for
 * the opcode and its immediate, or 0. */
GATE_INLINE __u32 gate_decode(struct gate_work *w)
{
	__u64 start = w->at, at = start, byte, table = 0, length;
	__u32 made;

	if (at > GATE_CODE - 32)
		return 0;
	byte = w->code[at++];
	if ((byte & 0xf0) == 0x40)
		byte = w->code[at++];
	if (byte == 0x0f) {
		byte = w->code[at++];
		table = 256;
	}
	made = GATE_PICK(gate_common, 512, table | byte);
	if (made & GATE_COMMON_MODRM) {
		byte = w->code[at];
		if ((made & GATE_COMMON_MEMORY && byte >= 0xc0) || (made & GATE_COMMON_FIRST && byte & 0x38))
			return gate_decode_any(w);
		length = gate_modrm[byte];
		if (length & 128)
			length = (length & 127) + ((w->code[at + 1] & 7) == 5 ? 4 : 0);
		if (length >= 5)
			made |= GATE_DISPLACEMENT;
		made += length;
	} else if (!made) {
		return gate_decode_any(w);
	}
	return (made & ~GATE_COMMON_MASK) + (at - start);
}

#endif
