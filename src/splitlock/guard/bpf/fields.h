/* SPDX-License-Identifier: MIT
 *
 * The relocations of a section's code: fields of instructions that the kernel fills in as it links. Some of them are
 * findings (a call through pv_ops is an instruction in disguise), and all must be fields, or code would be written.
 */
#ifndef SPLITLOCK_FIELDS_H
#define SPLITLOCK_FIELDS_H

#include "symbols.h"

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

#endif
