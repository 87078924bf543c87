// my-plugin: an observer that stops training when `metric` is at or below `target`.
//
// `make` builds it; `make test` tests it. The comments in host_plugin.h say what each function must do and on
// which thread it runs. Exceptions must not leave the plugin: `guarded` catches them.

#include "host_plugin.h"
#include "settings.h"
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

#define ID "my-plugin"
#define VERSION "0.1.0"

// The manifest. The host reads it from the library file before it runs any of the code below. "config" is the
// JSON Schema of the settings.
__attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used)) static const char manifest[] =
    R"({"abi": [1, 0], "id": ")" ID R"(", "version": ")" VERSION R"(",
        "description": "Stops training when a metric is at or below a target",
        "kinds": ["observer"], "events": ["metrics"],
        "config": {"type": "object", "additionalProperties": false, "properties": {
            "metric": {"type": "string", "minLength": 1, "maxLength": 200, "default": "loss/eval",
                "description": "Metric to compare with the target"},
            "target": {"type": "number", "default": 1.0,
                "description": "Training stops when the metric is at or below this value"}}}})";

namespace {

constexpr size_t longest_name = 200;

HostStr str(std::string_view text) {
    return {reinterpret_cast<const uint8_t *>(text.data()), text.size()};
}

std::string_view view(HostStr text) {
    return {reinterpret_cast<const char *>(text.ptr), text.len};
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

class Target {
public:
    Target(const HostApi *api, HostStr config) : api(api) {
        settings_number(config, "target", &target);
        SettingsText given;
        char name[longest_name + 1];
        if (settings_find(config, "metric", &given)) {
            if (!settings_string(config, "metric", name, sizeof name))
                throw std::runtime_error("the metric's name is too long");
            metric = name;
        }
    }

    // Training waits for this call, so keep it short.
    void observe(const HostEvent &event, const HostRequestsOut &out) {
        if (event.kind != HOST_EVENT_METRICS)
            return;
        auto value = reinterpret_cast<const char *>(event.values);
        for (size_t i = 0; i < event.n_values; i++) {
            auto &known = *reinterpret_cast<const HostValue *>(value);
            if (view(known.name) == metric && known.value <= target)
                return stop(known.value, out);
            value += known.struct_size; // A newer host can pass larger structs, so advance by struct_size.
        }
    }

    const HostApi *const api;

private:
    std::string metric = "loss/eval";
    double target = 1;

    void stop(double value, const HostRequestsOut &out) const {
        std::string reason(metric);
        reason += " is " + std::to_string(value) + ", the target is " + std::to_string(target);
        if (out.ask(out.ctx, HOST_REQUEST_STOP, 0.0, str(reason)) != HOST_OK)
            throw std::runtime_error("the host rejected the stop request");
    }
};

Target &self(void *instance) { return *static_cast<Target *>(instance); }

// The observer keeps no state between events, so it has none to export or import.
const HostObserver observer = {
    sizeof observer,
    0,
    [](const HostApi *api, HostStr config, void **instance) {
        return guarded(api, [&] { *instance = new Target(api, config); });
    },
    [](void *instance) { delete &self(instance); },
    [](void *instance, const HostEvent *event, const HostRequestsOut *out) {
        return guarded(self(instance).api, [&] { self(instance).observe(*event, *out); });
    },
    nullptr,
    nullptr,
};

} // namespace

const HostPlugin *host_plugin_entry_v1(const HostApi *) {
    // No version check: the symbol implies the major version, and this plugin only needs 1.0.
    static const HostPluginItem item = {sizeof item, HOST_KIND_OBSERVER, &observer};
    static const HostPlugin plugin = {sizeof plugin, HOST_ABI_MAJOR, 0, 0, str(ID), str(VERSION), 1, &item};
    return &plugin;
}
