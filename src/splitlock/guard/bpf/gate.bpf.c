/* SPDX-License-Identifier: (GPL-2.0 OR MIT)
 *
 * The gate: BPF LSM programs that judge every kernel module before it links. kernel_post_read_file sees what
 * finit_module has read, kernel_post_load_data what init_module was given, both as a whole and before anything of it
 * is used (security/security.c; Linux 5.10 and later). The judge itself is in judge.h.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "judge.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* What is needed of the kernel's own types; offsets and values are those of the running kernel (CO-RE). */
struct alt_instr {
	int instr_offset;
} __attribute__((preserve_access_index));

enum kernel_read_file_id { READING_MODULE = 2, READING_MODULE_COMPRESSED = 3 };
enum kernel_load_data_id { LOADING_MODULE = 2 };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct gate_config);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u8[32]);
	__type(value, __u64);
} allowed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} decisions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct gate_counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct gate_decision);
} tested SEC(".maps");

/* Memory to judge in, one entry for each module at a time. All of it is there from the start: task storage would have to be
 * allocated, 64 KiB at once, in a context that cannot wait, and would fail when memory is short. Not per CPU either, as
 * a task may be preempted between two instructions of a program. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, GATE_SLOTS);
	__type(key, __u32);
	__type(value, struct gate_work);
} work SEC(".maps");

/* What a task has had judged and let in, until it is asked for: its number, and where the module is. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} judged SEC(".maps");

static const __u32 zero = 0;

/* What a hook answers, so that the verifier of 6.12 sees that it is an error number or 0. In C the compiler would check one
 * register and return another. */
static __always_inline int answer(int value)
{
	long checked = value;

	__asm__ volatile("if %0 s> 0 goto +1\n"
			 "if %0 s> -4096 goto +1\n"
			 "%0 = -1" : "+r"(checked)); /* EPERM */
	return checked;
}

#include "keep.h"

struct gate_search {
	__u32 turn;
	__u32 found;	/* slot, plus 1 */
};

static long take_slot(void *map, const __u32 *key, struct gate_work *w, struct gate_search *search)
{
	if (__sync_val_compare_and_swap(&w->busy, 0, 1))
		return 0;
	search->found = *key + 1;
	return 1;
}

static __always_inline struct gate_work *take_work(void)
{
	struct gate_search search = {};
	__u32 slot;

	bpf_for_each_map_elem(&work, take_slot, &search, 0);
	if (!search.found)
		return 0;
	slot = search.found - 1;
	return bpf_map_lookup_elem(&work, &slot);
}

static __always_inline void give_back(struct gate_work *w)
{
	__sync_lock_test_and_set(&w->busy, 0);
}

static __always_inline void count(struct gate_counters *counted, const struct gate_decision *decision)
{
	__sync_fetch_and_add(&counted->decisions, 1);
	__sync_fetch_and_add(&counted->nanoseconds, decision->duration);
	if (decision->doubt)
		__sync_fetch_and_add(&counted->doubts, 1);
	if (decision->refused)
		__sync_fetch_and_add(&counted->refused, 1);
	else if (decision->verdict == GATE_DISABLE)
		__sync_fetch_and_add(&counted->disabled, 1);
	else
		__sync_fetch_and_add(&counted->allowed, 1);
}

/* What only the kernel knows of a decision; it is counted and logged. What the hook is to answer. */
static __always_inline int conclude(struct gate_decision *decision, struct gate_config *c, __u64 began, __u32 from_memory)
{
	struct gate_counters *counted = bpf_map_lookup_elem(&counters, &zero);
	__u64 ids = bpf_get_current_pid_tgid();

	decision->pid = ids >> 32;
	decision->uid = bpf_get_current_uid_gid();
	decision->from_memory = from_memory;
	bpf_get_current_comm(decision->comm, sizeof(decision->comm));
	if (decision->digested && decision->verdict == GATE_REFUSE && bpf_map_lookup_elem(&allowed, decision->digest)) {
		decision->allowed = 1;
		decision->refused = 0;
	}
	decision->time = bpf_ktime_get_boot_ns();
	decision->duration = decision->time - began;
	if (counted)
		count(counted, decision);
	if (bpf_ringbuf_output(&decisions, decision, sizeof(*decision), 0) && counted)
		__sync_fetch_and_add(&counted->lost, 1);
	if (!decision->refused)
		return 0;
	return decision->doubt == GATE_NO_ELF ? -GATE_ERRNO_NO_ELF : -GATE_ERRNO_REFUSED;
}

