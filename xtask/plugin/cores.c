// A plugin for qemu-system-aarch64 (QEMU 9.2 and newer, plugin API 4) that makes the cores of a machine equally fast, and
// says how long they took.
//
// Time is counted in instructions. Every core has a clock that goes on by one with each of its instructions; a core that sleeps
// (WFI, or off) wakes up at the time of the others. From the first mark on no core runs ahead of another that is awake by more
// than AHEAD, however the host schedules the emulator's threads; and a core that interrupts others goes on when all are awake, as
// a thread of the emulator takes its time to wake up. The guest's own clock goes on by a nanosecond with each instruction, so
// that its timer interrupts it as often where it is emulated slowly. The program marks moments by the instruction HINT #127,
// which does nothing. At each, the file that the argument `out=` names gets a line: the clock of the core that marks, and then the
// instructions that each core has executed so far.
//
//   cc -shared -fPIC -O2 -o cores.so cores.c
//   qemu-system-aarch64 -plugin ./cores.so,out=counts …

#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

// What is used of QEMU's plugin API 4 (its qemu-plugin.h; Debian packages none).
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_scoreboard;
typedef struct {
    struct qemu_plugin_scoreboard *score;
    size_t offset;
} qemu_plugin_u64;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
enum qemu_plugin_cond { QEMU_PLUGIN_COND_GE = 7 };
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
typedef void (*qemu_plugin_vcpu_tb_trans_cb_t)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*qemu_plugin_vcpu_simple_cb_t)(qemu_plugin_id_t, unsigned cpu);
typedef void (*qemu_plugin_vcpu_udata_cb_t)(unsigned cpu, void *);
typedef void (*qemu_plugin_udata_cb_t)(qemu_plugin_id_t, void *);
struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t);
uint64_t qemu_plugin_u64_get(qemu_plugin_u64, unsigned cpu);
void qemu_plugin_u64_set(qemu_plugin_u64, unsigned cpu, uint64_t);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, qemu_plugin_vcpu_tb_trans_cb_t);
void qemu_plugin_register_vcpu_idle_cb(qemu_plugin_id_t, qemu_plugin_vcpu_simple_cb_t);
void qemu_plugin_register_vcpu_resume_cb(qemu_plugin_id_t, qemu_plugin_vcpu_simple_cb_t);
void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *, enum qemu_plugin_op, qemu_plugin_u64,
                                                       uint64_t);
void qemu_plugin_register_vcpu_tb_exec_cond_cb(struct qemu_plugin_tb *, qemu_plugin_vcpu_udata_cb_t,
                                               enum qemu_plugin_cb_flags, enum qemu_plugin_cond, qemu_plugin_u64,
                                               uint64_t, void *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, qemu_plugin_vcpu_udata_cb_t,
                                            enum qemu_plugin_cb_flags, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_request_time_control(void);
void qemu_plugin_update_ns(const void *handle, int64_t);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);

#define EXPORTED __attribute__((visibility("default")))
EXPORTED int qemu_plugin_version = 4;

enum {
    CORES = 8,
    MARK = (int)0xd5032fff, // HINT #127
    // MSR ICC_SGI1R_EL1, any register
    INTERRUPT = (int)0xd518cba0,
    REGISTER = 31,
    SLICE = 250,            // instructions between two looks at the others' clocks
    AHEAD = 500,
    TICK = 50000, // nanoseconds in which the guest's clock goes on
    PATIENCE = 1000, // naps of 20 us: a core that the emulator has stopped may wait for this one to stop, too,
                     // and not everybody may have been interrupted
};

static struct {
    _Atomic uint64_t clock, executed;
    atomic_bool there, awake, interrupts;
} cores[CORES];
static qemu_plugin_u64 fresh; // instructions that are not in `clock` and `executed` yet
static atomic_bool marked;
static const void *time_control;
static _Atomic uint64_t told; // what the guest's clock was set to
static FILE *out;

// The time of the slowest other core that is awake, or this one's own.
static uint64_t slowest(unsigned cpu)
{
    uint64_t least = UINT64_MAX;
    for (unsigned other = 0; other < CORES; other++)
        if (other != cpu && cores[other].awake && cores[other].clock < least)
            least = cores[other].clock;
    return least == UINT64_MAX ? cores[cpu].clock : least;
}

// Whether a core that was ever awake sleeps.
static bool somebody_sleeps(void)
{
    for (unsigned core = 0; core < CORES; core++)
        if (cores[core].there && !cores[core].awake)
            return true;
    return false;
}

static void account(unsigned cpu)
{
    uint64_t count = qemu_plugin_u64_get(fresh, cpu);
    qemu_plugin_u64_set(fresh, cpu, 0);
    cores[cpu].clock += count;
    cores[cpu].executed += count;
}

static void tell_time(uint64_t now)
{
    uint64_t before = told;
    if (now >= before + TICK && atomic_compare_exchange_strong(&told, &before, now))
        qemu_plugin_update_ns(time_control, (int64_t)now);
}

static void executed_slice(unsigned cpu, void *data)
{
    (void)data;
    account(cpu);
    cores[cpu].there = cores[cpu].awake = true;
    tell_time(cores[cpu].clock);
    bool interrupts = atomic_exchange(&cores[cpu].interrupts, false);
    if (!marked)
        return;
    const struct timespec nap = {0, 20000};
    for (int naps = 0; naps < PATIENCE && interrupts && somebody_sleeps(); naps++)
        nanosleep(&nap, NULL);
    for (int naps = 0; naps < PATIENCE && cores[cpu].clock > slowest(cpu) + AHEAD; naps++)
        nanosleep(&nap, NULL);
}

static void executed_interrupt(unsigned cpu, void *data)
{
    (void)data;
    cores[cpu].interrupts = true;
}

static void falls_asleep(qemu_plugin_id_t id, unsigned cpu)
{
    (void)id;
    account(cpu);
    cores[cpu].awake = false;
}

static void wakes_up(qemu_plugin_id_t id, unsigned cpu)
{
    (void)id;
    uint64_t now = slowest(cpu);
    if (cores[cpu].clock < now)
        cores[cpu].clock = now;
    cores[cpu].awake = true;
}

static void executed_mark(unsigned cpu, void *data)
{
    (void)data;
    account(cpu);
    marked = true;
    fprintf(out, "%" PRIu64, cores[cpu].clock);
    for (unsigned core = 0; core < CORES; core++)
        fprintf(out, " %" PRIu64, cores[core].executed);
    fputc('\n', out);
    fflush(out);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    size_t length = qemu_plugin_tb_n_insns(tb);
    for (size_t i = 0; i < length; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        int32_t word = 0;
        qemu_plugin_insn_data(insn, &word, sizeof word);
        if (word == MARK)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, executed_mark, QEMU_PLUGIN_CB_NO_REGS, NULL);
        if ((word & ~REGISTER) == INTERRUPT)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, executed_interrupt, QEMU_PLUGIN_CB_NO_REGS, NULL);
    }
    qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, QEMU_PLUGIN_INLINE_ADD_U64, fresh, length);
    qemu_plugin_register_vcpu_tb_exec_cond_cb(tb, executed_slice, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_COND_GE, fresh,
                                              SLICE, NULL);
}

EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4))
            out = fopen(argv[i] + 4, "w");
    if (!out)
        return -1;
    time_control = qemu_plugin_request_time_control();
    if (!time_control)
        return -1;
    fresh.score = qemu_plugin_scoreboard_new(sizeof(uint64_t));
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_idle_cb(id, falls_asleep);
    qemu_plugin_register_vcpu_resume_cb(id, wakes_up);
    return 0;
}
