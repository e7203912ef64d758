// exited.h: which split lock's exception a guest's hypervisor got last, so that what it injects later is known to be that.
#pragma once
#include "record.h"

void exited_note(struct entry *, unsigned vector); // a VM exit from the current VMCS
void exited_reset();
struct entry *exited_find(unsigned vector);        // for the current VMCS; null: none
