// my-plugin: a metric that returns the share of costly tokens. A token is costly if its loss is above
// `threshold` nats.
//
// `make` builds it; `make test` tests it. The comments in host_plugin.h say what each function must do and on
// which thread it runs. Exceptions must not leave the plugin: `guarded` catches them.

#include "host_plugin.h"
#include "settings.h"
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string_view>

#define ID "my-plugin"
#define VERSION "0.1.0"

// The manifest. The host reads it from the library file before it runs any of the code below. "config" is the
// JSON Schema of the settings.
__attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used)) static const char manifest[] =
    R"({"abi": [1, 0], "id": ")" ID R"(", "version": ")" VERSION R"(",
        "description": "Share of tokens whose loss is above a threshold",
        "kinds": ["metric"], "needs": ["nll"],
        "config": {"type": "object", "additionalProperties": false, "properties": {
            "threshold": {"type": "number", "default": 5.0,
                "description": "Number of nats above which a token counts as costly"}}}})";

namespace {

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
    } catch (const std::invalid_argument &error) {
        api->set_error(api->ctx, str(error.what()));
        return HOST_UNSUPPORTED; // A retry would not help.
    } catch (const std::exception &error) {
        api->set_error(api->ctx, str(error.what()));
    } catch (...) {
        api->set_error(api->ctx, str("unknown exception"));
    }
    return HOST_ERROR;
}

// Keeps counts, which can be merged exactly; a share cannot.
class CostlyTokens {
public:
    CostlyTokens(const HostApi *api, HostStr config) : api(api) {
        settings_number(config, "threshold", &threshold);
    }

    void reset() { counts = {}; }

    void update(const HostBatch &batch) {
        const DLTensor &nll = find(batch, "nll"); // (batch, time), in nats
        if (nll.device.device_type != 1 || nll.ndim != 2 || nll.dtype.code != 2 ||
            nll.dtype.bits != 32 || nll.dtype.lanes != 1)
            throw std::invalid_argument("nll is not an f32 matrix in main memory");
        auto first = reinterpret_cast<const float *>(static_cast<const char *>(nll.data) +
                                                     nll.byte_offset);
        for (int64_t i = 0; i < nll.shape[0]; i++)
            for (int64_t j = 0; j < nll.shape[1]; j++) {
                // Written so that NaN counts as costly.
                counts.costly += !(first[i * nll.strides[0] + j * nll.strides[1]] <= threshold);
                counts.tokens++;
            }
    }

    std::string_view state() const { return {reinterpret_cast<const char *>(&counts), sizeof counts}; }

    void merge(std::string_view state) {
        Counts other;
        if (state.size() != sizeof other)
            throw std::invalid_argument("the state does not have 24 bytes");
        std::memcpy(&other, state.data(), sizeof other);
        if (other.version != counts.version)
            throw std::invalid_argument("unsupported state version");
        counts.costly += other.costly;
        counts.tokens += other.tokens;
    }

    double value() const {
        if (!counts.tokens)
            throw std::runtime_error("no tokens were evaluated");
        return static_cast<double>(counts.costly) / static_cast<double>(counts.tokens);
    }

    const HostApi *const api;

private:
    double threshold = 5;

    static const DLTensor &find(const HostBatch &batch, std::string_view name) {
        auto tensor = reinterpret_cast<const char *>(batch.tensors);
        for (size_t i = 0; i < batch.n_tensors; i++) {
            auto &known = *reinterpret_cast<const HostTensor *>(tensor);
            if (view(known.name) == name)
                return *known.dl;
            tensor += known.struct_size; // A newer host can pass larger structs, so advance by struct_size.
        }
        throw std::invalid_argument("the host did not pass an input that the manifest needs");
    }

    struct Counts {
        uint64_t version = 1, costly = 0, tokens = 0;
    } counts;
};

CostlyTokens &self(void *instance) { return *static_cast<CostlyTokens *>(instance); }

const HostMetric metric = {
    sizeof metric,
    0,
    [](const HostApi *api, HostStr config, void **instance) {
        return guarded(api, [&] { *instance = new CostlyTokens(api, config); });
    },
    [](void *instance) { delete &self(instance); },
    [](void *instance) { return guarded(self(instance).api, [&] { self(instance).reset(); }); },
    [](void *instance, const HostBatch *batch) {
        return guarded(self(instance).api, [&] { self(instance).update(*batch); });
    },
    [](void *instance, const HostOut *out) {
        return out->put_bytes(out->ctx, str(self(instance).state()));
    },
    [](void *instance, HostStr state) {
        return guarded(self(instance).api, [&] { self(instance).merge(view(state)); });
    },
    [](void *instance, const HostOut *out) {
        return guarded(self(instance).api, [&] {
            if (out->put_f64(out->ctx, str("my_plugin"), self(instance).value()) != HOST_OK)
                throw std::runtime_error("the host rejected the value");
        });
    },
};

} // namespace

const HostPlugin *host_plugin_entry_v1(const HostApi *) {
    // No version check: the symbol implies the major version, and this plugin only needs 1.0.
    static const HostPluginItem item = {sizeof item, HOST_KIND_METRIC, &metric};
    static const HostPlugin plugin = {sizeof plugin, HOST_ABI_MAJOR, 0, 0, str(ID), str(VERSION), 1, &item};
    return &plugin;
}
