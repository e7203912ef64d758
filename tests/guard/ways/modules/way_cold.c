// In the part that the compiler puts away.
#include "way.h"
WAY_CODE(".text.unlikely", "	vmlaunch\n");
WAY_START;
