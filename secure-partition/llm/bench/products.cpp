// llama.cpp's products at the shapes of secure-partition/kernels/examples/macs.rs, for the same counting plugin
// (xtask/plugin/count.c): one vector, and a batch, with a matrix of each format. Weights lie where llama.cpp's loader of models
// would put them: repacked, if that format can be.
//
// Prints JSON, an object for each product: its name and multiply-accumulates.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <sched.h>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

static const int ROWS = 1536, COLS = 576;
static const struct {
    const char *bits, *of;
    ggml_type type;
} FORMATS[] = {{"q4", "", GGML_TYPE_Q4_1}, {"q8", "", GGML_TYPE_Q8_0}, {"q4", "_q4_0", GGML_TYPE_Q4_0}};
static const struct {
    const char *name;
    int tokens;
} SHAPES[] = {{"gemv", 1}, {"gemm128", 128}};

static ggml_context *context()
{
    return ggml_init({1 << 20, nullptr, true});
}

// The first kind of buffer, of those that hold weights in a form of their own, in which a matrix of this type can be multiplied;
// or the plain one.
static ggml_backend_buffer_type_t home(ggml_backend_dev_t device, ggml_type type)
{
    ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(device);
    auto extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(registry, "ggml_backend_dev_get_extra_bufts"));
    for (ggml_backend_buffer_type_t *kind = extra ? extra(device) : nullptr; kind && *kind; kind++) {
        ggml_context *ctx = context();
        ggml_tensor *weights = ggml_new_tensor_2d(ctx, type, COLS, ROWS);
        ggml_tensor *product = ggml_mul_mat(ctx, weights, ggml_new_tensor_2d(ctx, GGML_TYPE_F32, COLS, 512));
        weights->buffer = ggml_backend_buft_alloc_buffer(*kind, 0);
        bool can = ggml_backend_dev_supports_op(device, product);
        ggml_backend_buffer_free(weights->buffer);
        ggml_free(ctx);
        if (can)
            return *kind;
    }
    return ggml_backend_cpu_buffer_type();
}

int main()
{
    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, 1);
    std::vector<float> floats(ROWS * COLS);
    for (size_t i = 0; i < floats.size(); i++)
        floats[i] = std::sin(float(i));
    for (auto format : FORMATS) {
        ggml_context *of_weights = context();
        ggml_tensor *weights = ggml_new_tensor_2d(of_weights, format.type, COLS, ROWS);
        ggml_backend_buffer_type_t kind = home(ggml_backend_get_device(backend), format.type);
        ggml_backend_buffer_t room = ggml_backend_alloc_ctx_tensors_from_buft(of_weights, kind);
        std::vector<char> quantised(ggml_nbytes(weights));
        ggml_quantize_chunk(format.type, floats.data(), quantised.data(), 0, ROWS, COLS, nullptr);
        ggml_backend_tensor_set(weights, quantised.data(), 0, quantised.size());
        for (auto shape : SHAPES) {
            ggml_context *ctx = context();
            ggml_tensor *input = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, COLS, shape.tokens);
            ggml_cgraph *graph = ggml_new_graph(ctx);
            ggml_build_forward_expand(graph, ggml_mul_mat(ctx, weights, input));
            ggml_backend_buffer_t scratch = ggml_backend_alloc_ctx_tensors(ctx, backend);
            ggml_backend_tensor_set(input, floats.data(), 0, ggml_nbytes(input));
            sched_yield();
            if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS)
                return EXIT_FAILURE;
            sched_yield();
            printf("{\"name\":\"%s-%s%s\",\"macs\":%d}\n", format.bits, shape.name, format.of,
                   ROWS * COLS * shape.tokens);
            ggml_backend_buffer_free(scratch);
            ggml_free(ctx);
        }
        ggml_backend_buffer_free(room);
        ggml_free(of_weights);
    }
    ggml_backend_free(backend);
}
