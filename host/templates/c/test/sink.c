#define _POSIX_C_SOURCE 200809L
#include "fake_host.h"
#include <unistd.h>

static HostStatus put_f64(void *ctx, HostStr name, double value) {
    return (void)ctx, (void)name, (void)value, HOST_ERROR;
}

static HostStatus put_bytes(void *ctx, HostStr bytes) {
    snprintf(ctx, 512, "%.*s", (int)bytes.len, (const char *)bytes.ptr);
    return HOST_OK;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    const HostCheckpointSink *sink = load(argv[1], HOST_KIND_CHECKPOINT_SINK);
    void *instance = NULL;
    CHECK(sink->create(&host, str("{}"), &instance) == HOST_OK);
    char dir[] = "/tmp/plugin-test-XXXXXX", file[64], expected[128], receipt[512], noted[64] = "";
    HostStr nowhere = str("/nowhere/step-000100");
    CHECK(mkdtemp(dir));
    snprintf(file, sizeof file, "%s/latest.txt", dir);
    snprintf(expected, sizeof expected, "{\"path\": \"%s\"}", file);
    HostCheckpoint checkpoint = {sizeof checkpoint, 0,        100,      str("demo"), str(dir),
                                 str("{}"),         str("{}"), str(dir)};
    HostOut out = {sizeof out, 0, receipt, put_f64, put_bytes};
    sink->cancel(instance); // No delivery is running. The call must not affect later deliveries.
    for (int again = 0; again < 2; again++) {
        CHECK(sink->publish(instance, &checkpoint, &out) == HOST_OK);
        CHECK(!strcmp(receipt, expected));
    }
    FILE *latest = fopen(file, "r");
    CHECK(latest && fgets(noted, sizeof noted, latest) && !fclose(latest));
    CHECK(!strncmp(noted, dir, strlen(dir)) && !strcmp(noted + strlen(dir), "\n"));
    checkpoint.dir = nowhere;
    CHECK(sink->publish(instance, &checkpoint, &out) == HOST_ERROR);
    CHECK(!remove(file) && !rmdir(dir));
    sink->destroy(instance);
    puts("ok");
    return 0;
}
