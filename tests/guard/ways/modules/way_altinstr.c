// Where replacements for other instructions are kept.
#include "way.h"
WAY_CODE(".altinstr_replacement, \"ax\"", "	vmlaunch\n");
WAY_START;
