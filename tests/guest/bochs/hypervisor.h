/* hypervisor.h: what the images share: the serial port, registers, and VMX. Sources: Intel SDM vol. 3, chapters 24 to 28,
 * and appendix B for the numbers of a VMCS's fields. */
#include "oracle.h"
#include <stdint.h>

typedef uint64_t u64;
typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;

enum { TEST_CTRL = 0x33, FEATURES = 0x3a, DETECT_SPLIT = 1 << 29, AC = 17 };
enum { PAGE = 4096, LINE = 64, REGIONS = 0x8c000 };
enum { RDI = 8, RSI = 9 }; /* in guest_registers, as `save` of start.S orders them */

struct frame {
    u64 registers[15], vector, error, rip, cs, rflags, rsp, ss;
};
extern const struct table {
    u16 limit;
    u64 base;
} __attribute__((packed)) gdt_register[], idt_register[];
extern u64 guest_registers[];
extern u8 tss[], guest_start[], guest_stack_end[];
int enter(int first);
void handle(struct frame *frame);
void begin(void);

static inline u64 rdmsr(u32 msr)
{
    u32 low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (u64)high << 32 | low;
}

static inline void wrmsr(u32 msr, u64 value)
{
    __asm__ volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)));
}

static inline void out(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline u8 in(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void say(const char *text)
{
    for (; *text; text++) {
        while (!(in(0x3fd) & 0x20))
            ;
        out(0x3f8, (u8)*text);
    }
}

static inline void say_number(u64 number)
{
    char text[20], *at = text + 19;
    *at = 0;
    do
        *--at = "0123456789abcdef"[number & 15];
    while (number >>= 4);
    say(at);
}

static inline void serial_port(void)
{
    out(0x3fb, 0x83), out(0x3f8, 1), out(0x3f9, 0), out(0x3fb, 3); /* 115,200 bits a second */
}

static inline void end(void)
{
    say("oracle: done\n");
    for (;;)
        __asm__ volatile("cli; hlt");
}

static inline void die(const char *why, u64 one, u64 two)
{
    say("oracle: ");
    say(why);
    say(" 0x");
    say_number(one);
    say(" 0x");
    say_number(two);
    say("\n");
    end();
}

static inline void put(u64 field, u64 value)
{
    u8 failed;
    __asm__ volatile("vmwrite %2, %1; setna %0" : "=q"(failed) : "r"(field), "r"(value) : "cc");
    if (failed)
        die("VMWRITE failed", field, value);
}

static inline u64 get(u64 field)
{
    u64 value;
    __asm__ volatile("vmread %1, %0" : "=r"(value) : "r"(field) : "cc");
    return value;
}

static inline u64 controls(u32 capabilities, u64 wanted)
{
    u64 allowed = rdmsr(capabilities);
    if (wanted & ~(allowed >> 32))
        die("no such control", capabilities, wanted);
    return (wanted | (u32)allowed) & (allowed >> 32);
}

/* A VMCS: what an operation of VMX needs, and a guest in the same memory, at guest_start. */
static inline void prepare(u64 vmcs, u64 bitmap, u64 secondary, u64 debugctl)
{
    u64 cr0, cr3, cr4;
    __asm__ volatile("movq %%cr0, %0; movq %%cr3, %1; movq %%cr4, %2" : "=r"(cr0), "=r"(cr3), "=r"(cr4));
    *(u32 *)vmcs = (u32)rdmsr(0x480);
    __asm__ volatile("vmclear %0; vmptrld %0" : : "m"(vmcs) : "memory", "cc");
    put(0x4000, controls(0x481, 0));
    put(0x4002, controls(0x482, secondary ? 1u << 31 : 0));
    if (secondary)
        put(0x401e, controls(0x48b, secondary));
    put(0x400c, controls(0x483, 1 << 9 | 1 << 2)); /* 64-bit host; save and load debug controls */
    put(0x4012, controls(0x484, 1 << 9 | 1 << 2));
    put(0x4004, bitmap);
    static const u16 zero[] = {0x4006, 0x4008, 0x400a, 0x400e, 0x4010, 0x4014, 0x6000, 0x6002, 0x4016};
    for (unsigned i = 0; i < sizeof zero / sizeof *zero; i++)
        put(zero[i], 0);
    put(0x6c00, cr0), put(0x6c02, cr3), put(0x6c04, cr4);
    put(0x6800, cr0), put(0x6802, cr3), put(0x6804, cr4);
    for (u64 i = 0; i < 12; i += 2) { /* ES, CS, SS, DS, FS, GS */
        put(0x800 + i, i == 2 ? CODE64 : DATA);
        put(0x4800 + i, ~0u);
        put(0x4814 + i, i == 2 ? 0xa09b : 0xc093);
        put(0x6806 + i, 0);
        put(0xc00 + i, i == 2 ? CODE64 : DATA);
    }
    put(0xc0c, TSS), put(0x6c0a, (u64)tss);
    put(0x80e, TSS), put(0x480e, 0x67), put(0x4822, 0x8b), put(0x6814, (u64)tss);
    put(0x80c, 0), put(0x480c, 0), put(0x4820, 0x10000), put(0x6812, 0);
    put(0x6c06, 0), put(0x6c08, 0), put(0x4c00, 0), put(0x6c10, 0), put(0x6c12, 0);
    u64 gdt = gdt_register->base, idt = idt_register->base;
    put(0x6c0c, gdt), put(0x6c0e, idt), put(0x6816, gdt), put(0x6818, idt);
    put(0x4810, gdt_register->limit), put(0x4812, idt_register->limit);
    put(0x482a, 0), put(0x6824, 0), put(0x6826, 0), put(0x4824, 0), put(0x4826, 0), put(0x6822, 0), put(0x2800, ~0ull);
    put(0x2802, debugctl), put(0x681a, 0x400), put(0x6820, 2);
    put(0x681c, (u64)guest_stack_end - 8), put(0x681e, (u64)guest_start);
}

static inline void vmx_on(void)
{
    u64 region = REGIONS;
    if (!(rdmsr(FEATURES) & 1))
        wrmsr(FEATURES, 5);
    *(u32 *)region = (u32)rdmsr(0x480);
    u8 failed;
    __asm__ volatile("vmxon %1; setna %0" : "=q"(failed) : "m"(region) : "memory", "cc");
    if (failed)
        die("VMXON failed", rdmsr(FEATURES), 0);
}
