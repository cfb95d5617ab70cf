// A plugin for qemu-aarch64 (QEMU 4.2 to 8.2, plugin API 1) that counts the instructions of the emulated program.
//
// Each translated block has one counter that is added to inline. The program marks moments by the system call sched_yield,
// which nothing else makes in a program of one thread. At each, and at the end, the file that the argument `out=` names gets
// a line: the count so far, and the time in nanoseconds; then a line for each block that was executed since the mark before:
// a tab, how often, its address, and its instructions, all but the first in hexadecimal.
//
//   cc -shared -fPIC -O2 -o count.so count.c
//   qemu-aarch64 -plugin ./count.so,out=counts -cpu max PROGRAM

#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// What is used of QEMU's plugin API 1 (its qemu-plugin.h; Debian packages none).
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*qemu_plugin_vcpu_tb_trans_cb_t)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*qemu_plugin_vcpu_syscall_cb_t)(qemu_plugin_id_t, unsigned cpu, int64_t number, uint64_t, uint64_t,
                                              uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
typedef void (*qemu_plugin_udata_cb_t)(qemu_plugin_id_t, void *);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, qemu_plugin_vcpu_tb_trans_cb_t);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, qemu_plugin_vcpu_syscall_cb_t);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, qemu_plugin_udata_cb_t, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

#define EXPORTED __attribute__((visibility("default")))
EXPORTED int qemu_plugin_version = 1;

enum { SCHED_YIELD = 124 }; // of Linux on AArch64

struct block {
    struct block *next;
    uint64_t executed, executed_before; // in all, and up to the mark before
    uint64_t address;
    size_t length;
    uint32_t instructions[];
};

static struct block *blocks;
static FILE *out;

static void write_count(void)
{
    struct timespec now;
    uint64_t instructions = 0;
    clock_gettime(CLOCK_MONOTONIC, &now);
    for (const struct block *block = blocks; block; block = block->next)
        instructions += block->executed * block->length;
    fprintf(out, "%" PRIu64 " %" PRIu64 "\n", instructions, (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec);
    for (struct block *block = blocks; block; block = block->next) {
        if (block->executed == block->executed_before)
            continue;
        fprintf(out, "\t%" PRIu64 " %" PRIx64, block->executed - block->executed_before, block->address);
        for (size_t i = 0; i < block->length; i++)
            fprintf(out, " %" PRIx32, block->instructions[i]);
        fputc('\n', out);
        block->executed_before = block->executed;
    }
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    size_t length = qemu_plugin_tb_n_insns(tb);
    struct block *block = calloc(1, sizeof *block + length * sizeof *block->instructions);
    if (!block)
        abort();
    block->address = qemu_plugin_tb_vaddr(tb);
    block->length = length;
    for (size_t i = 0; i < length; i++)
        memcpy(&block->instructions[i], qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), 4);
    block->next = blocks;
    blocks = block;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &block->executed, 1);
}

static void called(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                   uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number == SCHED_YIELD)
        write_count();
}

static void ended(qemu_plugin_id_t id, void *data)
{
    (void)id, (void)data;
    write_count();
    fclose(out);
}

EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4))
            out = fopen(argv[i] + 4, "w");
    if (!out)
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
