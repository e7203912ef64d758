/* SPDX-License-Identifier: MIT
 *
 * The symbol table: what a module imports, and where in its code something begins (elf.h found the table).
 */
#ifndef SPLITLOCK_SYMBOLS_H
#define SPLITLOCK_SYMBOLS_H

#include "elf.h"

/* The name of an undefined symbol, at `at` of the strings: is it one that is asked for? */
GATE_FUNCTION int gate_import(struct gate_work *w, const struct gate_config *c, __u64 at, __u64 number, __u32 global)
{
	GATE_GIVEN(w, 1);
	GATE_GIVEN(c, 1);
	for (int i = 0; i < 8; i++)
		w->word[i] = 0;
	if (at >= w->strings.size || !gate_read_string(w, w->word, sizeof(w->word), w->strings.offset + at)) {
		gate_doubt(w, GATE_MALFORMED);
		return 1;
	}
	for (__u32 i = 0; i < GATE_SYMBOLS; i++) {
		const __u64 *name = (const __u64 *)c->symbol[i].name;

		if (i >= c->symbols)
			break;
		if (w->word[0] != name[0])
			continue;
		if (((w->word[1] ^ name[1]) | (w->word[2] ^ name[2]) | (w->word[3] ^ name[3]) | (w->word[4] ^ name[4]) |
		     (w->word[5] ^ name[5]) | (w->word[6] ^ name[6]) | (w->word[7] ^ name[7])))
			continue;
		w->decision.imports |= 1ull << i;
		/* A weak one need not be there: only what must be linked against vouches for anything. */
		if (i == GATE_SYM_SLD_AWARE && global)
			w->decision.facts |= GATE_SLD_AWARE;
		if (i == GATE_SYM_PV_OPS || i == GATE_SYM_CR4) {
			__u64 which = i == GATE_SYM_CR4, alias = w->aliases[which];

			if (alias > 3) {
				gate_doubt(w, GATE_MALFORMED);
				return 1;
			}
			w->numbers[which][alias] = number;
			w->aliases[which] = alias + 1;
		}
		break;
	}
	return 0;
}

/* Mark a place if the marks cover it. */
GATE_INLINE int gate_mark(struct gate_work *w, __u64 place)
{
	__u64 bit = place - w->window, old;

	if (bit >= GATE_WINDOW + 64)
		return 0;
	old = w->marks[bit >> 6];
	w->marks[bit >> 6] = old | 1ull << (bit & 63);
	return old >> (bit & 63) & 1;
}

/* The symbol at `at` in code[], number `number`: an import, or a place in code where something begins. */
GATE_FUNCTION int gate_symbol(struct gate_work *w, const struct gate_config *c, __u64 at, __u64 number)
{
	GATE_GIVEN(w, 1);
	GATE_GIVEN(c, 1);
	__u64 info, section, value, base;

	if (at > GATE_CHUNK - 24)
		return 1;
	info = GATE_PART(__u64, w->code + at); /* st_name, st_info, st_other, st_shndx */
	value = GATE_PART(__u64, w->code + at + 8);
	section = info >> 48;
	if (!number) { /* not a symbol: the loader begins with the next */
		if (info)
			gate_doubt(w, GATE_MALFORMED);
		return info != 0;
	}
	if (!section) {
		if (w->first && info & 0xffffffff)
			return gate_import(w, c, info & 0xffffffff, number, (info >> 36 & 15) == GATE_STB_GLOBAL);
		return 0;
	}
	if (section >= GATE_SECTIONS || section >= w->count)
		return 0; /* absolute, or a section's number that the loader does not know */
	base = gate_base(w, section);
	/* Not functions alone: hand-written code has labels without a type, and nothing makes a module's entry a function. */
	if (base != GATE_NO_CODE && value < GATE_LIMIT)
		gate_mark(w, base + value);
	return 0;
}

GATE_BODY(gate_symbol_turn)
{
	struct gate_work *w = run->w;

	for (int i = 0; i < 8; i++) {
		if (w->at >= w->items || gate_symbol(w, run->c, w->at, w->item))
			return 1;
		w->at += 24;
		w->item++;
	}
	return 0;
}

/* Read records of 24 bytes from w->item on into code[]; 1 when there are none left. */
GATE_INLINE int gate_records(struct gate_work *w, const struct gate_span *table)
{
	__u64 at = w->item * 24, size;

	if (w->decision.doubt || at + 24 > table->size)
		return 1;
	size = table->size - at;
	size = size > GATE_CHUNK ? GATE_CHUNK : size / 24 * 24;
	if (w->budget < size / 24) {
		gate_doubt(w, GATE_TOO_BIG);
		return 1;
	}
	w->budget -= size / 24;
	w->items = size;
	w->at = 0;
	GATE_FORGET(size);
	if (size > GATE_CHUNK || gate_read(w, w->code, size, table->offset + at)) {
		gate_doubt(w, GATE_UNREADABLE);
		return 1;
	}
	return 0;
}

GATE_BODY(gate_symbols_turn)
{
	if (gate_records(run->w, &run->w->symbols))
		return 1;
	GATE_LOOP(gate_symbol_turn, run);
	return 0;
}

/* All symbols: marks for the window, and on the first pass imports. */
GATE_INLINE void gate_symbols(struct gate_run *run)
{
	struct gate_work *w = run->w;

	w->item = 0;
	GATE_LOOP(gate_symbols_turn, run);
	if (w->item * 24 + 24 <= w->symbols.size)
		gate_doubt(w, GATE_TOO_BIG);
}

#endif
