#include "fake_host.h"

typedef struct {
    double weight_decay[4];
    uint32_t n_groups;
    uint32_t group_of[3];
} Grouping;

static HostStatus add_group(void *ctx, HostStr name, double weight_decay, double lr_multiplier,
                            uint32_t *group) {
    Grouping *grouping = ctx;
    CHECK(name.len && lr_multiplier == 1.0 && grouping->n_groups < 4);
    *group = grouping->n_groups++;
    grouping->weight_decay[*group] = weight_decay;
    return HOST_OK;
}

static HostStatus assign(void *ctx, size_t param, uint32_t group) {
    CHECK(param < 3);
    ((Grouping *)ctx)->group_of[param] = group;
    return HOST_OK;
}

static HostStatus warn(void *ctx, HostStr message) { return (void)ctx, (void)message, HOST_OK; }

int main(int argc, char **argv) {
    CHECK(argc == 2);
    const HostParamGroups *groups = load(argv[1], HOST_KIND_PARAM_GROUPS);
    void *instance = NULL;
    CHECK(groups->create(&host, str("{\"weight_decay\":0.2}"), &instance) == HOST_OK);
    int64_t shape[] = {64, 8};
    DLDataType f32 = {2, 32, 1};
    HostParam params[] = {{sizeof(HostParam), 0, str("wte.weight"), shape, 2, f32},
                          {sizeof(HostParam), 0, str("ln_f.weight"), shape, 1, f32},
                          {sizeof(HostParam), 0, str("c_fc.weight"), shape, 2, f32}};
    HostGroupsRequest request = {sizeof request, 0, params, 3, 0.1};
    Grouping grouping = {{0}, 0, {9, 9, 9}};
    HostGroupsOut out = {sizeof out, 0, &grouping, add_group, assign, warn};
    CHECK(groups->group(instance, &request, &out) == HOST_OK);
    for (int i = 0; i < 3; i++) {
        CHECK(grouping.group_of[i] < grouping.n_groups);
        CHECK(grouping.weight_decay[grouping.group_of[i]] == (i == 1 ? 0.0 : 0.2));
    }
    groups->destroy(instance);
    puts("ok");
    return 0;
}
