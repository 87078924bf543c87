// my-plugin: a sink that writes the path of the newest checkpoint to the file latest.txt, so that other
// programs can read it. The file is in the folder that the run keeps for this sink.
//
// `make` builds it; `make test` tests it. The comments in host_plugin.h say what each function must do and on
// which thread it runs. Exceptions must not leave the plugin: `guarded` catches them.

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

// The manifest. The host reads it from the library file before it runs any of the code below. To add settings,
// add "config" with a JSON Schema; `create` then receives them as JSON, which settings.h reads.
__attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used)) static const char manifest[] =
    R"({"abi": [1, 0], "id": ")" ID R"(", "version": ")" VERSION R"(",
        "description": "Writes the path of the newest checkpoint to a file",
        "kinds": ["checkpoint_sink"]})";

namespace {

HostStr str(std::string_view text) {
    return {reinterpret_cast<const uint8_t *>(text.data()), text.size()};
}

std::string_view view(HostStr text) {
    return {reinterpret_cast<const char *>(text.ptr), text.len};
}

// Runs `call` and turns an exception into an error for the host. A system error, such as a full disk, is
// temporary: the host tries again later.
template <typename Call> HostStatus guarded(const HostApi *api, Call call) noexcept {
    try {
        return call();
    } catch (const std::system_error &error) {
        api->set_error(api->ctx, str(error.what()));
        return HOST_TEMPORARY;
    } catch (const std::exception &error) {
        api->set_error(api->ctx, str(error.what()));
    } catch (...) {
        api->set_error(api->ctx, str("unknown exception"));
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

    // May block, because it runs on its own thread. Must be idempotent, because a checkpoint can be delivered
    // again.
    HostStatus publish(const HostCheckpoint &checkpoint, const HostOut &out) {
        cancelled = false;
        // A receipt promises that the checkpoint exists, so check first.
        if (!std::filesystem::is_directory(view(checkpoint.dir)))
            throw std::runtime_error("the checkpoint does not exist");
        auto path = std::filesystem::path(view(checkpoint.state_dir)) / "latest.txt";
        auto partial = path;
        partial += ".partial";
        // A slow sink should check `cancelled` often.
        if (cancelled)
            return HOST_CANCELLED;
        // Write, then rename, so that readers never see half a file.
        std::ofstream file;
        file.exceptions(std::ios::failbit | std::ios::badbit);
        file.open(partial);
        file << view(checkpoint.dir) << '\n';
        file.close();
        std::filesystem::rename(partial, path);
        // The receipt tells a person where to find the result.
        std::string receipt = "{\"path\": " + json_string(path.native()) + "}";
        return out.put_bytes(out.ctx, str(receipt));
    }

    const HostApi *const api;
    std::atomic<bool> cancelled{false}; // `cancel` is called on another thread.
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
    // No preflight: the folder belongs to the run, so there is nothing to check before the first step.
    nullptr,
    // No fetch: the sink keeps no copy of a checkpoint.
    nullptr,
};

} // namespace

const HostPlugin *host_plugin_entry_v1(const HostApi *) {
    // No version check: the symbol implies the major version, and this plugin only needs 1.0.
    static const HostPluginItem item = {sizeof item, HOST_KIND_CHECKPOINT_SINK, &sink};
    static const HostPlugin plugin = {sizeof plugin, HOST_ABI_MAJOR, 0, 0, str(ID), str(VERSION), 1, &item};
    return &plugin;
}
