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
#include "fields.h"
#include "patch.h"

#define GATE_APART_COST 16	/* of an instruction decoded apart, read by itself: as many symbols */

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
	made = gate_decode_any(w);
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

/* Mark where the branch that ends at `end` in code[] lands. Its field has been relocated already, or is to be: then it is 0. */
GATE_FUNCTION int gate_target(struct gate_work *w, __u64 end, __u32 made)
{
	GATE_GIVEN(w, 1);
	__u64 target;

	if (end < 4 || end > GATE_SPARE + 16)
		return 0;
	target = w->loaded + end;
	if (made & GATE_BRANCH_8)
		target += (__s64)(signed char)w->code[end - 1];
	else
		target += (__s64)(__s32)(w->code[end - 4] | (__u32)w->code[end - 3] << 8 | (__u32)w->code[end - 2] << 16 |
					 (__u32)w->code[end - 1] << 24);
	if (target < w->now.size)
		gate_mark(w, w->now.base + target);
	return 0;
}

/* The instruction at w->at in code[]. 1: at the end of what is there, or something begins within it. This is what takes the
 * time: it reads and writes as little as it can. */
GATE_INLINE int gate_step(struct gate_work *w, const struct gate_config *c)
{
	GATE_GIVEN(w, 1);
	GATE_GIVEN(c, 1);
	__u64 at = w->at, length, bit, marks;
	__u32 made;

	if (at >= w->stop)
		return 1;
	made = gate_decode(w);
	length = GATE_LENGTH(made);
	if (!length || length > w->filled - at) { /* only at the section's end is there not more than that */
		if (w->phase == GATE_SWEEP) {
			gate_doubt(w, GATE_UNDECODABLE);
			return 1;
		}
		length = 1;
	}
	w->at = at + length;
	if (w->phase == GATE_TARGETS) {
		if (made & (GATE_BRANCH_8 | GATE_BRANCH_32))
			gate_target(w, at + length, made);
		return 0;
	}
	if (w->phase == GATE_SWEEP) {
		if (GATE_KIND(made))
			gate_note(w, w->loaded + at, GATE_KIND(made) - 1, GATE_INSTRUCTION, 0);
		if (w->field < w->loaded + at + length && gate_fields(w, c, w->loaded + at, made))
			return 1;
	}
	bit = w->place + at;
	if (bit >= GATE_WINDOW)
		return 1;
	marks = GATE_PART(__u64, (__u8 *)w->marks + (bit >> 3)) >> (bit & 7) & ((1ull << length) - 2);
	if (!marks)
		return 0;
	w->pending = marks;
	w->over = w->loaded + at;
	return 1;
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
	w->filled = w->stop = size;
	if (size < w->now.size - w->now.at)
		w->stop -= 16;
	w->place = place - w->window;
	if (w->stop > GATE_WINDOW - w->place)
		w->stop = GATE_WINDOW - w->place;
	GATE_FORGET(size);
	if (size > GATE_CHUNK)
		return 1;
	w->at = 0;
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
	w->now.at = w->loaded + w->at;
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
