// levels.h: which world the processor is in: none of VMX's, the hypervisor's, a guest's, a guest's guest's.
#pragma once
#include "bochs.h"

Bit8u levels_world(); // flags of shared.h's WORLD
const char *levels_place(unsigned flags); // the same in words
void levels_reset(); // of the machine, or VMX is turned off
void levels_clear(Bit64u vmcs); // VMCLEAR
void levels_entry(); // a VM entry is under way
void levels_exit(Bit32u reason); // a VM exit
