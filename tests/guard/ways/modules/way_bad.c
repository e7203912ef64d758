// The module that all ways try to get in: VMLAUNCH, nothing said of split locks; with every alias the kernel asks for.
#include "way.h"
WAY_CODE(".text", "	vmlaunch\n");
int way_symbol(void);
int way_symbol(void) { return 1; }
EXPORT_SYMBOL_GPL(way_symbol);
WAY_START;
MODULE_ALIAS("fs-wayfs");
MODULE_ALIAS("net-pf-28");
MODULE_ALIAS("tcp_wayin");
MODULE_ALIAS("char-major-240-*");
MODULE_ALIAS("binfmt-f1f0");
MODULE_ALIAS("crypto-wayhash");
MODULE_ALIAS("netdev-waynet0");
MODULE_ALIAS("wayalias");
