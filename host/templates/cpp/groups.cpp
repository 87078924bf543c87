// my-plugin: two parameter groups by shape. Matrices and embeddings have weight decay; vectors (biases and
// norms) have none.
//
// `make` builds it; `make test` tests it. The comments in host_plugin.h say what each function must do and on
// which thread it runs. Exceptions must not leave the plugin: `guarded` catches them.

#include "host_plugin.h"
#include "settings.h"
#include <exception>
#include <new>
#include <optional>
#include <stdexcept>
#include <string_view>

#define ID "my-plugin"
#define VERSION "0.1.0"

// The manifest. The host reads it from the library file before it runs any of the code below. "config" is the
// JSON Schema of the settings.
__attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used)) static const char manifest[] =
    R"({"abi": [1, 0], "id": ")" ID R"(", "version": ")" VERSION R"(",
        "description": "Weight decay for matrices and embeddings, none for vectors",
        "kinds": ["param_groups"],
        "config": {"type": "object", "additionalProperties": false, "properties": {
            "weight_decay": {"type": "number", "minimum": 0,
                "description": "Weight decay of matrices and embeddings; default: the weight decay of the run"}}}})";

namespace {

HostStr str(std::string_view text) {
    return {reinterpret_cast<const uint8_t *>(text.data()), text.size()};
}

// Runs `call` and turns an exception into an error for the host.
template <typename Call> HostStatus guarded(const HostApi *api, Call call) noexcept {
    try {
        call();
        return HOST_OK;
    } catch (const std::exception &error) {
        api->set_error(api->ctx, str(error.what()));
    } catch (...) {
        api->set_error(api->ctx, str("unknown exception"));
    }
    return HOST_ERROR;
}

class ByShape {
public:
    ByShape(const HostApi *api, HostStr config) : api(api) {
        double given;
        if (settings_number(config, "weight_decay", &given))
            weight_decay = given;
    }

    void group(const HostGroupsRequest &request, const HostGroupsOut &out) {
        // The 1.0 is the learning rate multiplier.
        uint32_t decay, no_decay;
        check(out.add_group(out.ctx, str("decay"), weight_decay.value_or(request.weight_decay), 1.0, &decay));
        check(out.add_group(out.ctx, str("no_decay"), 0.0, 1.0, &no_decay));
        auto param = reinterpret_cast<const char *>(request.params);
        for (size_t i = 0; i < request.n_params; i++) {
            auto &known = *reinterpret_cast<const HostParam *>(param);
            check(out.assign(out.ctx, i, known.ndim >= 2 ? decay : no_decay));
            param += known.struct_size; // A newer host can pass larger structs, so advance by struct_size.
        }
    }

    const HostApi *const api;

private:
    std::optional<double> weight_decay; // If absent, the run's weight decay is used.

    static void check(HostStatus status) {
        if (status != HOST_OK)
            throw std::runtime_error("the host rejected a group or a parameter");
    }
};

ByShape &self(void *instance) { return *static_cast<ByShape *>(instance); }

const HostParamGroups groups = {
    sizeof groups,
    0,
    [](const HostApi *api, HostStr config, void **instance) {
        return guarded(api, [&] { *instance = new ByShape(api, config); });
    },
    [](void *instance) { delete &self(instance); },
    [](void *instance, const HostGroupsRequest *request, const HostGroupsOut *out) {
        return guarded(self(instance).api, [&] { self(instance).group(*request, *out); });
    },
};

} // namespace

const HostPlugin *host_plugin_entry_v1(const HostApi *) {
    // No version check: the symbol implies the major version, and this plugin only needs 1.0.
    static const HostPluginItem item = {sizeof item, HOST_KIND_PARAM_GROUPS, &groups};
    static const HostPlugin plugin = {sizeof plugin, HOST_ABI_MAJOR, 0, 0, str(ID), str(VERSION), 1, &item};
    return &plugin;
}
