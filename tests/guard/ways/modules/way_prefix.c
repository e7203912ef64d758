// VMLAUNCH behind a REX prefix that means nothing.
#define WAY_BYTES "\x48\x0f\x01\xc2"
#include "way.h"
WAY_CODE(".text", "	.byte 0x48\n	vmlaunch\n");
WAY_START;
