// my-plugin: two parameter groups by shape. Matrices and embeddings have weight decay; vectors (biases and
// norms) have none.
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

// The manifest. The host reads it from the library file before it runs any of the code below. "config" is the
// JSON Schema of the settings.
__attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used)) static const char manifest[] =
    "{\"abi\": [1, 0], \"id\": \"" ID "\", \"version\": \"" VERSION "\","
    " \"description\": \"Weight decay for matrices and embeddings, none for vectors\","
    " \"kinds\": [\"param_groups\"],"
    " \"config\": {\"type\": \"object\", \"additionalProperties\": false, \"properties\": {"
    "   \"weight_decay\": {\"type\": \"number\", \"minimum\": 0,"
    "     \"description\": \"Weight decay of matrices and embeddings; default: the weight decay of the run\"}}}}";

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
    // The 1.0 is the learning rate multiplier.
    if (out->add_group(out->ctx, str("decay"), weight_decay, 1.0, &decay) != HOST_OK ||
        out->add_group(out->ctx, str("no_decay"), 0.0, 1.0, &no_decay) != HOST_OK)
        return fail(self, "the host rejected a group");
    const HostParam *param = request->params;
    for (size_t i = 0; i < request->n_params; i++) {
        if (out->assign(out->ctx, i, param->ndim >= 2 ? decay : no_decay) != HOST_OK)
            return fail(self, "the host rejected a parameter");
        // A newer host can pass larger structs, so advance by struct_size.
        param = (const HostParam *)((const char *)param + param->struct_size);
    }
    return HOST_OK;
}

const HostPlugin *host_plugin_entry_v1(const HostApi *api) {
    (void)api; // No version check: the symbol implies the major version, and this plugin only needs 1.0.
    static const HostParamGroups groups = {sizeof groups, 0, create, destroy, group};
    static const HostPluginItem item = {sizeof item, HOST_KIND_PARAM_GROUPS, &groups};
    static const HostPlugin plugin = {sizeof plugin, HOST_ABI_MAJOR, 0, 0, STR(ID), STR(VERSION), 1,
                                      &item};
    return &plugin;
}