/* Nothing could be looked at: refused but in audit mode, which without a configuration cannot be told. */
static __always_inline int give_up(__u8 doubt, __u64 size, __u32 from_memory)
{
	struct gate_config *c = bpf_map_lookup_elem(&config, &zero);
	struct gate_counters *counted = bpf_map_lookup_elem(&counters, &zero);
	struct gate_decision *decision;
	int refused = !(c && c->version == GATE_VERSION && c->audit);

	decision = bpf_ringbuf_reserve(&decisions, sizeof(*decision), 0);
	if (decision) {
		GATE_CLEAR(decision, sizeof(*decision));
		decision->time = bpf_ktime_get_boot_ns();
		decision->size = size;
		decision->pid = bpf_get_current_pid_tgid() >> 32;
		decision->uid = bpf_get_current_uid_gid();
		decision->verdict = GATE_REFUSE;
		decision->doubt = doubt;
		decision->rule = -1;
		decision->refused = refused;
		decision->from_memory = from_memory;
		bpf_get_current_comm(decision->comm, sizeof(decision->comm));
		bpf_ringbuf_submit(decision, 0);
	}
	if (counted) {
		__sync_fetch_and_add(&counted->decisions, 1);
		__sync_fetch_and_add(&counted->doubts, 1);
		if (refused)
			__sync_fetch_and_add(&counted->refused, 1);
		else
			__sync_fetch_and_add(&counted->allowed, 1);
		if (!decision)
			__sync_fetch_and_add(&counted->lost, 1);
	}
	return refused ? -GATE_ERRNO_REFUSED : 0;
}

/* Do the contents begin as the canary's do? */
static __always_inline int is_canary(const void *data, __u64 size)
{
	static const char magic[GATE_CANARY_SIZE] = GATE_CANARY_MAGIC;
	__u64 begin[GATE_CANARY_SIZE / 8];

	if (size < GATE_CANARY_SIZE || bpf_probe_read_kernel(begin, sizeof(begin), data))
		return 0;
	return begin[0] == *(__u64 *)magic && begin[1] == *(__u64 *)(magic + 8) && !begin[2] && !begin[3];
}

/* Judge what a hook was given. */
static __always_inline int judge(const void *data, __u64 size, __u32 from_memory)
{
	struct gate_config *c = bpf_map_lookup_elem(&config, &zero);
	struct gate_counters *counted;
	__u64 began = bpf_ktime_get_boot_ns();
	struct gate_run run;
	int answer;

	if (is_canary(data, size)) {
		counted = bpf_map_lookup_elem(&counters, &zero);
		if (counted)
			__sync_fetch_and_add(&counted->canaries, 1);
		return -GATE_ERRNO_CANARY;
	}
	run.c = c;
	run.w = c ? take_work() : 0;
	if (!run.w || !c)
		return give_up(GATE_UNREADABLE, size, from_memory);
	gate_start(run.w, c, (__u64)data, size, 0);
	if (bpf_core_type_exists(struct alt_instr))
		run.w->alternative = bpf_core_type_size(struct alt_instr);
	gate_judge_work(&run);
	answer = conclude(&run.w->decision, c, began, from_memory);
	give_back(run.w);
	return answer;
}

/* What is let in is vouched for to the program below. */
static __always_inline int vouch(int value, __u64 data)
{
	__u64 task = bpf_get_current_pid_tgid();

	if (!value)
		bpf_map_update_elem(&judged, &task, &data, BPF_ANY);
	return value;
}

