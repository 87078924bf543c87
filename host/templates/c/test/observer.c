#include "fake_host.h"

static HostStatus ask(void *ctx, uint32_t request, double factor, HostStr reason) {
    CHECK(request == HOST_REQUEST_STOP && factor == 0.0 && reason.len);
    ++*(int *)ctx;
    return HOST_OK;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    const HostObserver *observer = load(argv[1], HOST_KIND_OBSERVER);
    void *instance = NULL;
    CHECK(observer->create(&host, str("{\"metric\":\"accuracy\",\"target\":0.6}"), &instance) == HOST_OK);
    int asked = 0;
    HostRequestsOut out = {sizeof out, 0, &asked, ask};
    HostValue values[] = {{sizeof(HostValue), 0, str("lr"), 0.0},
                          {sizeof(HostValue), 0, str("accuracy"), 0.7}};
    HostEvent event = {.struct_size = sizeof event, .kind = HOST_EVENT_METRICS, .step = 100,
                       .values = values, .n_values = 2};
    CHECK(observer->observe(instance, &event, &out) == HOST_OK && asked == 0);
    values[1].value = 0.5;
    CHECK(observer->observe(instance, &event, &out) == HOST_OK && asked == 1);
    event.kind = 1000; // A kind that only a newer host sends.
    CHECK(observer->observe(instance, &event, &out) == HOST_OK && asked == 1);
    observer->destroy(instance);
    puts("ok");
    return 0;
}
