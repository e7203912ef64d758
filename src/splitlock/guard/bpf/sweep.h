/* SPDX-License-Identifier: MIT
 *
 * All the code of a module, decoded: every executable section from its first byte to its last, and again from every
 * place where a symbol says that something begins if the sweep passes it within an instruction (data before a function,
 * such as 48 B8, hides its first instructions from a sweep). The second decoding ends where it meets the first.
 *
 * Where things begin is marked in a bitmap, a bit a byte, over a window of code; most modules fit into one.
 */
#ifndef SPLITLOCK_SWEEP_H
#define SPLITLOCK_SWEEP_H

#include "decode.h"
#include "patch.h"

#define GATE_APART_COST 16	/* of an instruction decoded apart, read by itself: as many symbols */

/* A finding: one of each kind and evidence is named, all are counted. `at`: in the section at w->now. */
GATE_FUNCTION int gate_note(struct gate_work *w, __u64 at, __u64 kind, __u64 evidence, __u64 possible)
{
	GATE_GIVEN(w, 1);
	__u64 bit = 1ull << (kind & 63), word = kind >> 6 & 1, listed = 0, which;
	struct gate_finding *finding;

	/* 1, 2, 4, 8: GATE_INSTRUCTION... */
	which = (evidence >> 1) - (evidence >> 3);
	which &= 3;
	if (evidence == GATE_INSTRUCTION && !(w->wanted[word] & bit))
		return 0;
	listed = w->found[which][word] & bit;
	w->found[which][word] |= bit;
	w->decision.kinds[word] |= bit;
#ifndef __bpf__
	if (w->all && w->decision.total < w->room) {
		struct gate_finding *each = &w->all[w->decision.total];

		memset(each, 0, sizeof(*each));
		*each = (struct gate_finding){ .offset = at, .kind = kind, .evidence = evidence, .possible = possible };
		if (evidence != GATE_IMPORTS && !gate_header(w, w->now.section))
			gate_read_string(w, each->section, GATE_SECTION, w->names.offset + GATE_SH_NAME(w->header));
	}
#endif
	w->decision.total++;
	if (listed)
		return 0;
	for (int i = 0; i < GATE_FINDINGS; i++) {
		finding = &w->decision.finding[i];
		if (finding->evidence)
			continue;
		w->decision.named = i + 1;
		finding->offset = at;
		finding->kind = kind;
		finding->evidence = evidence;
		finding->possible = possible;
		if (evidence != GATE_IMPORTS && !gate_header(w, w->now.section))
			gate_read_string(w, finding->section, GATE_SECTION, w->names.offset + GATE_SH_NAME(w->header));
		break;
	}
	return 0;
}

/* Go on to the next relocation of the section. They are sorted, as assemblers leave them. */
GATE_FUNCTION int gate_next_field(struct gate_work *w)
{
	GATE_GIVEN(w, 1);
	__u64 at = w->relocation * 24, record = w->relocation % GATE_FIELDS, size, last = w->field;

	if (at + 24 > w->relocations.size) {
		w->field = ~0ull;
		return 0;
	}
	if (!record) {
		size = w->relocations.size - at;
		if (size > sizeof(w->fields))
			size = sizeof(w->fields);
		GATE_FORGET(size);
		if (size > sizeof(w->fields) || gate_read(w, w->fields, size, w->relocations.offset + at)) {
			gate_doubt(w, GATE_UNREADABLE);
			return 1;
		}
	}
	w->relocation++;
	w->record = record * 3;
	w->field = w->fields[record * 3];
	if (w->relocation > 1 && w->field < last)
		gate_doubt(w, GATE_MALFORMED);
	return 0;
}

/* The relocations within the instruction at `at`. They may fill in all of a displacement or an immediate and nothing
 * else, or the loader would write other instructions than these; and some make it a privileged operation
 * (modules/paravirt.py). */
