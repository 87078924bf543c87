// my-plugin: an observer that ends the training once loss/eval is as low as TARGET.
//
// `make` builds it, `make test` tests it. host_plugin.h says on every function what it may do and on
// which thread.

#include "host_plugin.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ID "my-plugin"
#define VERSION "0.1.0"
#define STR(literal) {(const uint8_t *)(literal), sizeof(literal) - 1}
#define METRIC "loss/eval"
#define TARGET 1.0

// What the host reads from the file before it runs any of the code below. For settings add
// "config" with a JSON Schema; `create` then gets them as JSON.
__attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used)) static const char manifest[] =
    "{\"abi\": [1, 0], \"id\": \"" ID "\", \"version\": \"" VERSION "\","
    " \"description\": \"Ends the training once the loss is as low as a target\","
    " \"kinds\": [\"observer\"], \"events\": [\"metrics\"]}";

typedef struct {
    const HostApi *api;
} Observer;

static HostStr str(const char *text) {
    return (HostStr){(const uint8_t *)text, strlen(text)};
}

static HostStatus create(const HostApi *api, HostStr config, void **instance) {
    (void)config;
    Observer *self = calloc(1, sizeof *self);
    if (!self)
        return HOST_ERROR;
    self->api = api;
    *instance = self;
    return HOST_OK;
}

static void destroy(void *instance) { free(instance); }

// The training waits for it, so it does little.
static HostStatus observe(void *instance, const HostEvent *event, const HostRequestsOut *out) {
    const Observer *self = instance;
    if (event->kind != HOST_EVENT_METRICS)
        return HOST_OK;
    const HostValue *value = event->values;
    for (size_t i = 0; i < event->n_values; i++) {
        HostStr name = value->name;
        if (name.len == strlen(METRIC) && !memcmp(name.ptr, METRIC, name.len) &&
            value->value <= TARGET) {
            char reason[80];
            snprintf(reason, sizeof reason, METRIC " is %g, the target is %g", value->value, TARGET);
            if (out->ask(out->ctx, HOST_REQUEST_STOP, 0.0, str(reason)) == HOST_OK)
                return HOST_OK;
            self->api->set_error(self->api->ctx, str("the host refused to stop"));
            return HOST_ERROR;
        }
        // The host's build may know a longer struct than this one.
        value = (const HostValue *)((const char *)value + value->struct_size);
    }
    return HOST_OK;
}

const HostPlugin *host_plugin_entry_v1(const HostApi *api) {
    (void)api; // The symbol's name is the major version, and 1.0 is all that is used here.
    // What it knows is in the events, so it has no state to export or import.
    static const HostObserver observer = {sizeof observer, 0, create, destroy, observe, NULL, NULL};
    static const HostPluginItem item = {sizeof item, HOST_KIND_OBSERVER, &observer};
    static const HostPlugin plugin = {sizeof plugin, HOST_ABI_MAJOR, 0, 0, STR(ID), STR(VERSION), 1,
                                      &item};
    return &plugin;
}
