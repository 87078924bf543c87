// bits-per-byte: a metric in C. It measures how many bits the model needs per byte of the evaluation text.
// Unlike perplexity, it is comparable between models with different tokenizers.
//
// Build it in this folder and load it by its path:
//
//   cc -std=c11 -O2 -Wall -Wextra -fPIC -shared -fvisibility=hidden -I ../../../plugins/abi bits_per_byte.c -o libbits_per_byte.so
//   host plugin info ./libbits_per_byte.so
//   host run … --plugin ./libbits_per_byte.so

#include "host_plugin.h"
#include <stdlib.h>
#include <string.h>

#define ID "bits-per-byte"
#define VERSION "0.1.0"
#define STR(literal) {(const uint8_t *)(literal), sizeof(literal) - 1}

// The manifest. The host reads it from the library file before it runs any of the plugin's code.
__attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used)) static const char manifest[] =
    "{\"abi\": [1, 0], \"id\": \"" ID "\", \"version\": \"" VERSION "\","
    " \"description\": \"Bits per byte of the evaluation text\", \"kinds\": [\"metric\"],"
    " \"needs\": [\"loss_sum\", \"byte_count\"], \"devices\": [\"cpu\"]}";

typedef struct {
    const HostApi *api;
    long double nats; // Wider than the inputs, so that a sum over many batches loses no precision.
    int64_t bytes;
} BitsPerByte;

// The format of the state, for `export_state` and `merge_state`. x86-64 is little-endian.
typedef struct {
    uint64_t version;
    double nats;
    int64_t bytes;
} State;

static HostStatus fail(const BitsPerByte *self, HostStatus status, const char *why) {
    if (self->api->set_error)
        self->api->set_error(self->api->ctx, (HostStr){(const uint8_t *)why, strlen(why)});
    return status;
}

// Returns the address of a scalar in main memory, or null if the batch has no scalar of this name and type.
static const void *scalar(const HostBatch *batch, const char *name, uint8_t code) {
    const HostTensor *tensor = batch->tensors;
    for (size_t i = 0; i < batch->n_tensors; i++) {
        const DLTensor *dl = tensor->dl;
        if (tensor->name.len == strlen(name) && !memcmp(tensor->name.ptr, name, tensor->name.len))
            return dl->device.device_type == 1 && dl->ndim == 0 && dl->dtype.code == code &&
                           dl->dtype.bits == 64 && dl->dtype.lanes == 1
                       ? (const char *)dl->data + dl->byte_offset
                       : NULL;
        // A newer host's struct can be longer than the struct in this header.
        tensor = (const HostTensor *)((const char *)tensor + tensor->struct_size);
    }
    return NULL;
}

static HostStatus create(const HostApi *api, HostStr config, void **instance) {
    (void)config; // The manifest has no schema, so the host accepts no settings.
    BitsPerByte *self = calloc(1, sizeof *self);
    if (!self)
        return HOST_ERROR;
    self->api = api;
    *instance = self;
    return HOST_OK;
}

static void destroy(void *instance) { free(instance); }

static HostStatus reset(void *instance) {
    BitsPerByte *self = instance;
    self->nats = 0;
    self->bytes = 0;
    return HOST_OK;
}

static HostStatus update(void *instance, const HostBatch *batch) {
    BitsPerByte *self = instance;
    const void *nats = scalar(batch, "loss_sum", 2), *bytes = scalar(batch, "byte_count", 0);
    if (!nats || !bytes)
        return fail(self, HOST_UNSUPPORTED, "loss_sum (f64) or byte_count (i64) is missing");
    self->nats += *(const double *)nats;
    self->bytes += *(const int64_t *)bytes;
    return HOST_OK;
}

static HostStatus export_state(void *instance, const HostOut *out) {
    const BitsPerByte *self = instance;
    State state = {1, (double)self->nats, self->bytes};
    return out->put_bytes(out->ctx, (HostStr){(const uint8_t *)&state, sizeof state});
}

static HostStatus merge_state(void *instance, HostStr bytes) {
    BitsPerByte *self = instance;
    State state;
    if (bytes.len != sizeof state)
        return fail(self, HOST_ERROR, "the state does not have the 24 bytes of a bits-per-byte state");
    memcpy(&state, bytes.ptr, sizeof state);
    if (state.version != 1)
        return fail(self, HOST_UNSUPPORTED, "the state is from another version of bits-per-byte");
    self->nats += state.nats;
    self->bytes += state.bytes;
    return HOST_OK;
}

static HostStatus compute(void *instance, const HostOut *out) {
    const BitsPerByte *self = instance;
    const double ln_2 = 0.69314718055994530942;
    if (self->bytes <= 0)
        return fail(self, HOST_ERROR, "no text was evaluated");
    return out->put_f64(out->ctx, (HostStr)STR("bits_per_byte"),
                        (double)(self->nats / self->bytes / ln_2));
}

const HostPlugin *host_plugin_entry_v1(const HostApi *api) {
    (void)api; // Needs no version check: the symbol's name fixes ABI 1, and any minor version suffices.
    static const HostMetric metric = {sizeof metric, 0,      create,       destroy,     reset,
                                      update,        export_state, merge_state, compute};
    static const HostPluginItem item = {sizeof item, HOST_KIND_METRIC, &metric};
    static const HostPlugin plugin = {sizeof plugin, HOST_ABI_MAJOR, 0, 0, STR(ID), STR(VERSION), 1,
                                      &item};
    return &plugin;
}
