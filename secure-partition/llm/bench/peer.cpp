// llama.cpp at the steps of model-loader/examples/steps.rs, for the same counting plugin (xtask/plugin/count.c).
//
//   peer MODEL TEXT PROMPT     take in PROMPT tokens as one batch; if they are 128, forget them, answer the first 5 with 40
//   peer --requantise IN OUT   the model with every matrix in Q4_0
//
// One thread, default parameters but for the sizes.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sched.h>
#include <string>
#include <vector>

#include "llama.h"

static const int SHORT = 128, QUESTION = 5, CONTEXT = 512;
static const size_t ANSWER[] = {8, 40};

static int fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    return 1;
}

// The token with the highest logit, the first of them.
static llama_token highest(const float *logits, int count)
{
    int best = 0;
    for (int token = 0; token < count; token++)
        if (logits[token] > logits[best])
            best = token;
    return best;
}

static int requantise(const char *in, const char *out)
{
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = LLAMA_FTYPE_MOSTLY_Q4_0;
    params.pure = params.allow_requantize = true;
    params.nthread = 1;
    return llama_model_quantize(in, out, &params) ? fail("cannot requantise") : 0;
}

static int steps(const char *path, const char *text_path, int batch)
{
    llama_model *model = llama_model_load_from_file(path, llama_model_default_params());
    if (!model)
        return fail("cannot load the model");
    const llama_vocab *vocab = llama_model_get_vocab(model);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = CONTEXT;
    params.n_batch = params.n_ubatch = batch;
    params.n_threads = params.n_threads_batch = 1;
    llama_context *context = llama_init_from_model(model, params);
    if (!context)
        return fail("cannot make a context");

    std::ifstream file(text_path, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    std::vector<llama_token> prompt(text.size() + 8);
    int count = llama_tokenize(vocab, text.data(), text.size(), prompt.data(), prompt.size(), true, false);
    if (batch < 1 || count < batch)
        return fail("the text has fewer tokens than the prompt");

    const int tokens = llama_vocab_n_tokens(vocab);
    std::vector<llama_token> answer;
    sched_yield();
    if (llama_decode(context, llama_batch_get_one(prompt.data(), batch)))
        return fail("cannot evaluate the text");
    sched_yield();
    if (batch != SHORT)
        return 0;
    llama_memory_clear(llama_get_memory(context), true);
    if (llama_decode(context, llama_batch_get_one(prompt.data(), QUESTION)))
        return fail("cannot evaluate the prompt");
    answer.push_back(highest(llama_get_logits_ith(context, -1), tokens));
    for (size_t end : ANSWER) {
        while (answer.size() < end) {
            llama_token last = answer.back();
            if (llama_decode(context, llama_batch_get_one(&last, 1)))
                return fail("cannot evaluate a token");
            answer.push_back(highest(llama_get_logits_ith(context, -1), tokens));
        }
        sched_yield();
    }
    printf("{\"answer\":[");
    for (size_t i = 0; i < answer.size(); i++)
        printf("%s%d", i ? "," : "", answer[i]);
    printf("]}\n");
    return 0;
}

int main(int argc, char **argv)
{
    llama_backend_init();
    if (argc == 4 && !strcmp(argv[1], "--requantise"))
        return requantise(argv[2], argv[3]);
    if (argc == 4)
        return steps(argv[1], argv[2], atoi(argv[3]));
    return fail("usage: peer MODEL TEXT PROMPT | peer --requantise IN OUT");
}
