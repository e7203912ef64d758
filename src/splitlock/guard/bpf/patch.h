/* SPDX-License-Identifier: MIT
 *
 * Tables by which the kernel writes to a module's code as it links, or later: alternatives, sites of LOCK prefixes, of
 * pv_ops, return thunks, jump labels and so on (arch/x86/kernel/module.c, module_finalize; alternative.c; kernel/module/main.c,
 * find_module_sections). Harmless bytes may be joined to a forbidden instruction by them, if what they name begins or
 * ends within one. So each place that a table names must be where an instruction of the sweep begins, and so must what
 * follows a replaced range, the replacement, and what follows that: then whole instructions take the place of whole ones.
 *
 * That they name exactly this is seen by their relocations: one for each field, in order, as assemblers leave them. A
 * field without one, a place outside of code, an entry cut off: refused.
 */
#ifndef SPLITLOCK_PATCH_H
#define SPLITLOCK_PATCH_H

#include "symbols.h"

#define GATE_EDGES (GATE_WINDOW + 64) /* bits */

/* Whether an instruction may not begin before a place and end behind it, in the window's first bits. */
GATE_INLINE int gate_is_edge(struct gate_work *w, __u64 place)
{
	__u64 bit = place - w->window;

	return bit < GATE_EDGES && w->edges[bit >> 6] >> (bit & 63) & 1;
}

/* An instruction must begin here, and stay where it is whatever is patched. */
GATE_INLINE void gate_edge(struct gate_work *w, __u64 place)
{
	__u64 bit = place - w->window;

	w->patches = 1;
	if (bit >= GATE_EDGES)
		return; /* another window's */
	if (w->patched[bit >> 6] >> (bit & 63) & 1)
		gate_doubt(w, GATE_MALFORMED);
	w->edges[bit >> 6] |= 1ull << (bit & 63);
	gate_mark(w, place); /* so that the sweep stops to look if it passes it by */
}

/* The alternatives for one range, [w->group.from, w->group.to): they are replaced as a whole, so that nothing may begin in the
 * middle. Several in a row for one place are one range (ALTERNATIVE_2); of nested ones, the outer may be longer. */
GATE_FUNCTION int gate_end_group(struct gate_work *w)
{
	GATE_GIVEN(w, 1);
	__s64 from = (__s64)(w->group.from + 1 - w->window), to = (__s64)(w->group.to - w->window), low;
	__u64 mask, word;

	if (!w->group.to)
		return 0;
	w->patches = 1;
	gate_edge(w, w->group.from);
	gate_edge(w, w->group.to);
	if (to > GATE_EDGES)
		to = GATE_EDGES;
	if (from < 0)
		from = 0;
	low = from & ~63ll;
	for (int i = 0; i < 5; i++, low += 64) {
		if (low >= to)
			break;
		mask = ~0ull;
		if (from > low)
			mask <<= (from - low) & 63;
		if (to - low < 64)
			mask &= (1ull << ((to - low) & 63)) - 1;
		word = (__u64)low >> 6;
		GATE_FORGET(word);
		if (word >= GATE_EDGES / 64)
			break;
		if ((w->patched[word] | w->edges[word]) & mask)
			gate_doubt(w, GATE_MALFORMED);
		w->patched[word] |= mask;
	}
	low = (__s64)(w->group.inner - w->window); /* of nested ones, where the first ends, if the outer is not applied */
	if (w->group.inner && (__u64)low < GATE_EDGES) {
		gate_mark(w, w->group.inner);
		w->edges[(__u64)low >> 6] |= 1ull << (low & 63);
	}
	w->group.from = w->group.to = w->group.inner = 0;
	return 0;
}

/* Where a relocation points: w->site, in code, or it is refused. Most of a table point into one section. */
GATE_FUNCTION int gate_site(struct gate_work *w, __u64 number, __u64 addend)
{
	GATE_GIVEN(w, 1);
	__u64 symbol[3], section;

	if (!number || number >= w->symbols.size / 24)
		goto bad;
	if (number != w->site.symbol) {
		if (gate_read(w, symbol, sizeof(symbol), w->symbols.offset + number * 24))
			goto bad;
		section = symbol[0] >> 48;
		if (!section || section >= GATE_SECTIONS || gate_base(w, section) == GATE_NO_CODE || gate_header(w, section))
			goto bad;
		w->site.symbol = number;
		w->site.value = symbol[1];
		w->site.base = gate_base(w, section);
		w->site.size = GATE_SH_SIZE(w->header);
		w->site.offset = GATE_SH_OFFSET(w->header);
	}
	w->site.at = w->site.value + addend;
	if (w->site.at < w->site.size || (w->site.at == w->site.size && w->table.kind == GATE_TABLE_ALTERNATIVE))
		return 0;
bad:
	gate_doubt(w, GATE_MALFORMED);
	return 1;
}

