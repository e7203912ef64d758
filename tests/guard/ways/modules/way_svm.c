// AMD: VMRUN, out of tree.
#define WAY_BYTES "\x0f\x01\xd8"
#include "way.h"
WAY_CODE(".text", "	vmrun\n");
WAY_START;
