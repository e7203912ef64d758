// buslocks.h: what a bus lock leads to, once its instruction is done: a #DB, a VM exit, or one after the other.
#pragma once
#include "processor.h"
#include "record.h"

void buslocks_open(const detecting_t *);
void buslocks_reset();
void buslocks_note(const split &); // an instruction has locked the bus
void buslocks_write_debug_register(bxInstruction_c *); // executes a MOV there
// #DB begins: a VM exit comes instead where the hypervisor asks for one (this does not return then).
void buslocks_exception();
void buslocks_interrupt(); // delivery of vector 1 begins
void buslocks_vm_exit(Bit32u reason, Bit64u &qualification); // a VM exit begins
void buslocks_vm_exited(); // its registers are loaded
void buslocks_enter(); // a VM entry begins
void buslocks_vm_entered(); // its registers are loaded
void buslocks_not_entered(); // what enter() did is undone where it came to nothing