GATE_FUNCTION int gate_fields(struct gate_work *w, const struct gate_config *c, __u64 at, __u32 made)
{
	GATE_GIVEN(w, 1);
	GATE_GIVEN(c, 1);
	__u64 end = at + GATE_LENGTH(made), immediate = end - GATE_IMMEDIATE(made), record, number, type, addend, size;

	for (int i = 0; i < 8; i++) {
		if (w->field >= end)
			return 0;
		record = w->record;
		if (record > (GATE_FIELDS - 1) * 3)
			break;
		number = w->fields[record + 1] >> 32;
		type = w->fields[record + 1] & 0xffffffff;
		addend = w->fields[record + 2];
		size = type == GATE_R_64 || type == GATE_R_PC64 ? 8 : 0;
		if (type == GATE_R_PC32 || type == GATE_R_PLT32 || type == GATE_R_32 || type == GATE_R_32S)
			size = 4; /* all others the loader does not know */
		if (type == GATE_R_NONE) {
			if (gate_next_field(w))
				break;
			continue;
		}
		if (!(w->field == immediate && size && size == GATE_IMMEDIATE(made)) &&
		    !(w->field == immediate - 4 && size == 4 && made & GATE_DISPLACEMENT))
			break;
		if (w->field + 4 != end) {
			/* what is not at the end is no call's */
		} else if (number == w->numbers[1][0] || number == w->numbers[1][1] || number == w->numbers[1][2] ||
			   number == w->numbers[1][3]) {
			gate_note(w, at, GATE_KIND_MOV_CR4, GATE_CR4, !(made & GATE_CALL));
		} else if (number == w->numbers[0][0] || number == w->numbers[0][1] || number == w->numbers[0][2] ||
			   number == w->numbers[0][3]) {
			if (type == GATE_R_PC32 || type == GATE_R_PLT32)
				addend += 4; /* counted from the end of the field, which here is the instruction's */
			if (!(addend & 7) && addend >> 3 < sizeof(c->pv_ops)) {
				__u64 kind = GATE_PICK(c->pv_ops, 64, addend >> 3);

				if (kind)
					gate_note(w, at, kind - 1, GATE_PV_OPS, !(made & GATE_CALL));
			}
		}
		if (gate_next_field(w))
			break;
	}
	gate_doubt(w, GATE_MALFORMED);
	return 1;
}

/* The instruction at `at` of the section, wherever code[] is. What goes beyond the section is none. */
GATE_FUNCTION __u32 gate_decode_at(struct gate_work *w, __u64 at)
{
	GATE_GIVEN(w, 0);
	__u64 size = w->now.size - at;
	__u32 made;

	if (at >= w->now.size)
		return 0;
	if (size > 16)
		size = 16;
	GATE_FORGET(size);
	if (size > 16)
		return 0;
	GATE_CLEAR(w->code + GATE_SPARE, 32);
	if (gate_read(w, w->code + GATE_SPARE, size, w->now.offset + at)) {
		gate_doubt(w, GATE_UNREADABLE);
		return 0;
	}
	w->at = GATE_SPARE;
	made = gate_decode(w);
	return GATE_LENGTH(made) > size ? 0 : made;
}

/* One step of a decoding apart from the sweep; 1: all that was pending has been looked at. */
GATE_FUNCTION int gate_apart(struct gate_work *w)
{
	GATE_GIVEN(w, 1);
	__u64 at, bit;
	__u32 made;

	if (w->decision.doubt)
		return 1;
	if (!w->apart) {
		if (!w->pending)
			return 1;
		for (bit = 1; bit < 15; bit++)
			if (w->pending >> bit & 1)
				break;
		w->pending &= ~(1ull << (bit & 15));
		w->other = w->over + bit;
		w->main = w->now.at;
		w->apart = 1;
		if (w->phase == GATE_SWEEP && w->patches && gate_is_edge(w, w->now.base + w->other))
			gate_doubt(w, GATE_MALFORMED); /* the kernel would patch the middle of an instruction */
		return 0;
	}
	if (w->budget < GATE_APART_COST) {
		gate_doubt(w, GATE_TOO_BIG);
		return 1;
	}
	w->budget -= GATE_APART_COST;
	if (w->other == w->main || w->other >= w->now.size) {
		w->apart = 0;
		return 0;
	}
	at = w->other < w->main ? w->other : w->main;
	made = gate_decode_at(w, at);
	if (w->main < w->other) { /* the sweep will come here and say what there is to say */
		w->main = made ? at + GATE_LENGTH(made) : w->now.size;
		return 0;
	}
	if (!made) {
		if (w->phase == GATE_SWEEP)
			gate_doubt(w, GATE_UNDECODABLE);
		w->apart = 0;
		return 0;
	}
	w->other = at + GATE_LENGTH(made);
	if (w->phase == GATE_SWEEP && w->patches) { /* the same of instructions that only a symbol leads to */
		bit = w->now.base + at - w->window;
		if (bit >= GATE_EDGES)
			gate_doubt(w, GATE_TOO_BIG);
		else if ((w->edges[bit >> 6] >> (bit & 63) | w->edges[(bit >> 6) + 1] << 1 << (63 - (bit & 63))) &
			 ((1ull << GATE_LENGTH(made)) - 2))
			gate_doubt(w, GATE_MALFORMED);
	}
	if (GATE_KIND(made))
		gate_note(w, at, GATE_KIND(made) - 1, GATE_INSTRUCTION, w->phase != GATE_SWEEP);
	return 0;
}

