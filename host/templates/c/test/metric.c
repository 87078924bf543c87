#include "fake_host.h"

typedef struct {
    double value;
    char state[64];
    size_t state_len;
} Results;

static HostStatus put_f64(void *ctx, HostStr name, double value) {
    CHECK(is(name, "my_plugin"));
    ((Results *)ctx)->value = value;
    return HOST_OK;
}

static HostStatus put_bytes(void *ctx, HostStr bytes) {
    Results *results = ctx;
    CHECK(bytes.len <= sizeof results->state);
    memcpy(results->state, bytes.ptr, bytes.len);
    results->state_len = bytes.len;
    return HOST_OK;
}

static const HostMetric *metric;

// Creates a metric and updates it with one batch: a 2x2 matrix, stored column by column.
static void *seen(float *nll, const char *settings) {
    void *instance = NULL;
    CHECK(metric->create(&host, str(settings), &instance) == HOST_OK);
    int64_t shape[] = {2, 2}, strides[] = {1, 2};
    DLTensor dl = {nll, {1, 0}, 2, {2, 32, 1}, shape, strides, 0};
    HostTensor tensor = {sizeof tensor, HOST_TENSOR_READ_ONLY, str("nll"), &dl, NULL};
    HostBatch batch = {sizeof batch, 0, 1, &tensor, 1};
    CHECK(metric->update(instance, &batch) == HOST_OK);
    dl.dtype.bits = 64;
    CHECK(metric->update(instance, &batch) == HOST_UNSUPPORTED);
    batch.n_tensors = 0;
    CHECK(metric->update(instance, &batch) == HOST_UNSUPPORTED);
    return instance;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    metric = load(argv[1], HOST_KIND_METRIC);
    void *one = seen((float[]){0.5f, 9.0f, 1.0f, 2.0f}, "{\"threshold\":5.0}");
    void *other = seen((float[]){4.0f, 4.0f, 4.0f, 0.0f}, "{\"threshold\":3.0}");
    Results results = {0};
    HostOut out = {sizeof out, 0, &results, put_f64, put_bytes};
    CHECK(metric->compute(one, &out) == HOST_OK && results.value == 0.25);
    CHECK(metric->export_state(other, &out) == HOST_OK);
    HostStr state = {(const uint8_t *)results.state, results.state_len};
    CHECK(metric->merge_state(one, state) == HOST_OK);
    CHECK(metric->compute(one, &out) == HOST_OK && results.value == 0.5);
    state.len--;
    CHECK(metric->merge_state(one, state) != HOST_OK);
    CHECK(metric->reset(one) == HOST_OK && metric->compute(one, &out) != HOST_OK);
    metric->destroy(one);
    metric->destroy(other);
    puts("ok");
    return 0;
}