/* An entry of .altinstructions: both places are known, w->origin and w->site. */
GATE_INLINE int gate_alternative(struct gate_work *w, __u64 end)
{
	__u8 lengths[2]; /* of the original and of the replacement */
	__u64 from = w->origin.base + w->origin.at, to;

	if (gate_read(w, lengths, 2, end - 2))
		return 1;
	to = from + lengths[0];
	if (lengths[1] > lengths[0] || lengths[0] > w->origin.size - w->origin.at || lengths[1] > w->site.size - w->site.at)
		return 1;
	if (lengths[1]) {
		gate_edge(w, w->site.base + w->site.at);
		gate_edge(w, w->site.base + w->site.at + lengths[1]);
	}
	if (w->group.to && w->group.from == from) {
		if (to < w->group.to || (to > w->group.to && w->group.inner))
			return 1; /* the rest of a longer one would stay */
		if (to > w->group.to)
			w->group.inner = w->group.to;
	} else {
		gate_end_group(w);
		w->group.from = from;
	}
	w->group.to = to;
	return 0;
}

/* The relocation at `at` in code[], of a section that is no code. 1: refused. */
GATE_FUNCTION int gate_relocated(struct gate_work *w, const struct gate_config *c, __u64 at)
{
	GATE_GIVEN(w, 1);
	GATE_GIVEN(c, 1);
	__u64 offset, type, width, entry, kind = w->table.kind;
	__u8 bytes[2] = {};

	if (at > GATE_CHUNK - 24)
		return 1;
	offset = GATE_PART(__u64, w->code + at);
	type = GATE_PART(__u32, w->code + at + 8);
	width = type == GATE_R_64 || type == GATE_R_PC64 ? 8 : 4;
	/* The loader does not look whether it is in the section, and behind that there may be code. */
	if (offset > w->table.size || w->table.size - offset < width)
		goto bad;
	if (!kind)
		return 0;
	if (offset != w->table.next + 4 * w->table.field || type != (w->table.wide || w->table.field == 2 ? type : GATE_R_PC32) ||
	    (w->table.wide && type != GATE_R_64) || type == GATE_R_NONE)
		goto bad;
	entry = w->table.offset + w->table.next;
	if (!w->table.field || kind == GATE_TABLE_ALTERNATIVE)
		if (gate_site(w, GATE_PART(__u32, w->code + at + 12), GATE_PART(__u64, w->code + at + 16)))
			return 1;
	if (!w->table.field)
		w->origin = w->site;
	w->table.field++;
	if (w->table.field == w->table.fields) {
		w->table.field = 0;
		w->table.next += w->table.entry;
	}
	if (kind == GATE_TABLE_ALTERNATIVE) {
		if (!w->table.field && gate_alternative(w, entry + w->table.entry))
			goto bad;
		return w->decision.doubt != 0;
	}
	if (w->table.field != 1 && w->table.fields != 1)
		return 0;
	gate_edge(w, w->site.base + w->site.at);
	if (kind == GATE_TABLE_CFI) { /* written over: __cfi_ and what follows it up to the function */
		if (w->site.size - w->site.at < 16)
			goto bad;
		gate_edge(w, w->site.base + w->site.at + 16);
	}
	if (kind == GATE_TABLE_CALL) {
		/* Five bytes are written. The kernel takes a RET here, too, whatever is behind it; no compiler makes that. */
		if (gate_read(w, bytes, 1, w->site.offset + w->site.at) || (bytes[0] != 0xe8 && bytes[0] != 0xe9 && bytes[0] != 0x0f))
			goto bad;
	}
	if (kind == GATE_TABLE_PARAVIRT) {
		/* One indirect call through pv_ops, which the kernel makes a direct one of the operation that the entry names */
		if (gate_read(w, bytes, 2, w->site.offset + w->site.at) || bytes[0] != 0xff)
			goto bad;
		width = bytes[1] == 0x15 ? 6 : 7; /* by RIP, or absolute (FF 14 25) */
		if (gate_read(w, bytes, 2, entry + 8) || bytes[1] != width)
			goto bad;
		gate_edge(w, w->site.base + w->site.at + width);
		if (bytes[0] < sizeof(c->pv_ops)) {
			kind = GATE_PICK(c->pv_ops, 64, bytes[0]);
			if (kind)
				w->claimed[(kind - 1) >> 6 & 1] |= 1ull << ((kind - 1) & 63);
		}
	}
	return w->decision.doubt != 0;
bad:
	gate_doubt(w, GATE_MALFORMED);
	return 1;
}

