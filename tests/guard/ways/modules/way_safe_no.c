// The key with another value.
#include "way.h"
WAY_CODE(".text", "	vmlaunch\n");
WAY_START;
MODULE_INFO(sld_safe, "N");
