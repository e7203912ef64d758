/* SPDX-License-Identifier: MIT
 *
 * The gate's judge as a library for user space: `splitlock guard test`, the fanotify fallback, and the tests.
 */
#include <stdlib.h>

#include "judge.h"

/* Judge, and list up to `room` findings in `all`; -1 when there is no memory. */
int gate_findings(const __u8 *data, __u64 size, const struct gate_config *config, struct gate_decision *decision,
		  struct gate_finding *all, __u32 room)
{
	struct gate_work *w = calloc(1, sizeof(*w));
	struct gate_run run = { w, config };

	if (!w)
		return -1;
	w->all = all;
	w->room = room;
	gate_start(w, config, (__u64)(uintptr_t)data, size, 0);
	gate_judge_work(&run);
	*decision = w->decision;
	free(w);
	return decision->verdict;
}

int gate_judge(const __u8 *data, __u64 size, const struct gate_config *config, struct gate_decision *decision)
{
	return gate_findings(data, size, config, decision, NULL, 0);
}

/* For tests: gate_decode of what is at `data`, up to 16 bytes of it; `slowly`: gate_decode_any, which is to say the same. */
__u32 gate_decode_one(const __u8 *data, __u64 size, __u32 slowly)
{
	static __thread struct gate_work w;

	memset(w.code, 0, 32);
	memcpy(w.code, data, size > 16 ? 16 : size);
	w.at = 0;
	return slowly ? gate_decode_any(&w) : gate_decode(&w);
}

/* For tests: the offsets at which a sweep of `data` finds instructions, as a byte each in `starts`; where it stopped. */
__u64 gate_boundaries(const __u8 *data, __u64 size, __u8 *starts)
{
	__u64 at = 0;

	while (at < size) {
		__u64 length = GATE_LENGTH(gate_decode_one(data + at, size - at, 0));

		if (!length || length > size - at)
			break;
		starts[at] = 1;
		at += length;
	}
	return at;
}

/* Sizes of the structures that Python mirrors, in the order of layout.STRUCTURES. */
void gate_sizes(__u32 out[])
{
	out[0] = sizeof(struct gate_pattern);
	out[1] = sizeof(struct gate_rule);
	out[2] = sizeof(struct gate_symbol);
	out[3] = sizeof(struct gate_config);
	out[4] = sizeof(struct gate_finding);
	out[5] = sizeof(struct gate_decision);
	out[6] = sizeof(struct gate_counters);
	out[7] = sizeof(struct gate_pins);
	out[8] = sizeof(struct gate_test);
}
