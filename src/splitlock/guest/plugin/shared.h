/*
 * shared.h: the file that the plugin and splitlock both have mapped. src/splitlock/guest/shared.py has the same layout.
 *
 * What is counted lies there and nowhere else, so that it outlives QEMU however that ends.
 */
#pragma once
#include <stdint.h>
#ifdef __cplusplus /* Bochs' library: one thread */
#define _Atomic volatile
#define _Static_assert static_assert
#endif

enum { CPUS = 256, ENTRIES = 1 << 16, CODE = 16, PLACES = 4096 };
enum { HYPERVISORS = 16 };
#define HYPERVISOR 0xffff0000 /* asked instead of an entry's number, plus the number of a struct hypervisor: who is that? */
#define LOAD UINT32_MAX /* asked instead of an entry's number: the boot sector waits for what it is to boot */

/* Numbers of entry.registers. */
enum { CR0, CR3, CR4, EFER, EFLAGS, CS, GS_BASE, K_GS_BASE, REGISTERS };

/* entry.flags. IN_NESTED: in a virtual machine of this machine's own; IN_LEVEL_2: in one of that one's own; VMX_ROOT: the
 * processor was in VMX operation, in no guest. */
enum { IN_NESTED = 1, IN_SMM = 2, AFTER_BOOT_SECTOR = 4, KNOWS_REGISTERS = 8, VMX_ROOT = 16, IN_LEVEL_2 = 32 };
enum { WORLD = IN_NESTED | VMX_ROOT | IN_LEVEL_2 }; /* these tell entries apart */

/* One locked instruction that crossed, as one program runs it. */
struct entry {
    _Atomic uint64_t hits;  /* that executed */
    _Atomic uint64_t traps; /* exceptions raised for it: detection.h */
    _Atomic uint64_t signals; /* SIGBUS that the kernel sent for these */
    uint64_t trapped_at, waited, longest; /* nanoseconds: from a trap until it executed, in all and at most */
    uint64_t waits;   /* how often that was */
    uint64_t pc;      /* linear address of the instruction */
    uint64_t address; /* of the operand, at the first hit */
    uint64_t task, started, execs; /* who: see struct header; 0 where that is unknown */
    uint64_t registers[REGISTERS]; /* at the first hit */
    uint64_t host_cr3;             /* of the host, when this is in a nested guest */
    uint64_t space;                /* of the nested guest: its EPT pointer (SDM vol. 3, 25.6.11); 0: none, or not known */
    uint64_t host_rip;             /* where its hypervisor goes on at a VM exit; 0: none, or not known */
    /* What its exceptions led to, as the processor saw it (with VMX only): */
    uint64_t exits;         /* VM exits: the hypervisor has it */
    uint64_t injected;      /* of these: that the hypervisor gave to the guest afterwards */
    uint64_t delivered;     /* by the interrupt table, without a VM exit */
    uint64_t triple_faults; /* the guest died of it */
    uint32_t vcpu;
    uint8_t size, length; /* bytes of the operand, of the instruction */
    uint8_t mode;         /* 16, 32, 64; 0: unknown */
    uint8_t flags;
    uint8_t code[CODE];
};

/* Who enters virtual machines, told by where a VM exit goes on. */
struct hypervisor {
    uint64_t rip, cr3;
    _Atomic uint64_t entries; /* VM entries */
};

struct header {
    /* by the plugin */
    uint32_t api;           /* version of QEMU's plugin interface; 0: the plugin was not loaded */
    uint32_t knows;         /* bit 0: registers, bit 1: 16-, 32- or 64-bit code, both for certain */
    _Atomic uint64_t sites; /* locked instructions translated, each time */
    _Atomic uint64_t hits;  /* split locks in all */
    _Atomic uint64_t lost;  /* of these: not in an entry, as all were taken */
    _Atomic uint64_t entries;
    _Atomic uint64_t boot_sector; /* whether one has begun to run */
    _Atomic uint64_t traps, resets; /* exceptions raised; how often the machine began anew, the first time included */
    uint64_t clock; /* of the machine at the last exception, in nanoseconds; 0: its time is ours */
    /* of a vCPU in the kernel's half, soon after splitlock has set `look`; 0: nothing there ran yet */
    uint64_t cr3, cr4;
    _Atomic uint64_t look;
    /* by splitlock, once it knows the guest's kernel: where the running task is to be had. 0: unknown */
    uint64_t direct_map;     /* virtual address at which the kernel has all memory */
    uint64_t started, execs; /* offsets in task_struct of start_time and self_exec_id */
    uint64_t exec_bytes;     /* size of the latter */
    _Atomic uint64_t send_fault; /* address of the kernel's force_sig_fault(signal, code, address) */
    _Atomic uint64_t current[CPUS]; /* by vCPU: physical address of its pointer to the running task */
    /* with detect=stub: */
    _Atomic uint64_t escaped;       /* split locks that executed on an armed vCPU */
    _Atomic uint64_t n_places;      /* more than PLACES: the rest is in no place */
    uint64_t places[PLACES];        /* linear addresses of what is_place() in detection.h is, as it is translated */
    _Atomic uint8_t armed[CPUS];    /* by splitlock: nothing may split on this vCPU but what gets an exception */
    /* about detection and VMX: */
    _Atomic uint64_t turned_on; /* whether TEST_CTRL's bit 29 has ever been set by software */
    _Atomic uint64_t n_hypervisors;
    struct hypervisor hypervisors[HYPERVISORS]; /* with VMX only; the last one stands for all others, too */
};

enum { TABLE = 65536 }; /* where the entries begin */
_Static_assert(sizeof(struct header) <= TABLE, "the header overruns the table");
_Static_assert(sizeof(struct entry) == 240, "shared.py has it otherwise");
