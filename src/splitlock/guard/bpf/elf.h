/* SPDX-License-Identifier: MIT
 *
 * The module's file: sections, .modinfo, symbols, relocations. At least as strict as the kernel's loader is about
 * what it takes into account (kernel/module/main.c of Linux 6.1: elf_validity_check, setup_load_info, layout_sections,
 * simplify_symbols, apply_relocations); where it would choose between two of a kind, both are refused.
 */
#ifndef SPLITLOCK_ELF_H
#define SPLITLOCK_ELF_H

#include "memory.h"
#include "tables.h"

#define GATE_SHF_WRITE 1
#define GATE_SHF_ALLOC 2
#define GATE_SHF_EXECINSTR 4
#define GATE_SHF_COMPRESSED 0x800
#define GATE_MODINFO_LIMIT (1u << 20)
#define GATE_BUDGET (1u << 25)

enum { GATE_SHT_NULL = 0, GATE_SHT_SYMTAB = 2, GATE_SHT_STRTAB = 3, GATE_SHT_RELA = 4, GATE_SHT_NOTE = 7, GATE_SHT_NOBITS = 8 };
enum { GATE_STB_GLOBAL = 1, GATE_STT_FUNC = 2, GATE_STT_GNU_IFUNC = 10 };
enum { GATE_R_NONE = 0, GATE_R_64 = 1, GATE_R_PC32 = 2, GATE_R_PLT32 = 4, GATE_R_32 = 10, GATE_R_32S = 11, GATE_R_PC64 = 24 };

/* Fields of a section header, which is read as eight words. */
#define GATE_SH_NAME(h) ((h)[0] & 0xffffffff)
#define GATE_SH_TYPE(h) ((h)[0] >> 32)
#define GATE_SH_FLAGS(h) ((h)[1])
#define GATE_SH_OFFSET(h) ((h)[3])
#define GATE_SH_SIZE(h) ((h)[4])
#define GATE_SH_LINK(h) ((h)[5] & 0xffffffff)
#define GATE_SH_INFO(h) ((h)[5] >> 32)

/* Read a section header into w->header; 0 when it is there. */
GATE_INLINE int gate_header(struct gate_work *w, __u64 number)
{
	if (number >= w->count)
		gate_doubt(w, GATE_MALFORMED);
	else if (!gate_read(w, w->header, sizeof(w->header), w->sections.offset + number * 64))
		return 0;
	gate_doubt(w, GATE_UNREADABLE);
	return 1;
}

/* Does a span, all of it, lie within the file? */
GATE_INLINE int gate_within(struct gate_work *w, __u64 offset, __u64 size)
{
	return offset <= w->size && size <= w->size - offset;
}

/* Is the last byte of a table of strings a NUL? Then none of them runs on into what comes behind. */
GATE_INLINE int gate_ends(struct gate_work *w, const struct gate_span *span)
{
	__u8 last = 1;

	return span->size && !gate_read(w, &last, 1, span->offset + span->size - 1) && !last;
}

/* The ELF header. */
GATE_FUNCTION int gate_elf_header(struct gate_work *w)
{
	GATE_GIVEN(w, 1);
	__u64 words[8]; /* e_ident, 2; e_type, e_machine, e_version; e_entry; e_phoff; e_shoff; e_flags...; ...e_shstrndx */
	__u64 names;
	__u32 magic = 0;

	gate_read(w, &magic, sizeof(magic), 0);
	if (magic != 0x464c457f) {
		gate_doubt(w, GATE_NO_ELF);
		return 1;
	}
	/* class 64, little-endian; ET_REL; EM_X86_64; headers of 64 bytes each */
	if (gate_read(w, words, sizeof(words), 0) || (words[0] >> 32 & 0xffff) != 0x0102 || (words[2] & 0xffff) != 1 ||
	    (words[2] >> 16 & 0xffff) != 62 || (words[7] >> 16 & 0xffff) != 64) {
		gate_doubt(w, GATE_MALFORMED);
		return 1;
	}
	w->sections.offset = words[5];
	w->count = words[7] >> 32 & 0xffff;
	names = words[7] >> 48;
	if (w->count > GATE_SECTIONS) {
		gate_doubt(w, GATE_TOO_BIG);
		return 1;
	}
	if (!gate_within(w, words[5], w->count * 64) || !names || names >= w->count || gate_header(w, names) ||
	    GATE_SH_TYPE(w->header) != GATE_SHT_STRTAB || !gate_within(w, GATE_SH_OFFSET(w->header), GATE_SH_SIZE(w->header))) {
		gate_doubt(w, GATE_MALFORMED);
		return 1;
	}
	w->names.offset = GATE_SH_OFFSET(w->header);
	w->names.size = GATE_SH_SIZE(w->header);
	if (!gate_ends(w, &w->names))
		gate_doubt(w, GATE_MALFORMED);
	return w->decision.doubt != 0;
}

