// my-plugin: a metric that returns the share of costly tokens. A token is costly if its loss is above
// `threshold` nats.
//
// `make` builds it; `make test` tests it. The comments in host_plugin.h say what each function must do and on
// which thread it runs.

#include "host_plugin.h"
#include "settings.h"
#include <stdlib.h>
#include <string.h>

#define ID "my-plugin"
#define VERSION "0.1.0"
#define STR(literal) {(const uint8_t *)(literal), sizeof(literal) - 1}
#define STATE_VERSION 1

// The manifest. The host reads it from the library file before it runs any of the code below. "config" is the
// JSON Schema of the settings.
__attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used)) static const char manifest[] =
    "{\"abi\": [1, 0], \"id\": \"" ID "\", \"version\": \"" VERSION "\","
    " \"description\": \"Share of tokens whose loss is above a threshold\","
    " \"kinds\": [\"metric\"], \"needs\": [\"nll\"],"
    " \"config\": {\"type\": \"object\", \"additionalProperties\": false, \"properties\": {"
    "   \"threshold\": {\"type\": \"number\", \"default\": 5.0,"
    "     \"description\": \"Number of nats above which a token counts as costly\"}}}}";

typedef struct {
    const HostApi *api;
    double threshold;
    uint64_t costly, tokens; // Counts can be merged exactly; a share cannot.
} Metric;

// The format that export_state writes and merge_state reads.
typedef struct {
    uint64_t version, costly, tokens;
} State;

static HostStr str(const char *text) {
    return (HostStr){(const uint8_t *)text, strlen(text)};
}

static HostStatus fail(const Metric *self, HostStatus status, const char *why) {
    self->api->set_error(self->api->ctx, str(why));
    return status;
}

static const HostTensor *find(const HostBatch *batch, const char *name) {
    const HostTensor *tensor = batch->tensors;
    for (size_t i = 0; i < batch->n_tensors; i++) {
        if (tensor->name.len == strlen(name) && !memcmp(tensor->name.ptr, name, tensor->name.len))
            return tensor;
        // A newer host can pass larger structs, so advance by struct_size.
        tensor = (const HostTensor *)((const char *)tensor + tensor->struct_size);
    }
    return NULL;
}

static HostStatus create(const HostApi *api, HostStr config, void **instance) {
    Metric *self = calloc(1, sizeof *self);
    if (!self)
        return HOST_ERROR;
    self->api = api;
    self->threshold = 5.0;
    settings_number(config, "threshold", &self->threshold);
    *instance = self;
    return HOST_OK;
}

static void destroy(void *instance) { free(instance); }

static HostStatus reset(void *instance) {
    Metric *self = instance;
    self->costly = self->tokens = 0;
    return HOST_OK;
}

static HostStatus update(void *instance, const HostBatch *batch) {
    Metric *self = instance;
    const HostTensor *tensor = find(batch, "nll"); // (batch, time), in nats
    if (!tensor)
        return fail(self, HOST_UNSUPPORTED, "the host did not pass nll");
    const DLTensor *nll = tensor->dl;
    if (nll->device.device_type != 1 || nll->ndim != 2 || nll->dtype.code != 2 ||
        nll->dtype.bits != 32 || nll->dtype.lanes != 1)
        return fail(self, HOST_UNSUPPORTED, "nll is not an f32 matrix in main memory");
    const float *first = (const float *)((const char *)nll->data + nll->byte_offset);
    for (int64_t i = 0; i < nll->shape[0]; i++)
        for (int64_t j = 0; j < nll->shape[1]; j++) {
            // Written so that NaN counts as costly.
            self->costly += !(first[i * nll->strides[0] + j * nll->strides[1]] <= self->threshold);
            self->tokens++;
        }
    return HOST_OK;
}

static HostStatus export_state(void *instance, const HostOut *out) {
    const Metric *self = instance;
    State state = {STATE_VERSION, self->costly, self->tokens};
    return out->put_bytes(out->ctx, (HostStr){(const uint8_t *)&state, sizeof state});
}

static HostStatus merge_state(void *instance, HostStr bytes) {
    Metric *self = instance;
    State state;
    if (bytes.len != sizeof state)
        return fail(self, HOST_ERROR, "the state does not have 24 bytes");
    memcpy(&state, bytes.ptr, sizeof state);
    if (state.version != STATE_VERSION)
        return fail(self, HOST_UNSUPPORTED, "unsupported state version");
    self->costly += state.costly;
    self->tokens += state.tokens;
    return HOST_OK;
}

static HostStatus compute(void *instance, const HostOut *out) {
    const Metric *self = instance;
    if (!self->tokens)
        return fail(self, HOST_ERROR, "no tokens were evaluated");
    return out->put_f64(out->ctx, str("my_plugin"), (double)self->costly / (double)self->tokens);
}

const HostPlugin *host_plugin_entry_v1(const HostApi *api) {
    (void)api; // No version check: the symbol implies major version 1, and any minor version is enough.
    static const HostMetric metric = {sizeof metric, 0,      create,       destroy,     reset,
                                      update,        export_state, merge_state, compute};
    static const HostPluginItem item = {sizeof item, HOST_KIND_METRIC, &metric};
    static const HostPlugin plugin = {sizeof plugin, HOST_ABI_MAJOR, 0, 0, STR(ID), STR(VERSION), 1,
                                      &item};
    return &plugin;
}
