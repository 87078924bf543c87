// my-plugin: a sink that writes the path of the newest checkpoint to the file latest.txt, so that other
// programs can read it. The file is in the folder that the run keeps for this sink.
//
// `make` builds it; `make test` tests it. The comments in host_plugin.h say what each function must do and on
// which thread it runs.

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

// The manifest. The host reads it from the library file before it runs any of the code below. To add settings,
// add "config" with a JSON Schema; `create` then receives them as JSON, which settings.h reads.
__attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used)) static const char manifest[] =
    "{\"abi\": [1, 0], \"id\": \"" ID "\", \"version\": \"" VERSION "\","
    " \"description\": \"Writes the path of the newest checkpoint to a file\","
    " \"kinds\": [\"checkpoint_sink\"]}";

typedef struct {
    const HostApi *api;
    atomic_bool cancelled; // `cancel` is called on another thread.
} Sink;

static HostStr str(const char *text) {
    return (HostStr){(const uint8_t *)text, strlen(text)};
}

static HostStatus fail(const Sink *self, HostStatus status, const char *why) {
    self->api->set_error(self->api->ctx, str(why));
    return status;
}

// Writes `text` to `to` as a JSON string and returns the string's end. `to` must have room for six times
// the bytes of `text`, plus three.
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

// May block, because it runs on its own thread. Must be idempotent, because a checkpoint can be delivered
// again.
static HostStatus publish(void *instance, const HostCheckpoint *checkpoint, const HostOut *out) {
    Sink *self = instance;
    atomic_store(&self->cancelled, false);
    char path[LONGEST_PATH], partial[LONGEST_PATH + 8], receipt[6 * LONGEST_PATH + 16];
    HostStr dir = checkpoint->state_dir, from = checkpoint->dir;
    if (dir.len + sizeof "/latest.txt" > sizeof path || from.len + 1 > sizeof path)
        return fail(self, HOST_ERROR, "the path of a folder is too long");
    // A receipt promises that the checkpoint exists, so check first.
    struct stat folder;
    sprintf(path, "%.*s", (int)from.len, (const char *)from.ptr);
    if (stat(path, &folder))
        return fail(self, HOST_ERROR, "the checkpoint does not exist");
    sprintf(path, "%.*s/latest.txt", (int)dir.len, (const char *)dir.ptr);
    sprintf(partial, "%s.partial", path);
    // A slow sink should check this flag often.
    if (atomic_load(&self->cancelled))
        return fail(self, HOST_CANCELLED, "cancelled");
    // Write, then rename, so that readers never see half a file. A full disk is temporary: the host tries
    // again later.
    FILE *file = fopen(partial, "w");
    if (!file)
        return fail(self, HOST_TEMPORARY, "cannot write latest.txt");
    fwrite(checkpoint->dir.ptr, 1, checkpoint->dir.len, file);
    fputc('\n', file);
    int failed = ferror(file);
    if (fclose(file) || failed || rename(partial, path))
        return fail(self, HOST_TEMPORARY, "cannot write latest.txt");
    // The receipt tells a person where to find the result.
    char *end = json_string(receipt + sprintf(receipt, "{\"path\": "), path);
    strcpy(end, "}");
    return out->put_bytes(out->ctx, str(receipt));
}

static void cancel(void *instance) {
    Sink *self = instance;
    atomic_store(&self->cancelled, true);
}

const HostPlugin *host_plugin_entry_v1(const HostApi *api) {
    (void)api; // No version check: the symbol implies the major version, and this plugin only needs 1.0.
    // No preflight: the folder belongs to the run, so there is nothing to check before the first step. No
    // fetch: the sink keeps no copy of a checkpoint.
    static const HostCheckpointSink sink = {sizeof sink, 0,      create, destroy,
                                            publish,     cancel, NULL,   NULL};
    static const HostPluginItem item = {sizeof item, HOST_KIND_CHECKPOINT_SINK, &sink};
    static const HostPlugin plugin = {sizeof plugin, HOST_ABI_MAJOR, 0, 0, STR(ID), STR(VERSION), 1,
                                      &item};
    return &plugin;
}
