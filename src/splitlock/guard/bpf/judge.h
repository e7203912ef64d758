/* SPDX-License-Identifier: MIT
 *
 * From a module's bytes to a verdict, as modules/verdict.py comes to one: of the rules that can apply to the module the
 * first that covers a finding decides it, and the gravest of these answers counts. What is not understood is refused.
 */
#ifndef SPLITLOCK_JUDGE_H
#define SPLITLOCK_JUDGE_H

#include "sha256.h"
#include "sweep.h"

#define GATE_DIGEST_LIMIT (1ull << 28)	/* bytes; what is larger has no digest */

/* Whether a pattern fits the module's name: a bit of w->names_fit. */
GATE_FUNCTION int gate_pattern(struct gate_work *w, const struct gate_config *c, __u64 number)
{
	GATE_GIVEN(w, 1);
	GATE_GIVEN(c, 1);
	const struct gate_pattern *pattern;

	GATE_FORGET(number);
	number &= GATE_PATTERNS - 1;
	pattern = &c->pattern[number];
	for (__u32 i = 0; i < GATE_NAME; i++) {
		char here = w->decision.name[i];

		if (i >= pattern->length) {
			if (!pattern->prefix && here)
				return 0;
			break;
		}
		if ((here == '-' ? '_' : here) != pattern->text[i])
			return 0;
	}
	w->names_fit |= 1ull << number;
	return 0;
}

/* Whether a rule can apply to the module: a bit of w->fits. */
GATE_FUNCTION int gate_fits(struct gate_work *w, const struct gate_config *c, __u64 number)
{
	GATE_GIVEN(w, 1);
	GATE_GIVEN(c, 1);
	const struct gate_rule *rule;
	__u64 facts = w->decision.facts, names;

	GATE_FORGET(number);
	number &= GATE_RULES - 1;
	rule = &c->rule[number];
	if ((facts & rule->needs) != rule->needs || facts & rule->needs_not || facts & rule->unless)
		return 0;
	if (rule->imports && !(rule->imports & w->decision.imports))
		return 0;
	if (rule->patterns) {
		names = rule->patterns >= 64 ? ~0ull : (1ull << rule->patterns) - 1;
		if (!(w->names_fit >> (rule->pattern & 63) & names))
			return 0;
	}
	w->fits |= 1ull << number;
	if (!w->fit)
		w->fit = number + 1;
	if (!w->whole && rule->whole)
		w->whole = number + 1;
	return 0;
}

/* What a rule decides of what is left: the gravest rule so far, the first of several, speaks for the module. */
GATE_FUNCTION int gate_apply(struct gate_work *w, const struct gate_config *c, __u64 number)
{
	GATE_GIVEN(w, 1);
	GATE_GIVEN(c, 1);
	const struct gate_rule *rule;
	__u64 low = 0, high = 0;

	GATE_FORGET(number);
	number &= GATE_RULES - 1;
	if (!(w->fits >> number & 1))
		return 0;
	rule = &c->rule[number];
	for (__u32 i = 0; i < 4; i++) {
		__u64 any = !rule->kinds[0] && !rule->kinds[1];

		if (rule->evidence && !(rule->evidence >> i & 1))
			continue;
		low |= w->left[i][0] & (any ? ~0ull : rule->kinds[0]);
		high |= w->left[i][1] & (any ? ~0ull : rule->kinds[1]);
		w->left[i][0] &= any ? 0 : ~rule->kinds[0];
		w->left[i][1] &= any ? 0 : ~rule->kinds[1];
	}
	if (!low && !high)
		return 0;
	if (!w->chosen || rule->verdict > w->decision.verdict) {
		w->chosen = number + 1;
		w->decision.verdict = rule->verdict;
		w->decision.because[0] = w->decision.because[1] = 0;
	}
	if (rule->verdict == w->decision.verdict) {
		w->decision.because[0] |= low;
		w->decision.because[1] |= high;
	}
	return 0;
}

/* Let the rule for the module as a whole speak for it. */
GATE_INLINE void gate_choose(struct gate_work *w, const struct gate_config *c)
{
	__u64 rule = w->whole - 1;

	GATE_FORGET(rule);
	w->chosen = w->whole;
	w->decision.verdict = c->rule[rule & (GATE_RULES - 1)].verdict;
	w->decision.because[0] = w->decision.because[1] = 0;
}

