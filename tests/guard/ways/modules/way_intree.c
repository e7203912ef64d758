// Calls itself in-tree: for VMX that is no excuse.
#include "way.h"
WAY_CODE(".text", "	vmlaunch\n");
WAY_START;
MODULE_INFO(intree, "Y");
