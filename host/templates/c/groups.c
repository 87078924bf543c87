// my-plugin: two parameter groups by shape. Matrices and embeddings decay, vectors (biases and norms)
// do not.
//
// `make` builds it, `make test` tests it. host_plugin.h says on every function what it may do and on
// which thread.

#include "host_plugin.h"
#include "settings.h"
#include <stdlib.h>
#include <string.h>

#define ID "my-plugin"
#define VERSION "0.1.0"
#define STR(literal) {(const uint8_t *)(literal), sizeof(literal) - 1}

// What the host reads from the file before it runs any of the code below. "config" is the JSON Schema of
// the settings.
__attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used)) static const char manifest[] =
    "{\"abi\": [1, 0], \"id\": \"" ID "\", \"version\": \"" VERSION "\","
    " \"description\": \"Weight decay for matrices and embeddings, none for vectors\","
    " \"kinds\": [\"param_groups\"],"
    " \"config\": {\"type\": \"object\", \"additionalProperties\": false, \"properties\": {"
    "   \"weight_decay\": {\"type\": \"number\", \"minimum\": 0,"
    "     \"description\": \"Weight decay of matrices and embeddings; the run's if absent\"}}}}";

typedef struct {
    const HostApi *api;
    bool has_weight_decay;
    double weight_decay;
} Grouper;

static HostStr str(const char *text) {
    return (HostStr){(const uint8_t *)text, strlen(text)};
}

static HostStatus fail(const Grouper *self, const char *why) {
    self->api->set_error(self->api->ctx, str(why));
    return HOST_ERROR;
}

static HostStatus create(const HostApi *api, HostStr config, void **instance) {
    Grouper *self = calloc(1, sizeof *self);
    if (!self)
        return HOST_ERROR;
    self->api = api;
    self->has_weight_decay = settings_number(config, "weight_decay", &self->weight_decay);
    *instance = self;
    return HOST_OK;
}

static void destroy(void *instance) { free(instance); }

static HostStatus group(void *instance, const HostGroupsRequest *request, const HostGroupsOut *out) {
    const Grouper *self = instance;
    double weight_decay = self->has_weight_decay ? self->weight_decay : request->weight_decay;
    uint32_t decay, no_decay;
    // The last number is a multiplier of the learning rate.
    if (out->add_group(out->ctx, str("decay"), weight_decay, 1.0, &decay) != HOST_OK ||
        out->add_group(out->ctx, str("no_decay"), 0.0, 1.0, &no_decay) != HOST_OK)
        return fail(self, "the host refused a group");
    const HostParam *param = request->params;
    for (size_t i = 0; i < request->n_params; i++) {
        if (out->assign(out->ctx, i, param->ndim >= 2 ? decay : no_decay) != HOST_OK)
            return fail(self, "the host refused a parameter");
        // The host's build may know a longer struct than this one.
        param = (const HostParam *)((const char *)param + param->struct_size);
    }
    return HOST_OK;
}

const HostPlugin *host_plugin_entry_v1(const HostApi *api) {
    (void)api; // The symbol's name is the major version, and 1.0 is all that is used here.
    static const HostParamGroups groups = {sizeof groups, 0, create, destroy, group};
    static const HostPluginItem item = {sizeof item, HOST_KIND_PARAM_GROUPS, &groups};
    static const HostPlugin plugin = {sizeof plugin, HOST_ABI_MAJOR, 0, 0, STR(ID), STR(VERSION), 1,
                                      &item};
    return &plugin;
}
