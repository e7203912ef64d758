// levels.cc: see levels.h.
//
// The processor knows one level of guests. A hypervisor that gives VMX to its guest runs the guest's own guest in a VMCS of
// its own making, the guest's VMLAUNCH or VMRESUME being an exit from the guest's VMCS: so a VMCS whose first entry comes
// after such an exit is one of the second level, and each other one of the first. So it stays until VMCLEAR, which each VMCS
// begins with (SDM vol. 3, 25.11.3: its memory may have been another one's), or VMXOFF. Between the exit and that entry the
// hypervisor may enter other guests, which it has entered before.
#include "levels.h"
#include "cpu/cpu.h"
#include "shared.h"

enum { MANY = 64, REASON = 0xffff };

static struct {
    Bit64u vmcs; // its pointer
    bool second;
} known[MANY]; // the last ones that were entered and not cleared
static unsigned next;
static Bit64u launched_by; // the VMCS whose guest has asked for a guest of its own, until one of the two is entered

static unsigned find(Bit64u vmcs)
{
    unsigned i = 0;
    while (i < MANY && known[i].vmcs != vmcs)
        i++;
    return i;
}

static bool is_second(Bit64u vmcs)
{
    unsigned i = find(vmcs);
    return i != MANY && known[i].second;
}

Bit8u levels_world()
{
    if (BX_CPU(0)->in_vmx_guest)
        return IN_NESTED | (is_second(BX_CPU(0)->vmcsptr) ? IN_LEVEL_2 : 0);
    return BX_CPU(0)->in_vmx ? VMX_ROOT : 0;
}

const char *levels_place(unsigned flags)
{
    return flags & IN_LEVEL_2 ? "nested" : flags & IN_NESTED ? "guest" : flags & VMX_ROOT ? "vmx-root" : "no-vmx";
}

void levels_entry()
{
    Bit64u vmcs = BX_CPU(0)->vmcsptr;
    unsigned i = find(vmcs);
    if (i == MANY) {
        i = find(0); // a place that is free
        i = i == MANY ? next++ % MANY : i;
        known[i].vmcs = vmcs;
        known[i].second = launched_by && launched_by != vmcs;
    }
    if (known[i].second || launched_by == vmcs)
        launched_by = 0;
}

// Of the second level itself it is an exit like others: its hypervisor is told.
void levels_exit(Bit32u reason)
{
    reason &= REASON;
    if ((reason == VMX_VMEXIT_VMLAUNCH || reason == VMX_VMEXIT_VMRESUME) && !is_second(BX_CPU(0)->vmcsptr))
        launched_by = BX_CPU(0)->vmcsptr;
}

void levels_clear(Bit64u vmcs)
{
    unsigned i = find(vmcs);
    if (i != MANY)
        known[i].vmcs = 0;
    if (launched_by == vmcs)
        launched_by = 0;
}

void levels_reset()
{
    memset(known, 0, sizeof known);
    launched_by = 0;
}
