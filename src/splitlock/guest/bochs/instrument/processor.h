// processor.h: the processor of Bochs' model, with the model-specific registers and CPUID bits of split- and bus-lock
// detection, and without what Bochs and Linux's KVM do not agree on.
#pragma once
#include "bochs.h"
#include "cpu/cpu.h"
#include "cpu/cpuid.h"

// Time is instructions: the time stamp counter counts one each, and so many a microsecond, as bochsrc's `ips` says, too.
enum { TSC_MHZ = 25 };

// What is detected, and whether CPUID and CORE_CAPABILITIES say so: `unannounced` is a processor that raises #AC under a
// kernel that does not know of it, bit 29 of TEST_CTRL being set at its reset.
struct detection {
    bool split_locks, unannounced, bus_locks;
};

class detecting_t : public bx_cpuid_t {
public:
    detecting_t(const bx_cpuid_t *model, const detection &what);
    const char *get_name() const override { return model->get_name(); }
    Bit32u get_vmx_extensions_bitmask() const override { return model->get_vmx_extensions_bitmask(); }
    Bit32u get_svm_extensions_bitmask() const override { return model->get_svm_extensions_bitmask(); }
    void get_cpuid_leaf(Bit32u function, Bit32u subfunction, cpuid_function_t *leaf) const override;
    void dump_cpuid() const override { model->dump_cpuid(); }
    int rdmsr(Bit32u index, Bit64u *value) override;
    int wrmsr(Bit32u index, Bit64u value) override;

    void reset();
    bool detects_split_locks() const;
    bool detects_bus_locks() const;
    bool knows_bus_locks() const { return what.bus_locks; }
    // DEBUGCTL as VM entries and exits find and leave it (SDM vol. 3, 26.5.1.1 and 28.3.1, 28.5.1)
    Bit64u debugctl;

private:
    const bx_cpuid_t *model;
    detection what;
    Bit64u test_ctrl, misc_enable;
};

// Takes out of the processor's VMX capabilities what Bochs does otherwise than KVM expects, and adds bus-lock exits.
void settle_vmx(BX_CPU_C *cpu, const detection &what);
