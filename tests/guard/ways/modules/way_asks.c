// Clean itself; asks the kernel to load way_bad.
#include "way.h"
#include <linux/kmod.h>
WAY_CODE(".text", "	nop\n");
static int __init way_init(void) { request_module("way_bad"); return 0; }
static void __exit way_exit(void) { }
module_init(way_init);
module_exit(way_exit);
MODULE_LICENSE("GPL");
