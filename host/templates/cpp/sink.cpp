// my-plugin: a sink that keeps the path of the newest checkpoint in latest.txt in its own folder of the
// run, for programs that want to find it.
//
// `make` builds it, `make test` tests it. host_plugin.h says on every function what it may do and on
// which thread. No exception may leave the plugin: `guarded` sees to it.

#include "host_plugin.h"
#include <atomic>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

#define ID "my-plugin"
#define VERSION "0.1.0"

// What the host reads from the file before it runs any of the code below. For settings add
// "config" with a JSON Schema; `create` then gets them as JSON, which settings.h reads.
__attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used)) static const char manifest[] =
    R"({"abi": [1, 0], "id": ")" ID R"(", "version": ")" VERSION R"(",
        "description": "Keeps the path of the newest checkpoint in a file",
        "kinds": ["checkpoint_sink"]})";

namespace {

HostStr str(std::string_view text) {
    return {reinterpret_cast<const uint8_t *>(text.data()), text.size()};
}

std::string_view view(HostStr text) {
    return {reinterpret_cast<const char *>(text.ptr), text.len};
}

// Runs a call of the host's and makes an exception its error. What a full disk or a lost network makes
// fail is temporary: the host tries again.
template <typename Call> HostStatus guarded(const HostApi *api, Call call) noexcept {
    try {
        return call();
    } catch (const std::system_error &error) {
        api->set_error(api->ctx, str(error.what()));
        return HOST_TEMPORARY;
    } catch (const std::exception &error) {
        api->set_error(api->ctx, str(error.what()));
    } catch (...) {
        api->set_error(api->ctx, str("an exception of an unknown type"));
    }
    return HOST_ERROR;
}

std::string json_string(std::string_view text) {
    std::string json = "\"";
    for (char c : text) {
        char escape[8];
        if (static_cast<unsigned char>(c) < 0x20) {
            std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
            json += escape;
        } else {
            if (c == '"' || c == '\\')
                json += '\\';
            json += c;
        }
    }
    return json + '"';
}

class Latest {
public:
    explicit Latest(const HostApi *api) : api(api) {}

    // It may block: it runs on a thread of its own. Delivering the same again changes nothing.
    HostStatus publish(const HostCheckpoint &checkpoint, const HostOut &out) {
        cancelled = false;
        // A receipt means that the checkpoint is there.
        if (!std::filesystem::is_directory(view(checkpoint.dir)))
            throw std::runtime_error("the checkpoint is not there");
        auto path = std::filesystem::path(view(checkpoint.state_dir)) / "latest.txt";
        auto partial = path;
        partial += ".partial";
        // A sink that works for long asks this again and again.
        if (cancelled)
            return HOST_CANCELLED;
        // By one rename, so that nobody reads half of it.
        std::ofstream file;
        file.exceptions(std::ios::failbit | std::ios::badbit);
        file.open(partial);
        file << view(checkpoint.dir) << '\n';
        file.close();
        std::filesystem::rename(partial, path);
        // The receipt: what lets a person find it.
        std::string receipt = "{\"path\": " + json_string(path.native()) + "}";
        return out.put_bytes(out.ctx, str(receipt));
    }

    const HostApi *const api;
    std::atomic<bool> cancelled{false}; // `cancel` comes from another thread.
};

Latest &self(void *instance) { return *static_cast<Latest *>(instance); }

const HostCheckpointSink sink = {
    sizeof sink,
    0,
    [](const HostApi *api, HostStr, void **instance) {
        return guarded(api, [&] { return *instance = new Latest(api), HOST_OK; });
    },
    [](void *instance) { delete &self(instance); },
    [](void *instance, const HostCheckpoint *checkpoint, const HostOut *out) {
        return guarded(self(instance).api, [&] { return self(instance).publish(*checkpoint, *out); });
    },
    [](void *instance) { self(instance).cancelled = true; },
    // No preflight: the folder is the run's own, and there is nothing to look at before the first step.
    nullptr,
    // No fetch: nothing is kept that could be brought back.
    nullptr,
};

} // namespace

const HostPlugin *host_plugin_entry_v1(const HostApi *) {
    // The symbol's name is the major version, and 1.0 is all that is used here.
    static const HostPluginItem item = {sizeof item, HOST_KIND_CHECKPOINT_SINK, &sink};
    static const HostPlugin plugin = {sizeof plugin, HOST_ABI_MAJOR, 0, 0, str(ID), str(VERSION), 1, &item};
    return &plugin;
}
