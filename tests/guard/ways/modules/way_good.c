// The same size and shape as way_bad but for the instruction: a legitimate module.
#include "way.h"
WAY_CODE(".text", "	.byte 0x0f, 0x1f, 0x00\n");
WAY_START;