GATE_BODY(gate_relocated_turn)
{
	struct gate_work *w = run->w;

	for (int i = 0; i < 8; i++) {
		if (w->at >= w->items || gate_relocated(w, run->c, w->at))
			return 1;
		w->at += 24;
		w->item++;
	}
	return 0;
}

GATE_BODY(gate_table_turn)
{
	if (gate_records(run->w, &run->w->table.relocations))
		return 1;
	GATE_LOOP(gate_relocated_turn, run);
	return 0;
}

/* What section w->table.section is to the loader; 1: nothing to be looked at. */
GATE_FUNCTION int gate_table(struct gate_work *w)
{
	GATE_GIVEN(w, 1);
	__u64 number = w->table.section, rela, kind, third;

	rela = GATE_PICK(w->relas, GATE_SECTIONS, number);
	kind = GATE_PICK(w->tables, GATE_SECTIONS, number);
	if ((kind == GATE_TABLE_ALTERNATIVE) != w->table.alternatives || (!kind && (!rela || !w->first)) ||
	    gate_base(w, number) != GATE_NO_CODE)
		return 1; /* relocations of code are the sweep's */
	if (gate_header(w, number))
		return 1;
	if (!(GATE_SH_FLAGS(w->header) & GATE_SHF_ALLOC) && !kind)
		return 1; /* not relocated */
	w->table.kind = kind;
	w->table.offset = GATE_SH_OFFSET(w->header);
	w->table.size = GATE_SH_SIZE(w->header);
	w->table.next = w->table.field = w->table.wide = 0;
	if (!w->table.size && kind)
		return 1;
	if (kind && (!rela || !(GATE_SH_FLAGS(w->header) & GATE_SHF_ALLOC) || GATE_SH_TYPE(w->header) == GATE_SHT_NOBITS)) {
		gate_doubt(w, GATE_MALFORMED);
		return 1;
	}
	if (gate_header(w, rela))
		return 1;
	w->table.relocations.offset = GATE_SH_OFFSET(w->header);
	w->table.relocations.size = GATE_SH_SIZE(w->header);
	w->table.fields = 1;
	w->table.entry = 4;
	if (kind == GATE_TABLE_ALTERNATIVE) {
		/* 12 bytes before Linux 6.3, 14 since: two offsets, what to ask for, two lengths, packed */
		w->table.fields = 2;
		w->table.entry = w->table.size;
		if (w->table.relocations.size > 48) {
			if (gate_read(w, &third, 8, w->table.relocations.offset + 48))
				third = 0;
			w->table.entry = third;
		}
		if ((w->table.entry != 12 && w->table.entry != 14) || (w->alternative && w->table.entry != w->alternative))
			gate_doubt(w, GATE_MALFORMED);
	} else if (kind == GATE_TABLE_JUMP) {
		w->table.fields = 3;
		w->table.entry = 16;
	} else if (kind == GATE_TABLE_CALL) {
		w->table.fields = 2;
		w->table.entry = 8;
	} else if (kind == GATE_TABLE_PARAVIRT || kind == GATE_TABLE_MCOUNT) {
		w->table.wide = 1;
		w->table.entry = kind == GATE_TABLE_MCOUNT ? 8 : 16;
	}
	w->item = 0;
	return w->decision.doubt != 0;
}

GATE_BODY(gate_tables_turn)
{
	struct gate_work *w = run->w;

	for (int i = 0; i < 8; i++) {
		w->table.section++;
		if (w->table.section >= w->count || w->decision.doubt)
			return 1;
		if (!gate_table(w))
			break;
		if (i == 7)
			return w->decision.doubt != 0;
	}
	if (w->table.section >= w->count || w->decision.doubt)
		return 1;
	GATE_LOOP(gate_table_turn, run);
	if (w->table.alternatives)
		gate_end_group(w);
	if (w->item * 24 + 24 <= w->table.relocations.size)
		gate_doubt(w, GATE_TOO_BIG);
	if (w->table.kind && (w->table.field || w->table.next != w->table.size))
		gate_doubt(w, GATE_MALFORMED);
	return 0;
}

/* All tables, for the window. Alternatives first: what else is named must not lie within what they replace. */
GATE_INLINE void gate_patches(struct gate_run *run)
{
	struct gate_work *w = run->w;

	w->site.symbol = 0;
	w->group.from = w->group.to = w->group.inner = 0;
	w->table.alternatives = 1;
	w->table.section = 0;
	if (w->alternatives)
		GATE_LOOP(gate_tables_turn, run);
	w->table.alternatives = 0;
	w->table.section = 0;
	GATE_LOOP(gate_tables_turn, run);
}

#endif
