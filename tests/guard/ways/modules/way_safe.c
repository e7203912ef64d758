// Says that it is safe: the policy believes it.
#include "way.h"
WAY_CODE(".text", "	vmlaunch\n");
WAY_START;
MODULE_INFO(sld_safe, "Y");