/* The start of the build-id, from a note's section in w->header: hex digits. */
GATE_INLINE void gate_build_id(struct gate_work *w)
{
	struct { __u32 name, size, type; char text[4]; __u8 id[12]; } note;

	if (GATE_SH_SIZE(w->header) < sizeof(note) || gate_read(w, &note, sizeof(note), GATE_SH_OFFSET(w->header)))
		return;
	if (note.name != 4 || note.type != 3 || note.size < 11 || note.text[0] != 'G' || note.text[1] != 'N' || note.text[2] != 'U')
		return;
	for (int i = 0; i < 11; i++) {
		__u8 high = note.id[i] >> 4, low = note.id[i] & 15;

		w->decision.build_id[2 * i] = high + (high < 10 ? '0' : 'a' - 10);
		w->decision.build_id[2 * i + 1] = low + (low < 10 ? '0' : 'a' - 10);
	}
}

/* The tables by which the kernel writes to code, by their sections' names: patch.h. */
#define GATE_PATCHING 11
GATE_TABLE(__u64, gate_patching_names, GATE_PATCHING * 4) = {
	0x74736e69746c612e, 0x736e6f6974637572, 0x0, GATE_TABLE_ALTERNATIVE, /* .altinstructions */
	0x736e69617261702e, 0x6e6f697463757274, 0x73, GATE_TABLE_PARAVIRT, /* .parainstructions */
	0x745f706d756a5f5f, 0x656c6261, 0x0, GATE_TABLE_JUMP, /* __jump_table */
	0x5f6369746174732e, 0x7469735f6c6c6163, 0x7365, GATE_TABLE_CALL, /* .static_call_sites */
	0x746e756f636d5f5f, 0x636f6c5f, 0x0, GATE_TABLE_MCOUNT, /* __mcount_loc */
	0x7469735f6966632e, 0x7365, 0x0, GATE_TABLE_CFI, /* .cfi_sites */
	0x636f6c5f706d732e, 0x736b, 0x0, GATE_TABLE_SITES, /* .smp_locks */
	0x696c6f707465722e, 0x73657469735f656e, 0x0, GATE_TABLE_SITES, /* .retpoline_sites */
	0x5f6e72757465722e, 0x7365746973, 0x0, GATE_TABLE_SITES, /* .return_sites */
	0x69735f6c6c61632e, 0x736574, 0x0, GATE_TABLE_SITES, /* .call_sites */
	0x646e655f7462692e, 0x6c6165735f7262, 0x0, GATE_TABLE_SITES, /* .ibt_endbr_seal */
};

GATE_INLINE __u8 gate_table_kind(const __u64 *name)
{
	for (int i = 0; i < GATE_PATCHING; i++)
		if (name[0] == gate_patching_names[4 * i] && name[1] == gate_patching_names[4 * i + 1] && name[2] == gate_patching_names[4 * i + 2])
			return gate_patching_names[4 * i + 3];
	return GATE_TABLE_NONE;
}