/* Has this module been judged? Before Linux 6.2 a program on a hook is passed over while another task, which this one has
 * pushed off the same processor, is in the middle of it (prog->active; kernel/bpf/trampoline.c, __bpf_prog_enter): with full
 * preemption only. So another program asks, on the same hook, after the judge; it is so short that hardly any task is
 * interrupted in it, and one would have to be in each of the two. It asks only while
 * the pins are locked: the kernel detaches programs one after the other, in whatever order. */
static __always_inline int vouched(__u64 data, __u64 size, __u32 from_memory)
{
	struct gate_pins *kept = bpf_map_lookup_elem(&pins, &zero);
	__u64 task = bpf_get_current_pid_tgid();
	__u64 *known = bpf_map_lookup_elem(&judged, &task);

	if (!kept || !kept->locked)
		return 0;
	if (!known || *known != data)
		return give_up(GATE_UNREADABLE, size, from_memory);
	bpf_map_delete_elem(&judged, &task);
	return 0;
}

SEC("lsm/kernel_post_read_file")
int BPF_PROG(read_file, void *file, char *data, long long size, int id, int before)
{
	if (before)
		return answer(before);
	if (id != bpf_core_enum_value(enum kernel_read_file_id, READING_MODULE))
		return 0; /* READING_MODULE_COMPRESSED, where there is one: it comes again decompressed, as READING_MODULE */
	return answer(vouch(judge(data, size, 0), (__u64)data));
}

SEC("lsm/kernel_post_load_data")
int BPF_PROG(load_data, char *data, long long size, int id, char *description, int before)
{
	if (before)
		return answer(before);
	if (id != bpf_core_enum_value(enum kernel_load_data_id, LOADING_MODULE))
		return 0;
	return answer(vouch(judge(data, size, 1), (__u64)data));
}

SEC("lsm/kernel_post_read_file")
int BPF_PROG(check_file, void *file, char *data, long long size, int id, int before)
{
	if (before || id != bpf_core_enum_value(enum kernel_read_file_id, READING_MODULE))
		return answer(before);
	return answer(vouched((__u64)data, size, 0));
}

SEC("lsm/kernel_post_load_data")
int BPF_PROG(check_data, char *data, long long size, int id, char *description, int before)
{
	if (before || id != bpf_core_enum_value(enum kernel_load_data_id, LOADING_MODULE))
		return answer(before);
	return answer(vouched((__u64)data, size, 1));
}

/* Contents that come in parts never get to the hooks above (fs/kernel_read_file.c: only whole files are shown). */
SEC("lsm/kernel_read_file")
int BPF_PROG(read_part, void *file, int id, _Bool contents, int before)
{
	if (before || contents || id != bpf_core_enum_value(enum kernel_read_file_id, READING_MODULE))
		return answer(before);
	return answer(give_up(GATE_PARTIAL, 0, 0));
}

SEC("lsm/kernel_load_data")
int BPF_PROG(load_part, int id, _Bool contents, int before)
{
	if (before || contents || id != bpf_core_enum_value(enum kernel_load_data_id, LOADING_MODULE))
		return answer(before);
	return answer(give_up(GATE_PARTIAL, 0, 1));
}

SEC("syscall")
int judge_test(struct gate_test *test)
{
	struct gate_config *c = bpf_map_lookup_elem(&config, &zero);
	__u64 began = bpf_ktime_get_boot_ns();
	struct gate_run run = { c ? take_work() : 0, c };
	struct gate_decision *decision;
	int answer;

	if (!run.w || !c)
		return -GATE_ERRNO_REFUSED;
	gate_start(run.w, c, test->data, test->size, 1);
	gate_judge_work(&run);
	decision = &run.w->decision;
	decision->duration = bpf_ktime_get_boot_ns() - began;
	answer = !decision->refused ? 0 : decision->doubt == GATE_NO_ELF ? -GATE_ERRNO_NO_ELF : -GATE_ERRNO_REFUSED;
	bpf_map_update_elem(&tested, &zero, decision, BPF_ANY);
	give_back(run.w);
	return answer;
}
