// Writes an MSR through the kernel's table of operations.
#define WAY_BYTES ""
#include "way.h"
#include <asm/msr.h>
WAY_CODE(".text", "	nop\n");
void way_call(void);
void way_call(void) { wrmsrl(0x33, 0); }
WAY_START;