GATE_BODY(gate_apart_turn)
{
	return gate_apart(run->w) != 0;
}

/* Mark where the branch at w->now.at lands. Its field has been relocated already, or is to be: then it is 0. */
GATE_FUNCTION int gate_target(struct gate_work *w, __u64 at, __u32 made)
{
	GATE_GIVEN(w, 1);
	__u64 end = w->now.at + GATE_LENGTH(made), target;

	at += GATE_LENGTH(made);
	if (at < 4 || at > GATE_SPARE + 16)
		return 0;
	if (made & GATE_BRANCH_8)
		target = end + (__s64)(signed char)w->code[at - 1];
	else
		target = end + (__s64)(__s32)(w->code[at - 4] | (__u32)w->code[at - 3] << 8 | (__u32)w->code[at - 2] << 16 |
					      (__u32)w->code[at - 1] << 24);
	if (target < w->now.size)
		gate_mark(w, w->now.base + target);
	return 0;
}

/* The instruction at w->now.at, which is in code[]. 1: at the end of what is there, or something begins within it. */
GATE_FUNCTION int gate_step(struct gate_work *w, const struct gate_config *c)
{
	GATE_GIVEN(w, 1);
	GATE_GIVEN(c, 1);
	__u64 at = w->now.at, bit, length, marks;
	__u32 made;

	if (at >= w->limit)
		return 1;
	w->at = at - w->loaded;
	made = gate_decode(w);
	length = GATE_LENGTH(made);
	if (!length || length > w->now.size - at) {
		if (w->phase == GATE_SWEEP) {
			gate_doubt(w, GATE_UNDECODABLE);
			return 1;
		}
		length = 1;
	}
	if (w->phase == GATE_TARGETS) {
		if (made & (GATE_BRANCH_8 | GATE_BRANCH_32))
			gate_target(w, at - w->loaded, made);
	} else {
		if (w->phase == GATE_SWEEP) {
			if (GATE_KIND(made))
				gate_note(w, at, GATE_KIND(made) - 1, GATE_INSTRUCTION, 0);
			if (w->field < at + length)
				gate_fields(w, c, at, made);
		}
		bit = w->now.base + at - w->window;
		if (bit < GATE_WINDOW) {
			marks = w->marks[bit >> 6] >> (bit & 63) | w->marks[(bit >> 6) + 1] << 1 << (63 - (bit & 63));
			w->pending = marks & ((1ull << length) - 2);
		}
	}
	w->now.at = at + length;
	w->over = at;
	return w->pending || w->decision.doubt;
}

GATE_BODY(gate_step_turn)
{
	struct gate_work *w = run->w;

	for (int i = 0; i < 8; i++)
		if (gate_step(w, run->c))
			return 1;
	return 0;
}

/* Set up the marks for a window: where symbols say that something begins. */
GATE_INLINE void gate_begin_window(struct gate_run *run, __u64 place)
{
	struct gate_work *w = run->w;
	__u64 size;

	w->window = place;
	size = w->places - place;
	if (size > GATE_WINDOW)
		size = GATE_WINDOW;
	size = (size + 191) >> 6 << 3; /* no more than there is code */
	GATE_FORGET(size);
	if (size > sizeof(w->marks))
		return;
	GATE_CLEAR(w->marks, size);
	w->begun = 1;
	if (w->phase == GATE_SWEEP) {
		GATE_CLEAR(w->edges, size);
		GATE_CLEAR(w->patched, size);
		gate_symbols(run);
		gate_patches(run);
	}
	w->first = 0;
}

