// For the races: the files of two of these, one with the instruction replaced in place.
#include "way.h"
WAY_CODE(".text", "	vmlaunch\n");
WAY_START;
