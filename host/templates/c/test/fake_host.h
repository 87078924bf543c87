// A fake host for the test. It loads the library like the real host and prints the plugin's log and errors.

#include "host_plugin.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The plugin's last error, which the next CHECK prints.
static char error_text[256];

static void print_error(const char *label) {
    if (*error_text)
        fprintf(stderr, "%s: %s\n", label, error_text);
    *error_text = 0;
}

// If the condition is false, prints its line and text and ends the test. If it is true, the test expected the
// plugin's error: it also makes calls that must fail.
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        bool holds = (condition);                                                                  \
        print_error(holds ? "expected error" : "error");                                           \
        if (!holds) {                                                                              \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static HostStr str(const char *text) {
    return (HostStr){(const uint8_t *)text, strlen(text)};
}

static bool is(HostStr view, const char *text) {
    return view.len == strlen(text) && !memcmp(view.ptr, text, view.len);
}

static bool log_enabled(void *ctx, int32_t level) { return (void)ctx, level <= HOST_LOG_INFO; }

static void log_line(void *ctx, int32_t level, HostStr target, HostStr message) {
    (void)ctx, (void)level;
    fprintf(stderr, "%.*s: %.*s\n", (int)target.len, (const char *)target.ptr, (int)message.len,
            (const char *)message.ptr);
}

static void set_error(void *ctx, HostStr message) {
    (void)ctx;
    snprintf(error_text, sizeof error_text, "%.*s", (int)message.len, (const char *)message.ptr);
}

static const void *get_extension(void *ctx, HostStr id) { return (void)ctx, (void)id, NULL; }

static const HostApi host = {sizeof host, HOST_ABI_MAJOR, HOST_ABI_MINOR, 0,
                             NULL,        log_enabled,    log_line,       set_error,
                             get_extension};

// Returns the function table of the plugin's only kind.
static const void *load(const char *path, uint32_t kind) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    HostPluginEntry entry = (HostPluginEntry)dlsym(library, HOST_PLUGIN_ENTRY_SYMBOL);
    CHECK(entry);
    const HostPlugin *plugin = entry(&host);
    CHECK(plugin && plugin->abi_major == HOST_ABI_MAJOR && is(plugin->id, "my-plugin"));
    CHECK(plugin->n_items == 1 && plugin->items[0].kind == kind);
    return plugin->items[0].vtable;
}
