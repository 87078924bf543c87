// my-plugin: a sink that keeps the path of the newest checkpoint in latest.txt in its own folder of the
// run, for programs that want to find it.
//
// `make` builds it, `make test` tests it. host_plugin.h says on every function what it may do and on
// which thread.

#define _POSIX_C_SOURCE 200809L // stat
#include "host_plugin.h"
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define ID "my-plugin"
#define VERSION "0.1.0"
#define STR(literal) {(const uint8_t *)(literal), sizeof(literal) - 1}
#define LONGEST_PATH 4096

// What the host reads from the file before it runs any of the code below. For settings add
// "config" with a JSON Schema; `create` then gets them as JSON, which settings.h reads.
__attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used)) static const char manifest[] =
    "{\"abi\": [1, 0], \"id\": \"" ID "\", \"version\": \"" VERSION "\","
    " \"description\": \"Keeps the path of the newest checkpoint in a file\","
    " \"kinds\": [\"checkpoint_sink\"]}";

typedef struct {
    const HostApi *api;
    atomic_bool cancelled; // `cancel` comes from another thread.
} Sink;

static HostStr str(const char *text) {
    return (HostStr){(const uint8_t *)text, strlen(text)};
}

static HostStatus fail(const Sink *self, HostStatus status, const char *why) {
    self->api->set_error(self->api->ctx, str(why));
    return status;
}

// Writes the text as a string of JSON; returns its end. `to` has six bytes for each of the text's, and
// three more.
static char *json_string(char *to, const char *text) {
    *to++ = '"';
    for (; *text; text++) {
        unsigned char byte = (unsigned char)*text;
        if (byte < 0x20)
            to += sprintf(to, "\\u%04x", byte);
        else {
            if (byte == '"' || byte == '\\')
                *to++ = '\\';
            *to++ = (char)byte;
        }
    }
    *to++ = '"';
    *to = 0;
    return to;
}

static HostStatus create(const HostApi *api, HostStr config, void **instance) {
    (void)config;
    Sink *self = calloc(1, sizeof *self);
    if (!self)
        return HOST_ERROR;
    self->api = api;
    *instance = self;
    return HOST_OK;
}

static void destroy(void *instance) { free(instance); }

// It may block: it runs on a thread of its own. Delivering the same again changes nothing.
static HostStatus publish(void *instance, const HostCheckpoint *checkpoint, const HostOut *out) {
    Sink *self = instance;
    atomic_store(&self->cancelled, false);
    char path[LONGEST_PATH], partial[LONGEST_PATH + 8], receipt[6 * LONGEST_PATH + 16];
    HostStr dir = checkpoint->state_dir, from = checkpoint->dir;
    if (dir.len + sizeof "/latest.txt" > sizeof path || from.len + 1 > sizeof path)
        return fail(self, HOST_ERROR, "a folder has too long a path");
    // A receipt means that the checkpoint is there.
    struct stat folder;
    sprintf(path, "%.*s", (int)from.len, (const char *)from.ptr);
    if (stat(path, &folder))
        return fail(self, HOST_ERROR, "the checkpoint is not there");
    sprintf(path, "%.*s/latest.txt", (int)dir.len, (const char *)dir.ptr);
    sprintf(partial, "%s.partial", path);
    // A sink that works for long asks this again and again.
    if (atomic_load(&self->cancelled))
        return fail(self, HOST_CANCELLED, "cancelled");
    // By one rename, so that nobody reads half of it. A full disk may pass: the host tries again.
    FILE *file = fopen(partial, "w");
    if (!file)
        return fail(self, HOST_TEMPORARY, "cannot write latest.txt");
    fwrite(checkpoint->dir.ptr, 1, checkpoint->dir.len, file);
    fputc('\n', file);
    int failed = ferror(file);
    if (fclose(file) || failed || rename(partial, path))
        return fail(self, HOST_TEMPORARY, "cannot write latest.txt");
    // The receipt: what lets a person find it.
    char *end = json_string(receipt + sprintf(receipt, "{\"path\": "), path);
    strcpy(end, "}");
    return out->put_bytes(out->ctx, str(receipt));
}

static void cancel(void *instance) {
    Sink *self = instance;
    atomic_store(&self->cancelled, true);
}

const HostPlugin *host_plugin_entry_v1(const HostApi *api) {
    (void)api; // The symbol's name is the major version, and 1.0 is all that is used here.
    // No preflight: the folder is the run's own, and there is nothing to look at before the first step. No
    // fetch: nothing is kept that could be brought back.
    static const HostCheckpointSink sink = {sizeof sink, 0,      create, destroy,
                                            publish,     cancel, NULL,   NULL};
    static const HostPluginItem item = {sizeof item, HOST_KIND_CHECKPOINT_SINK, &sink};
    static const HostPlugin plugin = {sizeof plugin, HOST_ABI_MAJOR, 0, 0, STR(ID), STR(VERSION), 1,
                                      &item};
    return &plugin;
}
