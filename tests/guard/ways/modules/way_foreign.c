// VirtualBox's way: looks symbols up and maps memory.
#define WAY_BYTES ""
#include "way.h"
#include <linux/kprobes.h>
#include <linux/vmalloc.h>
WAY_CODE(".text", "	nop\n");
void way_call(struct kprobe *probe, struct page **pages);
void way_call(struct kprobe *probe, struct page **pages) { register_kprobe(probe); vmap(pages, 1, 0, PAGE_KERNEL); }
WAY_START;