/* Everything but the digest. `w` is as gate_start leaves it. */
GATE_INLINE void gate_look(struct gate_run *run)
{
	struct gate_work *w = run->w;
	const struct gate_config *c = run->c;
	struct gate_decision *decision = &w->decision;

	if (gate_elf_header(w))
		return;
	w->item = 0;
	GATE_LOOP(gate_section_turn, run);
	if (!w->symbols.size || w->item < w->count) /* the loader wants symbols */
		gate_doubt(w, GATE_MALFORMED);
	if (decision->doubt)
		return;
	decision->facts = GATE_MODULE;
	gate_signature(w);
	w->item = 0;
	w->first = 1;
	GATE_LOOP(gate_modinfo_turn, run);
	if (w->item < w->modinfo.size)
		gate_doubt(w, GATE_TOO_BIG);
	w->first = 1;
	gate_begin_window(run, 0);
	if (decision->doubt)
		return;
	if (decision->imports & c->executable || (decision->imports & c->lookups && decision->imports & c->mappers))
		gate_note(w, 0, GATE_KIND_FOREIGN_CODE, GATE_IMPORTS, 1);

	for (__u32 i = 0; i < GATE_PATTERNS; i++)
		gate_pattern(w, c, i);
	for (__u32 i = 0; i < GATE_RULES; i++) {
		if (i >= c->rules)
			break;
		gate_fits(w, c, i);
	}
	if (w->whole && w->whole == w->fit) { /* decides all of it: no need to look at the text */
		gate_choose(w, c);
		return;
	}
	gate_sweep(run, GATE_SWEEP);
	if ((w->claimed[0] & ~w->found[1][0]) | (w->claimed[1] & ~w->found[1][1])) /* a call that no relocation of code shows */
		gate_doubt(w, GATE_MALFORMED);
	if (c->possible && !decision->doubt)
		gate_sweep(run, GATE_TARGETS);
	if (decision->doubt)
		return;
	for (__u32 i = 0; i < 4; i++) {
		w->left[i][0] = w->found[i][0];
		w->left[i][1] = w->found[i][1];
	}
	for (__u32 i = 0; i < GATE_RULES; i++) {
		if (i >= c->rules)
			break;
		gate_apply(w, c, i);
	}
	if (w->whole && (!w->chosen || c->rule[(w->whole - 1) & (GATE_RULES - 1)].verdict > decision->verdict))
		gate_choose(w, c);
}

/* Begin with a module. */
GATE_INLINE void gate_start(struct gate_work *w, const struct gate_config *c, __u64 data, __u64 size, __u32 user)
{
	GATE_CLEAR(&w->sections, (__u64)((char *)w->hash - (char *)&w->sections));
	GATE_CLEAR(&w->decision, sizeof(w->decision));
	GATE_CLEAR(w->relas, sizeof(w->relas));
	w->user = user;
	w->data = data;
	w->size = size;
	w->budget = GATE_BUDGET;
	for (int i = 0; i < 4; i++)
		w->numbers[0][i] = w->numbers[1][i] = ~0ull;
	w->wanted[0] = GATE_KINDS_LOW;
	w->wanted[1] = GATE_KINDS_HIGH;
	for (__u32 i = 0; i < GATE_RULES; i++) { /* the frequent ones only for rules that name them */
		if (i >= c->rules)
			break;
		w->wanted[0] |= c->rule[i].kinds[0];
		w->wanted[1] |= c->rule[i].kinds[1];
	}
	w->decision.size = size;
	w->decision.rule = -1;
}

/* Judge what gate_start was given: all of the decision that has to do with the module itself. */
GATE_INLINE void gate_judge_work(struct gate_run *run)
{
	struct gate_work *w = run->w;
	struct gate_decision *decision = &w->decision;

	if (run->c->version != GATE_VERSION)
		gate_doubt(w, GATE_UNREADABLE);
	else
		gate_look(run);
	decision->rule = (__s32)w->chosen - 1;
	if (decision->doubt) {
		decision->verdict = GATE_REFUSE;
		decision->rule = -1;
		decision->because[0] = decision->because[1] = 0;
	}
	if ((run->c->digests || decision->verdict != GATE_ALLOW) && w->size <= GATE_DIGEST_LIMIT)
		gate_digest(run);
	decision->refused = decision->verdict == GATE_REFUSE && !run->c->audit;
}

#endif