/* One section header, number w->item: what it is to us. */
GATE_FUNCTION int gate_section(struct gate_work *w)
{
	GATE_GIVEN(w, 1);
	__u64 number = w->item, type, flags, offset, size;
	__u64 text[3] = {}, length;

	if (number >= GATE_SECTIONS || gate_header(w, number))
		return 1;
	w->bases[number] = GATE_NO_CODE;
	w->tables[number] = GATE_TABLE_NONE;
	type = GATE_SH_TYPE(w->header);
	flags = GATE_SH_FLAGS(w->header);
	offset = GATE_SH_OFFSET(w->header);
	size = GATE_SH_SIZE(w->header);
	if (!number) { /* as the loader wants it */
		if (type != GATE_SHT_NULL || size || w->header[2])
			gate_doubt(w, GATE_MALFORMED);
		return w->decision.doubt != 0;
	}
	/* The loader checks no bounds of SHT_NULL but loads what has SHF_ALLOC: no type is exempt here but NOBITS. */
	if ((type != GATE_SHT_NOBITS && !gate_within(w, offset, size)) || GATE_SH_NAME(w->header) >= w->names.size) {
		gate_doubt(w, GATE_MALFORMED);
		return 1;
	}
	if (type != GATE_SHT_NOBITS)
		w->contents += size;
	if (w->contents > w->size) { /* some overlap; the scanner reads no such file */
		gate_doubt(w, GATE_MALFORMED);
		return 1;
	}
	if (flags & GATE_SHF_EXECINSTR && size) {
		/* Code that is not in the file, or other than in the file; code that can be written, which the loader refuses */
		if (type == GATE_SHT_NOBITS || flags & (GATE_SHF_COMPRESSED | GATE_SHF_WRITE)) {
			gate_doubt(w, GATE_MALFORMED);
			return 1;
		}
		if (size > GATE_LIMIT - w->places) {
			gate_doubt(w, GATE_TOO_BIG);
			return 1;
		}
		w->bases[number] = w->places;
		w->places += size;
	}
	if (type == GATE_SHT_SYMTAB) {
		__u64 link = GATE_SH_LINK(w->header);

		if (w->symbols.size || !size || gate_header(w, link) || GATE_SH_TYPE(w->header) != GATE_SHT_STRTAB ||
		    !gate_within(w, GATE_SH_OFFSET(w->header), GATE_SH_SIZE(w->header))) {
			gate_doubt(w, GATE_MALFORMED);
			return 1;
		}
		w->symbols.offset = offset;
		w->symbols.size = size;
		w->strings.offset = GATE_SH_OFFSET(w->header);
		w->strings.size = GATE_SH_SIZE(w->header);
		if (!gate_ends(w, &w->strings))
			gate_doubt(w, GATE_MALFORMED);
		return w->decision.doubt != 0;
	}
	if (type == GATE_SHT_RELA) { /* the loader would apply all that there are for a section; linkers make one */
		__u64 whose = GATE_SH_INFO(w->header);

		GATE_FORGET(whose);
		if (whose >= w->count || w->relas[whose & (GATE_SECTIONS - 1)]) {
			gate_doubt(w, GATE_MALFORMED);
			return 1;
		}
		w->relas[whose & (GATE_SECTIONS - 1)] = number;
	}
	if (type == GATE_SHT_NOTE && !w->decision.build_id[0])
		gate_build_id(w);
	length = gate_read_string(w, text, sizeof(text), w->names.offset + GATE_SH_NAME(w->header));
	if (length > 10 && length < 20) {
		w->tables[number] = gate_table_kind(text);
		if (w->tables[number] == GATE_TABLE_ALTERNATIVE)
			w->alternatives = 1;
	}
	if (length == 9 && text[0] == 0x6f666e69646f6d2e /* .modinfo */) {
		w->modinfo.offset = offset;
		if (w->modinfo.size || type == GATE_SHT_NOBITS || !(flags & GATE_SHF_ALLOC)) {
			gate_doubt(w, GATE_MALFORMED);
		} else if (size) {
			w->modinfo.size = size;
			if (!gate_ends(w, &w->modinfo))
				gate_doubt(w, GATE_MALFORMED);
			if (size > GATE_MODINFO_LIMIT)
				gate_doubt(w, GATE_TOO_BIG);
		}
	}
	return w->decision.doubt != 0;
}

GATE_BODY(gate_section_turn)
{
	struct gate_work *w = run->w;

	for (int i = 0; i < 4; i++) {
		if (w->item >= w->count || gate_section(w))
			return 1;
		w->item++;
	}
	return 0;
}

/* One entry of .modinfo, at w->item in it: key=value. Of the flags the key alone counts. */
GATE_FUNCTION int gate_modinfo(struct gate_work *w)
{
	GATE_GIVEN(w, 1);
	__u8 *text = w->code;
	__u64 length, word;

	*(__u64 *)text = 0;
	length = gate_read_string(w, text, 4096, w->modinfo.offset + w->item);
	if (!length) {
		gate_doubt(w, GATE_UNREADABLE);
		return 1;
	}
	w->item += length == 4096 ? 4095 : length; /* one that goes on is seen again, in its middle: no key begins there */
	word = w->first ? *(__u64 *)text : 0;
	w->first = length != 4096;
	if ((word & 0xffffffffffffff) == 0x3d656572746e69) /* intree= */
		w->decision.facts |= GATE_INTREE;
	else if (word == 0x656661735f646c73 && text[8] == '=') /* sld_safe */
		w->decision.facts |= GATE_SLD_SAFE;
	else if ((word & 0xffffffffff) == 0x3d656d616e && !w->decision.name[0]) /* name= */
		for (int i = 0; i < GATE_NAME - 1; i++) {
			if (!text[5 + i])
				break;
			w->decision.name[i] = text[5 + i];
		}
	return 0;
}

GATE_BODY(gate_modinfo_turn)
{
	struct gate_work *w = run->w;

	return w->item >= w->modinfo.size || gate_modinfo(w);
}

/* "~Module signature appended~\n" */
GATE_TABLE(__u32, gate_marker, 7) = {
	0x646f4d7e, 0x20656c75, 0x6e676973, 0x72757461, 0x70612065, 0x646e6570, 0x0a7e6465,
};

/* Is a signature appended? Not verified: module.sig_enforce does that. include/linux/module_signature.h */
GATE_INLINE void gate_signature(struct gate_work *w)
{
	__u32 *end = w->schedule;

	if (w->size < 40 || gate_read(w, end, 28, w->size - 28))
		return;
	for (int i = 0; i < 7; i++)
		if (end[i] != gate_marker[i])
			return;
	w->decision.facts |= GATE_SIGNED;
}

#endif
