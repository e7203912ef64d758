// A hypervisor's first step only, taken for real: VMXON and VMXOFF.
#include "blind.h"

static int __init blind_on_init(void)
{
    struct host host;
    u32 *page = region();
    bool done = page && boot_cpu_has(X86_FEATURE_VMX) && on(&host, page);

    if (done)
        off(&host);
    free_page((unsigned long)page);
    pr_notice("blind_on: done=%d\n", done);
    return 0;
}

static void __exit blind_on_exit(void)
{
}

module_init(blind_on_init);
module_exit(blind_on_exit);
MODULE_DESCRIPTION("A hypervisor's first step");
