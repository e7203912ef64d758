// Keys and texts that only look like it.
#include "way.h"
WAY_CODE(".text", "	vmlaunch\n");
WAY_START;
MODULE_INFO(not_sld_safe, "Y");
MODULE_INFO(author, "x sld_safe=Y");
static const char text[] __used = "sld_safe=Y";
