// my-plugin: two parameter groups by shape. Matrices and embeddings decay, vectors (biases and norms)
// do not.
//
// `make` builds it, `make test` tests it. host_plugin.h says on every function what it may do and on
// which thread. No exception may leave the plugin: `guarded` sees to it.

#include "host_plugin.h"
#include "settings.h"
#include <exception>
#include <new>
#include <optional>
#include <stdexcept>
#include <string_view>

#define ID "my-plugin"
#define VERSION "0.1.0"

// What the host reads from the file before it runs any of the code below. "config" is the JSON Schema of
// the settings.
__attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used)) static const char manifest[] =
    R"({"abi": [1, 0], "id": ")" ID R"(", "version": ")" VERSION R"(",
        "description": "Weight decay for matrices and embeddings, none for vectors",
        "kinds": ["param_groups"],
        "config": {"type": "object", "additionalProperties": false, "properties": {
            "weight_decay": {"type": "number", "minimum": 0,
                "description": "Weight decay of matrices and embeddings; the run's if absent"}}}})";

namespace {

HostStr str(std::string_view text) {
    return {reinterpret_cast<const uint8_t *>(text.data()), text.size()};
}

// Runs a call of the host's and makes an exception its error.
template <typename Call> HostStatus guarded(const HostApi *api, Call call) noexcept {
    try {
        call();
        return HOST_OK;
    } catch (const std::exception &error) {
        api->set_error(api->ctx, str(error.what()));
    } catch (...) {
        api->set_error(api->ctx, str("an exception of an unknown type"));
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
        // The last number is a multiplier of the learning rate.
        uint32_t decay, no_decay;
        check(out.add_group(out.ctx, str("decay"), weight_decay.value_or(request.weight_decay), 1.0, &decay));
        check(out.add_group(out.ctx, str("no_decay"), 0.0, 1.0, &no_decay));
        auto param = reinterpret_cast<const char *>(request.params);
        for (size_t i = 0; i < request.n_params; i++) {
            auto &known = *reinterpret_cast<const HostParam *>(param);
            check(out.assign(out.ctx, i, known.ndim >= 2 ? decay : no_decay));
            param += known.struct_size; // The host's build may know a longer struct than this one.
        }
    }

    const HostApi *const api;

private:
    std::optional<double> weight_decay; // The run's if absent.

    static void check(HostStatus status) {
        if (status != HOST_OK)
            throw std::runtime_error("the host refused a group or a parameter");
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
    // The symbol's name is the major version, and 1.0 is all that is used here.
    static const HostPluginItem item = {sizeof item, HOST_KIND_PARAM_GROUPS, &groups};
    static const HostPlugin plugin = {sizeof plugin, HOST_ABI_MAJOR, 0, 0, str(ID), str(VERSION), 1, &item};
    return &plugin;
}
