/*
 * qemu.h: the part of QEMU's plugin interface that is used here, versions 1 (QEMU 6.1 to 8.2) to 4 (QEMU 9.2 to 10.0).
 *
 * No package ships QEMU's own header. What a version does not have is declared weak: it is null there. The versions'
 * binary interfaces agree in all of this but one function, qemu_plugin_insn_data (see copy_code in plugin.c).
 * Source: include/qemu/qemu-plugin.h.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define EXPORT __attribute__((visibility("default")))
#define WEAK __attribute__((weak))

enum { QEMU_OLDEST = 1, QEMU_REGISTERS = 2, QEMU_COPIES_CODE = 3, QEMU_NEWEST = 4 };

typedef struct {
    char *data;
    unsigned len;
} GArray;
typedef struct {
    uint8_t *data;
    unsigned len;
} GByteArray;
typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
typedef struct {
    const char *target_name;
    struct {
        int min, cur;
    } version;
    bool system_emulation;
    struct {
        int smp_vcpus, max_vcpus;
    } system;
} qemu_info_t;
typedef struct {
    void *handle;
    const char *name;
    const char *feature;
} qemu_plugin_reg_descriptor;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_CB_R_REGS, QEMU_PLUGIN_CB_RW_REGS };
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_R = 1, QEMU_PLUGIN_MEM_W, QEMU_PLUGIN_MEM_RW };
typedef void (*qemu_plugin_vcpu_simple_cb_t)(qemu_plugin_id_t, unsigned);
typedef void (*qemu_plugin_vcpu_udata_cb_t)(unsigned, void *);
typedef void (*qemu_plugin_vcpu_tb_trans_cb_t)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*qemu_plugin_vcpu_mem_cb_t)(unsigned, qemu_plugin_meminfo_t, uint64_t, void *);
void qemu_plugin_register_vcpu_init_cb(qemu_plugin_id_t, qemu_plugin_vcpu_simple_cb_t);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, qemu_plugin_vcpu_tb_trans_cb_t);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, qemu_plugin_vcpu_udata_cb_t,
                                            enum qemu_plugin_cb_flags, void *);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, qemu_plugin_vcpu_mem_cb_t, enum qemu_plugin_cb_flags,
                                      enum qemu_plugin_mem_rw, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *);
bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t);
unsigned qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t);

/* Since version 2. */
WEAK GArray *qemu_plugin_get_registers(void);
WEAK int qemu_plugin_read_register(void *, GByteArray *);

/* GLib, which QEMU is linked to: the arrays that registers come in. */
WEAK GByteArray *g_byte_array_new(void);
WEAK GByteArray *g_byte_array_set_size(GByteArray *, unsigned);
WEAK void g_byte_array_unref(GByteArray *);
WEAK char *g_array_free(GArray *, int);

/* QEMU's own functions, exported by builds with loadable modules (Debian's, Fedora's): not the plugin interface. */
struct CPUState;
WEAK struct CPUState *qemu_get_cpu(int);
WEAK int x86_cpu_gdb_read_register(struct CPUState *, GByteArray *, int);
WEAK void x86_cpu_dump_state(struct CPUState *, FILE *, int);
