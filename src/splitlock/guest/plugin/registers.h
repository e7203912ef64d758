/*
 * registers.h: what state is a vCPU in? By the plugin interface since version 2, else by QEMU's own functions where it
 * exports them.
 */
#include "qemu.h"
#include "shared.h"
#include <stdlib.h>
#include <string.h>

static void *handles[REGISTERS]; /* null: by QEMU's own functions */

/* Looks for the handles, which are the same for every vCPU; to be called on one. Whether all were found. */
static bool find_registers(void)
{
    static const char *const names[REGISTERS] = {
        [CR0] = "cr0", [CR3] = "cr3", [CR4] = "cr4", [EFER] = "efer",
        [EFLAGS] = "eflags", [CS] = "cs", [GS_BASE] = "gs_base", [K_GS_BASE] = "k_gs_base",
    };
    GArray *found = qemu_plugin_get_registers();
    int known = 0;
    for (unsigned i = 0; i < found->len; i++) {
        const qemu_plugin_reg_descriptor *each = (qemu_plugin_reg_descriptor *)found->data + i;
        for (int j = 0; j < REGISTERS; j++)
            if (!handles[j] && strcmp(each->name, names[j]) == 0)
                handles[j] = each->handle, known++;
    }
    g_array_free(found, 1);
    if (known != REGISTERS)
        memset(handles, 0, sizeof handles);
    return known == REGISTERS;
}

static uint64_t read_register(unsigned vcpu, int which)
{
    /* As gdb's description of x86-64 numbers them (gdb-xml/i386-64bit.xml). */
    static const int numbers[REGISTERS] = {
        [CR0] = 27, [CR3] = 29, [CR4] = 30, [EFER] = 32, [EFLAGS] = 17, [CS] = 18, [GS_BASE] = 25, [K_GS_BASE] = 26,
    };
    uint64_t value = 0;
    GByteArray *buffer = g_byte_array_new();
    if (handles[which])
        qemu_plugin_read_register(handles[which], buffer);
    else
        x86_cpu_gdb_read_register(qemu_get_cpu((int)vcpu), buffer, numbers[which]);
    memcpy(&value, buffer->data, buffer->len < 8 ? buffer->len : 8);
    g_byte_array_unref(buffer);
    return value;
}

static void read_registers(unsigned vcpu, uint64_t *values)
{
    for (int i = 0; i < REGISTERS; i++)
        values[i] = read_register(vcpu, i);
}

/* 16, 32 or 64, and whether it is in system management mode, as QEMU itself prints it. */
static void read_mode(unsigned vcpu, struct entry *entry)
{
    char *text = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&text, &size);
    if (!file)
        return;
    x86_cpu_dump_state(qemu_get_cpu((int)vcpu), file, 0);
    fclose(file);
    const char *line = strstr(text, "\nCS =");
    if (line) {
        size_t length = strcspn(line + 1, "\n") + 1;
        entry->mode = memmem(line, length, "CS64", 4) ? 64 : memmem(line, length, "CS32", 4) ? 32 : 16;
    }
    if (strstr(text, "SMM=1"))
        entry->flags |= IN_SMM;
    free(text);
}
