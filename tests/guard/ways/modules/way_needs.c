// Clean itself, but needs a symbol of way_bad: modprobe loads that first.
#include "way.h"
int way_symbol(void);
WAY_CODE(".text", "	nop\n");
static int __init way_init(void) { return way_symbol() - 1; }
static void __exit way_exit(void) { }
module_init(way_init);
module_exit(way_exit);
MODULE_LICENSE("GPL");
