/* SPDX-License-Identifier: MIT
 *
 * SHA-256 of the module's contents (FIPS 180-4), to know again what an administrator has let in. The kernel's own is not
 * to be had by BPF programs of 5.15, and IMA's knows no modules loaded from memory.
 */
#ifndef SPLITLOCK_SHA256_H
#define SPLITLOCK_SHA256_H

#include "memory.h"

GATE_TABLE(__u32, gate_sha_constants, 64) = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

#define GATE_SHA_BYTES 8128u	/* read at once: blocks of 64 that fit into code[] */

#define GATE_ROTATE(x, n) ((__u32)(x) >> (n) | (__u32)(x) << (32 - (n)))
#define GATE_SWAP(x) __builtin_bswap32(x)

/* The 64 bytes at w->at in code[]. */
GATE_FUNCTION int gate_sha_block(struct gate_work *w)
{
	GATE_GIVEN(w, 1);
	__u64 at = w->at;
	__u32 a, b, c, d, e, f, g, h, *s = w->schedule;

	if (at > GATE_CODE - 64)
		return 1;
	for (int i = 0; i < 16; i++)
		s[i] = GATE_SWAP(GATE_PART(__u32, w->code + at + 4 * i));
	for (int i = 16; i < 64; i++) {
		__u32 x = s[i - 15], y = s[i - 2];

		s[i] = s[i - 16] + s[i - 7] + (GATE_ROTATE(x, 7) ^ GATE_ROTATE(x, 18) ^ x >> 3) +
		       (GATE_ROTATE(y, 17) ^ GATE_ROTATE(y, 19) ^ y >> 10);
	}
	a = w->hash[0], b = w->hash[1], c = w->hash[2], d = w->hash[3];
	e = w->hash[4], f = w->hash[5], g = w->hash[6], h = w->hash[7];
	for (int i = 0; i < 64; i++) {
		__u32 one = h + (GATE_ROTATE(e, 6) ^ GATE_ROTATE(e, 11) ^ GATE_ROTATE(e, 25)) + ((e & f) ^ (~e & g)) +
			    gate_sha_constants[i] + s[i];
		__u32 two = (GATE_ROTATE(a, 2) ^ GATE_ROTATE(a, 13) ^ GATE_ROTATE(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));

		h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
	}
	w->hash[0] += a, w->hash[1] += b, w->hash[2] += c, w->hash[3] += d;
	w->hash[4] += e, w->hash[5] += f, w->hash[6] += g, w->hash[7] += h;
	w->at = at + 64;
	return 0;
}

GATE_BODY(gate_sha_blocks_turn)
{
	struct gate_work *w = run->w;

	return w->at >= w->items || gate_sha_block(w);
}

/* The next part of the file, with the padding behind its last one: 80h, zeroes, the length in bits. */
GATE_FUNCTION int gate_sha_part(struct gate_work *w)
{
	GATE_GIVEN(w, 1);
	__u64 size = w->size - w->item, bits = w->size << 3, end;

	if (w->item > w->size)
		return 1;
	if (size > GATE_SHA_BYTES)
		size = GATE_SHA_BYTES;
	GATE_FORGET(size);
	if (size > GATE_SHA_BYTES)
		return 1;
	w->items = size;
	w->at = 0;
	if (size < GATE_SHA_BYTES)
		GATE_CLEAR(w->code, GATE_CODE);
	if (size && gate_read(w, w->code, size, w->item)) {
		gate_doubt(w, GATE_UNREADABLE);
		return 1;
	}
	w->item += size;
	if (size < GATE_SHA_BYTES) {
		w->code[size] = 0x80;
		end = (size + 8) / 64 * 64 + 64; /* at most GATE_SHA_BYTES + 64 */
		w->items = end;
		for (int i = 0; i < 8; i++) {
			__u64 at = end - 1 - i;

			if (at < GATE_CODE)
				w->code[at] = bits >> (8 * i);
		}
		w->item++; /* beyond the end: done */
	}
	return 0;
}

GATE_BODY(gate_sha_turn)
{
	if (gate_sha_part(run->w))
		return 1;
	GATE_LOOP(gate_sha_blocks_turn, run);
	return run->w->item > run->w->size;
}

GATE_BODY(gate_sha_outer_turn)
{
	GATE_LOOP(gate_sha_turn, run);
	return run->w->item > run->w->size || run->w->decision.doubt == GATE_UNREADABLE;
}

/* The digest, into the decision. */
GATE_INLINE void gate_digest(struct gate_run *run)
{
	struct gate_work *w = run->w;

	w->hash[0] = 0x6a09e667, w->hash[1] = 0xbb67ae85, w->hash[2] = 0x3c6ef372, w->hash[3] = 0xa54ff53a;
	w->hash[4] = 0x510e527f, w->hash[5] = 0x9b05688c, w->hash[6] = 0x1f83d9ab, w->hash[7] = 0x5be0cd19;
	w->item = 0;
	GATE_LOOP(gate_sha_outer_turn, run);
	if (w->item != w->size + 1)
		return;
	for (int i = 0; i < 8; i++) {
		__u32 word = w->hash[i];

		w->decision.digest[4 * i] = word >> 24;
		w->decision.digest[4 * i + 1] = word >> 16;
		w->decision.digest[4 * i + 2] = word >> 8;
		w->decision.digest[4 * i + 3] = word;
	}
	w->decision.digested = 1;
}

#endif
