// my-plugin: an observer that stops training when `metric` is at or below `target`.
//
// `make` builds it; `make test` tests it. The comments in host_plugin.h say what each function must do and on
// which thread it runs.

#include "host_plugin.h"
#include "settings.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ID "my-plugin"
#define VERSION "0.1.0"
#define STR(literal) {(const uint8_t *)(literal), sizeof(literal) - 1}
#define LONGEST_NAME 200

// The manifest. The host reads it from the library file before it runs any of the code below. "config" is the
// JSON Schema of the settings.
__attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used)) static const char manifest[] =
    "{\"abi\": [1, 0], \"id\": \"" ID "\", \"version\": \"" VERSION "\","
    " \"description\": \"Stops training when a metric is at or below a target\","
    " \"kinds\": [\"observer\"], \"events\": [\"metrics\"],"
    " \"config\": {\"type\": \"object\", \"additionalProperties\": false, \"properties\": {"
    "   \"metric\": {\"type\": \"string\", \"minLength\": 1, \"maxLength\": 200, \"default\": \"loss/eval\","
    "     \"description\": \"Metric to compare with the target\"},"
    "   \"target\": {\"type\": \"number\", \"default\": 1.0,"
    "     \"description\": \"Training stops when the metric is at or below this value\"}}}}";

typedef struct {
    const HostApi *api;
    char metric[LONGEST_NAME + 1];
    double target;
} Observer;

static HostStr str(const char *text) {
    return (HostStr){(const uint8_t *)text, strlen(text)};
}

static HostStatus create(const HostApi *api, HostStr config, void **instance) {
    Observer *self = calloc(1, sizeof *self);
    if (!self)
        return HOST_ERROR;
    self->api = api;
    self->target = 1.0;
    settings_number(config, "target", &self->target);
    strcpy(self->metric, "loss/eval");
    SettingsText given;
    if (settings_find(config, "metric", &given) &&
        !settings_string(config, "metric", self->metric, sizeof self->metric)) {
        free(self);
        api->set_error(api->ctx, str("the metric's name is too long"));
        return HOST_ERROR;
    }
    *instance = self;
    return HOST_OK;
}

static void destroy(void *instance) { free(instance); }

// Training waits for this call, so keep it short.
static HostStatus observe(void *instance, const HostEvent *event, const HostRequestsOut *out) {
    const Observer *self = instance;
    if (event->kind != HOST_EVENT_METRICS)
        return HOST_OK;
    const HostValue *value = event->values;
    for (size_t i = 0; i < event->n_values; i++) {
        HostStr name = value->name;
        if (name.len == strlen(self->metric) && !memcmp(name.ptr, self->metric, name.len) &&
            value->value <= self->target) {
            char reason[LONGEST_NAME + 80];
            snprintf(reason, sizeof reason, "%s is %g, the target is %g", self->metric, value->value,
                     self->target);
            if (out->ask(out->ctx, HOST_REQUEST_STOP, 0.0, str(reason)) == HOST_OK)
                return HOST_OK;
            self->api->set_error(self->api->ctx, str("the host rejected the stop request"));
            return HOST_ERROR;
        }
        // A newer host can pass larger structs, so advance by struct_size.
        value = (const HostValue *)((const char *)value + value->struct_size);
    }
    return HOST_OK;
}

const HostPlugin *host_plugin_entry_v1(const HostApi *api) {
    (void)api; // No version check: the symbol implies the major version, and this plugin only needs 1.0.
    // The observer keeps no state between events, so it has none to export or import.
    static const HostObserver observer = {sizeof observer, 0, create, destroy, observe, NULL, NULL};
    static const HostPluginItem item = {sizeof item, HOST_KIND_OBSERVER, &observer};
    static const HostPlugin plugin = {sizeof plugin, HOST_ABI_MAJOR, 0, 0, STR(ID), STR(VERSION), 1,
                                      &item};
    return &plugin;
}