/* At the end of a window, or of all code: 1 when there is nothing left to do. */
GATE_INLINE int gate_end_window(struct gate_work *w, int end)
{
	if (w->phase == GATE_TARGETS && w->begun) { /* once more over the same code */
		w->phase = GATE_POSSIBLE;
		w->now = w->saved;
		return 0;
	}
	if (end)
		return 1;
	if (w->phase == GATE_POSSIBLE)
		w->phase = GATE_TARGETS;
	w->saved = w->now;
	w->begun = 0;
	return 0;
}

/* Fill code[] from where w->now is, or go on to the next section or window. 1: all is done; 2: nothing to decode yet. */
GATE_FUNCTION int gate_refill(struct gate_work *w, const struct gate_config *c)
{
	GATE_GIVEN(w, 1);
	GATE_GIVEN(c, 1);
	struct gate_run run = { w, c };
	__u64 size, place, rela;

	if (w->decision.doubt)
		return 1;
	if (w->now.at >= w->now.size) {
		if (w->field != ~0ull && w->phase == GATE_SWEEP) { /* beyond the section's end: the loader does not look */
			gate_doubt(w, GATE_MALFORMED);
			return 1;
		}
		if (w->now.section + 1 >= w->count)
			return gate_end_window(w, 1) ? 1 : 2;
		w->now.section++;
		w->now.at = w->now.size = 0;
		place = gate_base(w, w->now.section);
		if (place == GATE_NO_CODE)
			return 2;
		w->relocations.size = w->relocation = 0;
		rela = GATE_PICK(w->relas, GATE_SECTIONS, w->now.section);
		if (rela && w->phase == GATE_SWEEP) {
			if (gate_header(w, rela))
				return 1;
			w->relocations.offset = GATE_SH_OFFSET(w->header);
			w->relocations.size = GATE_SH_SIZE(w->header);
		}
		if (gate_next_field(w) || gate_header(w, w->now.section))
			return 1;
		w->now.offset = GATE_SH_OFFSET(w->header);
		w->now.size = GATE_SH_SIZE(w->header);
		w->now.base = place;
	}
	place = w->now.base + w->now.at;
	if (w->begun && place - w->window >= GATE_WINDOW && gate_end_window(w, 0))
		return 1;
	if (!w->begun)
		gate_begin_window(&run, w->now.base + w->now.at);
	place = w->now.base + w->now.at;
	size = w->now.size - w->now.at;
	if (size > GATE_CHUNK)
		size = GATE_CHUNK;
	/* Instructions that begin in the last bytes are left for the next time, unless the section ends here. */
	w->loaded = w->now.at;
	w->limit = w->now.at + size;
	if (w->limit < w->now.size)
		w->limit -= 16;
	if (w->limit - w->loaded > w->window + GATE_WINDOW - place)
		w->limit = w->loaded + (w->window + GATE_WINDOW - place);
	GATE_FORGET(size);
	if (size > GATE_CHUNK)
		return 1;
	if (gate_read(w, w->code, size, w->now.offset + w->now.at)) {
		gate_doubt(w, GATE_UNREADABLE);
		return 1;
	}
	return 0;
}

GATE_BODY(gate_sweep_turn)
{
	struct gate_work *w = run->w;
	int result = gate_refill(w, run->c);

	if (result)
		return result == 1;
	GATE_LOOP(gate_step_turn, run);
	w->apart = 0;
	if (w->pending)
		GATE_LOOP(gate_apart_turn, run);
	if (w->pending || w->apart)
		gate_doubt(w, GATE_TOO_BIG);
	return 0;
}

/* Decode it all. In the first phase the first window has begun. */
GATE_INLINE void gate_sweep(struct gate_run *run, __u32 phase)
{
	struct gate_work *w = run->w;

	w->phase = phase;
	w->now.section = 0;
	w->now.at = w->now.size = 0;
	w->field = ~0ull;
	w->saved = w->now;
	w->begun = phase == GATE_SWEEP;
	GATE_LOOP(gate_sweep_turn, run);
	if (w->now.section + 1 < w->count || w->now.at < w->now.size || w->phase == GATE_TARGETS)
		gate_doubt(w, GATE_TOO_BIG);
}

#endif
